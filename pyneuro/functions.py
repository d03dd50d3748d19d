# SPDX-License-Identifier: BSD-3-Clause
"""Functions of tensors, element by element and along axes: torch's names, made of the rows of the op table.

What `METHODS` names is a method too; what `IN_PLACE` names has a form that ends in an underscore. Only functions whose
result has a shape that depends on the data read values.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import linalg, ops, shaping
from .kernels import DtypeError, ShapeError, watcher, watchers
from .ops import OPS
from .tensor import (
    _BOOL,
    _FLOATS,
    _INT64,
    MaxResult,
    Tensor,
    _as_dims,
    _constant,
    _Defaults,
    _is_number,
    _matched,
    _one_dim,
    apply,
    as_tensor,
    result_type,
    where,
    wrap,
)


def _floated(x: Any, other: Any = None) -> Any:
    """Integers as the default float."""
    return x if x.array.dtype in _FLOATS else x.to(_Defaults.dtype)


def _tensor_of(x: Any) -> Any:
    return x if isinstance(x, Tensor) else as_tensor(x)


# Element by element, of one


def _whole_stays(name: str) -> Callable:
    def function(input: Tensor) -> Tensor:
        if input.dtype == _BOOL:
            raise DtypeError(f"{name} takes numbers, not bool")
        return input._op(name) if input.dtype in _FLOATS else input.clone()

    function.__name__ = function.__qualname__ = name
    function.__doc__ = OPS[name].formula
    return function


floor, ceil, trunc = map(_whole_stays, ("floor", "ceil", "trunc"))
fix = trunc


def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """To the nearest number of so many decimals, at a half to the even one."""
    if input.dtype not in _FLOATS:
        if decimals:
            raise DtypeError(f"round to decimals takes floats, not {input.dtype}")
        return input.clone()
    if not decimals:
        return input._op("round")
    scale = 10.0 ** abs(decimals)
    return (input * scale)._op("round") / scale if decimals > 0 else (input / scale)._op("round") * scale


def frac(input: Tensor) -> Tensor:
    """x - trunc(x)"""
    return input - input._float("frac")._op("trunc")


def sgn(input: Tensor) -> Tensor:
    return input.sign()


def signbit(input: Tensor) -> Tensor:
    """Whether a number is negative, -0 too."""
    if input.dtype not in _FLOATS:
        return input < 0
    return _constant(1.0, input.dtype)._op("copysign", input.detach()) < 0


def positive(input: Tensor) -> Tensor:
    if input.dtype == _BOOL:
        raise DtypeError("positive takes numbers, not bool")
    return input


def deg2rad(input: Tensor) -> Tensor:
    return _floated(input) * (math.pi / 180)


def rad2deg(input: Tensor) -> Tensor:
    return _floated(input) * (180 / math.pi)


def isinf(input: Tensor) -> Tensor:
    return input.abs() == math.inf if input.dtype in _FLOATS else _never(input)


def isposinf(input: Tensor) -> Tensor:
    return input == math.inf if input.dtype in _FLOATS else _never(input)


def isneginf(input: Tensor) -> Tensor:
    return input == -math.inf if input.dtype in _FLOATS else _never(input)


def isfinite(input: Tensor) -> Tensor:
    return input.abs() < math.inf if input.dtype in _FLOATS else ~_never(input)


def isreal(input: Tensor) -> Tensor:
    return ~_never(input)


def _never(input: Tensor) -> Tensor:
    return wrap(ops.filled(input.shape, _BOOL, 0.0))


def nan_to_num(input: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """NaN as 0, infinities as the largest numbers, or as what is given."""
    if input.dtype not in _FLOATS:
        return input.clone()
    limit = float(np.finfo(input.dtype).max)
    y = input.masked_fill(input != input, 0.0 if nan is None else nan)
    y = y.masked_fill(input == math.inf, limit if posinf is None else posinf)
    return y.masked_fill(input == -math.inf, -limit if neginf is None else neginf)


def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """ln(x / (1 - x)), of x kept between eps and 1 - eps."""
    x = _floated(input)
    if eps is not None:
        x = x.clamp(eps, 1 - eps)
    return (x / (1 - x)).log()


def expit(input: Tensor) -> Tensor:
    return input.sigmoid()


def digamma(input: Tensor) -> Tensor:
    """The derivative of lgamma."""
    return _floated(input)._op("polygamma", attrs=(0.0,))


def polygamma(n: int, input: Tensor) -> Tensor:
    """The n-th derivative of digamma."""
    if n < 0:
        raise ValueError(f"polygamma takes n >= 0, got {n}")
    return _floated(input)._op("polygamma", attrs=(float(n),))


# Of two and more. _matched makes them tensors of one dtype.


def _of_two(name: str, about: str, floating: bool = False) -> Callable:
    op = OPS[name]

    def function(input: Any, other: Any) -> Tensor:
        x, y = _matched(input, other, floating)
        return apply(op, (x, y)) if x.dtype in _FLOATS else wrap(ops.whole(name, x.array, y.array))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = about
    return function


atan2 = _of_two("atan2", "The angle of the point (other, input).", True)
arctan2 = atan2
copysign = _of_two("copysign", "|input| with the sign of other.", True)
hypot = _of_two("hypot", "sqrt(x^2 + y^2)")
_fmod, _remainder, _floor_divide = (_of_two(n, OPS[n].formula) for n in ("fmod", "remainder", "floor_divide"))


def _divided(function: Callable, x: Any, y: Any) -> Tensor:
    a, b = _matched(x, y)
    if a.dtype not in _FLOATS and not (watchers and watcher()) and not np.all(b.array):
        raise RuntimeError("ZeroDivisionError: integers divided by 0")
    if a.dtype == _BOOL:
        raise DtypeError("a division that rounds takes numbers, not bool")
    return function(a, b)


def fmod(input: Tensor, other: Any) -> Tensor:
    """x - y trunc(x / y), which has the sign of x."""
    return _divided(_fmod, input, other)


def remainder(input: Any, other: Any) -> Tensor:
    """x - y floor(x / y), which has the sign of y."""
    return _divided(_remainder, input, other)


def floor_divide(input: Any, other: Any) -> Tensor:
    """floor(x / y)"""
    return _divided(_floor_divide, input, other)


def div(input: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """x / y, or rounded towards zero ('trunc') or down ('floor')."""
    if rounding_mode is None:
        return input / other
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode != "trunc":
        raise ValueError(f"div takes rounding_mode None, 'trunc' or 'floor', not {rounding_mode!r}")
    x, y = _matched(input, other)
    if x.dtype in _FLOATS:
        return (x / y)._op("trunc")
    rest = fmod(x, y)
    return floor_divide(x - rest, y)


def divide(input: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    return div(input, other, rounding_mode=rounding_mode)


def true_divide(input: Tensor, other: Any) -> Tensor:
    return input / other


def subtract(input: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    return input.sub(other, alpha=alpha)


def rsub(input: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    return other - (input if alpha == 1 else input * alpha)


def multiply(input: Tensor, other: Any) -> Tensor:
    return input * other


def float_power(input: Any, exponent: Any) -> Tensor:
    """x^y in float64."""
    x, y = (v.to("float64") if isinstance(v, Tensor) else float(v) for v in (input, exponent))
    return (x if isinstance(x, Tensor) else _constant(x, _FLOATS[1])).pow(y)


def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """x 2^y"""
    return input * _constant(2.0, _Defaults.dtype).pow(other)


def fmax(input: Tensor, other: Tensor) -> Tensor:
    """The larger; of a number and NaN the number."""
    x, y = _matched(input, other)
    return where((x >= y) | (y != y), x, y)


def fmin(input: Tensor, other: Tensor) -> Tensor:
    """The smaller; of a number and NaN the number."""
    x, y = _matched(input, other)
    return where((x <= y) | (y != y), x, y)


def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 below 0, 1 above, values at 0."""
    if input.dtype != values.dtype:
        raise DtypeError(f"heaviside takes tensors of one dtype, given {input.dtype} and {values.dtype}")
    step = (input > 0).to(input.dtype)
    return where(input == 0, values, where(input != input, input.detach(), step))


