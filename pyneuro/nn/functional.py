# SPDX-License-Identifier: BSD-3-Clause
"""Layers, activations and losses as functions, with torch's names and arguments. Activations come from the op table."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from inspect import Parameter, Signature
from typing import Any

import numpy as np

from .. import random
from ..kernels import DtypeError, ShapeError
from ..ops import OPS, Op, broadcast_shape, promote_types
from ..tensor import Tensor, apply, as_tensor, matmul, wrap, zeros

_INT64 = np.dtype(np.int64)
REDUCTIONS = ("none", "mean", "sum")
_NO_BIAS = {np.dtype(t): wrap(np.broadcast_to(np.array(-0.0, t), 1)) for t in ("float32", "float64")}  # x + -0.0 is x


_DENSE = {op.name.removeprefix("dense_"): (op, tuple(v for _, v in op.params)) for op in OPS.values() if op.kind == "dense"}


# Layers


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input [..., in] times weight [out, in] transposed, plus bias [out]."""
    return dense(input, weight, bias, "identity")


def dense(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "identity",
          *params: float) -> Tensor:
    """activation(linear(input, weight, bias)) in one pass over memory. params: those of the activation, by position.

    Raises ShapeError, DtypeError, ValueError for an unknown activation.
    """
    op, defaults = _DENSE.get(activation, (None, ()))
    if op is None:
        raise ValueError(f"{activation!r} is not an activation; choose from {', '.join(activation_names())}")
    if not isinstance(input, Tensor):
        raise TypeError(f"dense takes a tensor, got {type(input).__name__}; pn.from_numpy or pn.tensor make one")
    w = weight.array
    if input.array.dtype != w.dtype or (bias is not None and bias.array.dtype != w.dtype):
        raise DtypeError(
            f"dense takes input, weight and bias of one dtype, given {input.dtype} and {weight.dtype}"
            + (f" and {bias.dtype}" if bias is not None else "")
            + "; convert with .to()"
        )
    if w.ndim == 1:
        return matmul(input, weight) if bias is None else matmul(input, weight) + bias
    if bias is None:
        no_bias = _NO_BIAS.get(weight.dtype)
        if no_bias is None:
            return matmul(input, weight.mT)
        bias = no_bias.expand(weight.shape[0])
    return apply(op, (input, weight, bias), tuple(map(float, params)) if params else defaults)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability p and divide the others by 1 - p; the identity when not training."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout takes a probability between 0 and 1, got {p}")
    if not training or p == 0:
        return input
    y = input._float("dropout")._op("dropout", attrs=(float(p), random.default_generator.next_key()))
    return input._overwrite(y) if inplace else y


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """e^x / sum e^x along dim."""
    return input.softmax(_implicit_dim(input, dim, "softmax"), dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """x - ln sum e^x along dim: never overflows for finite x."""
    return input.log_softmax(_implicit_dim(input, dim, "log_softmax"), dtype)


def _implicit_dim(input: Tensor, dim: int | None, name: str) -> int:
    if dim is not None:
        return dim
    warnings.warn(f"{name} without dim guesses it; give dim=", stacklevel=3)
    return 0 if input.ndim in (0, 1, 3) else 1


# Activations: one function for each row that has a module name


def activation_names() -> list[str]:
    return [op.name for op in OPS.values() if op.kind == "activation"]


def _function(op: Op) -> Callable:
    method = getattr(Tensor, op.name)

    def plain(input: Tensor, inplace: bool = False) -> Tensor:
        return with_parameters(input, inplace=True) if inplace else method(input)

    def with_parameters(input: Tensor, *args: float, inplace: bool = False, **named: float) -> Tensor:
        if inplace:
            input._check_writable()
        y = method(input._before() if inplace else input, *args, **named)
        return input._overwrite(y) if inplace else y

    function: Callable = with_parameters if op.params else plain

    names = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=value) for name, value in op.params]
    function.__name__ = function.__qualname__ = op.name
    function.__doc__ = op.formula
    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter("input", Parameter.POSITIONAL_OR_KEYWORD),
            *names,
            Parameter("inplace", Parameter.KEYWORD_ONLY if names else Parameter.POSITIONAL_OR_KEYWORD, default=False),
        ]
    )
    return function


