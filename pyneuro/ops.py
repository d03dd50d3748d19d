# SPDX-License-Identifier: BSD-3-Clause
# cython: annotation_typing=False
"""TABLE 2: every differentiable op, once. Tensor, nn, tests, benches and docs read it.

A forward works on plain arrays and writes only through the backend. A backward rule is made of ops on tensors, so that a
gradient can itself be differentiated; it never returns a saved tensor. Where `node.fast` is true nobody will, and one
fused kernel may do. No row knows which backend runs it, or whether it is being recorded.
"""
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .kernels import DtypeError, ShapeError, broadcast, current_backend, empty, quick_fold
from .kernels.signature import CASTABLE, FLOATS, HOST, KERNELS

Array = np.ndarray
BOOL, INT64 = np.dtype(bool), np.dtype(np.int64)
Shape = tuple[int, ...]


def run(kernel: str, bufs: tuple, attrs: tuple = ()) -> None:
    current_backend().run(kernel, bufs, attrs)


# ---------------------------------------------------------------------------------------------------------- arrays

def filled(shape: Shape, dtype: Any, value: float) -> Array:
    y = empty(shape, dtype)
    run("fill", (y,), (value,))
    return y


def contiguous(x: Array) -> Array:
    """x, copied only if it is not in C order."""
    if x.flags.c_contiguous:
        return x
    y = empty(x.shape, x.dtype)
    run("copy", (x, y))
    return y


def reshaped(x: Array, shape: Shape) -> Array:
    """A view where there is one, else a copy."""
    if x.flags.c_contiguous:
        return x.reshape(shape)
    try:
        return np.reshape(x, shape, copy=False)
    except ValueError:
        return contiguous(x).reshape(shape)


def broadcast_shape(a: Shape, b: Shape) -> Shape:
    """NumPy's rule: aligned at the last axis, extents equal or 1."""
    if a == b or not b:
        return a
    if len(a) < len(b):
        a, b = b, a
    out = list(a)
    for i in range(1, len(b) + 1):
        m, n = a[-i], b[-i]
        if m != n and n != 1:
            if m != 1:
                raise ShapeError(f"shapes {list(a)} and {list(b)} do not broadcast: {m} against {n} at axis {-i}")
            out[-i] = n
    return tuple(out)


def folded(x: Array, dims: tuple[int, ...]) -> tuple[Array, Shape]:
    """x as (a, n, b) with everything to reduce in the middle, and the shape that is left; dims sorted, not negative."""
    shape = x.shape
    kept = tuple(n for i, n in enumerate(shape) if i not in dims)
    if not dims:
        return reshaped(x, (math.prod(shape), 1, 1)), kept
    first, last = dims[0], dims[-1]
    if last - first + 1 == len(dims):
        return reshaped(x, (math.prod(shape[:first]), math.prod(shape[first:last + 1]), math.prod(shape[last + 1:]))), kept
    moved = x.transpose([i for i in range(x.ndim) if i not in dims] + list(dims))
    return reshaped(moved, (math.prod(kept), math.prod(shape[i] for i in dims), 1)), kept


def along(x: Array, dim: int) -> Array:
    """x as (a, n, b) around one axis; a scalar counts as one axis of one."""
    return folded(x, (dim,))[0] if x.ndim else x.reshape(1, 1, 1)


def kept_shape(shape: Shape, dims: tuple[int, ...], keepdim: bool) -> Shape:
    if keepdim:
        return tuple(1 if i in dims else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in dims)


# ------------------------------------------------------------------------------------------------------- promotion

def category(dtype: np.dtype) -> int:
    """bool < integers < floats."""
    return {"b": 0, "u": 1, "i": 1, "f": 2}[dtype.kind]


def promote_types(a: np.dtype, b: np.dtype) -> np.dtype:
    """torch's table: a float beats any integer, whatever their widths (int64 and float32 give float32)."""
    if a == b:
        return a
    if category(a) != category(b):
        return a if category(a) > category(b) else b
    return np.promote_types(a, b)


def combine(stronger: np.dtype | None, weaker: np.dtype | None) -> np.dtype | None:
    """Dimensioned tensors beat 0-d ones, and those beat Python numbers, unless the category says otherwise."""
    if stronger is None or weaker is None:
        return stronger or weaker
    return stronger if category(stronger) >= max(category(weaker), 1) else promote_types(stronger, weaker)


# ------------------------------------------------------------------------------------------------------- the table

class Op:
    """One row.

    forward   (*arrays, *attrs) -> an array, or a tuple of it and of arrays that only backward needs
    backward  (node, g) -> a gradient, or None, for each input
    saves     inputs that backward reads, by position; -1 is the output
    reads     of these, what the gradient of each input reads; the others are not kept
    kernel    the elementwise kernel that is all there is to the forward: see kernels.quick
    inputs    (rng, n) -> (arrays, attrs): samples of about n elements away from kinks, for tests and benches
    range     of an activation, in words, with its parameters; monotone: it never falls
    requires  of its parameters: in words, and (*parameters) -> is that so
    work      (*arrays) -> of the forward of a matrix or dense row its floating-point operations, of others the elements
              that it reads
    """
    __slots__ = ("name", "formula", "forward", "backward", "saves", "inputs", "kind", "view", "sums", "work", "params", "module",
                 "reads", "kernel", "kept", "range", "monotone", "requires")

    def __init__(self, name: str, formula: str, forward: Callable, backward: Callable, inputs: Callable, *,
                 saves: tuple[int, ...] = (), kind: str = "op", view: bool = False, sums: Callable | None = None,
                 work: Callable | None = None, params: tuple[tuple[str, float | None], ...] = (), module: str = "",
                 reads: tuple[tuple[int, ...], ...] | None = None, kernel: str | None = None, range: str = "",
                 monotone: bool = False, requires: tuple[str, Callable] | None = None) -> None:
        self.range, self.monotone, self.requires = range, monotone, requires
        self.kernel = kernel
        self.kept: dict[tuple, tuple] = {}
        self.name, self.formula, self.forward, self.backward, self.inputs = name, formula, forward, backward, inputs
        self.saves, self.kind, self.view, self.params, self.module, self.reads = saves, kind, view, params, module, reads
        self.sums = sums or (lambda *arrays: 1)         # terms in the longest sum: tolerances grow with it
        self.work = work or (lambda *arrays: sum(np.size(a) for a in arrays))
        OPS[name] = self

    def keep(self, needs: tuple[bool, ...]) -> tuple:
        """`saves`, with None for what no gradient that is wanted reads."""
        found = self.kept.get(needs)
        if found is None:
            read = {i for need, some in zip(needs, self.reads or ()) if need for i in some}
            found = self.kept[needs] = tuple([i if i in read else None for i in self.saves])
        return found

    def __repr__(self) -> str:
        return f"<op {self.name}: {self.formula}>"


OPS: dict[str, Op] = {}


def spread(rng: Any, n: int, low: float = -3.0, high: float = 3.0, away: tuple[float, ...] = (), gap: float = 0.02) -> Array:
    """n numbers in [low, high], none within gap of a kink."""
    x = rng.uniform(low, high, n)
    for kink in away:
        near = abs(x - kink) < gap
        x[near] = kink + np.where(x[near] < kink, -2 * gap, 2 * gap)
    return x


