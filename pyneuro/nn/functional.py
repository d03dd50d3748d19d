# SPDX-License-Identifier: BSD-3-Clause
"""Layers, activations and losses as functions, with torch's names and arguments. Activations come from the op table."""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from inspect import Parameter, Signature, signature
from typing import Any

import numpy as np

from .. import random
from ..autograd import no_grad
from ..functions import cosine_similarity as cosine_similarity
from ..functions import pairwise_distance as pairwise_distance
from ..kernels import DtypeError, ShapeError, run
from ..ops import OPS, Op, broadcast_shape, promote_types
from ..tensor import Tensor, apply, arange, as_tensor, cat, full, matmul, stack, wrap, zeros

_INT64 = np.dtype(np.int64)
_SELU_LIMIT = 1.7580993408473766            # -selu(-inf)
REDUCTIONS = ("none", "mean", "sum")
_NO_BIAS = {np.dtype(t): wrap(np.broadcast_to(np.array(-0.0, t), 1)) for t in ("float32", "float64")}  # x + -0.0 is x


_DENSE = {op.name.removeprefix("dense_"): (op, tuple([v for _, v in op.params if v is not None]))
          for op in OPS.values() if op.kind == "dense"}


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
    if op is None and activation in activation_names():
        return globals()[activation](linear(input, weight, bias), *params)
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
    return apply(op, (input, weight, bias), (*map(float, params), *defaults[len(params):]))


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability p and divide the others by 1 - p; the identity when not training."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout takes a probability between 0 and 1, got {p}")
    if not training or p == 0:
        return input
    y = input._float("dropout")._op("dropout", attrs=(float(p), random.default_generator.next_key()))
    return input._overwrite(y) if inplace else y


def _mask(input: Tensor, shape: tuple[int, ...], p: float, name: str) -> Tensor:
    """0 with probability p and 1 / (1 - p) otherwise, for every element of shape."""
    return input._float(name)._full(shape, 1.0)._op("dropout", attrs=(float(p), random.default_generator.next_key()))


def _channels(input: Tensor, name: str, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a mask with one element for each channel: input is [N, C, ...], or [C, ...] where rank allows it."""
    if input.ndim not in ranks:
        raise ShapeError(f"{name} takes a tensor of {' or '.join(map(str, ranks))} axes, given {list(input.shape)}")
    lead = 2 if input.ndim == ranks[-1] else 1
    return input.shape[:lead] + (1,) * (input.ndim - lead)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels: input [N, C, L] or [C, L]."""
    return _dropped(input, p, training, inplace, "dropout1d", False, _channels(input, "dropout1d", (2, 3)))


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Elements set to selu's lower limit with probability p, then scaled and shifted so that mean 0 and variance 1 are kept."""
    return _dropped(input, p, training, inplace, "alpha_dropout", True, input.shape)


def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """alpha_dropout of whole channels: input [N, C, ...]."""
    if input.ndim < 2:
        raise ShapeError(f"feature_alpha_dropout takes a tensor of at least 2 axes, given {list(input.shape)}")
    return _dropped(input, p, training, inplace, "feature_alpha_dropout", True, input.shape[:2] + (1,) * (input.ndim - 2))


def _dropped(input: Tensor, p: float, training: bool, inplace: bool, name: str, alpha: bool, shape: tuple[int, ...]) -> Tensor:
    if not 0 <= p <= 1:
        raise ValueError(f"{name} takes a probability between 0 and 1, got {p}")
    if not training or p == 0:
        return input
    mask = _mask(input, shape, p, name)
    if alpha and p < 1:
        scale = 1 / math.sqrt((_SELU_LIMIT**2 * p + 1) * (1 - p))
        kept = mask * (1 - p)
        y = input * (kept * scale) + (kept - 1 + p) * (_SELU_LIMIT * scale)
    else:
        y = input * mask
    return input._overwrite(y) if inplace else y


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
              norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False) -> Tensor:
    """Rows of weight [rows, width] by number: the shape of input, and width.

    padding_idx: the row that gets no gradient. max_norm: rows that are looked up and longer by the norm_type norm are
    shortened in place. scale_grad_by_freq: a row's gradient is divided by how often it was looked up.
    Raises IndexError for a number out of range, DtypeError, ShapeError, ValueError.
    """
    if sparse:
        raise ValueError("embedding gives dense gradients only: use sparse=False, the numbers are the same")
    if not isinstance(input, Tensor) or input.dtype.kind not in "iu":
        given = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise DtypeError(f"embedding takes a tensor of integers, not {given}; convert it with .to(int64)")
    weight._float("embedding")
    if weight.ndim != 2:
        raise ShapeError(f"embedding takes a weight of 2 axes, rows and width, given {list(weight.shape)}")
    rows = len(weight)
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx must be within the {rows} rows, got {padding_idx}")
    index = input if input.array.dtype == _INT64 else input.to(_INT64)
    if max_norm is not None:
        _shorten(weight, index, float(max_norm), float(norm_type))
    if padding_idx is None and not scale_grad_by_freq:
        return weight._op("take", index)
    return weight._op("embedding", index, attrs=(-1 if padding_idx is None else padding_idx % rows, bool(scale_grad_by_freq)))


def _shorten(weight: Tensor, index: Tensor, max_norm: float, norm_type: float) -> None:
    """Rows longer than max_norm made as long, in place; equal numbers write equal rows."""
    flat = index.reshape((index.numel(),))
    with no_grad():
        rows = weight.detach()._op("take", flat)
        norm = rows.norm(norm_type, 1, keepdim=True)
        shorter = (rows * (max_norm / (norm + 1e-7))).where(norm > max_norm, rows)
    run("put", weight.array, flat.array, shorter.array)
    weight.storage.version += 1