def xlogy(input: Any, other: Any) -> Tensor:
    """x ln y; 0 for x = 0, whatever y is, NaN excepted."""
    x, y = _matched(input, other, True)
    return x * y.masked_fill((x == 0) & (y <= 0), 1.0).log()


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """ln(e^x + e^y)"""
    x, y = _matched(input, other, True)
    return x.maximum(y) + (-(x - y).masked_fill(x == y, 0.0).abs()).exp().log1p()


def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    """log2(2^x + 2^y)"""
    x, y = _matched(input, other, True)
    return x.maximum(y) + (-(x - y).masked_fill(x == y, 0.0).abs()).exp2().log1p() * (1 / math.log(2))


def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """input + weight (end - input)"""
    if input.dtype != end.dtype or (isinstance(weight, Tensor) and weight.dtype != input.dtype):
        given = [t.dtype for t in (input, end, weight) if isinstance(t, Tensor)]
        raise DtypeError(f"lerp takes tensors of one dtype, given {', '.join(map(str, given))}")
    distance = end - input._float("lerp")
    near, far = input + weight * distance, end - distance * (1 - weight)
    return where(abs(weight) < 0.5, near, far) if isinstance(weight, Tensor) else near if abs(weight) < 0.5 else far


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """input + value tensor1 tensor2"""
    return input + (tensor1 * tensor2 if value == 1 else tensor1 * tensor2 * value)


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """input + value tensor1 / tensor2"""
    if result_type(tensor1, tensor2) not in _FLOATS:
        raise DtypeError("addcdiv of whole numbers is not defined; convert one of them to a float")
    return input + (tensor1 / tensor2 if value == 1 else tensor1 / tensor2 * value)


