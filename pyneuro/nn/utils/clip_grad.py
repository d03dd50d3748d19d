# SPDX-License-Identifier: BSD-3-Clause
"""Clipping of gradients. Made of kernels alone, so that a recorded step can clip: no number is looked at in Python."""

import math
import types
import warnings
from collections.abc import Iterable
from typing import Any

from ...autograd import no_grad
from ...tensor import Tensor, cat, zeros


def _listed(tensors: Any) -> list[Any]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _gradients(parameters: Any) -> list[Any]:
    return [p.grad.detach() for p in _listed(parameters) if p.grad is not None]


def _powers(x: Any, norm_type: float) -> Any:
    """The sum of |x|^norm_type, or what stands for it at 0 and infinity: one element."""
    if norm_type == 2:
        return (x * x).sum()
    if math.isinf(norm_type):
        return x.abs().max() if norm_type > 0 else x.abs().min()
    if norm_type == 0:
        return (x != 0).to(x.dtype).sum()
    return x.abs().sum() if norm_type == 1 else x.abs().pow(norm_type).sum()


@no_grad
def get_total_norm(tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False,
                   foreach: bool | None = None) -> Any:
    """The norm of all elements of the tensors, as if they were one vector; a tensor of one element.

    error_if_nonfinite: raise RuntimeError where it is infinite or NaN, which looks at it.
    """
    norm_type = float(norm_type)
    parts = [t.detach() for t in _listed(tensors)]
    if not parts:
        return zeros(())
    each = [_powers(x, norm_type).reshape(1) for x in parts]
    if norm_type == 0:                                  # torch's: of each the number of elements, of those the number
        each = [(n != 0).to(n.dtype) for n in each]
    all_of_them = cat(each)
    if norm_type == 2:
        norm = all_of_them.sum().sqrt()
    elif math.isinf(norm_type):
        norm = all_of_them.max() if norm_type > 0 else all_of_them.min()
    else:
        norm = all_of_them.sum() if norm_type in (0, 1) else all_of_them.sum().pow(1 / norm_type)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError(f"the total norm of order {norm_type:g} is {norm.item()}, so it cannot be clipped to; "
                           "error_if_nonfinite=False scales by it all the same")
    return norm


@no_grad
def clip_grads_with_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, total_norm: Tensor,
                          foreach: bool | None = None) -> None:
    """Multiply the gradients by max_norm / total_norm, if that is less than 1."""
    gradients = _gradients(parameters)
    if not gradients:
        return
    share = (float(max_norm) / (total_norm + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(share.to(g.dtype))


@no_grad
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0,
                    error_if_nonfinite: bool = False, foreach: bool | None = None) -> Any:
    """Scale the gradients down so that their norm, taken together, is at most max_norm; return what it was."""
    drawn = isinstance(parameters, types.GeneratorType)
    listed = _listed(parameters)
    if drawn and not listed:
        warnings.warn("clip_grad_norm_ got a generator that yields nothing (is it used up?): no gradient is clipped",
                      stacklevel=3)
    norm = get_total_norm(_gradients(listed), norm_type, error_if_nonfinite, foreach)
    clip_grads_with_norm_(listed, max_norm, norm, foreach)
    return norm


@no_grad
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Clamp every element of the gradients to [-clip_value, clip_value]."""
    bound = float(clip_value)
    for g in _gradients(parameters):
        g.clamp_(-bound, bound)