def grid(n: int) -> Shape:
    """(rows, columns) of about n elements, never square."""
    rows = max(1, int(n ** 0.5) // 2)
    return rows, max(1, n // rows)


def table(rng: Any, n: int, **limits: Any) -> Array:
    rows, columns = grid(n)
    return spread(rng, rows * columns, **limits).reshape(rows, columns)


# Elementwise. A rule for each input, of (g, saved...).

def mapped(kernel: str) -> Callable:
    """An elementwise kernel as a forward: (*arrays of one shape, *attrs) -> array."""
    count = (KERNELS.get(kernel) or HOST[kernel]).inputs

    def forward(*operands: Any) -> Array:
        z = empty(operands[0].shape, operands[0].dtype)
        run(kernel, (*operands[:count], z), operands[count:])
        return z

    return forward


def unary(name: str, formula: str, rule: Callable, saves: tuple[int, ...] = (), away: tuple[float, ...] = (),
          low: float = -3.0, kind: str = "elementwise", high: float = 3.0) -> None:
    Op(name, formula, mapped(name), lambda node, g: (rule(g, *node.saved(g)),),
       lambda rng, n: ((spread(rng, n, low, high, away),), ()), saves=saves, kind=kind, kernel=name if name in KERNELS else None)


def binary(name: str, formula: str, rules: tuple[Callable, Callable], saves: tuple[int, ...] = (), low: float = -3.0,
           apart: bool = False, reads: tuple[tuple[int, ...], ...] | None = None, inputs: Callable | None = None) -> None:
    def forward(x: Array, y: Array) -> Array:
        z = empty(x.shape if x.shape == y.shape else broadcast_shape(x.shape, y.shape), x.dtype)
        run(name, (x, y, z))
        return z

    def backward(node: Any, g: Any) -> tuple:
        saved = node.saved(g)
        return tuple(rule(g, *saved).sum_to(shape) if need else None
                     for rule, need, shape in zip(rules, node.needs, node.shapes))

    def samples(rng: Any, n: int) -> tuple:
        x, y = table(rng, n, low=low), table(rng, n, low=low)[:1]
        return ((np.where(abs(x - y) < 0.05, x + 0.2, x) if apart else x, y), ())

    Op(name, formula, forward, backward, inputs or samples, saves=saves, kind="elementwise", reads=reads,
       kernel=name if name in KERNELS else None)


unary("neg",  "-x",      lambda g: -g)
unary("exp",  "e^x",     lambda g, y: g * y, saves=(-1,))
unary("log",  "ln x",    lambda g, x: g / x, saves=(0,), low=0.1)
unary("expm1", "e^x - 1",   lambda g, y: g * (y + 1), saves=(-1,))
unary("log1p", "ln(1 + x)", lambda g, x: g / (x + 1), saves=(0,), low=-0.9)
unary("sin",  "sin x",   lambda g, x: g * x.cos(), saves=(0,))
unary("cos",  "cos x",   lambda g, x: -g * x.sin(), saves=(0,))
unary("erf",  "2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x",
      lambda g, x: g * (x * -x).exp() * (2 / math.pi ** 0.5), saves=(0,))
unary("sqrt", "x^(1/2)", lambda g, y: g / (y * 2), saves=(-1,), low=0.1)
unary("abs",  "|x|",     lambda g, x: g * x.sign(), saves=(0,), away=(0,))
unary("sign", "x / |x|, 0 at 0 and of NaN", lambda g: g * 0, away=(0,))
unary("exp2", "2^x",     lambda g, y: g * (y * math.log(2)), saves=(-1,))
unary("log2", "ln x / ln 2",   lambda g, x: g / (x * math.log(2)), saves=(0,), low=0.1)
unary("log10", "ln x / ln 10", lambda g, x: g / (x * math.log(10)), saves=(0,), low=0.1)
unary("rsqrt", "x^(-1/2)", lambda g, y: g * (y * y * y) * -0.5, saves=(-1,), low=0.1)
unary("tan",  "sin x / cos x", lambda g, y: g * (y * y + 1), saves=(-1,), low=-1.2, high=1.2)
unary("asin", "the angle in [-pi/2, pi/2] whose sine is x", lambda g, x: g * (1 - x * x).rsqrt(), saves=(0,), low=-0.8, high=0.8)
unary("acos", "the angle in [0, pi] whose cosine is x", lambda g, x: -g * (1 - x * x).rsqrt(), saves=(0,), low=-0.8, high=0.8)
unary("sinh", "(e^x - e^-x) / 2", lambda g, x: g * x.cosh(), saves=(0,))
unary("cosh", "(e^x + e^-x) / 2", lambda g, x: g * x.sinh(), saves=(0,))
unary("asinh", "ln(x + sqrt(x^2 + 1))", lambda g, x: g * (x * x + 1).rsqrt(), saves=(0,))
unary("acosh", "ln(x + sqrt(x^2 - 1)), x >= 1", lambda g, x: g * (x * x - 1).rsqrt(), saves=(0,), low=1.3)
unary("atanh", "ln((1 + x) / (1 - x)) / 2", lambda g, x: g / (1 - x * x), saves=(0,), low=-0.7, high=0.7)
unary("erfc", "1 - erf(x), also where that cancels",
      lambda g, x: g * (x * -x).exp() * (-2 / math.pi ** 0.5), saves=(0,))
unary("lgamma", "ln |gamma(x)|", lambda g, x: g * x._op("polygamma", attrs=(0.0,)), saves=(0,), low=0.4)
for _name, _formula, _kinks in (("floor", "the largest whole number <= x", tuple(range(-3, 4))),
                                ("ceil", "the smallest whole number >= x", tuple(range(-3, 4))),
                                ("trunc", "x without its fraction", tuple(range(-3, 4))),
                                ("round", "the nearest whole number, at a half the even one", (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5))):
    unary(_name, _formula, lambda g: g * 0, away=_kinks)
Op("polygamma", "the n-th derivative of digamma, the derivative of lgamma", mapped("polygamma"),
   lambda node, g: (g * node.saved(g)[0]._op("polygamma", attrs=(node.attrs[0] + 1,)),),
   lambda rng, n: ((spread(rng, n, 0.5, 3.0),), (1.0,)), saves=(0,), kind="elementwise")

binary("add", "x + y", (lambda g: g, lambda g: g))
binary("sub", "x - y", (lambda g: g, lambda g: -g))
binary("mul", "x y",   (lambda g, x, y: g * y, lambda g, x, y: g * x), saves=(0, 1), reads=((1,), (0,)))
binary("div", "x / y", (lambda g, x, y: g / y, lambda g, x, y: -g * (x / y) / y), saves=(0, 1), reads=((1,), (0, 1)), low=0.5)
binary("pow", "x^y",   (lambda g, x, y, z: g * (y * x.pow(y - 1)).masked_fill(y == 0, 0.0),
                        lambda g, x, y, z: g * (z * x.masked_fill(x == 0, 1.0).log())),
       saves=(0, 1, -1), reads=((0, 1), (0, -1)), low=0.2)


def _share(pick: str) -> tuple[Callable, Callable]:
    """Of two candidates the winner takes the gradient; at a tie each takes half, beside a NaN all."""
    def won(x: Any, y: Any) -> Any:
        return 1 - (x < y if pick == "max" else x > y).to(x.dtype) - (x == y).to(x.dtype) * 0.5

    return lambda g, x, y: g * won(x, y), lambda g, x, y: g * won(y, x)


def _inverse_square(x: Any, y: Any) -> Any:
    return 1 / (x * x + y * y)


binary("atan2", "the angle of the point (y, x): of x / y, and beyond pi/2 where y < 0",
       (lambda g, x, y: g * y * _inverse_square(x, y), lambda g, x, y: -g * x * _inverse_square(x, y)), saves=(0, 1), low=0.2)
binary("hypot", "sqrt(x^2 + y^2)", (lambda g, x, y, z: g * (x / z), lambda g, x, y, z: g * (y / z)), saves=(0, 1, -1), low=0.2)
binary("copysign", "|x| with the sign of y", (lambda g, x, z: g * (z / x).masked_fill(x == 0, 0.0), lambda g, x, z: g * 0),
       saves=(0, -1), low=0.2)
def _quotients(rng: Any, n: int) -> tuple:
    """x and y with x / y between whole numbers."""
    y = table(rng, n, low=0.5)[:1]
    whole = rng.integers(-3, 4, grid(n))
    return (y * (whole + rng.uniform(0.2, 0.8, grid(n))), y), ()


binary("fmod", "x - y trunc(x / y)", (lambda g, x, y: g, lambda g, x, y: -g * (x / y)._op("trunc")), saves=(0, 1),
       inputs=_quotients)
binary("remainder", "x - y floor(x / y)", (lambda g, x, y: g, lambda g, x, y: -g * x._op("floor_divide", y)),
       saves=(0, 1), inputs=_quotients)
binary("floor_divide", "floor(x / y)", (lambda g, x, y: g * 0, lambda g, x, y: g * 0), saves=(0, 1), inputs=_quotients)
binary("maximum", "max(x, y), NaN if either is", _share("max"), saves=(0, 1), apart=True)
binary("minimum", "min(x, y), NaN if either is", _share("min"), saves=(0, 1), apart=True)


def _clamp(x: Array, low: float, high: float) -> Array:
    y = empty(x.shape, x.dtype)
    run("clamp", (x, y), (low, high))
    return y


def _clamp_grad(node: Any, g: Any) -> tuple:
    x, = node.saved(g)
    low, high = node.attrs
    return g * ((x >= low) & (x <= high)).to(g.dtype),


Op("clamp", "min(max(x, low), high)", _clamp, _clamp_grad, lambda rng, n: ((spread(rng, n, away=(-1, 2)),), (-1.0, 2.0)),
   saves=(0,), kind="elementwise")


def _where(mask: Array, x: Array, y: Array) -> Array:
    z = empty(broadcast_shape(mask.shape, broadcast_shape(x.shape, y.shape)), x.dtype)
    run("where", (mask, x, y, z))
    return z


def _where_grad(node: Any, g: Any) -> tuple:
    mask, = node.saved(g)
    zero = g.new_constant(0.0)
    return (None, g.where(mask, zero).sum_to(node.shapes[1]) if node.needs[1] else None,
            zero.where(mask, g).sum_to(node.shapes[2]) if node.needs[2] else None)


Op("where", "x where mask, else y", _where, _where_grad,
   lambda rng, n: ((table(rng, n) > 0, table(rng, n), table(rng, n)[:1]), ()), saves=(0,), kind="elementwise")


def _copy(x: Array) -> Array:
    y = empty(x.shape, x.dtype)
    run("copy", (x, y))
    return y


def _cast(x: Array, dtype: np.dtype) -> Array:
    if x.dtype not in CASTABLE and dtype in FLOATS:              # the small integers go by way of int64
        x = _cast(x, CASTABLE[2])
    y = empty(x.shape, dtype)
    run("cast", (x, y))
    return y


Op("clone", "x, in memory of its own", _copy, lambda node, g: (g,), lambda rng, n: ((table(rng, n),), ()), kind="elementwise")
Op("cast", "x as another dtype", _cast, lambda node, g: (g.to(node.dtype),),
   lambda rng, n: ((table(rng, n),), (np.dtype(np.float64),)), kind="elementwise")


# Comparisons and whole-number arithmetic: no gradient, so no rows; one function serves them.

def compare(name: str, x: Array, y: Array) -> Array:
    z = empty(broadcast_shape(x.shape, y.shape), BOOL)
    run(name, (x, y, z))
    return z


def whole(name: str, *operands: Array) -> Array:
    shape = operands[0].shape if len(operands) == 1 else broadcast_shape(operands[0].shape, operands[1].shape)
    z = empty(shape, operands[0].dtype)
    run(name, (*operands, z))
    return z


# Reductions. attrs: dims (sorted, not negative), keepdim.

def reduction(name: str, formula: str, rule: Callable, saves: tuple[int, ...] = (), kernel_attrs: int = 0) -> None:
    def forward(x: Array, dims: tuple[int, ...], keepdim: bool, *attrs: float) -> Array:
        y = quick_fold(name, x, dims, keepdim, attrs)
        if y is None:
            middle, _ = folded(x, dims)
            y = empty(kept_shape(x.shape, dims, keepdim), x.dtype)
            run(name, (middle, y.reshape(middle.shape[0], middle.shape[2])), attrs)
        return y

    def backward(node: Any, g: Any) -> tuple:
        dims, shape = node.attrs[0], node.shapes[0]
        saved = [s.reshape(kept_shape(shape, dims, True)) if s.shape != shape else s for s in node.saved(g)]
        return rule(g.reshape(kept_shape(shape, dims, True)), shape, dims, *saved, *node.attrs[2:]),

    def inputs(rng: Any, n: int) -> tuple:
        rows, columns = grid(n)
        x = rng.permutation(rows * columns * 2).reshape(rows, 2, columns) / (rows * columns) - 1.0   # no ties
        return (x,), ((0, 2), False, *([1.0] * kernel_attrs))

    Op(name, formula, forward, backward, inputs, saves=saves, kind="reduction", sums=lambda x, *_: x.size)


def _count(shape: Shape, dims: tuple[int, ...]) -> int:
    return math.prod(shape[d] for d in dims)


def _extreme_grad(g: Any, shape: Shape, dims: tuple[int, ...], x: Any, y: Any) -> Any:
    winners = (x == y).to(g.dtype)
    return g / winners.sum(dims, keepdim=True) * winners


reduction("sum",  "sum over dims",             lambda g, shape, dims: g.expand(shape))
reduction("mean", "mean over dims",            lambda g, shape, dims: (g / _count(shape, dims)).expand(shape))
reduction("max",  "largest over dims; ties share the gradient",  _extreme_grad, saves=(0, -1))
reduction("min",  "smallest over dims; ties share the gradient", _extreme_grad, saves=(0, -1))
reduction("var",  "sum (x - mean)^2 / (n - correction)",
          lambda g, shape, dims, x, c: g * (x - x.mean(dims, keepdim=True)) * (2 / max(_count(shape, dims) - c, 0) if
                                       _count(shape, dims) > c else math.nan), saves=(0,), kernel_attrs=1)


def _prod(x: Array, dims: tuple[int, ...], keepdim: bool) -> Array:
    middle, _ = folded(x, dims)
    y = empty(kept_shape(x.shape, dims, keepdim), x.dtype)
    run("prod", (middle, y.reshape(middle.shape[0], middle.shape[2])))
    return y


def _prod_grad(node: Any, g: Any) -> tuple:
    """g times the product of all others: of those before and of those after, so that zeros do no harm."""
    x, = node.saved(g)
    dims, shape = node.attrs[0], node.shapes[0]
    g = g.reshape(kept_shape(shape, dims, True))
    if not dims or not _count(shape, dims):
        return g.expand(shape),
    rest = tuple(i for i in range(len(shape)) if i not in dims)
    order = rest + dims
    flat = x.permute(order).reshape((*[shape[i] for i in rest], _count(shape, dims)))
    at = len(rest)
    before = _after(flat._op("cumprod", attrs=(at,)), at, 1.0)
    after = _backwards(_after(_backwards(flat, at)._op("cumprod", attrs=(at,)), at, 1.0), at)
    others = (before * after).reshape(tuple(shape[i] for i in order)).permute(_inverse(order))
    return g * others,


Op("prod", "product over dims", _prod, _prod_grad,
   lambda rng, n: ((table(rng, n, low=0.7, high=1.4),), ((1,), False)), saves=(0,), kind="reduction", sums=lambda x, *_: x.size)


def _sum_to(x: Array, shape: Shape) -> Array:
    """Undo a broadcast: sum what was stretched."""
    lead = x.ndim - len(shape)
    dims = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and x.shape[i + lead] != 1)
    middle, _ = folded(x, dims)
    y = empty(shape, x.dtype)
    run("sum", (middle, y.reshape(middle.shape[0], middle.shape[2])))
    return y


Op("sum_to", "the sum that undoes a broadcast", _sum_to, lambda node, g: (g.expand(node.shapes[0]),),
   lambda rng, n: ((table(rng, n),), ((1, grid(n)[1]),)), kind="reduction", sums=lambda x, *_: x.size)


# Views: no kernel runs. Backward puts the gradient where the elements came from.

def _reshape(x: Array, shape: Shape) -> Array:
    return reshaped(x, shape)


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(axes))