def clamp_min(input: Tensor, min: Any) -> Tensor:
    return input.clamp(min=min)


def clamp_max(input: Tensor, max: Any) -> Tensor:
    return input.clamp(max=max)


# Truth, bits and comparisons


def _truth(x: Any) -> Tensor:
    return _tensor_of(x) != 0


def logical_and(input: Tensor, other: Tensor) -> Tensor:
    return _truth(input) & _truth(other)


def logical_or(input: Tensor, other: Tensor) -> Tensor:
    return _truth(input) | _truth(other)


def logical_xor(input: Tensor, other: Tensor) -> Tensor:
    return _truth(input) ^ _truth(other)


def _bits(name: str) -> Callable:
    def function(input: Any, other: Any) -> Tensor:
        x, y = _matched(input, other)
        if x.dtype in _FLOATS or (x.dtype == _BOOL and name in ("bitleft", "bitright")):
            raise DtypeError(f"{function.__name__} takes integers, not {x.dtype}")
        return wrap(ops.whole(name, x.array, y.array))

    return function


bitwise_and, bitwise_or, bitwise_xor = map(_bits, ("bitand", "bitor", "bitxor"))
bitwise_left_shift, bitwise_right_shift = map(_bits, ("bitleft", "bitright"))
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift"):
    globals()[_name].__name__ = globals()[_name].__qualname__ = _name


def bitwise_not(input: Tensor) -> Tensor:
    return ~input


def isclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    """Whether |input - other| <= atol + rtol |other|, or both are NaN if equal_nan."""
    if input.dtype != other.dtype:
        raise DtypeError(f"isclose takes tensors of one dtype, given {input.dtype} and {other.dtype}")
    if rtol < 0 or atol < 0:
        raise ValueError(f"isclose takes rtol and atol >= 0, given {rtol} and {atol}")
    x, y = (t.detach() for t in (input, other))
    close = x == y
    if rtol or atol:
        p, q = (t if t.dtype in _FLOATS else t.double() for t in (x, y))
        apart = (p - q).abs()
        close = close | ((apart <= atol + (rtol * q).abs()) & (apart < math.inf))
    return close | ((x != x) & (y != y)) if equal_nan else close