# Normalisation


@lru_cache(maxsize=64)
def _constant(value: float, count: int, dtype: np.dtype) -> Tensor:
    array = np.full(count, value, dtype)
    array.flags.writeable = False
    return wrap(array)


def _scale_and_shift(name: str, input: Tensor, weight: Tensor | None, bias: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """weight and bias as count numbers of input's dtype; 1 and 0 where there are none."""
    input._float(name)
    for given, what in ((weight, "weight"), (bias, "bias")):
        if given is not None and given.dtype != input.dtype:
            raise DtypeError(f"{name} takes input and {what} of one dtype, given {input.dtype} and {given.dtype}")
        if given is not None and given.numel() != count:
            raise ShapeError(f"{name}: {what} must be {count} numbers, given {list(given.shape)}")
    scale = _constant(1.0, count, input.dtype) if weight is None else weight.reshape((count,))
    return scale, _constant(0.0, count, input.dtype) if bias is None else bias.reshape((count,))


def _trailing(name: str, input: Tensor, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None) -> tuple[int, int]:
    """How many rows of how many elements, where the last axes are normalized_shape."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or input.shape[-len(shape):] != shape:
        raise ShapeError(f"{name} over {list(shape)} takes an input that ends in these extents, given {list(input.shape)}")
    for given, what in ((weight, "weight"), (bias, "bias")):
        if given is not None and given.shape != shape:
            raise ShapeError(f"{name}: {what} must have shape {list(shape)}, given {list(given.shape)}")
    count = math.prod(shape)
    return math.prod(input.shape[: input.ndim - len(shape)]), count


def layer_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
               eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) weight + bias over the last axes, which are normalized_shape (Ba et al. 2016)."""
    rows, count = _trailing("layer_norm", input, normalized_shape, weight, bias)
    scale, shift = _scale_and_shift("layer_norm", input, weight, bias, count)
    return input.reshape((rows, count))._op("layer_norm", scale, shift, attrs=(float(eps),)).reshape(input.shape)


def rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """x / sqrt(mean of x^2 + eps) weight over the last axes, which are normalized_shape (Zhang and Sennrich 2019).

    eps: without one, what separates 1 from the next number of the dtype.
    """
    rows, count = _trailing("rms_norm", input, normalized_shape, weight, None)
    scale, _ = _scale_and_shift("rms_norm", input, weight, None, count)
    least = float(np.finfo(input.dtype).eps) if eps is None else float(eps)
    return input.reshape((rows, count))._op("rms_norm", scale, attrs=(least,)).reshape(input.shape)


def group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
               eps: float = 1e-5) -> Tensor:
    """The channels of input [N, C, ...] in num_groups groups, each normalised as in layer_norm; weight and bias [C]."""
    if input.ndim < 2:
        raise ShapeError(f"group_norm takes an input of at least 2 axes, given {list(input.shape)}")
    channels = input.shape[1]
    if num_groups <= 0 or channels % num_groups:
        raise ShapeError(f"group_norm: {channels} channels do not divide into {num_groups} groups")
    rows, count = input.shape[0] * num_groups, input.numel() // max(input.shape[0] * num_groups, 1)
    if input.numel() == num_groups:
        raise ValueError(f"group_norm takes more than 1 value for a group, given {list(input.shape)} in {num_groups} groups")
    scale, shift = _scale_and_shift("group_norm", input, weight, bias, channels)
    ones, zeros = (_constant(value, count, input.dtype) for value in (1.0, 0.0))
    y = input.reshape((rows, count))._op("layer_norm", ones, zeros, attrs=(float(eps),)).reshape(input.shape)
    if weight is None and bias is None:
        return y
    by_channel = (channels,) + (1,) * (input.ndim - 2)
    y = y if weight is None else y * scale.reshape(by_channel)
    return y if bias is None else y + shift.reshape(by_channel)


def batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
               bias: Tensor | None = None, training: bool = False, momentum: Any = 0.1, eps: float = 1e-5) -> Tensor:
    """Each channel of input [N, C] or [N, C, ...] less its mean, divided by its deviation (Ioffe and Szegedy 2015).

    In training the mean and the variance are those of the batch, and the running ones move towards them in place by
    momentum, a number or a tensor; otherwise the running ones are taken. Raises ValueError for a batch of one value.
    """
    if input.ndim < 2:
        raise ShapeError(f"batch_norm takes an input of at least 2 axes, batch and channels, given {list(input.shape)}")
    channels = input.shape[1]
    many = input.numel() // max(channels, 1)
    if training and many == 1:
        raise ValueError(f"batch_norm takes more than 1 value for each channel in training, given {list(input.shape)}")
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"batch_norm takes a positive eps, got {eps}")
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError("batch_norm takes running_mean and running_var where it is not training")
    scale, shift = _scale_and_shift("batch_norm", input, weight, bias, channels)
    _scale_and_shift("batch_norm", input, running_mean, running_var, channels)
    by_channel = (channels,) + (1,) * (input.ndim - 2)
    if not training:
        assert running_mean is not None and running_var is not None
        factor = scale / (running_var + eps).sqrt()
        return input * factor.reshape(by_channel) + (shift - running_mean * factor).reshape(by_channel)
    averages = None
    if running_mean is not None and running_var is not None:
        weight_of_new = momentum if isinstance(momentum, Tensor) else input.new_constant(float(momentum))
        averages = (running_mean.array, running_var.array, weight_of_new.array)
    columns = input
    if input.ndim > 2:
        columns = input.permute((0, *range(2, input.ndim), 1)).reshape((many, channels))
    y = columns._op("batch_norm", scale, shift, attrs=(float(eps), averages))
    for moved in (running_mean, running_var) if averages is not None else ():
        assert moved is not None
        moved.storage.version += 1
    if input.ndim == 2:
        return y
    back = (0, input.ndim - 1, *range(1, input.ndim - 1))
    return y.reshape((input.shape[0], *input.shape[2:], channels)).permute(back)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_o = x1 W_o x2 + b_o for input1 [..., in1], input2 [..., in2], weight [out, in1, in2], bias [out]."""
    if input1.ndim == 0 or input1.shape[:-1] != input2.shape[:-1] or weight.ndim != 3 or (
            (input1.shape[-1], input2.shape[-1]) != weight.shape[1:]):
        raise ShapeError(f"bilinear takes inputs [..., in1] and [..., in2] and weight [out, in1, in2]; "
                         f"given {list(input1.shape)}, {list(input2.shape)} and {list(weight.shape)}")
    out, in1, in2 = weight.shape
    if bias is not None and bias.shape != (out,):
        raise ShapeError(f"bilinear: bias must be {out} numbers, given {list(bias.shape)}")
    many = math.prod(input1.shape[:-1])
    left = matmul(input1.reshape((many, in1)), weight.permute((1, 0, 2)).reshape((in1, out * in2)))
    y = matmul(left.reshape((many, out, in2)), input2.reshape((many, in2, 1))).reshape((*input1.shape[:-1], out))
    return y if bias is None else y + bias


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    """x / max(its norm along dim, eps)."""
    if out is not None:
        raise ValueError("normalize writes into no given tensor: leave out= away")
    return input / input.norm(p, dim, keepdim=True).clamp(min=eps)


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
        if len(args) == len(names) + 1:
            args, inplace = args[:-1], bool(args[-1])
        if not inplace:
            return method(input, *args, **named)
        input._check_writable()
        return input._overwrite(method(input._before(), *args, **named))

    function: Callable = with_parameters if op.params else plain

    names = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=Parameter.empty if value is None else value)
             for name, value in op.params]
    function.__name__ = function.__qualname__ = op.name
    function.__doc__ = op.formula
    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter("input", Parameter.POSITIONAL_OR_KEYWORD),
            *names,
            Parameter("inplace", Parameter.POSITIONAL_OR_KEYWORD, default=False),
        ]
    )
    return function


def _in_place(function: Callable) -> Callable:
    def written(input: Tensor, *args: float, **named: float) -> Tensor:
        return function(input, *args, **named, inplace=True)

    written.__name__ = written.__qualname__ = f"{function.__name__}_"
    written.__doc__ = f"{function.__doc__}, in place"
    given = list(signature(function).parameters.values())
    written.__signature__ = Signature(given[:-1])  # type: ignore[attr-defined]
    return written


for _op in OPS.values():
    if _op.kind == "activation":
        globals()[_op.name] = _function(_op)
        globals()[f"{_op.name}_"] = _in_place(globals()[_op.name])


def exponential(input: Tensor) -> Tensor:
    """e^x"""
    return input.exp()


def sin(input: Tensor) -> Tensor:
    """sin x"""
    return input.sin()


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x); approximate="tanh" is the older formula with tanh."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu takes approximate='none' or 'tanh', got {approximate!r}")
    return input._op("gelu" if approximate == "none" else "gelu_tanh")


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight x; weight: one number, or one for each channel, along axis 1."""
    if weight.ndim > 1:
        raise ShapeError(f"prelu takes a weight of one number or one a channel, got {list(weight.shape)}")
    if weight.dtype != input.dtype:
        raise DtypeError(f"prelu takes input and weight of one dtype, given {input.dtype} and {weight.dtype}")
    channels = input.shape[1] if input.ndim > 1 else 1
    if weight.numel() != 1 and (input.ndim == 0 or weight.numel() != channels):
        raise ShapeError(f"prelu: weight of {weight.numel()} numbers does not fit input of shape {list(input.shape)}, "
                         f"which has {channels} channels")
    if input.ndim > 1:
        weight = weight.reshape((weight.numel(),) + (1,) * (input.ndim - 2))
    return input._float("prelu").where(input > 0, input * (weight if input.ndim else weight.reshape(())))


def rrelu(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False) -> Tensor:
    """x where x > 0, else a x: in training each a is uniform in [lower, upper), else their mean."""
    if lower > upper:
        raise ValueError(f"rrelu takes lower <= upper, got {lower} and {upper}")
    if not training:
        return globals()["leaky_relu"](input, (lower + upper) / 2, inplace=inplace)
    if inplace:
        input._check_writable()
    x = input._before() if inplace else input
    slopes = random.rand(*x.shape, dtype=x._float("rrelu").dtype) * (upper - lower) + lower
    y = x.where(x > 0, x * slopes)
    return input._overwrite(y) if inplace else y