def _slice(x: Array, key: tuple) -> Array:
    """x[key] in the same memory, also where it is a single element: NumPy would hand out a number."""
    y = x[key]
    return y if isinstance(y, np.ndarray) else x[(*key, ...)]


def _slice_grad(g: Array, shape: Shape, key: tuple) -> Array:
    x = filled(shape, g.dtype, 0.0)
    run("copy", (g, _slice(x, key)))
    return x


Op("reshape", "the same elements in another shape", _reshape, lambda node, g: (g.reshape(node.shapes[0]),),
   lambda rng, n: ((table(rng, n),), ((grid(n)[0] * grid(n)[1],),)), kind="view", view=True)
Op("permute", "axes in another order", lambda x, axes: x.transpose(axes), lambda node, g: (g.permute(_inverse(node.attrs[0])),),
   lambda rng, n: ((table(rng, n),), ((1, 0),)), kind="view", view=True)
Op("expand", "axes of one repeated, in the same memory", broadcast,
   lambda node, g: (g.sum_to(node.shapes[0]),), lambda rng, n: ((table(rng, n)[:1],), (grid(n),)), kind="view", view=True)
Op("slice", "x[integers, slices, None, ...]", _slice,
   lambda node, g: (g._op("slice_grad", attrs=(node.shapes[0], node.attrs[0])),),
   lambda rng, n: ((table(rng, n),), ((slice(None), slice(None, None, 2)),)), kind="view", view=True)
Op("slice_grad", "zeros, and g where x[key] was", _slice_grad, lambda node, g: (g._op("slice", attrs=(node.attrs[1],)),),
   lambda rng, n: ((table(rng, n),), ((grid(n)[0], 2 * grid(n)[1]), (slice(None), slice(None, None, 2)))), kind="grad")


# Rows by number: a table of v rows, an index of any shape. Labels and indices are int64.

def _take(x: Array, index: Array) -> Array:
    if x.dtype == INT64 and index.dtype == INT64:                # C copies numbers of eight bytes, whatever they mean
        return _take(x.view(FLOATS[1]), index).view(INT64)
    width = x.shape[1:]
    y = empty(index.shape + width, x.dtype)
    run("take", (reshaped(x, (len(x), math.prod(width))), reshaped(index, (index.size,)),
                 y.reshape(index.size, math.prod(width))))
    return y


def _take_row_of(x: Array, index: Array, padding: int, by_count: bool) -> Array:
    return _take(x, index)


def _scatter(kernel: str) -> Callable:
    def forward(g: Array, index: Array, shape: Shape) -> Array:
        x = filled(shape, g.dtype, 0.0)
        width = math.prod(shape[1:])
        run(kernel, (x.reshape(shape[0], width), reshaped(index, (index.size,)), reshaped(g, (index.size, width))))
        return x
    return forward


def _rows(rng: Any, n: int) -> tuple[Array, Array]:
    x = table(rng, n)
    return x, rng.integers(0, len(x), (len(x) + 1, 2))


Op("take", "rows x[index]", _take, lambda node, g: (g._op("take_grad", *node.saved(g), attrs=(node.shapes[0],)), None),
   lambda rng, n: (_rows(rng, n), ()), saves=(1,), kind="index")
def _embedding_grad(node: Any, g: Any) -> tuple:
    index, = node.saved(g)
    shape, (padding, by_count) = node.shapes[0], node.attrs
    dx = g._op("take_grad", index, attrs=(shape,))
    factor = filled((shape[0], 1), g.dtype, 1.0)
    if by_count:
        once, times = filled((index.numel(), 1), g.dtype, 1.0), filled(factor.shape, g.dtype, 0.0)
        run("scatter_add", (times, reshaped(index.array, (index.numel(),)), once))
        run("maximum", (times, factor, times))
        run("div", (factor, times, factor))
    if padding >= 0:
        run("fill", (factor[padding:padding + 1],), (0.0,))
    return dx * g._wrap(factor), None


Op("embedding", "rows x[index]; gradients of one row left out, or divided by how often a row is taken", _take_row_of,
   _embedding_grad, lambda rng, n: (_rows(rng, n), (-1, False)), saves=(1,), kind="index")
Op("take_grad", "zeros, plus each row of g at its index", _scatter("scatter_add"),
   lambda node, g: (g._op("take", *node.saved(g)), None),
   lambda rng, n: ((rng.normal(size=(n, 3)), rng.integers(0, n, n)), ((n, 3),)), saves=(1,), kind="grad", sums=lambda g, *_: len(g))


# Elements by flat position: what every index that is no slice comes down to. attrs: positions, of the result's shape.

def _take_at(x: Array, at: Array) -> Array:
    y = empty(at.shape, x.dtype)
    run("take", (reshaped(x, (x.size, 1)), at.reshape(-1), y.reshape(-1, 1)))
    return y


def _take_at_grad(g: Array, at: Array, shape: Shape) -> Array:
    x = filled(shape, g.dtype, 0.0)
    run("scatter_add", (x.reshape(-1, 1), at.reshape(-1), reshaped(g, (g.size, 1))))
    return x


def _put_at(x: Array, v: Array, at: Array) -> Array:
    y = _copy(x)
    run("put", (y.reshape(-1, 1), at.reshape(-1), reshaped(v, (v.size, 1))))
    return y


def _put_at_grad(node: Any, g: Any) -> tuple:
    at, = node.attrs
    zeros = g._full(at.shape, 0.0)
    return g._op("put_at", zeros, attrs=(at,)) if node.needs[0] else None, g._op("take_at", attrs=(at,)) if node.needs[1] else None


