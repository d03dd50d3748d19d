# SPDX-License-Identifier: BSD-3-Clause
"""Gradients against finite differences, with torch's arguments and defaults."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..graph import enable_grad, grad, no_grad
from ..tensor import Tensor

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck"]


class GradcheckError(RuntimeError):
    """A gradient is not what finite differences say."""


def _outputs(result: Any) -> list:
    outputs = result if isinstance(result, (tuple, list)) else (result,)
    return [y for y in outputs if isinstance(y, Tensor) and y.is_floating_point()]


def _numerical(func: Callable, inputs: tuple, x: Tensor, eps: float) -> list:
    """Of every output d(output)/d(x), as matrices with a row for each element of x."""
    array = x.array                                    # written below the graph: nothing that func saves is compared
    rows: list[list] = []
    with no_grad():
        for at in np.ndindex(x.shape):
            kept, ends = array[at], []
            for shift in (eps, -eps):
                array[at] = kept + shift
                ends.append([y.array.astype(np.float64).ravel() for y in _outputs(func(*inputs))])
            array[at] = kept
            rows.append([(a - b) / (2 * eps) for a, b in zip(*ends)])
    return [np.array(column).reshape(x.numel(), -1) for column in zip(*rows)] if rows else []


def _analytical(y: Tensor, x: Tensor) -> np.ndarray:
    columns = []
    for i in range(y.numel()):
        unit = y._full((y.numel(),), 0.0)
        unit.array[i] = 1
        g, = grad(y, x, unit.reshape(y.shape), retain_graph=True, allow_unused=True, materialize_grads=True)
        columns.append(g.detach().array.astype(np.float64).ravel())
    return np.array(columns).reshape(y.numel(), x.numel()).T


def gradcheck(func: Callable, inputs: Any, *, eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3,
              raise_exception: bool = True, nondet_tol: float = 0.0, check_undefined_grad: bool = True,
              check_grad_dtypes: bool = False, check_batched_grad: bool = False,
              check_batched_forward_grad: bool = False, check_forward_ad: bool = False, check_backward_ad: bool = True,
              fast_mode: bool = False, masked: bool | None = None) -> bool:
    """Whether |analytical - numerical| <= atol + rtol |numerical| for d(output)/d(input) of every input that requires grad.

    Central differences of step eps are good to about 1e-9 in float64; in float32 they are not good at all. Raises
    GradcheckError, or returns False without raise_exception.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [(i, x) for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise ValueError("gradcheck takes at least one input that requires grad")
    for i, x in checked:
        if x.dtype != np.float64:
            warnings.warn(f"gradcheck: input {i} is {x.dtype}, too coarse for finite differences; use float64", stacklevel=2)
        if x.numel() > 1 and 0 in x.stride():
            raise RuntimeError(f"gradcheck: input {i} repeats its elements in memory (expand); pass a copy")
    try:
        with enable_grad():
            outputs = _outputs(func(*inputs))
            again = _outputs(func(*inputs))
            if any(not np.allclose(a.detach().array, b.detach().array, 0, nondet_tol, True) for a, b in zip(outputs, again)):
                raise GradcheckError("func gives another value when it is called again with the same inputs")
            if not any(y.requires_grad for y in outputs):
                raise ValueError("gradcheck: no output requires grad")
            for i, x in checked:
                expected = _numerical(func, inputs, x, eps)
                for j, y in enumerate(outputs):
                    if not x.numel() or not y.numel():
                        continue
                    got = _analytical(y, x) if y.requires_grad else np.zeros((x.numel(), y.numel()))
                    if not np.allclose(got, expected[j], rtol, atol, equal_nan=True):
                        raise GradcheckError(f"the gradient of output {j} along input {i} is not what differences say\n"
                                             f"numerical:\n{expected[j]}\nanalytical:\n{got}")
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(func: Callable, inputs: Any, grad_outputs: Any = None, *, eps: float = 1e-6, atol: float = 1e-5,
                  rtol: float = 1e-3, gen_non_contig_grad_outputs: bool = False, raise_exception: bool = True,
                  nondet_tol: float = 0.0, check_undefined_grad: bool = True, check_grad_dtypes: bool = False,
                  check_batched_grad: bool = False, check_fwd_over_rev: bool = False, check_rev_over_rev: bool = True,
                  fast_mode: bool = False, masked: bool = False) -> bool:
    """gradcheck of the gradient, along the inputs and along grad_outputs, which are random where none are given."""
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if grad_outputs is None:
        rng = np.random.default_rng(0)
        with enable_grad():
            made = [y._wrap(rng.uniform(-1, 1, y.shape).astype(y.dtype)) for y in _outputs(func(*inputs)) if y.requires_grad]
        weights = tuple(g.requires_grad_() for g in made)
    else:
        weights = (grad_outputs,) if isinstance(grad_outputs, Tensor) else tuple(grad_outputs)
    count = len(weights)

    def slope(*args: Any) -> tuple:
        xs, gs = args[:len(args) - count], args[len(args) - count:]
        with enable_grad():
            wanted = [x for x in xs if isinstance(x, Tensor) and x.requires_grad]
            outputs = [y for y in _outputs(func(*xs)) if y.requires_grad]
            found = grad(outputs, wanted, list(gs), create_graph=True, allow_unused=True)
        return tuple(g for g in found if g is not None)

    return gradcheck(slope, (*inputs, *weights), eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception,
                     nondet_tol=nondet_tol)