def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether each element is among the others."""
    found = np.isin(_tensor_of(elements)._look(), _tensor_of(test_elements)._look(), invert=invert)
    return wrap(np.asarray(found))


# Reductions


class SortResult(NamedTuple):
    values: Any
    indices: Any


class ExtremesResult(NamedTuple):
    min: Any
    max: Any


def _one(x: Tensor, dim: int) -> int:
    return _one_dim(x.shape, dim)


def prod(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The product of all, or along dim."""
    x = input.to(dtype) if dtype is not None else input if input.dtype in _FLOATS else input.to(_INT64)
    dims = _as_dims(x.shape, dim)
    if x.dtype in _FLOATS:
        return x._op("prod", attrs=(dims, bool(keepdim)))
    return wrap(OPS["prod"].forward(x.array, dims, bool(keepdim)))


def var_mean(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
             correction: float | None = 1) -> tuple:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    return (input.var(dim, unbiased, keepdim, correction=correction), input.mean(dim, keepdim))


def std_mean(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
             correction: float | None = 1) -> tuple:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    return (input.std(dim, unbiased, keepdim, correction=correction), input.mean(dim, keepdim))


def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """ln sum e^x over dim, shifted by the largest."""
    x = _floated(input)
    dims = _as_dims(x.shape, dim)
    if not x.numel():
        return x.exp().sum(dim, keepdim).log()
    peak = x.detach().amax(dim, keepdim=True)
    peak = peak.masked_fill(peak.abs() == math.inf, 0.0)
    y = (x - peak).exp().sum(dims or None, keepdim=True).log() + peak
    return y if keepdim else y.reshape(ops.kept_shape(x.shape, dims, False))


def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> ExtremesResult:
    return ExtremesResult(input.amin(dim, keepdim), input.amax(dim, keepdim))


def count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    return (input != 0).to(_INT64).sum(dim)


def nansum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """sum, NaN counting as 0."""
    x = input.masked_fill(input != input, 0.0) if input.dtype in _FLOATS else input
    return x.sum(dim, keepdim, dtype)