def _at(rng: Any, n: int) -> Array:
    return rng.permutation(np.prod(grid(n)))[:n // 2 + 1]


Op("take_at", "x at flat positions", _take_at, lambda node, g: (g._op("take_at_grad", attrs=(node.attrs[0], node.shapes[0])),),
   lambda rng, n: ((table(rng, n),), (_at(rng, n),)), kind="index")
Op("take_at_grad", "zeros, plus each of g at its position", _take_at_grad,
   lambda node, g: (g._op("take_at", attrs=(node.attrs[0],)),),
   lambda rng, n: ((rng.normal(size=len(at := _at(rng, n))),), (at, grid(n))), kind="grad")
Op("put_at", "x, with v at flat positions", _put_at, _put_at_grad,
   lambda rng, n: ((table(rng, n), rng.normal(size=len(at := _at(rng, n)))), (at,)), kind="index")


def _gather(x: Array, index: Array, dim: int) -> Array:
    y = empty(index.shape, x.dtype)
    run("gather", (along(x, dim), along(index, dim), along(y, dim)))
    return y


def _gather_grad(g: Array, index: Array, dim: int, shape: Shape) -> Array:
    x = filled(shape, g.dtype, 0.0)
    run("gather_add", (along(x, dim), along(index, dim), along(g, dim)))
    return x


def _columns(rng: Any, n: int) -> tuple:
    x = table(rng, n)
    return (x, rng.integers(0, x.shape[1], (len(x), len(x) + 2))), (1,)


Op("gather", "x[i, index[i, j]] along dim", _gather,
   lambda node, g: (g._op("gather_grad", *node.saved(g), attrs=(node.attrs[0], node.shapes[0])), None), _columns,
   saves=(1,), kind="index")
Op("gather_grad", "zeros, plus each of g at its index along dim", _gather_grad,
   lambda node, g: (g._op("gather", *node.saved(g), attrs=(node.attrs[0],)), None),
   lambda rng, n: ((rng.normal(size=(n, 3)), rng.integers(0, 5, (n, 3))), (1, (n, 5))), saves=(1,), kind="grad", sums=lambda *_: 3)


def _scatter_along(kernel: str) -> Callable:
    def forward(x: Array, index: Array, v: Array, dim: int) -> Array:
        y = _copy(x)
        run(kernel, (along(y, dim), along(index, dim), along(v, dim)))
        return y
    return forward


def _scatter_along_grad(node: Any, g: Any) -> tuple:
    index, = node.saved(g)
    return (g._op("scatter", index, g._full(node.shapes[1], 0.0), attrs=node.attrs) if node.needs[0] else None, None,
            g._op("gather", index, attrs=node.attrs) if node.needs[2] else None)


Op("scatter", "x, with v at its index along dim", _scatter_along("gather_put"), _scatter_along_grad,
   lambda rng, n: ((table(rng, n), rng.permuted(np.broadcast_to(np.arange(grid(n)[1]), grid(n)), axis=1)[:, :grid(n)[1] // 2 + 1],
                    table(rng, n)[:, :grid(n)[1] // 2 + 1]), (1,)), saves=(1,), kind="index")


def _scatter_extreme_grad(node: Any, g: Any) -> tuple:
    """In equal shares to all that are as large."""
    (x, index, v, y), dim = node.saved(g), node.attrs[0]
    mine, theirs = (x == y).to(g.dtype), (v == y._op("gather", index, attrs=(dim,))).to(g.dtype)
    share = g / (mine + theirs._op("gather_grad", index, attrs=(dim, x.shape)))
    return share * mine, None, share._op("gather", index, attrs=(dim,)) * theirs


def _scatter_mul_grad(node: Any, g: Any) -> tuple:
    """g times the product of all others, also where one of them or this one is 0."""
    (x, index, v), dim = node.saved(g), node.attrs[0]
    ones = [t.masked_fill(t == 0, 1.0) for t in (x, v)]
    zeros = [(t == 0).to(g.dtype) for t in (x, v)]
    rest = ones[0]._op("scatter_mul", index, ones[1], attrs=(dim,)) * g
    count = zeros[0] + zeros[1]._op("gather_grad", index, attrs=(dim, x.shape))
    their_rest, their_count = (t._op("gather", index, attrs=(dim,)) for t in (rest, count))
    return (rest.masked_fill(count != zeros[0], 0.0) / ones[0], None,
            their_rest.masked_fill(their_count != zeros[1], 0.0) / ones[1])


def _scattered(rng: Any, n: int) -> tuple:
    (x, index), attrs = _columns(rng, n)
    values = rng.permutation(x.size + index.size) / (x.size + index.size) + 0.5          # no ties
    return (values[:x.size].reshape(x.shape), index, values[x.size:].reshape(index.shape)), attrs


for _name, _formula, _rule, _saves in (
        ("max", "the largest of x and each v at its index along dim; ties share", _scatter_extreme_grad, (0, 1, 2, -1)),
        ("min", "the smallest of x and each v at its index along dim; ties share", _scatter_extreme_grad, (0, 1, 2, -1)),
        ("mul", "x times each v at its index along dim", _scatter_mul_grad, (0, 1, 2))):
    Op(f"scatter_{_name}", _formula, _scatter_along(f"gather_{_name}"), _rule, _scattered, saves=_saves, kind="index",
       sums=lambda x, *_: x.shape[-1])


# The diagonal of two axes as the last one: a view. attrs: offset, dim1, dim2.

def _diagonal(x: Array, offset: int, a: int, b: int) -> Array:
    y = x.diagonal(offset, a, b)
    y.flags.writeable = x.flags.writeable                        # NumPy hands it out read-only
    return y


def _diagonal_grad(g: Array, shape: Shape, offset: int, a: int, b: int) -> Array:
    x = filled(shape, g.dtype, 0.0)
    run("copy", (g, _diagonal(x, offset, a, b)))
    return x


Op("diagonal", "x[i, i + offset]", _diagonal, lambda node, g: (g._op("diagonal_grad", attrs=(node.shapes[0], *node.attrs)),),
   lambda rng, n: ((table(rng, n),), (1, 0, 1)), kind="view", view=True)
Op("diagonal_grad", "zeros, and g where the diagonal was", _diagonal_grad,
   lambda node, g: (g._op("diagonal", attrs=node.attrs[1:]),),
   lambda rng, n: ((spread(rng, n),), ((n, n + 3), 1, 0, 1)), kind="grad")


# Along dim, each from those before it. All their gradients come down to recurrence, run backwards.

def _each_along(kernel: str) -> Callable:
    def forward(x: Array, *others_and_dim: Any) -> Array:
        *others, dim = others_and_dim
        y = empty(x.shape, x.dtype)
        run(kernel, (*[along(a, dim) for a in (x, *others)], along(y, dim)))
        return y
    return forward


def _backwards(t: Any, dim: int) -> Any:
    return t._op("slice", attrs=((*(slice(None),) * dim, slice(None, None, -1)),))


def _after(t: Any, dim: int, first: float) -> Any:
    """first, then all of t but its last."""
    key = (slice(None),) * dim
    return t._full((*t.shape[:dim], 1, *t.shape[dim + 1:]), first)._op("cat", t[(*key, slice(-1))], attrs=(dim,))


def _suffix(g: Any, ratio: Any, dim: int) -> Any:
    """s_n = g_n + ratio_n+1 s_n+1."""
    return _backwards(_backwards(g, dim)._op("recurrence", _after(_backwards(ratio, dim), dim, 0.0), attrs=(dim,)), dim)


def scan(name: str, formula: str, rule: Callable, saves: tuple[int, ...] = (), inputs: Callable | None = None) -> None:
    def backward(node: Any, g: Any) -> tuple:
        dim, shape = node.attrs[0], node.shapes[0]
        if not shape or not shape[dim]:
            return (g,) if len(node.shapes) == 1 else (g, g * 0)
        return rule(g, *node.saved(g), dim)

    inputs = inputs or (lambda rng, n: ((table(rng, n, low=0.5, high=1.5),), (1,)))
    Op(name, formula, _each_along(name), backward, inputs, saves=saves, kind="scan", sums=lambda x, *_: x.shape[-1])


def _recurrence_grad(g: Any, r: Any, y: Any, dim: int) -> tuple:
    s = _suffix(g, r, dim)
    return s, s * _after(y, dim, 0.0)


def _logcumsumexp_grad(g: Any, x: Any, y: Any, dim: int) -> tuple:
    before = _after(y, dim, -math.inf)
    drop = before - y                                            # e^drop <= 1: what stays of a sum at the next step
    return _suffix(g, drop.masked_fill(y == before, 0.0).exp(), dim) * (x - y).exp(),


scan("recurrence", "y_n = x_n + r_n y_n-1", _recurrence_grad, saves=(1, -1),
     inputs=lambda rng, n: ((table(rng, n), table(rng, n, low=-1.0, high=1.0)), (1,)))
scan("cumsum", "x_0 + ... + x_n", lambda g, dim: (_backwards(_backwards(g, dim)._op("cumsum", attrs=(dim,)), dim),))
scan("cumprod", "x_0 ... x_n", lambda g, x, y, dim: (_suffix(g, x, dim) * _after(y, dim, 1.0),), saves=(0, -1))
scan("logcumsumexp", "ln(e^x_0 + ... + e^x_n)", _logcumsumexp_grad, saves=(0, -1))


# Matrices

def _matmul(a: Array, b: Array) -> Array:
    c = empty((a.shape[0], b.shape[1]), a.dtype)
    run("matmul", (a, b, c))
    return c


def _bmm(a: Array, b: Array) -> Array:
    c = empty((a.shape[0], a.shape[1], b.shape[2]), a.dtype)
    run("bmm", (a, b, c))
    return c


def _matmul_grad(node: Any, g: Any) -> tuple:
    a, b = node.saved(g)
    return g @ b.mT if node.needs[0] else None, a.mT @ g if node.needs[1] else None


def _sides(n: int) -> tuple[int, int, int]:
    side = max(1, round(n ** (1 / 3)))
    return side, side + 1, side + 3


def _matmul_inputs(rng: Any, n: int) -> tuple:
    m, k, q = _sides(n)
    return (rng.normal(size=(m, k)), rng.normal(size=(k, q))), ()


def _bmm_inputs(rng: Any, n: int) -> tuple:
    m, k, q = _sides(n)
    return (rng.normal(size=(3, m, k)), rng.normal(size=(3, k, q))), ()


Op("matmul", "a b", _matmul, _matmul_grad, _matmul_inputs, saves=(0, 1), reads=((1,), (0,)), kind="matrix",
   sums=lambda a, b: a.shape[-1], work=lambda a, b: 2 * a.size * b.shape[-1])
Op("bmm", "a[z] b[z]", _bmm, _matmul_grad, _bmm_inputs, saves=(0, 1), reads=((1,), (0,)), kind="matrix",
   sums=lambda a, b: a.shape[-1], work=lambda a, b: 2 * a.size * b.shape[-1])


# Inverses and decompositions of [z, m, n]. Those of several parts are packed side by side in one array, so that each op has
# one result; linalg.py takes it apart. What is found only up to a choice (the sign of an eigenvector, the basis of those of
# one eigenvalue) has a derivative where what is computed from it does not depend on that choice.

def _square(kernel: str) -> Callable:
    def forward(a: Array, *others: Array) -> Array:
        y = empty((others or (a,))[0].shape, a.dtype)
        run(kernel, (a, *others, y))
        return y
    return forward


def _triangle(x: Any, diagonal: float) -> Any:
    """What is above the diagonal of x [z, n, n], and so much of the diagonal."""
    n = x.shape[1]
    return x * x._wrap(np.triu(np.ones((n, n)), 1).astype(x.dtype) + (np.eye(n) * diagonal).astype(x.dtype))


def _diagonals_of(x: Any) -> Any:
    """[z, n] as diagonal matrices."""
    return x.unsqueeze(2) * x._wrap(np.eye(x.shape[1], dtype=x.dtype))


def _over(x: Any, y: Any) -> Any:
    """x / y, 0 where y is."""
    return x / y.masked_fill(y == 0, math.inf)


def _solve_grad(node: Any, g: Any) -> tuple:
    a, x = node.saved(g)
    gb = a.mT._op("solve", g)
    return -(gb @ x.mT), gb


def _det(a: Array) -> Array:
    y = empty(a.shape[:1], a.dtype)
    run("det", (a, y))
    return y


def _det_grad(node: Any, g: Any) -> tuple:
    a, y = node.saved(g)
    return (g * y).reshape((-1, 1, 1)) * a._op("inv").mT,


def _logabsdet(a: Array) -> Array:
    sign, y = (empty(a.shape[:1], a.dtype) for _ in range(2))
    run("slogdet", (a, sign, y))
    return y


def _cholesky_grad(node: Any, g: Any) -> tuple:
    """L^-T P(L^T g) L^-1, symmetric; P keeps the lower triangle and half of the diagonal. Murray 2016."""
    lower, = node.saved(g)
    upper = lower.mT
    half = _triangle(g.mT @ lower, 0.5).mT
    s = upper._op("solve", upper._op("solve", half).mT)
    return (s + s.mT) * 0.5,


def _eigh(a: Array) -> Array:
    """[w | v]"""
    z, n, _ = a.shape
    y = empty((z, n, n + 1), a.dtype)
    run("eigh", (a, y[:, :, 0], y[:, :, 1:]))
    return y


def _eigh_grad(node: Any, g: Any) -> tuple:
    y, = node.saved(g)
    w, v, gw, gv = y[:, :, 0], y[:, :, 1:], g[:, :, 0], g[:, :, 1:]
    inner = _over(v.mT @ gv, w.unsqueeze(1) - w.unsqueeze(2)) + _diagonals_of(gw)
    s = v @ inner @ v.mT
    return (s + s.mT) * 0.5,


def _svd(a: Array) -> Array:
    """[u^T | s | vh]"""
    z, m, n = a.shape
    y = empty((z, min(m, n), m + 1 + n), a.dtype)
    run("svd", (a, y[:, :, :m].transpose(0, 2, 1), y[:, :, m], y[:, :, m + 1:]))
    return y


def _svd_grad(node: Any, g: Any) -> tuple:
    """Townsend: "Differentiating the singular value decomposition", 2016."""
    y, = node.saved(g)
    m, n = node.shapes[0][1:]
    (ut, s, vh), (gut, gs, gvh) = [(t[:, :, :m], t[:, :, m], t[:, :, m + 1:]) for t in (y, g)]
    u, gu = ut.mT, gut.mT
    left, right = ut @ gu, vh @ gvh.mT
    rows, columns = s.unsqueeze(2), s.unsqueeze(1)
    apart = columns * columns - rows * rows
    inner = _over(left - left.mT, apart) * columns + rows * _over(right - right.mT, apart) + _diagonals_of(gs)
    da = u @ inner @ vh
    if m > n:
        da = da + (_over(gu, columns) - u @ _over(left, columns)) @ vh
    if n > m:
        da = da + u @ (_over(gvh, rows) - _over(right.mT, rows) @ vh)
    return da,


def _qr(a: Array) -> Array:
    """[q^T | r]"""
    z, m, n = a.shape
    y = empty((z, min(m, n), m + n), a.dtype)
    run("qr", (a, y[:, :, :m].transpose(0, 2, 1), y[:, :, m:]))
    return y


def _qr_grad(node: Any, g: Any) -> tuple:
    """For m >= n. Walter, Lehmann, Lamour: "On evaluating higher-order derivatives of the QR decomposition", 2012."""
    y, = node.saved(g)
    m = node.shapes[0][1]
    q, r, gq, gr = y[:, :, :m].mT, y[:, :, m:], g[:, :, :m].mT, g[:, :, m:]
    upper = _triangle(gr @ r.mT - q.mT @ gq, 0.5)
    return r._op("solve", (gq + q @ (upper + upper.mT)).mT).mT,


def _pinv(a: Array, rtol: float, atol: float) -> Array:
    z, m, n = a.shape
    y = empty((z, n, m), a.dtype)
    run("pinv", (a, y), (rtol, atol))
    return y


def _pinv_grad(node: Any, g: Any) -> tuple:
    """While the rank stays. Golub, Pereyra 1973."""
    a, p = node.saved(g)
    left, right = g.mT @ p @ p.mT, p.mT @ p @ g.mT
    return left - a @ (p @ left) + right - (right @ p) @ a - p.mT @ g @ p.mT,


def _matrices(shape: Callable, draw: Callable) -> Callable:
    def inputs(rng: Any, n: int) -> tuple:
        m, k, _ = _sides(n)
        return draw(rng, shape(m, k)), ()
    return inputs


def _far_from_singular(rng: Any, shape: Shape) -> tuple:
    return rng.normal(size=shape) + 3 * shape[1] * np.eye(shape[1]),


def _equations(rng: Any, n: int) -> tuple:
    m, k, _ = _sides(n)
    return (*_far_from_singular(rng, (2, m, m)), rng.normal(size=(2, m, k))), ()


def _spread_out(rng: Any, shape: Shape) -> tuple:
    """Singular values and eigenvalues about 1, 2, 3, ..., with some room between."""
    x = 0.1 * rng.normal(size=shape)
    k = min(shape[1:])
    x[:, np.arange(k), np.arange(k)] += 1.0 + np.arange(k)
    return x,


def _moderate(rng: Any, shape: Shape) -> tuple:
    return tuple(a / (3 * shape[1]) for a in _far_from_singular(rng, shape))


def decomposition(name: str, formula: str, forward: Callable, backward: Callable, inputs: Callable, saves: tuple[int, ...],
                  terms: int = 1) -> None:
    Op(name, formula, forward, backward, inputs, saves=saves, kind="decomposition", sums=lambda a, *_: terms * a.shape[1])


_cubes, _tall = (lambda m, k: (2, m, m)), (lambda m, k: (2, k, m))
decomposition("inv", "a^-1", _square("inv"), lambda node, g: (-(node.saved(g)[0].mT @ g @ node.saved(g)[0].mT),),
              _matrices(_cubes, _far_from_singular), saves=(-1,))
decomposition("det", "the determinant", _det, _det_grad, _matrices(_cubes, _moderate), saves=(0, -1))
decomposition("logabsdet", "ln |det a|", _logabsdet, lambda node, g: (g.reshape((-1, 1, 1)) * node.saved(g)[0]._op("inv").mT,),
              _matrices(_cubes, _far_from_singular), saves=(0,))
decomposition("solve", "a^-1 b", _square("solve"), _solve_grad, _equations, saves=(0, -1))
decomposition("cholesky", "the lower triangle L of L L^T = (a + a^T) / 2", _square("cholesky"), _cholesky_grad,
              _matrices(_cubes, _far_from_singular), saves=(-1,))
decomposition("eigh", "[w | v] of (a + a^T) / 2 = v diag(w) v^T", _eigh, _eigh_grad, _matrices(_cubes, _spread_out), (-1,), 10)
decomposition("svd", "[u^T | s | vh] of a = u diag(s) vh", _svd, _svd_grad, _matrices(_tall, _spread_out), (-1,), 10)
decomposition("qr", "[q^T | r] of a = q r", _qr, _qr_grad, _matrices(_tall, _spread_out), (-1,))
decomposition("pinv", "the pseudoinverse, singular values within atol or rtol of the largest counting as 0", _pinv, _pinv_grad,
              lambda rng, n: (_spread_out(rng, (2, _sides(n)[1], _sides(n)[0])), (1e-6, 0.0)), (0, -1), 10)


# Activations: a row here, a row in activations.def, its functions in reference.py. `away`: kinks. Parameters and what
# the derivatives read come from the kernel's signature.


def activation(name: str, module: str, formula: str, range: str, monotone: bool = False, away: tuple[float, ...] = (),
               curve: Callable | None = None, sample: tuple[float, ...] | None = None,
               requires: tuple[str, Callable] | None = None) -> None:
    """curve: the kernel of that name in differentiable ops on what the derivatives read and the parameters, so that there
    is a third derivative and any beyond; None where it is constant between kinks. sample: parameters without a default."""
    reads_x = KERNELS[f"{name}_grad"].slots[1].name == "x"
    params = KERNELS[name].attrs
    attrs = sample or tuple([v for _, v in params if v is not None])

    def grad_backward(node: Any, g: Any) -> tuple:
        dy, s = node.saved(g)
        return (g._op(f"{name}_grad", s, attrs=node.attrs) if node.needs[0] else None,
                g._op(f"{name}_curve", dy, s, attrs=node.attrs) if node.needs[1] else None)

    def curve_backward(node: Any, g: Any) -> tuple:
        first, dy, s = node.saved(g)
        third = None
        if curve and node.needs[2]:
            third, = (g * first * dy).derivatives(lambda s: curve(s, *node.attrs), (s,))
        return (g._op(f"{name}_curve", dy, s, attrs=node.attrs) if node.needs[0] else None,
                g._op(f"{name}_curve", first, s, attrs=node.attrs) if node.needs[1] else None, third)

    def read(rng: Any, n: int) -> Array:
        return spread(rng, n, -4, 4, away) if reads_x else spread(rng, n, 0.05, 0.95)

    kernel = f"dense_{name}"

    def dense(x: Array, w: Array, b: Array, *attrs: float) -> Any:
        if x.ndim == 0 or w.ndim != 2 or x.shape[-1] != w.shape[1] or b.shape != (len(w),):
            raise ShapeError(f"dense takes x [..., in], weight [out, in] and bias [out]; "
                             f"given {list(x.shape)}, {list(w.shape)} and {list(b.shape)}")
        y = empty((*x.shape[:-1], len(w)), x.dtype)
        z = (empty(y.shape, x.dtype),) if reads_x else ()
        rows = tuple([a if a.ndim == 2 else reshaped(a, (math.prod(a.shape[:-1]), a.shape[-1])) for a in (x, *z, y)])
        run(kernel, (rows[0], w, b, *rows[1:]), attrs)
        return y, *z

    def dense_backward(node: Any, g: Any) -> tuple:
        x, w, *rest = node.saved(g)
        if name != "identity":
            s = rest[0] if not reads_x else g._wrap(node.extras[0]) if node.fast else x @ w.mT + rest[0]
            g = g._op(f"{name}_grad", s, attrs=node.attrs)
        if not node.fast:                                        # in ops that have derivatives of their own
            rows = math.prod(x.shape[:-1])
            flat, x2 = g.reshape((rows, w.shape[0])), x.reshape((rows, w.shape[1]))
            return g @ w, flat.mT @ x2, flat.sum((0,))
        dx = g @ w if node.needs[0] else None
        if not node.needs[1] and not node.needs[2]:
            return dx, None, None
        dw, db = _dense_grad_w(g.array, x.array)
        return dx, g._wrap(dw), g._wrap(db) if node.needs[2] else None

    def dense_inputs(rng: Any, n: int) -> tuple:
        m, k, q = _sides(n)
        x, w = rng.uniform(-1, 1, (m, k)), rng.uniform(-1, 1, (q, k)) / k ** 0.5
        if not away:
            return (x, w, rng.normal(size=q)), attrs
        room = np.min(np.diff(away), initial=6.0) / 2            # a bias amid kinks, and the rest nearer than these
        bias = [away[0] - 3.0, *(np.add(away[1:], away[:-1]) / 2), away[-1] + 3.0]
        return (x, w * min(1.0, 0.9 * room / k ** 0.5), np.array([bias[i % len(bias)] for i in np.arange(q)])), attrs

    Op(name, formula, mapped(name), lambda node, g: (g._op(f"{name}_grad", *node.saved(g), attrs=node.attrs),),
       lambda rng, n: ((spread(rng, n, -4, 4, away),), attrs), saves=(0 if reads_x else -1,), kind="activation",
       params=params, module=module, kernel=name, range=range, monotone=monotone,
       requires=requires)
    Op(f"{name}_grad", f"dy times the derivative of {name}", mapped(f"{name}_grad"), grad_backward,
       lambda rng, n: ((spread(rng, n), read(rng, n)), attrs), saves=(0, 1), kind="grad", params=params,
       kernel=f"{name}_grad")
    Op(f"{name}_curve", f"g dy times the second derivative of {name}", mapped(f"{name}_curve"), curve_backward,
       lambda rng, n: ((spread(rng, n), spread(rng, n), read(rng, n)), attrs), saves=(0, 1, 2), kind="curve", params=params)
    if kernel not in KERNELS:                                    # its layer is two ops
        return
    Op(f"dense_{name}", f"{name}(x w^T + b)", dense, dense_backward, dense_inputs, kind="dense", params=params,
       saves=(0, 1) if name == "identity" else (0, 1, 2) if reads_x else (0, 1, -1),
       sums=lambda x, w, *_: x.shape[-1] + len(x), work=lambda x, w, *_: 2 * x.size * len(w))


def _dense_grad_w(dy: Array, x: Array) -> tuple[Array, Array]:
    n, k, rows = dy.shape[-1], x.shape[-1], math.prod(dy.shape[:-1])
    dw, db = empty((n, k), dy.dtype), empty((n,), dy.dtype)
    run("dense_grad_w", (reshaped(dy, (rows, n)), reshaped(x, (rows, k)), dw, db))
    return dw, db


def _sigmoids(x: Any) -> tuple[Any, Any]:
    return x._op("sigmoid"), (-x)._op("sigmoid")


def _swish_curve(x: Any, beta: float = 1.0) -> Any:
    v = x * beta
    s, rest = _sigmoids(v)
    return s * rest * (v * (rest - s) + 2) * beta


def _gelu_curve(x: Any) -> Any:
    square = x * x
    return (2 - square) * (square * -0.5).exp() * (2 * math.pi) ** -0.5


def _gelu_tanh_curve(x: Any) -> Any:
    k, c = (8 / math.pi) ** 0.5, 0.044715                          # x sigmoid(v), v = k (x + c x^3)
    square = x * x
    s, rest = _sigmoids(x * (square * c + 1) * k)
    v1, v2 = (square * (3 * c) + 1) * k, x * (6 * k * c)
    return s * rest * (v1 * 2 + x * (v2 + v1 * v1 * (rest - s)))


def _mish_curve(x: Any) -> Any:
    t, s = x._op("softplus", attrs=(1.0, math.inf))._op("tanh"), x._op("sigmoid")
    return s * (1 - t * t) * (x * (1 - s - t * s * 2) + 2)


def _left(x: Any, value: Callable) -> Any:
    """value(x) where x <= 0, else 0."""
    return value(x.clamp(max=0)).masked_fill(x > 0, 0.0)


def _tanhshrink_curve(x: Any) -> Any:
    t, (s, rest) = x._op("tanh"), _sigmoids(x * 2)
    return t * s * rest * 8


def _sinc_curve(x: Any) -> Any:
    near = x.abs() < 0.5
    series, z = x._full(x.shape, 0.0), (x.clamp(-0.5, 0.5) * math.pi).square()
    for k in reversed(range(14)):                                  # of pi^2 times the second derivative of sin(t) / t
        series = series * z + (-1) ** (k + 1) * math.pi ** 2 / ((2 * k + 3) * math.factorial(2 * k))
    far = x.masked_fill(near, 1.0)
    t = far * math.pi
    y = t.sin() / t
    return series.where(near, (y - t.cos()) * 2 / far / far - y * math.pi ** 2)


def _isru_curve(x: Any, alpha: float) -> Any:
    return x * (x * x * alpha + 1).pow(-2.5) * (-3 * alpha)


def _smht_curve(x: Any, a: float, b: float, c: float, d: float) -> Any:
    q = c + d                                      # e^((a - c) x) sigmoid(q x) - e^((d - b) x) sigmoid(-q x)
    s, rest = _sigmoids(x * q)
    bell, bent = s * rest * q, s * rest * (rest - s) * (q * q)
    return ((x * (a - c)).exp() * (s * (a - c) ** 2 + bell * (2 * (a - c)) + bent)
            - (x * (d - b)).exp() * (rest * (d - b) ** 2 - bell * (2 * (d - b)) - bent))


def _elish_curve(x: Any) -> Any:
    (s, rest), e = _sigmoids(x), x.clamp(max=0).exp()
    below = s * (e * (rest * 2 + 1) + (e - 1) * rest * (rest - s))
    return below.where(x < 0, s * rest * (x * (rest - s) + 2))


def _hard_elish_curve(x: Any) -> Any:
    inside = x.clamp(-1, 0)
    return (inside.exp() * (inside + 3) * 0.5).where((x > -1) & (x < 0), ((x >= 0) & (x < 1)).to(x.dtype))


def _soft_exponential_curve(x: Any, alpha: float) -> Any:
    return (1 - (x + alpha) * alpha).pow(-2.0) * alpha if alpha < 0 else (x * alpha).exp() * alpha


_SELU = 1.7580993408473769
activation("identity",   "Identity",  "x", "(-inf, inf)", True)
activation("sigmoid",    "Sigmoid",   "1 / (1 + e^-x)", "(0, 1)", True, curve=lambda y: 1 - y * 2)
activation("tanh",       "Tanh",      "tanh x", "(-1, 1)", True, curve=lambda y: y * -2)
activation("relu",       "ReLU",      "max(x, 0)", "[0, inf)", True, away=(0,))
activation("leaky_relu", "LeakyReLU", "max(x, 0) + negative_slope min(x, 0)", "(-inf, inf)", True, away=(0,))
activation("elu",        "ELU",       "x if x > 0 else alpha (e^x - 1)", "(-alpha, inf)", True, away=(0,),
           curve=lambda x, alpha: _left(x, lambda x: x.exp() * alpha))
activation("softplus",   "Softplus",  "ln(1 + e^(beta x)) / beta; x once beta x > threshold", "(0, inf)", True,
           curve=lambda x, beta, threshold: math.prod(_sigmoids(x * beta)).masked_fill(x * beta > threshold, 0.0) * beta)
activation("silu",       "SiLU",      "x sigmoid(x)", "[-0.278465, inf)", curve=_swish_curve)
activation("gelu",       "GELU",      "x Phi(x), Phi the standard normal distribution", "[-0.169971, inf)", curve=_gelu_curve)
activation("gelu_tanh",  "",          "x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))", "[-0.170041, inf)", curve=_gelu_tanh_curve)
activation("mish",       "Mish",      "x tanh(ln(1 + e^x))", "[-0.308844, inf)", curve=_mish_curve)
activation("softsign",   "Softsign",  "x / (1 + |x|)", "(-1, 1)", True, away=(0,),
           curve=lambda x: x.sign() * (x.abs() + 1).pow(-3.0) * -2)
activation("relu6",      "ReLU6",     "min(max(x, 0), 6)", "[0, 6]", True, away=(0, 6))
activation("hardtanh",   "Hardtanh",  "min(max(x, min_val), max_val)", "[min_val, max_val]", True, away=(-1, 1),
           requires=("min_val <= max_val", lambda low, high: not low > high))
activation("hardsigmoid", "Hardsigmoid", "min(max(x + 3, 0), 6) / 6", "[0, 1]", True, away=(-3, 3))
activation("hardswish",  "Hardswish", "x min(max(x + 3, 0), 6) / 6", "[-0.375, inf)", away=(-3, 3))
activation("hardshrink", "Hardshrink", "x if |x| > lambd else 0", "(-inf, inf)", True, away=(-0.5, 0.5))
activation("softshrink", "Softshrink", "sign(x) max(|x| - lambd, 0)", "(-inf, inf)", True, away=(-0.5, 0.5),
           requires=("lambd >= 0", lambda lambd: lambd >= 0))
activation("threshold",  "Threshold", "x if x > threshold else value", "[value, inf)", True, away=(0.25,), sample=(0.25, -1.0))
activation("celu",       "CELU",      "x if x > 0 else alpha (e^(x / alpha) - 1)", "(-alpha, inf)", True, away=(0,),
           curve=lambda x, alpha: _left(x, lambda x: (x / alpha).exp() / alpha), requires=("alpha != 0", lambda alpha: alpha != 0))
activation("selu",       "SELU",      f"1.0507009873554805 x if x > 0 else {_SELU} (e^x - 1)", f"(-{_SELU}, inf)", True,
           away=(0,), curve=lambda x: _left(x, lambda x: x.exp() * _SELU))
activation("logsigmoid", "LogSigmoid", "ln sigmoid(x)", "(-inf, 0)", True, curve=lambda x: -math.prod(_sigmoids(x)))
activation("tanhshrink", "Tanhshrink", "x - tanh x", "(-inf, inf)", True, curve=_tanhshrink_curve)
activation("binary_step", "BinaryStep", "1 if x >= 0 else 0; straight_through=1 hands gradients on", "[0, 1]", True, away=(0,))
activation("gaussian",   "Gaussian",  "e^(-x^2)", "(0, 1]", curve=lambda x: (x * x * 4 - 2) * (x * -x).exp())
activation("arctan",     "Arctan",    "arctan x", "(-pi/2, pi/2)", True, curve=lambda x: x * (x * x + 1).pow(-2.0) * -2)
activation("bent_identity", "BentIdentity", "x + (sqrt(x^2 + 1) - 1) / 2", "(-inf, inf)", True,
           curve=lambda x: (x * x + 1).pow(-1.5) * 0.5)
activation("sinc",       "Sinc",      "sin(pi x) / (pi x), 1 at 0", "[-0.217234, 1]", curve=_sinc_curve)
activation("isru",       "ISRU",      "x / sqrt(1 + alpha x^2)", "(-alpha**-0.5, alpha**-0.5)", True, curve=_isru_curve)
activation("isrlu",      "ISRLU",     "x if x >= 0 else x / sqrt(1 + alpha x^2)", "(-alpha**-0.5, inf)", True, away=(0,),
           curve=lambda x, alpha: _left(x, lambda x: _isru_curve(x, alpha)))
activation("sqnl",       "SQNL",      "x - x |x| / 4 if |x| < 2 else sign(x)", "[-1, 1]", True, away=(-2, 0, 2))
activation("smht",       "SMHT",      "(e^(a x) - e^(-b x)) / (e^(c x) + e^(-d x))", "(-1, 1)", True, curve=_smht_curve)
activation("elish",      "ELiSH",     "x sigmoid(x) if x >= 0 else (e^x - 1) sigmoid(x)", "[-0.171573, inf)", away=(0,),
           curve=_elish_curve)
activation("hard_elish", "HardELiSH", "(x if x >= 0 else e^x - 1) min(max((x + 1) / 2, 0), 1)", "[-0.0996732, inf)",
           away=(-1, 0, 1), curve=_hard_elish_curve)
activation("soft_exponential", "SoftExponential",
           "-ln(1 - alpha (x + alpha)) / alpha if alpha < 0 else x if it is 0 else (e^(alpha x) - 1) / alpha + alpha",
           "(alpha - 1/alpha, inf)", True, curve=_soft_exponential_curve, sample=(0.5,))
activation("squareplus", "Squareplus", "(x + sqrt(x^2 + b)) / 2", "(0, inf)", True,
           curve=lambda x, b: (x * x + b).pow(-1.5) * (b / 2))
activation("sparse_plus", "SparsePlus", "0 if x <= -1 else x if x >= 1 else (x + 1)^2 / 4", "[0, inf)", True, away=(-1, 1))
activation("sparse_sigmoid", "SparseSigmoid", "min(max((x + 1) / 2, 0), 1)", "[0, 1]", True, away=(-1, 1))
activation("relu_squared", "ReLUSquared", "max(x, 0)^2", "[0, inf)", True, away=(0,))
activation("swish",      "Swish",     "x sigmoid(beta x)", "[-0.278465/beta, inf)", curve=_swish_curve)
activation("quick_gelu", "QuickGELU", "x sigmoid(1.702 x)", "[-0.278465/1.702, inf)", curve=lambda x: _swish_curve(x, 1.702))


# Softmax family, along dim. `rule` (g, y, dim): the gradient in ops, for when it is differentiated again.

def softmax(name: str, formula: str, rule: Callable) -> None:
    def along_dim(kernel: str, dim: int, *operands: Array) -> Array:
        y = empty(operands[0].shape, operands[0].dtype)
        run(kernel, (*[along(a, dim) for a in operands], along(y, dim)))
        return y

    def backward(node: Any, g: Any) -> tuple:
        y, dim = node.saved(g)[0], node.attrs[0]
        return (g._wrap(along_dim(f"{name}_grad", dim, g.array, y.array)) if node.fast else rule(g, y, dim)),

    Op(name, formula, lambda x, dim: along_dim(name, dim, x), backward, lambda rng, n: ((table(rng, n),), (1,)), saves=(-1,),
       kind="softmax", sums=lambda x, *_: x.shape[-1])


softmax("softmax",     "e^x / sum e^x",    lambda g, y, dim: (g - (g * y).sum((dim,), keepdim=True)) * y)
softmax("log_softmax", "x - ln sum e^x",   lambda g, y, dim: g - y.exp() * g.sum((dim,), keepdim=True))


def _sparsemax(x: Array, dim: int) -> Array:
    y = empty(x.shape, x.dtype)
    run("sparsemax", (along(x, dim), along(y, dim)))
    return y


def _sparsemax_grad(node: Any, g: Any) -> tuple:
    (y,), dim = node.saved(g), node.attrs[0]
    kept = (y.detach() > 0).to(g.dtype)
    return (g - (g * kept).sum((dim,), keepdim=True) / kept.sum((dim,), keepdim=True)) * kept,


Op("sparsemax", "max(x - tau, 0) with the tau for which they sum to 1", _sparsemax, _sparsemax_grad,
   lambda rng, n: ((table(rng, n, low=-1, high=1),), (1,)), saves=(-1,), kind="softmax", sums=lambda x, *_: x.shape[-1])


# Losses against class numbers: x of [rows, classes], labels, a weight for each class. attrs: ignore_index, (label_smoothing,)
# reduction. A reduced loss is one number; "none" gives one a row.

def _labels_loss(name: str, formula: str, composed: Callable, attrs: tuple) -> None:
    grad_slots = [slot.name for slot in KERNELS[f"{name}_grad"].slots]
    written = [(slot.name, bool(slot.axes)) for slot in KERNELS[name].slots[3:]]

    def forward(x: Array, labels: Array, weight: Array, *attrs: Any) -> Any:
        rows, dtype, scalars = (len(x),), x.dtype, (*attrs[:-1], float(attrs[-1] == "mean"))
        out = {slot: empty(rows if a_row else (), dtype) for slot, a_row in written}
        run(name, (x, labels, weight, *out.values()), scalars)
        loss = out.pop("losses") if attrs[-1] == "none" else out["loss"]
        return loss, *[v for k, v in out.items() if k in grad_slots]

    def backward(node: Any, g: Any) -> tuple:
        x, labels, weight = node.saved(g)
        if not node.fast:
            return (*g.grad_of(composed(x, labels, weight, *node.attrs), x), None, None)
        rows, reduction = node.shapes[0][0], node.attrs[-1]
        dloss = g.array if reduction == "none" else broadcast(g.array, (rows,))
        dx = empty(node.shapes[0], g.dtype)
        given = {"logits": x.array, "labels": labels.array, "weight": weight.array, "dloss": dloss}
        saved = iter(node.extras)
        bufs = [given[slot] if slot in given else next(saved) for slot in grad_slots[:-1]]
        run(f"{name}_grad", (*bufs, dx), (*node.attrs[:-1], float(reduction == "mean")))
        return g._wrap(dx), None, None

    def inputs(rng: Any, n: int) -> tuple:
        x = table(rng, n)
        x = x - np.log(np.exp(x).sum(1, keepdims=True)) if name == "nll" else x
        labels = rng.integers(0, x.shape[1], len(x))
        labels[:len(x) // 4] = -100
        return (x, labels, rng.uniform(0.5, 1.5, x.shape[1])), attrs

    Op(name, formula, forward, backward, inputs, saves=(0, 1, 2), kind="labels", sums=lambda x, *_: x.size)


def _reduced(losses: Any, total: Any, reduction: str) -> Any:
    if reduction != "mean":
        return losses if reduction == "none" else losses.sum()
    return losses.sum() / total.masked_fill(total == 0, 1.0)         # where no row counts, no gradient does


def _nll_composed(logp: Any, labels: Any, weight: Any, ignore: float, reduction: str) -> Any:
    kept = labels != ignore
    safe = labels.masked_fill(labels == ignore, 0)
    w = weight.expand((logp.shape[1],))._op("take", safe) * kept.to(logp.dtype)
    picked = logp._op("gather", safe.reshape((-1, 1)), attrs=(1,)).reshape((-1,))
    return _reduced(-w * picked, w.sum(), reduction)


def _cross_entropy_composed(x: Any, labels: Any, weight: Any, ignore: float, smoothing: float, reduction: str) -> Any:
    logp = x._op("log_softmax", attrs=(1,))
    kept = labels != ignore
    w = weight.expand((x.shape[1],))
    total = (w._op("take", labels.masked_fill(labels == ignore, 0)) * kept.to(x.dtype)).sum()
    picked = _nll_composed(logp, labels, weight, ignore, "none")
    spread_out = -(logp * w).sum((1,)) * kept.to(x.dtype) / x.shape[1]
    return _reduced(picked * (1 - smoothing) + spread_out * smoothing, total, reduction)


_labels_loss("cross_entropy", "-ln softmax(x)[label], weighted by class, averaged", _cross_entropy_composed, (-100.0, 0.1, "mean"))
_labels_loss("nll", "-x[label], weighted by class, averaged", _nll_composed, (-100.0, "mean"))


# Losses of pairs, before reduction: a row here, a row in losses.def, two functions in reference.py. composed: the loss in
# differentiable ops of x, t and the parameters, for the gradient of t and everything beyond the first derivative.

def pair_loss(name: str, formula: str, composed: Callable, pairs: Callable, attrs: tuple[float, ...] | None = None) -> None:
    params = KERNELS[name].attrs
    attrs = tuple([v for _, v in params if v is not None]) if attrs is None else attrs

    def backward(node: Any, g: Any) -> tuple:
        x, t = node.saved(g)
        return (g._op(f"{name}_grad", x, t, attrs=node.attrs) if node.needs[0] else None,
                g.derivatives(lambda x, t: composed(x, t, *node.attrs), (x, t), along=(1,))[0] if node.needs[1] else None)

    def grad_backward(node: Any, g: Any) -> tuple:
        dl, x, t = node.saved(g)

        def slope(x: Any, t: Any, dl: Any) -> Any:
            return dl.derivatives(lambda x, t: composed(x, t, *node.attrs), (x, t))[0]

        return (g._op(f"{name}_grad", x, t, attrs=node.attrs) if node.needs[0] else None,
                *(g.derivatives(slope, (x, t, dl), along=(0, 1)) if node.needs[1] or node.needs[2] else (None, None)))

    Op(name, formula, mapped(name), backward, lambda rng, n: (pairs(rng, n), attrs), saves=(0, 1), kind="pair_loss",
       params=params, kernel=name)
    Op(f"{name}_grad", f"dl times the derivative of {name}", mapped(f"{name}_grad"), grad_backward,
       lambda rng, n: ((spread(rng, n), *pairs(rng, n)), attrs), saves=(0, 1, 2), kind="grad", params=params)


def _apart(*away: float) -> Callable:
    """x and t of (0, 1), x - t not near a kink."""
    def pairs(rng: Any, n: int) -> tuple:
        t = rng.uniform(0.05, 0.95, n)
        return t + spread(rng, n, away=away), t
    return pairs


def _within(low: float, high: float, t_low: float = 0.05, t_high: float = 0.95) -> Callable:
    return lambda rng, n: (spread(rng, n, low, high), spread(rng, n, t_low, t_high))


def _signed(rng: Any, n: int) -> tuple:
    """x and t about -1 or 1, x t not near 1."""
    t = rng.choice([-1.0, 1.0], n) * rng.uniform(0.9, 1.1, n)
    return spread(rng, n, away=(1,), gap=0.1) / t, t


def _above(rng: Any, n: int) -> tuple:
    t = rng.uniform(0.3, 2, n)
    return t + spread(rng, n, 0, 2, away=(0,)), t


def _nearby(x: Any, t: Any, bound: float, near: Callable, far: Callable) -> Any:
    d = x - t
    return near(d).where(d.abs() < bound, far(d))


def _log_cosh(x: Any, t: Any) -> Any:
    d = x - t
    return d + (d * -2)._op("softplus", attrs=(1.0, math.inf)) - math.log(2)


def _no_zeros(t: Any) -> Any:
    return t.masked_fill(t == 0, 1.0)


pair_loss("mse",   "(x - t)^2", lambda x, t: (x - t).square(), _apart())
pair_loss("l1",    "|x - t|",   lambda x, t: (x - t).abs(), _apart(0))
pair_loss("huber", "(x - t)^2 / 2 within delta, else delta (|x - t| - delta/2)",
          lambda x, t, delta: _nearby(x, t, delta, lambda d: d * d * 0.5, lambda d: (d.abs() - delta / 2) * delta), _apart(-1, 1))
pair_loss("bce_with_logits", "-t ln sigmoid(x) - (1 - t) ln(1 - sigmoid(x))",
          lambda x, t: (1 - t) * x + (-x)._op("softplus", attrs=(1.0, math.inf)), _apart())
pair_loss("smooth_l1", "(x - t)^2 / (2 beta) within beta, else |x - t| - beta/2",
          lambda x, t, beta: _nearby(x, t, beta, lambda d: d * d * (0.5 / beta) if beta else d, lambda d: d.abs() - beta / 2),
          _apart(-1, 0, 1))
pair_loss("bce",   "-t ln x - (1 - t) ln(1 - x), logarithms at least -100",
          lambda x, t: (t - 1) * (-x).log1p().clamp(min=-100) - t * x.log().clamp(min=-100), _within(0.05, 0.95))
pair_loss("kl_div", "t (ln t - x), x a logarithm", lambda x, t: t * _no_zeros(t).log() - t * x, _within(-3, 0))
pair_loss("kl_div_log", "e^t (t - x), x and t logarithms", lambda x, t: t.exp() * (t - x), _within(-3, 0, -3, 0))
pair_loss("poisson_nll", "e^x - t x, x the logarithm of the rate", lambda x, t: x.exp() - t * x, _within(-3, 3))
pair_loss("poisson_nll_rate", "x - t ln(x + eps), x the rate", lambda x, t, eps: x - t * (x + eps).log(), _within(0.1, 3))
pair_loss("soft_margin", "ln(1 + e^(-t x))", lambda x, t: (-t * x)._op("softplus", attrs=(1.0, math.inf)), _signed)
pair_loss("hinge", "max(margin - t x, 0)", lambda x, t, margin: (margin - t * x).clamp(min=0), _signed)
pair_loss("squared_hinge", "max(margin - t x, 0)^2", lambda x, t, margin: (margin - t * x).clamp(min=0).square(), _signed)
pair_loss("log_cosh", "ln cosh(x - t)", _log_cosh, _apart())
pair_loss("quantile", "max(q (t - x), (q - 1) (t - x))",
          lambda x, t, q: (x - t).abs() * 0.5 + (x - t) * (0.5 - q), _apart(0), (0.3,))
pair_loss("msle",  "(ln(1 + x) - ln(1 + t))^2", lambda x, t: (x.log1p() - t.log1p()).square(), _within(0, 3, 0, 3))
pair_loss("mape",  "|x - t| / max(|t|, eps)", lambda x, t, eps: (x - t).abs() / t.abs().clamp(min=eps), _above)


# Normalisation. Inputs x of two axes, weight, bias; attrs: eps, and for columns what keeps running averages, or None.
# The rules are spelled out in ops, so that they have derivatives; where nobody wants these, kernels do it.

def _layer_norm(x: Array, w: Array, b: Array, eps: float) -> tuple:
    y, mean, rstd = empty(x.shape, x.dtype), empty((len(x),), x.dtype), empty((len(x),), x.dtype)
    run("layer_norm", (x, w, b, y, mean, rstd), (eps,))
    return y, mean, rstd


def _rms_norm(x: Array, w: Array, eps: float) -> tuple:
    y, rstd = empty(x.shape, x.dtype), empty((len(x),), x.dtype)
    run("rms_norm", (x, w, y, rstd), (eps,))
    return y, rstd


def _batch_norm(x: Array, w: Array, b: Array, eps: float, averages: tuple | None) -> tuple:
    """averages: (running mean, running variance, weight of the new), written in place; the variance is the unbiased one."""
    m, n = x.shape
    y = empty(x.shape, x.dtype)
    mean, var, rstd = empty((n,), x.dtype), empty((n,), x.dtype), empty((n,), x.dtype)
    run("batch_norm", (x, w, b, y, mean, var, rstd), (eps,))
    if averages is not None:
        running_mean, running_var, factor = averages
        run("track", (running_mean, mean, factor), (1.0,))
        run("track", (running_var, var, factor), (m / max(m - 1, 1),))
    return y, mean, rstd


def _standard(x: Any, dim: int, eps: float, centred: bool) -> tuple:
    """(x - mean) / deviation along dim, and 1 / deviation."""
    z = x - x.mean((dim,), keepdim=True) if centred else x
    r = 1.0 / ((z * z).mean((dim,), keepdim=True) + eps).sqrt()
    return z * r, r


def _norm_grads(node: Any, g: Any, dim: int, centred: bool = True) -> tuple:
    """The gradients of what is normalised along dim, 1: rows, 0: columns."""
    x, w = node.saved(g)
    z, r = _standard(x, dim, node.attrs[0], centred)
    gw = g * w
    dx = gw - z * (gw * z).mean((dim,), keepdim=True)
    if centred:
        dx = dx - gw.mean((dim,), keepdim=True)
    return dx * r, (g * z).sum((0,)), g.sum((0,))


def _layer_norm_grad(node: Any, g: Any) -> tuple:
    if not node.fast:
        return _norm_grads(node, g, 1)
    x, w = node.saved(g)
    mean, rstd = node.extras
    dx = dw = db = None
    if node.needs[0]:
        dx = g._wrap(empty(x.shape, x.dtype))
        run("layer_norm_grad", (g.array, x.array, w.array, mean, rstd, dx.array))
    if node.needs[1] or node.needs[2]:
        dw, db = _norm_grad_w(g, x, mean, rstd)
    return dx, dw, db


def _norm_grad_w(g: Any, x: Any, mean: Array, rstd: Array) -> tuple:
    dw, db = empty(x.shape[1:], x.dtype), empty(x.shape[1:], x.dtype)
    run("layer_norm_grad_w", (g.array, x.array, mean, rstd, dw, db))
    return g._wrap(dw), g._wrap(db)


def _rms_norm_grad(node: Any, g: Any) -> tuple:
    if not node.fast:
        return _norm_grads(node, g, 1, centred=False)[:2]
    x, w = node.saved(g)
    rstd, = node.extras
    dx = None
    if node.needs[0]:
        dx = g._wrap(empty(x.shape, x.dtype))
        run("rms_norm_grad", (g.array, x.array, w.array, rstd, dx.array))
    return dx, _norm_grad_w(g, x, filled(rstd.shape, x.dtype, 0.0), rstd)[0] if node.needs[1] else None


def _batch_norm_grad(node: Any, g: Any) -> tuple:
    if not node.fast:
        return _norm_grads(node, g, 0)
    x, w = node.saved(g)
    mean, rstd = node.extras
    dx, dw, db = (empty(a.shape, x.dtype) for a in (x, w, w))
    run("batch_norm_grad", (g.array, x.array, w.array, mean, rstd, dx, dw, db))
    return tuple(g._wrap(d) if need else None for d, need in zip((dx, dw, db), node.needs))


def _norm_inputs(rng: Any, n: int) -> tuple[Array, Array, Array]:
    x = table(rng, n)
    return x, rng.uniform(0.5, 1.5, x.shape[1]), rng.normal(size=x.shape[1])


Op("layer_norm", "(x - mean) / sqrt(variance + eps) weight + bias, of each row", _layer_norm, _layer_norm_grad,
   lambda rng, n: (_norm_inputs(rng, n), (1e-5,)), saves=(0, 1), kind="norm", sums=lambda x, *_: x.size)
Op("rms_norm", "x / sqrt(mean of x^2 + eps) weight, of each row", _rms_norm, _rms_norm_grad,
   lambda rng, n: (_norm_inputs(rng, n)[:2], (1e-5,)), saves=(0, 1), kind="norm", sums=lambda x, *_: x.size)
Op("batch_norm", "(x - mean) / sqrt(variance + eps) weight + bias, of each column", _batch_norm, _batch_norm_grad,
   lambda rng, n: (_norm_inputs(rng, n), (1e-5, None)), saves=(0, 1), kind="norm", sums=lambda x, *_: x.size)


# Dropout: the mask is a function of the key, so backward makes it again.

def _dropout(x: Array, p: float, key: Array) -> Array:
    y = empty(x.shape, x.dtype)
    rows = x.shape[0] if x.ndim > 1 else 1
    flat = contiguous(x).reshape(rows, -1) if x.size else x.reshape(rows, 0)
    run("dropout", (flat, key, y.reshape(flat.shape)), (p,))
    return y


Op("dropout", "x / (1 - p) with probability 1 - p, else 0", _dropout, lambda node, g: (g._op("dropout", attrs=node.attrs),),
   lambda rng, n: ((table(rng, n),), (0.3, np.array([1, 2, 3, 0], np.uint64))), kind="random")


# Joining: inputs any number of arrays, copied side by side.

def _cat(*arrays_and_dim: Any) -> Array:
    *arrays, dim = arrays_and_dim
    shape = list(arrays[0].shape)
    shape[dim] = sum(a.shape[dim] for a in arrays)
    y = empty(tuple(shape), arrays[0].dtype)
    at = 0
    for a in arrays:
        run("copy", (a, y[(slice(None),) * dim + (slice(at, at + a.shape[dim]),)]))
        at += a.shape[dim]
    return y


def _cat_grad(node: Any, g: Any) -> tuple:
    dim, at, parts = node.attrs[0], 0, []
    for shape in node.shapes:
        parts.append(g[(slice(None),) * dim + (slice(at, at + shape[dim]),)])
        at += shape[dim]
    return tuple(parts)


Op("cat", "the inputs side by side along dim", _cat, _cat_grad,
   lambda rng, n: ((table(rng, n), table(rng, n)[:1]), (0,)), kind="index")


def check_float(x: Array, name: str) -> None:
    if x.dtype not in FLOATS:
        raise DtypeError(f"{name} takes float32 or float64 tensors, got {x.dtype}")