def rrelu_(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    """rrelu, in place."""
    return rrelu(input, lower, upper, training, inplace=True)


def _axis(input: Tensor, dim: int, name: str) -> int:
    """dim counted from the front; raises IndexError if there is no such axis."""
    if not -max(input.ndim, 1) <= dim < max(input.ndim, 1):
        raise IndexError(f"{name}: dim {dim} is not an axis of shape {list(input.shape)}")
    return dim % max(input.ndim, 1)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a sigmoid(b), a and b the halves of input along dim. Dauphin et al. 2017."""
    if input.ndim == 0:
        raise ShapeError("glu takes a tensor with an axis to halve, got a 0-d tensor")
    n = input.shape[_axis(input, dim, "glu")]
    if n % 2:
        raise ShapeError(f"glu halves axis {dim} of shape {list(input.shape)}, whose extent {n} is odd")
    a, b = input._float("glu").split(n // 2, dim) if n else (input, input)
    return a * b.sigmoid()


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """softmax(-x) along dim."""
    return (-input).softmax(_implicit_dim(input, dim, "softmin"), dtype)


def gumbel_softmax(logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Tensor:
    """softmax((logits + Gumbel noise) / tau) along dim; hard: one-hot, with the gradient of the soft one. Jang et al. 2017."""
    if eps != 1e-10:
        warnings.warn("gumbel_softmax: eps is deprecated and has no effect", stacklevel=2)
    u = random.rand(*logits.shape, dtype=logits._float("gumbel_softmax").dtype)
    noise = -(-(1 - u).log()).log()                                # 1 - u is in (0, 1]
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    at = soft.detach().argmax(dim, keepdim=True)
    places = arange(soft.shape[dim] if soft.ndim else 1).reshape(
        tuple(-1 if i == dim % max(soft.ndim, 1) else 1 for i in range(soft.ndim)))
    return (places == at).to(soft.dtype) - soft.detach() + soft


def sparsemax(input: Tensor, dim: int = -1) -> Tensor:
    """The distribution along dim that is nearest to input: max(x - tau, 0), summing to 1. Martins, Astudillo 2016."""
    return input._float("sparsemax")._op("sparsemax", attrs=(_axis(input, dim, "sparsemax"),))


def maxout(input: Tensor, pieces: int, dim: int = -1) -> Tensor:
    """The largest of each `pieces` neighbours along dim, whose extent they divide. Goodfellow et al. 2013."""
    axis = _axis(input, dim, "maxout")
    n = input.shape[axis] if input.ndim else 1
    if pieces < 1 or n % pieces:
        raise ShapeError(f"maxout takes groups of {pieces}, which do not divide axis {dim} of shape {list(input.shape)}")
    return input.reshape((*input.shape[:axis], n // pieces, pieces, *input.shape[axis + 1:])).amax(axis + 1)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                                 dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                                 enable_gqa: bool = False) -> Tensor:
    """softmax(scale q k^T + mask) v over the last two axes [..., length, width]; scale 1 / sqrt(width) by default.

    attn_mask: booleans, true where to look, or numbers to add; a row that may look nowhere gives 0. enable_gqa: key and
    value have fewer heads (axis -3), each used by several in turn. Vaswani et al. 2017.
    """
    if is_causal and attn_mask is not None:
        raise ValueError("scaled_dot_product_attention takes attn_mask or is_causal, not both")
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ShapeError("scaled_dot_product_attention takes query, key and value [..., length, width], given "
                         f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}")
    if not query.dtype == key.dtype == value.dtype:
        raise DtypeError("scaled_dot_product_attention takes query, key and value of one dtype, given "
                         f"{query.dtype}, {key.dtype} and {value.dtype}")
    if enable_gqa:
        key, value = (_repeated(t, query.shape[-3] // t.shape[-3]) for t in (key, value))
    lines, columns = query.shape[-2], key.shape[-2]
    scores = query @ key.mT * (1 / query.shape[-1] ** 0.5 if scale is None else scale)
    if is_causal:
        attn_mask = arange(columns) <= arange(lines).reshape((-1, 1))
    if attn_mask is not None and attn_mask.dtype == np.bool_:
        scores = scores.masked_fill(~attn_mask, -np.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    nowhere = scores.detach().amax(-1, keepdim=True) == -np.inf if attn_mask is not None and columns else None
    if nowhere is not None:
        scores = scores.masked_fill(nowhere, 0.0)
    weights = scores.softmax(-1)
    if nowhere is not None:
        weights = weights.masked_fill(nowhere, 0.0)
    return dropout(weights, dropout_p) @ value


def _repeated(x: Tensor, times: int) -> Tensor:
    """Each head, along axis -3, so many times in a row."""
    shape = x.shape
    return x.unsqueeze(-3).expand((*shape[:-2], times, *shape[-2:])).reshape((*shape[:-3], shape[-3] * times, *shape[-2:]))


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


def _reduction(reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> str:
    """The word, or what torch's two deprecated flags say instead."""
    if size_average is not None or reduce is not None:
        return "none" if reduce is False else "sum" if size_average is False else "mean"
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a reduction; choose from {', '.join(REDUCTIONS)}")
    return reduction


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


def _alike(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both of one shape and one float dtype."""
    target = as_tensor(target)
    if input.shape != target.shape:
        shape = broadcast_shape(input.shape, target.shape)
        input, target = input.expand(shape), target.expand(shape)
    if input.dtype != target.dtype:
        dtype = promote_types(input.dtype, target.dtype)
        input, target = input.to(dtype), target.to(dtype)
    return input._float(name), target


def _pair(name: str, input: Tensor, target: Tensor, *attrs: float) -> Tensor:
    return input._op(name, target, attrs=attrs)


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
    losses = _pair(name, *_alike(name, input, target), *attrs)
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


def smooth_l1_loss(input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
                   reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """Half the squared error over beta within beta, |input - target| - beta/2 beyond."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss takes beta >= 0, got {beta}")
    return _pairs("smooth_l1", input, target, _reduction(reduction, size_average, reduce), None, float(beta))


def log_cosh_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """ln cosh(input - target)."""
    return _pairs("log_cosh", input, target, _reduction(reduction), None)


def quantile_loss(input: Tensor, target: Tensor, q: float = 0.5, reduction: str = "mean") -> Tensor:
    """max(q d, (q - 1) d), d = target - input: least where input is the q-quantile. Koenker, Bassett 1978."""
    if not 0 < q < 1:
        raise ValueError(f"quantile_loss takes 0 < q < 1, got {q}")
    return _pairs("quantile", input, target, _reduction(reduction), None, float(q))


pinball_loss = quantile_loss


def msle_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(ln(1 + input) - ln(1 + target))^2."""
    return _pairs("msle", input, target, _reduction(reduction), None)


def mape_loss(input: Tensor, target: Tensor, reduction: str = "mean", eps: float = 1.17e-6) -> Tensor:
    """|input - target| / max(|target|, eps): a share, not a percentage."""
    return _pairs("mape", input, target, _reduction(reduction), None, float(eps))


def tweedie_loss(input: Tensor, target: Tensor, power: float = 1.5, reduction: str = "mean") -> Tensor:
    """-ln of a Tweedie distribution's density at target, its mean input > 0, less what does not depend on input.

    power: variance = mean^power; 0 normal, 1 Poisson, 2 gamma, 3 inverse Gaussian, none between 0 and 1.
    """
    if 0 < power < 1:
        raise ValueError(f"tweedie_loss takes a power of 0, or of 1 and more, or less than 0; got {power}")
    x, t = _alike("tweedie_loss", input, target)
    if power == 1:
        losses = x - t * x.log()
    elif power == 2:
        losses = x.log() + t / x
    else:
        losses = x.pow(2.0 - power) / (2 - power) - t * x.pow(1.0 - power) / (1 - power)
    return _reduced(losses, _reduction(reduction))


def hinge_loss(input: Tensor, target: Tensor, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """max(margin - target input, 0), target -1 or 1."""
    return _pairs("hinge", input, target, _reduction(reduction), None, float(margin))


def squared_hinge_loss(input: Tensor, target: Tensor, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """max(margin - target input, 0)^2, target -1 or 1."""
    return _pairs("squared_hinge", input, target, _reduction(reduction), None, float(margin))


def soft_margin_loss(input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
                     reduction: str = "mean") -> Tensor:
    """ln(1 + e^(-target input)), target -1 or 1."""
    word = _reduction(reduction, size_average, reduce)
    return _reduced(_pair("soft_margin", *_alike("soft_margin_loss", input, target)), word)


def hinge_embedding_loss(input: Tensor, target: Tensor, margin: float = 1.0, size_average: bool | None = None,
                         reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """input, a distance, where target is 1; max(margin - input, 0) where it is -1."""
    word = _reduction(reduction, size_average, reduce)
    near, far = input._float("hinge_embedding_loss"), (margin - input).clamp(min=0)
    return _reduced(far.masked_fill(target == 1, 0.0) + near.masked_fill(target == -1, 0.0), word)


def margin_ranking_loss(input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, size_average: bool | None = None,
                        reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """max(margin - target (input1 - input2), 0): target 1 wants input1 larger, -1 input2."""
    word = _reduction(reduction, size_average, reduce)
    if not input1.ndim == input2.ndim == target.ndim:
        raise ShapeError("margin_ranking_loss takes tensors of as many axes, given "
                         f"{list(input1.shape)}, {list(input2.shape)} and {list(target.shape)}")
    return _reduced((margin - target * (input1 - input2)).clamp(min=0), word)


def binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
                         reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """-t ln x - (1 - t) ln(1 - x), x = input a probability; logarithms are at least -100."""
    word = _reduction(reduction, size_average, reduce)
    target = as_tensor(target)
    if input.shape != target.shape:
        raise ShapeError(f"target of shape {list(target.shape)} must have the shape of input, {list(input.shape)}")
    losses = _pair("bce", *_alike("binary_cross_entropy", input, target))
    return _reduced(losses if weight is None else losses * weight, word)


def kl_div(input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
           reduction: str = "mean", log_target: bool = False) -> Tensor:
    """t (ln t - x), x = input a log-probability, t = target a probability, or its logarithm with log_target.

    reduction="batchmean" is the divergence: the sum divided by the number of rows. "mean" divides by that of elements.
    """
    batch = reduction == "batchmean"
    word = _reduction("sum" if batch else reduction, size_average, reduce)
    losses = _reduced(_pair("kl_div_log" if log_target else "kl_div", *_alike("kl_div", input, target)), word)
    return losses / len(input) if batch and input.ndim else losses


def poisson_nll_loss(input: Tensor, target: Tensor, log_input: bool = True, full: bool = False,
                     size_average: bool | None = None, eps: float = 1e-8, reduce: bool | None = None,
                     reduction: str = "mean") -> Tensor:
    """-ln of the Poisson probability of target, its rate e^input, or input without log_input. full: with Stirling's ln t!."""
    word = _reduction(reduction, size_average, reduce)
    x, t = _alike("poisson_nll_loss", input, target)
    losses = _pair("poisson_nll", x, t) if log_input else _pair("poisson_nll_rate", x, t, float(eps))
    if full:
        safe = t.masked_fill(t <= 1, 2.0)
        losses = losses + (safe * safe.log() - safe + (safe * (2 * np.pi)).log() * 0.5).masked_fill(t <= 1, 0.0)
    return _reduced(losses, word)


def gaussian_nll_loss(input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6,
                      reduction: str = "mean") -> Tensor:
    """-ln of the density at target of a normal distribution of mean input and variance var, at least eps; full: all of it.

    var: of input's shape, or with one axis of 1 instead, or without the last one.
    """
    word = _reduction(reduction)
    input._float("gaussian_nll_loss")
    if not isinstance(var, Tensor) and var < 0:
        raise ValueError(f"gaussian_nll_loss takes variances >= 0, got {var}")
    var = var if isinstance(var, Tensor) else input.detach() * 0 + var
    if var.shape != input.shape:
        if var.shape == input.shape[:-1]:
            var = var.unsqueeze(-1)
        elif var.ndim != input.ndim or [n for n, m in zip(var.shape, input.shape) if n != m] != [1]:
            raise ShapeError(f"gaussian_nll_loss: var of shape {list(var.shape)} does not fit input of shape "
                             f"{list(input.shape)}; it is that, or that with one axis of 1, or without the last one")
    bounded: Any = var
    bounded = bounded + (bounded.detach().clamp(min=eps) - bounded.detach())      # the gradient goes past the bound
    losses = (bounded.log() + (input - target).square() / bounded) * 0.5
    return _reduced(losses + 0.5 * np.log(2 * np.pi) if full else losses, word)


def multi_margin_loss(input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None,
                      size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """The mean over classes c, but the right one y, of max(margin - x_y + x_c, 0)^p, times the weight of y.

    input [classes] or [rows, classes]; target: class numbers.
    """
    word = _reduction(reduction, size_average, reduce)
    if p not in (1, 2):
        raise ValueError(f"multi_margin_loss takes p=1 or p=2, got {p}")
    x = input._float("multi_margin_loss")
    rows = x.reshape((1, -1)) if x.ndim < 2 else x
    labels = target.reshape((-1,))
    if rows.ndim != 2 or not rows.shape[1] or len(labels) != len(rows) or target.ndim > 1:
        raise ShapeError(f"multi_margin_loss takes input [rows, classes] and target [rows], given {list(input.shape)} and "
                         f"{list(target.shape)}")
    classes = rows.shape[1]
    if weight is not None and weight.shape != (classes,):
        raise ShapeError(f"multi_margin_loss: weight must be {classes} numbers, one a class; got {list(weight.shape)}")
    gaps = globals()["relu"](margin - rows.gather(1, labels.reshape((-1, 1))) + rows)
    gaps = gaps if p == 1 else gaps * gaps
    losses = gaps.masked_fill(arange(classes) == labels.reshape((-1, 1)), 0.0)
    if weight is not None:
        losses = losses * weight[labels].reshape((-1, 1))
    losses = losses.sum(1) / classes
    return _reduced(losses.reshape(target.shape) if input.ndim < 2 else losses, word)


def multilabel_margin_loss(input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
                           reduction: str = "mean") -> Tensor:
    """The sum over right classes y and wrong ones c of max(1 - x_y + x_c, 0), divided by the number of classes.

    input and target [classes] or [rows, classes]; a row of target is the right class numbers, then -1.
    """
    word = _reduction(reduction, size_average, reduce)
    x = input._float("multilabel_margin_loss")
    if x.shape != target.shape or x.ndim > 2:
        raise ShapeError("multilabel_margin_loss takes input and target of one shape [rows, classes], given "
                         f"{list(input.shape)} and {list(target.shape)}")
    classes = x.shape[-1] if x.ndim else 1
    rows, labels = x.reshape((-1, classes)), target.reshape((-1, classes))
    ended = cat([(labels < 0).to(_INT64), full((len(labels), 1), 1)], 1).argmax(1, keepdim=True)
    listed = arange(classes) < ended                               # [rows, place]
    chosen = labels.masked_fill(~listed, 0)
    right = ((chosen.unsqueeze(2) == arange(classes)) & listed.unsqueeze(2)).any(1)
    gaps = globals()["relu"](1 - rows.gather(1, chosen).unsqueeze(2) + rows.unsqueeze(1))
    losses = gaps.masked_fill(~listed.unsqueeze(2) | right.unsqueeze(1), 0.0).sum((1, 2)) / classes
    return _reduced(losses.reshape(x.shape[:-1]), word)


def multilabel_soft_margin_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
                                reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """binary_cross_entropy_with_logits, averaged over the last axis, the classes."""
    word = _reduction(reduction, size_average, reduce)
    losses = binary_cross_entropy_with_logits(input, target, weight, reduction="none")
    return _reduced(losses.mean(-1), word)


def cosine_embedding_loss(input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, size_average: bool | None = None,
                          reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """With c the cosine of rows: 1 - c where target is 1, max(c - margin, 0) where it is -1. Inputs [rows, n], target [rows]."""
    word = _reduction(reduction, size_average, reduce)
    if target.ndim > 1 or input1.ndim != target.ndim + 1 or input2.ndim != target.ndim + 1:
        raise ShapeError("cosine_embedding_loss takes inputs [rows, n] and target [rows], or [n] and a 0-d target; given "
                         f"{list(input1.shape)}, {list(input2.shape)} and {list(target.shape)}")
    squares = ((input1 * input1).sum(-1) + 1e-12) * ((input2 * input2).sum(-1) + 1e-12)
    cosine = (input1 * input2).sum(-1) / squares.sqrt()
    losses = (1 - cosine).masked_fill(target != 1, 0.0) + (cosine - margin).clamp(min=0).masked_fill(target != -1, 0.0)
    return _reduced(losses, word)


def triplet_margin_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2,
                        eps: float = 1e-6, swap: bool = False, size_average: bool | None = None, reduce: bool | None = None,
                        reduction: str = "mean") -> Tensor:
    """max(d(anchor, positive) - d(anchor, negative) + margin, 0), d the p-norm; swap: or d(positive, negative) if less."""
    word = _reduction(reduction, size_average, reduce)
    return triplet_margin_with_distance_loss(anchor, positive, negative, margin=margin, swap=swap, reduction=word,
                                             distance_function=lambda a, b: pairwise_distance(a, b, p, eps))


def triplet_margin_with_distance_loss(anchor: Tensor, positive: Tensor, negative: Tensor, *,
                                      distance_function: Callable | None = None, margin: float = 1.0, swap: bool = False,
                                      reduction: str = "mean") -> Tensor:
    """triplet_margin_loss with any function of two tensors for the distance; pairwise_distance by default."""
    word = _reduction(reduction)
    if margin <= 0:
        raise ValueError(f"triplet losses take margin > 0, got {margin}")
    if not anchor.ndim == positive.ndim == negative.ndim:
        raise ShapeError("triplet losses take tensors of as many axes, given "
                         f"{list(anchor.shape)}, {list(positive.shape)} and {list(negative.shape)}")
    distance = distance_function or pairwise_distance
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = far.minimum(distance(positive, negative))
    return _reduced((near - far + margin).clamp(min=0), word)


def linear_cross_entropy(input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
                         weight: Tensor | None = None, reduction: str = "mean", ignore_index: int | None = None,
                         label_smoothing: float = 0.0, options: Any = None) -> Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target). options, of torch's memory, are ignored.

    input [in] or [rows, in]; linear_weight [classes, ..., in].
    """
    if input.ndim not in (1, 2) or linear_weight.ndim < 2 or input.shape[-1] != linear_weight.shape[-1]:
        raise ShapeError("linear_cross_entropy takes input [rows, in] and linear_weight [classes, ..., in], given "
                         f"{list(input.shape)} and {list(linear_weight.shape)}")
    outputs = linear_weight.shape[:-1]
    if linear_bias is not None and linear_bias.shape != outputs:
        raise ShapeError(f"linear_cross_entropy: linear_bias of shape {list(linear_bias.shape)} must be {list(outputs)}")
    if len(outputs) > 1 and input.ndim == 1:
        raise ShapeError("linear_cross_entropy: a linear_weight of more than two axes needs input [rows, in]")
    shape = (*input.shape[:-1], *outputs)
    if target.shape == shape and ignore_index is not None:
        raise ValueError("linear_cross_entropy: targets that are probabilities have no ignore_index")
    flat = linear_weight.reshape((-1, linear_weight.shape[-1]))
    logits = linear(input, flat, None if linear_bias is None else linear_bias.reshape((-1,))).reshape(shape)
    return cross_entropy(logits, target, weight, ignore_index=-100 if ignore_index is None else ignore_index,
                         reduction=reduction, label_smoothing=label_smoothing)


def _log_sum(*terms: Tensor) -> Tensor:
    """ln of the sum of e^term."""
    stacked = stack(terms)
    peak = stacked.detach().amax(0)
    return (stacked - peak).exp().sum(0).log() + peak


_NEVER = -1e30                                                     # stands for ln 0, whose gradient would be NaN


def ctc_loss(log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0,
             reduction: str = "mean", zero_infinity: bool = False) -> Tensor:
    """-ln of the probability of all ways to read targets from log_probs, repeated and with blanks between. Graves 2006.

    log_probs [times, rows, classes] or [times, classes], of log_softmax: the gradient is as through another one, as in torch.
    targets [rows, length], or one after another. "mean" first divides by the lengths. zero_infinity: 0 where none fits.
    """
    word = _reduction(reduction)
    single = log_probs.ndim == 2
    log_probs = log_probs._float("ctc_loss").unsqueeze(1) if single else log_probs._float("ctc_loss")
    if log_probs.ndim != 3:
        raise ShapeError(f"ctc_loss takes log_probs [times, rows, classes], got {list(log_probs.shape)}")
    times, rows, classes = log_probs.shape
    if not 0 <= blank < classes:
        raise ValueError(f"ctc_loss: blank must be one of {classes} classes, got {blank}")
    inputs, lengths = (np.array(as_tensor(n).tolist(), np.int64).reshape(-1) for n in (input_lengths, target_lengths))
    if len(inputs) != rows or len(lengths) != rows:
        raise ShapeError(f"ctc_loss: {rows} rows take as many input_lengths and target_lengths, got {len(inputs)} and "
                         f"{len(lengths)}")
    if rows and (inputs.max() > times or inputs.min() < 0 or lengths.min() < 0):
        raise ValueError(f"ctc_loss: input_lengths must be from 0 to {times}, target_lengths at least 0; "
                         f"got {inputs.tolist()} and {lengths.tolist()}")
    given = targets.numpy(force=True).astype(np.int64)
    longest = int(lengths.max(initial=0))
    labels = np.full((rows, longest), blank)
    if given.ndim == 1 and not single and lengths.sum() != given.size:
        raise ShapeError(f"ctc_loss: target_lengths sum to {lengths.sum()}, but there are {given.size} targets")
    lines = given if given.ndim > 1 else [given] if single else np.split(given, np.cumsum(lengths)[:-1])
    for row, line in enumerate(lines):
        if len(line) < lengths[row]:
            raise ShapeError(f"ctc_loss: row {row} has {len(line)} targets, its target_length is {lengths[row]}")
        labels[row, :lengths[row]] = line[:lengths[row]]
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise IndexError(f"ctc_loss: targets must be class numbers from 0 to {classes - 1}")
    states = np.full((rows, 2 * longest + 1), blank)
    states[:, 1::2] = labels
    hops = np.zeros(states.shape, bool)                            # past a blank, to another label
    hops[:, 3::2] = labels[:, 1:] != labels[:, :-1]
    index, may_hop = as_tensor(states), as_tensor(hops)
    scores = log_probs.log_softmax(-1) + log_probs.detach().exp().sum(-1, keepdim=True).log()
    dtype = scores.dtype
    alpha = full(states.shape, _NEVER, dtype=dtype)
    start = as_tensor(np.arange(states.shape[1]) <= np.minimum(1, 2 * lengths)[:, None])
    for t in range(times):
        emitted = scores[t].gather(1, index)
        if t == 0:
            new = emitted.masked_fill(~start, _NEVER)
        else:
            edge = full((rows, 2), _NEVER, dtype=dtype)
            padded = cat([edge, alpha], 1)
            hop = padded[:, :-2].masked_fill(~may_hop, _NEVER)
            new = (_log_sum(alpha, padded[:, 1:-1], hop) + emitted).clamp(min=_NEVER)
        alpha = new.where(as_tensor(t < inputs).reshape((-1, 1)), alpha)
    last = as_tensor(2 * lengths).reshape((-1, 1))
    ends = alpha.gather(1, last).squeeze(1)
    before = alpha.gather(1, as_tensor(np.maximum(2 * lengths - 1, 0)).reshape((-1, 1))).squeeze(1)
    losses = -_log_sum(ends, before.masked_fill(as_tensor(lengths == 0), _NEVER))
    empty_inputs = as_tensor((inputs == 0) & (lengths == 0))
    losses = losses.masked_fill(empty_inputs, 0.0)
    losses = losses.masked_fill(losses.detach() > -_NEVER / 2, 0.0 if zero_infinity else np.inf)
    if word == "mean":
        losses = losses / as_tensor(np.maximum(lengths, 1)).to(dtype)
    return _reduced(losses.squeeze(0) if single else losses, word)


def sigmoid_focal_loss(input: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0,
                       reduction: str = "mean") -> Tensor:
    """(1 - p)^gamma times binary_cross_entropy_with_logits, p the probability of target; alpha and 1 - alpha weigh 1 and 0.

    alpha < 0: no weights. Lin et al. 2017.
    """
    word = _reduction(reduction)
    losses = binary_cross_entropy_with_logits(input, target, reduction="none")
    target = target.to(input.dtype)
    wrong = input.sigmoid() * (1 - target) + (-input).sigmoid() * target        # 1 - p, without a difference
    losses = losses * wrong.pow(float(gamma))
    return _reduced(losses * (target * alpha + (1 - target) * (1 - alpha)) if alpha >= 0 else losses, word)


binary_focal_loss = sigmoid_focal_loss


def focal_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, gamma: float = 2.0, ignore_index: int = -100,
               reduction: str = "mean") -> Tensor:
    """(1 - p)^gamma (-ln p), p the softmax of input at its class, as cross_entropy takes them; weight: one a class."""
    word = _reduction(reduction)
    plain = cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    losses = (-(-plain).expm1()).pow(float(gamma)) * plain
    return _by_weight(losses, target, weight, ignore_index, word)


def poly_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, epsilon: float = 1.0, ignore_index: int = -100,
              reduction: str = "mean") -> Tensor:
    """cross_entropy + epsilon (1 - p), p the softmax of input at its class. Leng et al. 2022."""
    word = _reduction(reduction)
    plain = cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    return _by_weight(plain - (-plain).expm1() * epsilon, target, weight, ignore_index, word)


def _by_weight(losses: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, word: str) -> Tensor:
    """Reduced as cross_entropy does: the mean divides by the weights of the rows counted."""
    kept = (target != ignore_index).to(losses.dtype)
    if weight is not None:
        kept = kept * weight[target.masked_fill(target == ignore_index, 0)]
    losses = losses * kept
    return losses.sum() / kept.sum() if word == "mean" else _reduced(losses, word)


def dice_loss(input: Tensor, target: Tensor, smooth: float = 1.0, reduction: str = "mean") -> Tensor:
    """1 - (2 sum p t + smooth) / (sum p + sum t + smooth) of each row; p = input, probabilities. Milletari et al. 2016."""
    return tversky_loss(input, target, 0.5, 0.5, smooth / 2, reduction)


def tversky_loss(input: Tensor, target: Tensor, alpha: float = 0.5, beta: float = 0.5, smooth: float = 1.0,
                 reduction: str = "mean") -> Tensor:
    """1 - (sum p t + smooth) / (sum p t + alpha sum p (1 - t) + beta sum (1 - p) t + smooth) of each row, p = input.

    Both 1/2: dice_loss. Salehi et al. 2017.
    """
    word = _reduction(reduction)
    if input.shape != target.shape:
        raise ShapeError(f"target of shape {list(target.shape)} must have the shape of input, {list(input.shape)}")
    p, t = (x.reshape((len(x) if x.ndim > 1 else 1, -1)) for x in _alike("tversky_loss", input, target))
    both = (p * t).sum(1)
    index = (both + smooth) / (both + (p * (1 - t)).sum(1) * alpha + ((1 - p) * t).sum(1) * beta + smooth)
    return _reduced(1 - index, word)