def nanmean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean of what is no NaN."""
    x = input if dtype is None else input.to(dtype)
    if x.dtype not in _FLOATS:
        raise DtypeError(f"nanmean takes floats, not {x.dtype}")
    return nansum(x, dim, keepdim) / (x == x).to(x.dtype).sum(dim, keepdim)


def diff(input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None) -> Tensor:
    """Differences of neighbours along dim, n times."""
    if not input.ndim:
        raise ShapeError("diff takes a tensor with at least one axis")
    d = _one(input, dim)
    if not n:
        return input.clone()
    x = shaping.cat([t for t in (prepend, input, append) if t is not None], d)
    for _ in range(min(n, x.shape[d])):
        m = x.shape[d]
        late, early = shaping.narrow(x, d, 1, m - 1), shaping.narrow(x, d, 0, m - 1)
        x = late ^ early if x.dtype == _BOOL else late - early
    return x


# Order


def _host_index(name: str, x: Tensor, d: int, *attrs: float) -> Tensor:
    """An index of x's shape from a kernel along d."""
    y = ops.empty(x.shape, _INT64)
    ops.run(name, (ops.along(x.array, d), ops.along(y, d)), attrs)
    return wrap(y)


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The order in which input ascends along dim. It is stable always."""
    return _host_index("argsort", input, _one(input, dim), float(descending))


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> SortResult:
    """Ascending along dim, and where each came from. NaN is the largest; it is stable always."""
    index = argsort(input, dim, descending)
    return SortResult(input.gather(dim, index) if input.ndim else input.clone(), index)


def msort(input: Tensor) -> Tensor:
    return sort(input, 0).values


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> SortResult:
    """The k largest along dim, or the smallest, and where they are; sorted always."""
    d = _one(input, dim)
    if not 0 <= k <= (input.shape[d] if input.ndim else 1):
        raise ShapeError(f"topk takes k from 0 to the {input.shape[d] if input.ndim else 1} of dim {d}, got {k}")
    order = argsort(input, d, largest)
    if not input.ndim:
        return SortResult(input.clone(), order) if k else SortResult(input.reshape(1)[:0], order.reshape(1)[:0])
    index = shaping.narrow(order, d, 0, k).contiguous()
    return SortResult(input.gather(d, index), index)


def _at(input: Tensor, d: int, index: Tensor, keepdim: bool) -> SortResult:
    """input at an index of one along d."""
    if not input.ndim:
        return SortResult(input.clone(), index.reshape(()))
    values = input.gather(d, index)
    return SortResult(values, index) if keepdim else SortResult(values.squeeze(d), index.squeeze(d))


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> SortResult:
    """The k-th smallest along dim, from 1, and where it is."""
    d = _one(input, dim)
    if not 1 <= k <= (input.shape[d] if input.ndim else 1):
        raise ShapeError(f"kthvalue takes k from 1 to the {input.shape[d] if input.ndim else 1} of dim {d}, got {k}")
    order = argsort(input, d)
    return _at(input, d, shaping.narrow(order, d, k - 1, 1).contiguous() if input.ndim else order, keepdim)


def _middle(input: Tensor, dim: int | None, keepdim: bool, ignore_nan: bool) -> Any:
    if dim is None:
        x = input.reshape(-1)
        if x.numel():
            return _shared_median(x, ignore_nan)
        if x.dtype not in _FLOATS:
            raise IndexError("median of no elements is not defined")
        return wrap(np.full((), np.nan, x.dtype))
    d = _one(input, dim)
    if not input.ndim:
        return MaxResult(input.clone(), wrap(np.zeros((), np.int64)))
    n = input.shape[d]
    if not n:
        raise IndexError(f"median along dim {d} of shape {list(input.shape)}: there is nothing to choose from")
    order = argsort(input, d)
    missing = (input != input).to(_INT64).sum(d, keepdim=True)
    rank = floor_divide(n - 1 - missing, 2).clamp(min=0) if ignore_nan else \
        where(missing > 0, n - missing, _constant((n - 1) // 2, _INT64).expand(missing.shape))
    return MaxResult(*_at(input, d, order.gather(d, rank), keepdim))


def _shared_median(x: Tensor, ignore_nan: bool) -> Tensor:
    """The lower median of a line, whose gradient goes in equal shares to all that have its value, as in torch."""
    value = _middle(x.detach(), 0, False, ignore_nan).values
    if x.dtype not in _FLOATS:
        return value
    share = ((x.detach() == value) | ((x.detach() != x.detach()) & (value != value))).to(x.dtype)
    return (x.masked_fill(share == 0, 0.0) * (share / share.sum())).sum()


def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The middle value, of two the lower; NaN if any is. With dim (values, indices)."""
    return _middle(input, dim, keepdim, False)


def nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The middle of what is no NaN."""
    return _middle(input, dim, keepdim, True)


def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> SortResult:
    """The most frequent value along dim, of several the smallest, and the last place where it is."""
    d = _one(input, dim)
    y = ops.empty(ops.kept_shape(input.shape, (d,), True), _INT64)
    middle = ops.along(input.array, d)
    ops.run("mode", (middle, y.reshape(middle.shape[0], middle.shape[2])))
    return _at(input, d, wrap(y), keepdim)


def quantile(input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear") -> Tensor:
    """What a share q of the elements lies below; between two of them by interpolation."""
    return _quantile(input, q, dim, keepdim, interpolation, False)


def nanquantile(input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *,
                interpolation: str = "linear") -> Tensor:
    return _quantile(input, q, dim, keepdim, interpolation, True)


def _quantile(input: Tensor, q: Any, dim: int | None, keepdim: bool, interpolation: str, ignore_nan: bool) -> Tensor:
    shares = _tensor_of(q).to(input.dtype) if not _is_number(q) else _constant(float(q), input._float("quantile").dtype)
    if interpolation not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise ValueError(f"{interpolation!r} is no interpolation; choose from linear, lower, higher, midpoint, nearest")
    if not (watchers and watcher()) and not ((shares.array >= 0) & (shares.array <= 1)).all():
        raise ValueError("quantile takes shares between 0 and 1")
    if not input.numel():
        raise ShapeError("quantile takes a tensor that is not empty")
    x = input.reshape(-1) if dim is None else input if input.ndim else input.reshape(1)
    d = _one(x, 0 if dim is None else dim)
    n = x.shape[d]
    ordered = shaping.movedim(sort(x, d).values, d, -1)
    missing = (ordered.detach() != ordered.detach()).to(ordered.dtype).sum(-1, keepdim=True)
    at = shares.reshape(-1) * ((n - 1 - missing).clamp(min=0) if ignore_nan else float(n - 1))
    at = at.expand((*ordered.shape[:-1], shares.numel()))
    if not ignore_nan:
        at = where((missing > 0).expand(at.shape), _constant(float(n - 1), at.dtype), at)
    low = {"higher": at.ceil, "nearest": at.round}.get(interpolation, at.floor)().detach()
    y = ordered.gather(-1, low.long())
    if interpolation in ("linear", "midpoint"):
        weight = _constant(0.5, at.dtype).expand(at.shape) if interpolation == "midpoint" else at - low
        y = lerp(y, ordered.gather(-1, at.ceil().long()), weight)
    y = shaping.movedim(y, -1, 0)
    if keepdim:
        one = (1,) * input.ndim if dim is None else ops.kept_shape(input.shape, (d,), True)
        y = y.reshape((shares.numel(), *one))
    return y if shares.ndim else y[0]


def unique(input: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False,
           dim: int | None = None) -> Any:
    """Each value once, ascending; or each part along dim once."""
    found = np.unique(input._look(), return_inverse=True, return_counts=True, axis=None if dim is None else _one(input, dim))
    return _chosen(found[0], found[1].reshape(input.shape if dim is None else -1), found[2], return_inverse, return_counts)


def _chosen(values: np.ndarray, inverse: np.ndarray, counts: np.ndarray, with_inverse: bool, with_counts: bool) -> Any:
    out = [wrap(np.ascontiguousarray(values))]
    out += [wrap(np.array(a, np.int64)) for a, want in ((inverse, with_inverse), (counts, with_counts)) if want]
    return out[0] if len(out) == 1 else tuple(out)


def unique_consecutive(input: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None) -> Any:
    """Without what equals its predecessor."""
    x = input._look().reshape(-1) if dim is None else np.moveaxis(input._look(), _one(input, dim), 0)
    n = len(x)
    new = np.r_[np.ones(min(n, 1), bool), (x[1:] != x[:-1]).any(axis=tuple(range(1, x.ndim)))]
    starts = np.flatnonzero(new)
    values = x[starts] if dim is None else np.moveaxis(x[starts], 0, _one(input, dim))
    inverse = (np.cumsum(new) - 1).reshape(input.shape if dim is None else -1)
    return _chosen(values, inverse, np.diff(np.r_[starts, n]), return_inverse, return_counts)


# Along an axis, each from those before it


def _scan(name: str, about: str) -> Callable:
    def function(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
        x = input.to(dtype) if dtype is not None else input if input.dtype in _FLOATS else input.to(_INT64)
        d = _one(x, dim)
        return x._op(name, attrs=(d,)) if x.ndim else x._op(name, attrs=(0,)) if x.dtype not in _FLOATS else x.clone()

    function.__name__ = function.__qualname__ = name
    function.__doc__ = about
    return function


cumsum, cumprod = _scan("cumsum", "x_0 + ... + x_n along dim."), _scan("cumprod", "x_0 ... x_n along dim.")


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """ln(e^x_0 + ... + e^x_n) along dim."""
    d = _one(input._float("logcumsumexp"), dim)
    return input._op("logcumsumexp", attrs=(d,)) if input.ndim else input.clone()


def cummax(input: Tensor, dim: int) -> MaxResult:
    """The largest so far along dim, and the last place where it was."""
    index = _host_index("cummax", input, _one(input, dim))
    return MaxResult(input.gather(dim, index) if input.ndim else input.clone(), index)


def cummin(input: Tensor, dim: int) -> MaxResult:
    """The smallest so far along dim, and the last place where it was."""
    index = _host_index("cummin", input, _one(input, dim))
    return MaxResult(input.gather(dim, index) if input.ndim else input.clone(), index)


# Counting and searching


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each number 0, 1, ... is there, or the sum of its weights."""
    if input.ndim != 1 or input.dtype.kind not in "iu" or (input._look() < 0).any():
        raise ValueError(f"bincount takes a line of whole numbers that are not negative, given {input.dtype}{list(input.shape)}")
    if weights is None:
        return wrap(np.bincount(input._look(), minlength=minlength))
    counts = np.bincount(input._look(), weights._look(), minlength)
    return wrap(counts.astype(weights.dtype if weights.dtype == np.float32 else np.float64))