for _op in OPS.values():
    if _op.kind == "activation":
        globals()[_op.name] = _function(_op)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x); approximate="tanh" is the older formula with tanh."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu takes approximate='none' or 'tanh', got {approximate!r}")
    return input._op("gelu" if approximate == "none" else "gelu_tanh")


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """1 at each class number of a new last axis, else 0. num_classes = -1: one more than the largest number."""
    if tensor.dtype != _INT64:
        raise DtypeError(f"one_hot takes int64 class numbers, not {tensor.dtype}")
    if num_classes == -1:
        if not tensor.numel():
            raise ValueError("one_hot of no numbers takes num_classes")
        num_classes = int(tensor.max().item()) + 1
    if num_classes < 1:
        raise ValueError(f"one_hot takes a positive num_classes, got {num_classes}")
    return zeros(*tensor.shape, num_classes, dtype=_INT64).scatter(-1, tensor.unsqueeze(-1), 1)


# Losses


def _reduction(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The word, or what torch's two deprecated flags say instead."""
    if size_average is not None or reduce is not None:
        return "none" if reduce is False else "sum" if size_average is False else "mean"
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a reduction; choose from {', '.join(REDUCTIONS)}")
    return reduction


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


def _pairs(name: str, input: Tensor, target: Tensor, reduction: str, weight: Tensor | None, *attrs: float) -> Tensor:
    """A loss of pairs; shapes that differ broadcast, with a warning, since that is rarely meant."""
    target = as_tensor(target)
    if input.shape != target.shape:
        shape = broadcast_shape(input.shape, target.shape)
        warnings.warn(
            f"{name}: input of shape {list(input.shape)} and target of shape {list(target.shape)} broadcast to {list(shape)}, "
            "which is rarely what is meant",
            stacklevel=3,
        )
        input, target = input.expand(shape), target.expand(shape)
    if input.dtype != target.dtype:
        dtype = promote_types(input.dtype, target.dtype)
        input, target = input.to(dtype), target.to(dtype)
    losses = input._float(name)._op(name, target, attrs=attrs)
    if weight is None:
        return _reduced(losses, reduction)
    losses = losses * weight
    return losses.sum() / weight.expand(losses.shape).sum() if reduction == "mean" else _reduced(losses, reduction)


def mse_loss(input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
             reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """(input - target)^2."""
    return _pairs("mse", input, target, _reduction(reduction, size_average, reduce), weight)


def l1_loss(input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
            reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """|input - target|."""
    return _pairs("l1", input, target, _reduction(reduction, size_average, reduce), weight)


def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0,
               weight: Tensor | None = None) -> Tensor:
    """Half the squared error within delta, linear beyond."""
    if delta <= 0:
        raise ValueError(f"huber_loss takes delta > 0, got {delta}")
    return _pairs("huber", input, target, _reduction(reduction, None, None), weight, float(delta))


def binary_cross_entropy_with_logits(input: Tensor, target: Tensor, weight: Tensor | None = None,
                                     size_average: bool | None = None, reduce: bool | None = None,
                                     reduction: str = "mean", pos_weight: Tensor | None = None) -> Tensor:
    """-t ln sigmoid(x) - (1 - t) ln(1 - sigmoid(x)), stable for any x. pos_weight multiplies the first term."""
    word = _reduction(reduction, size_average, reduce)
    target = as_tensor(target)
    if input.shape != target.shape:
        raise ShapeError(f"target of shape {list(target.shape)} must have the shape of input, {list(input.shape)}")
    target = target.to(input.dtype)
    if pos_weight is None:
        losses = input._float("bce_with_logits")._op("bce_with_logits", target)
    else:
        losses = (1 - target) * input + (1 + (pos_weight - 1) * target) * (-input).softplus(1.0, np.inf)
    return _reduced(losses if weight is None else losses * weight, word)


def cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
                  ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean",
                  label_smoothing: float = 0.0) -> Tensor:
    """-ln softmax(input)[target]. input [classes], [rows, classes] or [rows, classes, ...]; target int64 class numbers of
    the same shape without the classes, or probabilities of the same shape as input.

    weight: one number a class; "mean" divides by the weights of the rows counted. Raises IndexError for a class number out
    of range, ShapeError, DtypeError, ValueError.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    word = _reduction(reduction, size_average, reduce)
    input._float("cross_entropy")
    if input.ndim == 0:
        raise ShapeError("cross_entropy takes logits with an axis of classes, got a 0-d tensor")
    if isinstance(target, Tensor) and target.is_floating_point():
        return _soft_cross_entropy(input, target, weight, word, label_smoothing)
    return _by_class("cross_entropy", input, target, weight, (float(ignore_index), float(label_smoothing), word))


def nll_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
             ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """-input[target], input being log-probabilities; shapes, weight and errors as in cross_entropy."""
    word = _reduction(reduction, size_average, reduce)
    return _by_class("nll", input._float("nll_loss"), target, weight, (float(ignore_index), word))


@lru_cache(maxsize=64)
def _ones(count: int, dtype: np.dtype) -> Tensor:
    return wrap(np.broadcast_to(np.ones((), dtype), count))


def _by_class(name: str, input: Tensor, target: Tensor, weight: Tensor | None, attrs: tuple) -> Tensor:
    """A loss against class numbers, with the classes moved last and everything else made rows."""
    shape = input.shape
    wanted = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == np.bool_:
        given = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise DtypeError(f"{name}: target must be a tensor of int64 class numbers, not {given}")
    if target.shape != wanted:
        raise ShapeError(
            f"{name}: target of shape {list(target.shape)} does not fit input of shape {list(shape)}; it must be {list(wanted)}"
        )
    classes = shape[1] if len(shape) > 1 else shape[0]
    if weight is None:
        weight = _ones(classes, input.dtype)
    elif weight.shape != (classes,) or weight.dtype != input.dtype:
        raise ShapeError(
            f"{name}: weight must be {classes} numbers of {input.dtype}, one a class; got {list(weight.shape)} of {weight.dtype}"
        )
    rows = input
    if len(shape) > 2:
        rows = input.permute((0, *range(2, len(shape)), 1))
    rows = rows if rows.ndim == 2 else rows.reshape((target.numel(), classes))
    labels = target if target.array.dtype == _INT64 else target.to(_INT64)
    loss = rows._op(name, labels if labels.array.ndim == 1 else labels.reshape((target.numel(),)),
                    weight.detach() if weight.needs_grad else weight, attrs=attrs)
    return loss.reshape(wanted) if attrs[-1] == "none" and loss.shape != wanted else loss


def _soft_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, word: str, smoothing: float) -> Tensor:
    if target.shape != input.shape:
        raise ShapeError(
            f"cross_entropy: probabilities of shape {list(target.shape)} must have the shape of input, {list(input.shape)}; "
            "class numbers must be int64"
        )
    dim = 1 if input.ndim > 1 else 0
    classes = input.shape[dim]
    target = target.to(input.dtype)
    if smoothing:
        target = target * (1 - smoothing) + smoothing / classes
    terms = target * input.log_softmax(dim)
    if weight is not None:
        terms = terms * weight.reshape((-1,) + (1,) * (input.ndim - 2)) if input.ndim > 1 else terms * weight
    losses = -terms.sum(dim)
    return losses.sum() / max(losses.numel(), 1) if word == "mean" else _reduced(losses, word)