def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """How many elements lie in each of equal parts of [min, max]; without these, of the whole range."""
    if bins < 1 or max < min:
        raise ValueError(f"histc takes bins >= 1 and min <= max, given {bins}, {min} and {max}")
    low, high = (min, max) if min != max else (input.amin().item(), input.amax().item()) if input.numel() else (0, 1)
    low, high = (low - 1, high + 1) if low == high else (low, high)
    return wrap(np.histogram(input._look(), bins, (low, high))[0].astype(input._float("histc").dtype))


def searchsorted(sorted_sequence: Tensor, input: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None,
                 sorter: Tensor | None = None) -> Tensor:
    """Where each value would go in an ascending sequence; right (side 'right'): after its equals."""
    if side not in (None, "left", "right") or (side == "left" and right):
        raise ValueError(f"searchsorted takes side 'left' or 'right', not {side!r} with right={right}")
    line = sorted_sequence if sorter is None else sorted_sequence.gather(-1, sorter)
    x = _constant(input, line.dtype) if _is_number(input) else input
    if line.ndim != 1 and line.shape[:-1] != x.shape[:-1]:
        raise ShapeError(f"searchsorted: values of shape {list(x.shape)} do not fit sequences of {list(line.shape)}")
    rows = math.prod(line.shape[:-1])
    table = ops.reshaped(line.array, (rows, line.shape[-1]))
    y = ops.empty(x.shape, _INT64)
    columns = x.numel() // rows if rows else 0
    ops.run("searchsorted", (table, ops.reshaped(x.array, (rows, columns)), y.reshape(rows, columns)),
            (float(right or side == "right"),))
    return wrap(y).to(np.int32) if out_int32 else wrap(y)


def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """The number of the interval between boundaries in which each value lies."""
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 x2 / (max(|x1|, eps) max(|x2|, eps)) along dim; the gradient is that of the norms, also where eps is larger."""
    x, y = shaping.broadcast_tensors(*_matched(x1, x2, True))
    norms = [t.norm(2, dim, keepdim=True) for t in (x, y)]
    norms = [norm + (eps - norm.detach()).clamp(min=0.0) for norm in norms]
    return (x / norms[0] * (y / norms[1])).sum(dim)


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """The p-norm of x1 - x2 + eps along the last axis."""
    return (x1 - x2 + eps).norm(p, -1, keepdim)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """The p-norm between each row of x1 and each of x2."""
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1]:
        raise ShapeError(f"cdist takes matrices with equal columns, given {list(x1.shape)} and {list(x2.shape)}")
    if p < 0:
        raise ValueError(f"cdist takes p >= 0, got {p}")
    return (x1.unsqueeze(-2) - x2.unsqueeze(-3)).norm(p, -1)


METHODS = (
    "addcdiv", "addcmul", "aminmax", "arctan2", "argsort", "atan2", "bincount", "bitwise_and", "bitwise_left_shift",
    "bitwise_not", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "ceil", "clamp_max", "clamp_min", "copysign",
    "count_nonzero", "cummax", "cummin", "cumprod", "cumsum", "deg2rad", "diff", "digamma", "div", "divide", "fix", "floor",
    "floor_divide", "float_power", "fmax", "fmin", "fmod", "frac", "heaviside", "histc", "hypot", "isclose", "isfinite",
    "isinf", "isneginf", "isposinf", "isreal", "kthvalue", "ldexp", "lerp", "logaddexp", "logaddexp2", "logcumsumexp",
    "logical_and", "logical_or", "logical_xor", "logit", "logsumexp", "median", "mode", "msort", "multiply", "nan_to_num",
    "nanmean", "nanmedian", "nanquantile", "nansum", "positive", "prod", "quantile", "rad2deg", "remainder", "round", "sgn",
    "signbit", "sort", "subtract", "topk", "true_divide", "trunc", "unique", "unique_consecutive", "xlogy",
)
FUNCTIONS = ("bucketize", "cdist", "cosine_similarity", "isin", "pairwise_distance", "polygamma", "rsub", "searchsorted",
             "std_mean", "var_mean")
ALIASES = {  # of methods
    "absolute": "abs", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctanh": "atanh",
    "atan": "arctan", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "negative": "neg",
    "not_equal": "ne",
}
OF_ONE = ("exp2", "log2", "log10", "rsqrt", "tan", "asin", "acos", "arctan", "sinh", "cosh", "asinh", "acosh", "atanh", "erfc",
          "lgamma", "sinc")
IN_PLACE = (
    *OF_ONE, "abs", "absolute", "neg", "negative", "sign", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "erf", "sigmoid",
    "tanh", "relu", "pow", "square", "reciprocal", "floor", "ceil", "trunc", "fix", "round", "frac", "sgn", "nan_to_num", "logit",
    "digamma", "deg2rad", "rad2deg", "atan2", "arctan2", "copysign", "hypot", "fmod", "remainder", "floor_divide", "div",
    "divide", "true_divide", "subtract", "multiply", "xlogy", "lerp", "addcmul", "addcdiv", "clamp_min", "clamp_max", "clip",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "bitwise_left_shift", "bitwise_right_shift", "cumsum", "cumprod",
    "arccos", "arccosh", "arcsin", "arcsinh", "arctanh", "atan",
)


def _named(made: Any, function: Any, name: str) -> Callable:
    """functools.wraps in a fifth of its time: there are hundreds of these."""
    made.__name__ = made.__qualname__ = name
    made.__doc__, made.__wrapped__ = function.__doc__, function
    return made


def _in_place(name: str) -> Callable:
    """The method that gives its tensor what another method returns."""
    function = getattr(Tensor, name)

    def method(self: Tensor, *args: Any, **named: Any) -> Tensor:
        self._check_writable()
        others = [a for a in (*args, *named.values()) if isinstance(a, Tensor)]
        return self._overwrite(function(self._before(*others), *args, **named))

    return _named(method, function, f"{name}_")


def _of_anything(function: Callable) -> Callable:
    """A function of a tensor that takes arrays as well."""
    def converted(input: Any, *args: Any, **named: Any) -> Any:
        return function(input if isinstance(input, Tensor) else as_tensor(input), *args, **named)

    return _named(converted, function, function.__name__)


def functions() -> dict[str, Callable]:
    """Everything here that torch has as a function, by name."""
    return _EXPORTED


_EXPORTED: dict[str, Callable] = {}
for _module in (shaping, linalg, globals()):
    _found: dict[str, Any] = _module if isinstance(_module, dict) else vars(_module)
    for _name in (*_found["METHODS"], *_found.get("ONLY_METHODS", ())):
        setattr(Tensor, _name, _found[_name])
    _EXPORTED.update({name: _of_anything(_found[name]) for name in _found["METHODS"]})
    _EXPORTED.update({name: _found[name] for name in _found["FUNCTIONS"]})
for _name, _target in ALIASES.items():
    setattr(Tensor, _name, getattr(Tensor, _target))
    _EXPORTED[_name] = _of_anything(getattr(Tensor, _target))
for _name in OF_ONE:
    _EXPORTED[_name] = getattr(Tensor, _name)
Tensor.polygamma = lambda self, n: polygamma(n, self)  # type: ignore[attr-defined]
for _name in (*IN_PLACE, *shaping.IN_PLACE, *linalg.IN_PLACE):
    if not hasattr(Tensor, f"{_name}_"):
        setattr(Tensor, f"{_name}_", _in_place(_name))
