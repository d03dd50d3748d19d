# SPDX-License-Identifier: BSD-3-Clause
"""The native kernels do what the reference says: on every ISA of this machine, in both element types."""
import functools
import itertools
import math

import numpy as np
import pytest
from cases import (
    FLOATS,
    FMA,
    HYPER,
    NATIVES,
    READABLE,
    SIZES,
    WRITABLE,
    applied,
    guarded,
    hyper,
    laid_out,
    operands,
    optimizer_of,
    random,
    sample,
    terms,
)

import pyneuro as pn
from pyneuro.kernels import Checked, Reference, Traced, make_backend
from pyneuro.kernels.reference import DEFINITIONS
from pyneuro.kernels.signature import CASTABLE, HOST, KERNELS
from pyneuro.ops import OPS

if not NATIVES:
    pytest.skip("the extension is not built", allow_module_level=True)

each_backend = pytest.mark.parametrize("backend", NATIVES)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])
each_kernel = pytest.mark.parametrize("kernel", sorted(KERNELS))
each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)

MAPS = [k for k, spec in KERNELS.items() if spec.map]
ELEMENTWISE = [k for k in MAPS if all(s.type in ("", "b") for s in KERNELS[k].slots)]          # no optimizers, no cast
VALUES = [k for k in ELEMENTWISE if len(KERNELS[k].slots) == 2 and not KERNELS[k].slots[0].written]      # y = f(x)
OPTIMIZERS = [k for k, spec in KERNELS.items() if any(s.name == "hyper" for s in spec.slots)]
reference = Reference()


def close(got, want, terms=1, what=""):
    """got within rounding of want: a few ulp, and for each term of a sum one of the largest number (at least 1)."""
    assert got.shape == want.shape, what
    if got.dtype.kind != "f":
        assert np.array_equal(got, want), what
        return
    eps = np.finfo(got.dtype).eps
    finite = np.isfinite(want)
    scale = np.max(np.abs(want), where=finite, initial=1)
    assert np.array_equal(np.isnan(got), np.isnan(want)), what
    assert np.array_equal(got[~finite], want[~finite].astype(got.dtype), equal_nan=True), what
    error = np.abs(got[finite] - want[finite])
    bound = eps * (8 * np.abs(want[finite]) + (1 + terms) * scale)
    assert (error <= bound).all(), f"{what}: {error.max() / eps:.3g} eps, allowed {bound[error.argmax()] / eps:.3g}"


def wider(kernel, bufs):
    """float32 as float64, so that the reference rounds nothing that counts; random numbers are of their own type."""
    drawn = any(s.type == "u" for s in KERNELS[kernel].slots)
    return [b.astype(np.float64) if b.dtype == np.float32 and not drawn else b.copy() for b in bufs]


def agree(kernel, backend, bufs, attrs, terms=1, what=""):
    """Run a kernel on both; compare what it writes, and see that it leaves the rest alone."""
    want, before = wider(kernel, bufs), [b.copy() for b in bufs]
    make_backend(backend).run(kernel, tuple(bufs), attrs)
    reference.run(kernel, tuple(want), attrs)
    for slot, got, expected, old in zip(KERNELS[kernel].slots, bufs, want, before):
        close(got, expected if slot.written else old, terms, f"{kernel}({slot.name}) {what}")


# ---------------------------------------------------------------------------------------------- kernels, size by layout

@each_kernel
@each_dtype
@each_backend
def test_kernel(kernel, dtype, backend):
    """All sizes about vector widths, in memory with NaN on both sides: what a tail reads or writes too much shows."""
    for n in SIZES:
        bufs, attrs = operands(kernel, n, dtype, random(kernel, n))
        bufs, intact = zip(*map(guarded, bufs))
        agree(kernel, backend, bufs, attrs, terms(kernel, n), f"n={n}")
        assert all(check() for check in intact), f"{kernel} wrote beyond an operand of {n}"


@each_kernel
@each_dtype
@each_backend
def test_kernel_in_any_layout(kernel, dtype, backend):
    spec = KERNELS[kernel]
    for layout in READABLE:
        bufs, attrs = operands(kernel, 100, dtype, random(kernel, layout))
        if spec.map:                                       # a matrix has layouts that a line has not
            bufs = [b.reshape(5, -1) if s.axes == ("...",) else b for s, b in zip(spec.slots, bufs)]
        bufs = [laid_out(b, layout, s.written) for s, b in zip(spec.slots, bufs)]
        agree(kernel, backend, bufs, attrs, terms(kernel, 100), layout)


@pytest.mark.parametrize(
    "kernel", [k for k in MAPS if sum(s.axes == ("...",) and not s.written for s in KERNELS[k].slots)]
)
@each_backend
def test_kernel_broadcasts(kernel, backend):
    """Operands that are only read take any shape that broadcasts to the written one's."""
    spec = KERNELS[kernel]
    shape = (3, 4, 9)
    for part in [(), (1,), (9,), (4, 1), (3, 1, 9), (1, 4, 1), (3, 1, 1)]:
        bufs, attrs = operands(kernel, math.prod(shape), np.float32, random(kernel, part))
        lines = [i for i, s in enumerate(spec.slots) if s.axes == ("...",)]
        bufs = [b.reshape(shape) if i in lines else b for i, b in enumerate(bufs)]
        for i in lines:
            if not spec.slots[i].written:
                given = [b.copy() for b in bufs]
                given[i] = given[i].reshape(-1)[:math.prod(part)].reshape(part)
                agree(kernel, backend, given, attrs, what=f"{spec.slots[i].name} of {part}")


@pytest.mark.parametrize("kernel", [k for k in ELEMENTWISE if KERNELS[k].slots[-1].type == ""])
@each_dtype
@each_backend
def test_kernel_in_place(kernel, dtype, backend):
    """The output may be any of the inputs."""
    run = make_backend(backend).run
    for n in (1, 17, 100):
        bufs, attrs = operands(kernel, n, dtype, random(kernel, n))
        want = [b.copy() for b in bufs]
        run(kernel, tuple(want), attrs)
        for i, slot in enumerate(KERNELS[kernel].slots[:-1]):
            if slot.type == "" and not slot.written:
                given = [b.copy() for b in bufs]
                run(kernel, (*given[:-1], given[i]), attrs)
                assert np.array_equal(given[i], want[-1], equal_nan=True), f"{kernel}: output in {slot.name}, n={n}"


@each_kernel
@each_dtype
@each_backend
def test_kernel_of_nothing(kernel, dtype, backend):
    """Any extent may be 0: a sum of nothing is 0, a mean of nothing NaN."""
    spec = KERNELS[kernel]
    for zeros in itertools.product([0, 2], repeat=max(1, len(spec.letters))):
        size = dict(zip(spec.letters or ["..."], zeros))
        bufs, attrs = operands(kernel, size, dtype, random(kernel))
        if not any(s.within and size[s.within] == 0 and b.size for s, b in zip(spec.slots, bufs)):
            agree(kernel, backend, bufs, attrs, what=str(size))


@pytest.mark.parametrize("source", CASTABLE, ids=str)
@each_dtype
@each_backend
def test_cast(source, dtype, backend):
    x = np.array([0, 1, 2, 3, -5, 100, 2**20 + 1, -2**24 - 1, 2**53 + 1] * 3).astype(source)
    x = np.r_[x, [0.5, -0.25, np.inf, np.nan]].astype(source) if source.kind == "f" else x
    for layout in READABLE:
        given, y = laid_out(x, layout), np.empty(x.shape, dtype)
        make_backend(backend).run("cast", (given, y))
        assert np.array_equal(y, given.astype(dtype), equal_nan=True)


@pytest.mark.parametrize("source", CASTABLE, ids=str)
@each_dtype
@each_backend
def test_rows_of_any_type_are_scaled(source, dtype, backend, rng):
    """To the bit what it says: the subtraction and the division of one type."""
    mean, std = rng.normal(size=19).astype(dtype), rng.uniform(0.2, 1.7, 19).astype(dtype)
    index = np.array([3, 0, 3, 6])
    for layout, other in itertools.product(READABLE, WRITABLE):
        table = laid_out(rng.uniform(0, 256, (7, 19)).astype(source), layout)
        y = laid_out(np.empty((4, 19), dtype), other, written=True)
        make_backend(backend).run("take_scaled", (table, index, mean, std, y))
        assert np.array_equal(y, (table[index].astype(dtype) - mean) / std), (layout, other)


@pytest.mark.parametrize("kernel", sorted(HOST))
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, bool], ids=lambda t: np.dtype(t).name)
def test_host_kernels_are_the_same_on_both(kernel, dtype):
    def outcome(backend):
        bufs, attrs = operands(kernel, 30, dtype, random(kernel), host=True)
        try:
            backend.run(kernel, tuple(bufs), attrs)
        except (TypeError, ValueError) as error:           # negation of bool and the like
            return str(error), bufs
        return None, bufs

    (error, got), (same_error, want) = outcome(make_backend("native")), outcome(reference)
    assert error == same_error
    assert all(np.array_equal(a, b) for a, b in zip(got, want))


# ---------------------------------------------------------------------------------------------------- ops and gradients

def value_and_gradients(op, arrays, attrs):
    y, given = applied(op, arrays, attrs)
    if y.requires_grad:
        g = random(op.name, "g").uniform(-1, 1, y.shape)
        y.backward(pn.tensor(g, dtype=y.dtype))
    return [y.detach().array] + [t.grad.array for t in given if t.grad is not None]


@functools.cache
def expected(op, n, dtype, layout):
    arrays, attrs = sample(op, n, dtype, layout)
    with pn.backend("reference"):
        return value_and_gradients(op, [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays], attrs)


@each_op
@each_dtype
@each_backend
def test_op_and_its_gradients(op, dtype, backend):
    for n, layout in [
        (1, "contiguous"),
        (7, "contiguous"),
        (1000, "contiguous"),
        *((60, layout) for layout in READABLE),
    ]:
        arrays, attrs = sample(op, n, dtype, layout)
        want = expected(op, n, dtype, layout)
        with pn.backend(backend):
            got = value_and_gradients(op, arrays, attrs)
        longest = op.sums(*arrays) + max(np.size(a) for a in arrays)  # of the gradients: no more than that
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            close(a, b, longest, f"{op.name} {'value' if not i else f'gradient {i}'} n={n} {layout}")


# ------------------------------------------------------------------------------------------------------- special values

def specials(dtype):
    fine = np.finfo(dtype)
    edges = [0, 1, 0.5, 2, 3, 10, 88, 89, 104, 709, 710, 746, fine.eps, fine.max, fine.tiny, math.inf]
    return np.array([s * v for v in edges for s in (1, -1)] + [math.nan], dtype)


def saturated(x):
    """x, but where e^-|x| is denormal, which may count as 0, out where it is 0."""
    if x.dtype.kind != "f":
        return x
    start, end = (87, 104) if x.dtype == np.float32 else (708, 746)
    return np.where((abs(x) > start) & (abs(x) < end), np.copysign(end, x), x).astype(x.dtype)


def outcomes(kernel, inputs, attrs, out):
    """What the reference may say: in the element type or the next wider one, exponentials flushed to zero or not."""
    for given in (inputs, [saturated(x) for x in inputs]):
        for kind in (np.copy, lambda b: b.astype(np.float64) if b.dtype == np.float32 else b.copy()):
            bufs = [kind(b) for b in (*given, out)]
            reference.run(kernel, tuple(bufs), attrs)
            with np.errstate(all="ignore"):
                yield bufs[-1].astype(out.dtype)


def same(a, b, ulps):
    """Elementwise: equal, both NaN, within ulps, or both next to nothing (denormals may count as 0)."""
    if a.dtype == bool:
        return a == b
    fine = np.finfo(a.dtype)
    with np.errstate(all="ignore"):
        near = np.abs(a - b) <= ulps * np.spacing(np.maximum(np.abs(b), fine.tiny)) + 2 * fine.tiny
    return (a == b) | (np.isnan(a) & np.isnan(b)) | near


@pytest.mark.parametrize("kernel", [k for k in ELEMENTWISE if k not in ("fill", "accumulate")])
@each_dtype
@each_backend
def test_special_values(kernel, dtype, backend):
    """Every combination of zeros, infinities, NaN, the ends of the range and of exp's, in every lane of a vector."""
    spec = KERNELS[kernel]
    reads = [s for s in spec.slots if s.read]
    choices = [np.array([False, True]) if s.type == "b" else specials(dtype) for s in reads]
    if len(reads) > 2:
        choices = [c if len(c) == 2 else c[[0, 1, 2, 3, 12, 13, 26, 27, -3, -2, -1]] for c in choices]
    inputs = [x.reshape(-1) for x in np.meshgrid(*choices)]
    _, attrs = operands(kernel, 1, dtype, random(0))
    got = np.empty(inputs[0].shape, bool if spec.slots[-1].type == "b" else dtype)
    make_backend(backend).run(kernel, (*inputs, got), attrs)
    wants = list(outcomes(kernel, inputs, attrs, got))
    wrong = np.flatnonzero(~np.any([same(got, want, 200) for want in wants], axis=0))
    shown = [(*[x[i].item() for x in inputs], "is", got[i].item(), "not", wants[0][i].item()) for i in wrong[:4]]
    assert not wrong.size, f"{kernel} of {shown}, {wrong.size} in all"


@pytest.mark.parametrize("kernel", ["copy", "neg", "abs", "sqrt", "add", "sub", "mul", "div", "tanh", "identity"])
@each_dtype
@each_backend
def test_zeros_keep_their_sign(kernel, dtype, backend):
    x = np.array([0.0, -0.0, 0.0, -0.0, 1.0, -1.0] * 5, dtype)
    y = np.array([0.0, 0.0, -0.0, -0.0, -0.0, -0.0] * 5, dtype)
    inputs = (x, y)[:len(KERNELS[kernel].slots) - 1]
    got, want = np.empty_like(x), np.empty_like(x)
    make_backend(backend).run(kernel, (*inputs, got))
    reference.run(kernel, (*inputs, want))
    assert np.array_equal(got, want, equal_nan=True)
    assert np.array_equal(np.signbit(got[got == 0]), np.signbit(want[got == 0]))


@pytest.mark.parametrize("kernel", ELEMENTWISE)
@each_dtype
@each_backend
def test_denormals_are_kept_or_count_as_zero(kernel, dtype, backend):
    """The one liberty against the reference: an operand or a result below the smallest normal number may be 0."""
    fine = np.finfo(dtype)
    small = np.array([fine.smallest_subnormal, fine.tiny / 2, fine.tiny / 3, 1.0, fine.tiny], dtype)
    bufs, attrs = operands(kernel, small.size**2, dtype, random(0))
    grid = np.meshgrid(small, -small)
    for i, slot in enumerate(KERNELS[kernel].slots[:-1]):
        bufs[i] = grid[i % 2].reshape(-1) if slot.type == "" and slot.read and not slot.written else bufs[i]
    got = [b.copy() for b in bufs]
    make_backend(backend).run(kernel, tuple(got), attrs)
    right = False
    for flushed in itertools.product([False, True], repeat=len(bufs) - 1):
        want = [np.where(abs(b) < fine.tiny, np.copysign(0, b), b) if f and b.dtype == dtype else b.copy()
                for f, b in zip([*flushed, False], bufs)]
        reference.run(kernel, tuple(want), attrs)
        written = next(i for i, s in enumerate(KERNELS[kernel].slots) if s.written)
        g, w = got[written], want[written]
        right = right | same(g, w, 200)
    assert np.all(right)


# ------------------------------------------------------------------------------------------------------------- accuracy

ULPS = {"exp": 1.5, "log": 1.5, "sqrt": 0.5, "tanh": 2.5, "sigmoid": 2.5, "softplus": 2.5, "elu": 2.5, "softsign": 2.0,
        "leaky_relu": 1.0}
EXACT = {"copy", "neg", "abs", "sign", "clamp", "identity", "relu"}
TAIL = 6.0                                                 # of the others: x times something small, such as gelu


def spread(dtype, n=20_000):
    """Numbers of all magnitudes and signs, most of them where functions curve."""
    rng = random("spread")
    fine = np.finfo(dtype)
    large = np.exp(rng.uniform(math.log(fine.tiny), math.log(fine.max) - 1, n)) * rng.choice([-1, 1], n)
    return np.r_[rng.uniform(-10, 10, n), rng.uniform(-100, 100, n), large].astype(dtype)


@pytest.mark.parametrize("kernel", VALUES)
@each_dtype
@each_backend
def test_accuracy(kernel, dtype, backend):
    """Errors in ulp over the whole range of normal results, against the definition in a wider type."""
    wide = np.float64 if dtype == np.float32 else np.longdouble
    if kernel in ("clamp", "leaky_relu") or (kernel == "gelu" and dtype == np.float64):
        wide = dtype                 # attrs rounded to float32 are other numbers; gelu's definition is made for float64
    tail = kernel not in EXACT and kernel not in ULPS
    x = spread(dtype)
    x = np.abs(x) if kernel in ("log", "sqrt") else x
    _, attrs = operands(kernel, 1, dtype, random(0))
    got, want = np.empty_like(x), np.empty(x.shape, wide)
    make_backend(backend).run(kernel, (x, got), attrs)
    with np.errstate(all="ignore"):
        DEFINITIONS[kernel](x.astype(wide), want, *attrs)
        least = np.finfo(dtype).tiny * (np.maximum(1, np.abs(x)) if tail else 1)  # the factor is normal too
        normal = np.isfinite(want) & (np.abs(want) < np.finfo(dtype).max) & (np.abs(want) >= least)
        ulp = np.abs(got - want)[normal] / np.spacing(np.abs(want[normal]).astype(dtype))
    bound = TAIL if tail else ULPS.get(kernel, 0)
    bound += 1 if dtype == wide else 0.01                  # the rounding of want itself
    x = x[normal].astype(float)
    if kernel == "gelu_tanh":                              # e^v has v times the relative error of v
        v = np.clip(x, -99, 99)
        bound += 3 * np.abs(1.6 * v + 0.0714 * v**3)
    worst = (ulp - bound).argmax()
    assert (ulp <= bound).all(), f"{kernel}({x[worst]!r}): {ulp[worst]:.2f} ulp"


# ------------------------------------------------------------------------------------------------------- exact products

SPREAD = [0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 48, 64, 65, 100, 127, 129]


def whole(rng, *shape, dtype=np.float32):
    """Small integers: their products sum without rounding, in any order."""
    return rng.integers(-4, 5, shape).astype(dtype)


def triples(rng, many):
    """Every extent of SPREAD in every place, beside others at random; and sums longer than one cut of k."""
    rows = [[a, *rng.choice(SPREAD, 2)][i:] + [a, *rng.choice(SPREAD, 2)][:i] for a in SPREAD for i in range(3)]
    rows += rng.choice(SPREAD, (many, 3)).tolist()
    return [tuple(map(int, r[:3])) for r in rows] + [
        (3, 5, 255),
        (3, 17, 256),
        (7, 9, 257),
        (1, 4, 1023),
        (65, 33, 1025),
        (100, 48, 600),                                    # made of whole tiles, which end as the layer does
        (150, 128, 700),
    ]


@each_dtype
@each_backend
def test_matmul_is_exact_on_integers(dtype, backend):
    """With == there is no tolerance for an index to hide in."""
    run, rng = make_backend(backend).run, random("matmul")
    ways = list(itertools.product(READABLE, READABLE, ("contiguous", "transposed", "strided", "reversed")))
    for i, (m, n, k) in enumerate(triples(rng, 60)):
        for way in (ways[i % len(ways)], ("contiguous",) * 3, ways[(7 * i + 3) % len(ways)]):
            a, b, c = (laid_out(x, w, x is None) for x, w in zip(
                (whole(rng, m, k, dtype=dtype), whole(rng, k, n, dtype=dtype), np.full((m, n), np.nan, dtype)), way))
            run("matmul", (a, b, c))
            assert np.array_equal(c, a.astype(int) @ b.astype(int)), (m, n, k, way)


@each_dtype
@each_backend
def test_bmm_and_dense_are_exact_on_integers(dtype, backend):
    run, rng = make_backend(backend).run, random("dense")
    for i, (m, n, k) in enumerate(triples(rng, 10)):
        layout = list(READABLE)[i % len(READABLE)]
        x, w, b, dy = (laid_out(whole(rng, *shape, dtype=dtype), layout) for shape in ((m, k), (n, k), (n,), (m, n)))
        y, dw, db = np.full((m, n), np.nan, dtype), np.full((n, k), np.nan, dtype), np.full(n, np.nan, dtype)
        for bias in (b, np.broadcast_to(dtype(-0.0), n)):       # or none
            z = x.astype(int) @ w.T.astype(int) + bias
            run("dense_identity", (x, w, bias, y))
            assert np.array_equal(y, z), (m, n, k, layout)
            run("dense_relu", (x, w, bias, y))
            assert np.array_equal(y, np.maximum(z, 0)), (m, n, k, layout)
        run("dense_grad_w", (dy, x, dw, db))
        assert np.array_equal(dw, dy.T.astype(int) @ x.astype(int)), (m, n, k, layout)
        assert np.array_equal(db, dy.astype(int).sum(0)), (m, n, k, layout)
        a3, b3 = (laid_out(whole(rng, 3, *shape, dtype=dtype), layout) for shape in ((m, k), (k, n)))
        c3 = np.full((3, m, n), np.nan, dtype)
        run("bmm", (a3, b3, c3))
        assert np.array_equal(c3, a3.astype(int) @ b3.astype(int)), (m, n, k, layout)


# ----------------------------------------------------------------------------------------------------------------- bits

def product(backend, a, b):
    c = np.empty((len(a), b.shape[1]), a.dtype)
    make_backend(backend).run("matmul", (a, b, c))
    return c


@each_dtype
@each_backend
@pytest.mark.parametrize(("n", "k"), [(1, 300), (7, 64), (40, 257), (130, 600), (75, 512), (610, 1024), (2100, 301)])
def test_a_matmul_row_has_the_same_bits_in_any_batch(dtype, backend, n, k):
    rng = random(n, k)
    a, b = rng.normal(size=(97, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    whole_batch = product(backend, a, b)
    for rows in (1, 2, 3, 5, 8, 13, 31, 64):
        for layout in ("contiguous", "transposed", "strided"):
            few = product(backend, a[11:11 + rows], laid_out(b, layout))
            assert np.array_equal(few, whole_batch[11:11 + rows]), f"{rows} rows, {layout}"
    for columns in (1, 3, 6):
        assert np.array_equal(product(backend, a, b[:, :columns]), whole_batch[:, :columns]), f"{columns} columns"
    for layout in ("transposed", "strided", "reversed"):
        assert np.array_equal(product(backend, laid_out(a, layout), laid_out(b, layout)), whole_batch), layout


@each_dtype
@each_backend
@pytest.mark.parametrize(("m", "n", "k"), [(610, 1045, 515), (301, 83, 1024)])
def test_a_large_matmul_has_the_bits_of_its_parts(dtype, backend, m, n, k):
    """Blocks, and what is packed, depend on the extents."""
    rng = random(m, n, k)
    a, b = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    whole = product(backend, a, b)
    parts = [product(backend, a[i:i + 50], b[:, -40:]) for i in range(0, m, 50)]
    assert np.array_equal(whole[:, -40:], np.concatenate(parts))


@each_dtype
@pytest.mark.parametrize(("m", "n", "k"), [(1, 40, 300), (5, 7, 9), (33, 65, 513), (100, 1, 100), (3, 600, 512)])
def test_a_matmul_has_the_same_bits_on_every_isa_with_fma(dtype, m, n, k):
    rng = random(m, n, k)
    a, b = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    assert len({product(backend, a, b).tobytes() for backend in FMA}) <= 1


def gradient(backend, dy, x):
    dw, db = np.full((dy.shape[1], x.shape[1]), np.nan, dy.dtype), np.full(dy.shape[1], np.nan, dy.dtype)
    make_backend(backend).run("dense_grad_w", (dy, x, dw, db))
    return dw, db


# Around the sizes from which a processor's tiles (AMX) are used, and their edges: batch, features out, and in.
TILED = [(64, 128, 128), (63, 130, 129), (32, 511, 97), (31, 256, 256), (257, 64, 65), (520, 100, 64), (90, 33, 784), (33, 784, 63),
         (300, 96, 1500), (32, 16400, 66)]


@pytest.mark.parametrize("m, n, k", TILED)
@each_backend
def test_a_gradient_of_weights_is_as_exact_as_a_chain_of_fma(backend, m, n, k):
    """Beside the sum of magnitudes, element by element, also where rows and columns are of very different sizes."""
    rng = random(m, n, k)
    for apart in 0, 12, 30:
        dy, x = (np.ldexp(rng.normal(size=(m, width)), rng.integers(-apart, apart + 1, width)).astype(np.float32) for width in (n, k))
        exact, size = (f(dy.astype(np.float64)).T @ f(x.astype(np.float64)) for f in (np.asarray, np.abs))
        for layout in ("contiguous", "strided", "transposed"):
            dw, db = gradient(backend, laid_out(dy, layout), laid_out(x, layout))
            assert np.max(np.abs(dw - exact) / size) < 40 * 2.0 ** -24, (apart, layout)
            assert np.array_equal(db, gradient(NATIVES[-1], dy, x)[1])


@pytest.mark.parametrize("positive", [False, True])
@each_backend
def test_a_gradient_of_weights_is_as_exact_over_a_long_batch(backend, positive):
    """What is rounded off does not add up along all of it: sums are cut."""
    rng = random("long batch", positive)
    dy, x = (rng.normal(size=(30_000, width)).astype(np.float32) for width in (64, 80))
    if positive:
        dy, x = abs(dy), abs(x)
    exact = dy.T.astype(np.float64) @ x.astype(np.float64)
    wrong = gradient(backend, dy, x)[0] - exact
    assert np.sqrt(np.mean(wrong ** 2) / np.mean(exact ** 2)) < 10 * 2.0 ** -24


@pytest.mark.parametrize("m, n, k", TILED)
@each_backend
def test_a_gradient_of_weights_is_exact_on_integers(backend, m, n, k):
    """Of 12 bits, which are two numbers of 8; each is the product of another row."""
    rng = random(m, n, k)
    dy, x = np.zeros((m, n), np.float32), rng.integers(-4095, 4096, (m, k)).astype(np.float32)
    dy[np.arange(n) % m, np.arange(n)] = rng.integers(-4095, 4096, n)
    assert np.array_equal(gradient(backend, dy, x)[0], dy.T.astype(int) @ x.astype(int))


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3.4e38, 1e37, 1e-45, 1e-39, 0.0])
@pytest.mark.parametrize("whole", [False, True])
def test_a_gradient_of_numbers_out_of_range_has_the_same_bits_on_every_isa_with_fma(whole, number):
    """One of them, or all; in what a thread takes or not."""
    rng = random("out of range")
    dy, x = (rng.normal(size=(64, width)).astype(np.float32) for width in (200, 100))
    few = abs(number) < 1 and not whole                        # where the others are ordinary it is as if it were 0
    for given in (dy, x):
        saved = given.copy()
        given[(..., ) if whole else (5, 150 % given.shape[1])] = number
        found = set()
        isas = FMA or NATIVES[:1]
        for backend in isas[:1] if few else isas:
            for threads in 1, 3:
                pn.set_num_threads(threads)
                dw, _ = gradient(backend, dy, x)
                found.add(dw.tobytes() if not np.isnan(dw).any() else (np.isnan(dw).tobytes(), np.nan_to_num(dw).tobytes()))
        assert len(found) == 1
        given[:] = saved


@pytest.mark.parametrize("m, n, k", TILED)
@each_backend
def test_a_gradient_of_weights_has_the_same_bits_on_any_number_of_threads(backend, m, n, k):
    rng = random(m, n, k)
    dy, x = rng.normal(size=(m, n)).astype(np.float32), rng.normal(size=(m, k)).astype(np.float32)
    found = set()
    for threads in 1, 2, 3, 7:
        pn.set_num_threads(threads)
        found.add(b"".join(a.tobytes() for a in gradient(backend, dy, x)))
    assert len(found) == 1


@pytest.mark.parametrize("kernel", ["sum", "mean", "max", "min", "var"])
@each_dtype
def test_a_reduction_has_the_same_bits_on_every_isa(kernel, dtype):
    for n in (*SIZES, 5000):
        bufs, attrs = operands(kernel, n, dtype, random(kernel, n))
        results = set()
        for backend in NATIVES:
            make_backend(backend).run(kernel, tuple(bufs), attrs)
            results.add(bufs[-1].tobytes())
        assert len(results) == 1, f"{kernel} of {n}"


@pytest.mark.parametrize("kernel", ["uniform", "dropout", "random_next", "normal", "permutation", "randint"])
def test_random_numbers_have_the_same_bits_everywhere(kernel):
    for dtype, n in itertools.product(FLOATS, SIZES):
        bufs, attrs = operands(kernel, n, dtype, random(n), host=kernel in HOST)
        attrs = (2.0, 9.0) if kernel == "randint" else (0.5,) if kernel == "dropout" else attrs
        results = set()
        for backend in ("reference", *NATIVES):
            given = [b.copy() for b in bufs]
            make_backend(backend).run(kernel, tuple(given), attrs)
            results.add(b"".join(b.tobytes() for b in given))
        assert len(results) == 1, f"{kernel} of {n}"


# ----------------------------------------------------------------------------------------------------------- optimizers

SWITCHES = ("nesterov", "maximize", "centered", "decoupled_weight_decay")


@pytest.mark.parametrize("kernel", OPTIMIZERS)
@each_dtype
@each_backend
def test_optimizer_kernels_with_every_switch(kernel, dtype, backend):
    """Each switch on its own, numbers at zero, and the first step, which some treat apart."""
    names = optimizer_of(kernel)[0].hyper
    changes = [{name: 1 - HYPER[name]} for name in SWITCHES if name in names]
    changes += [{name: 0} for name in ("weight_decay", "momentum") if name in names] + [{"step": 1}]
    for change in changes:
        bufs, attrs = operands(kernel, 131, dtype, random(kernel))
        if change.get("centered"):                         # a mean of squares is no less than the square of the mean
            bufs[1] += 3
        bufs[-1] = hyper(kernel, len(bufs[-1]), **change)
        agree(kernel, backend, bufs, attrs, what=str(change))


# --------------------------------------------------------------------------------------------------- Checked and Traced

class Broken:
    """A backend with a fault in one element of one kernel."""
    name = "broken"

    def __init__(self, kernel, factor=1.001):
        self.kernel, self.factor = kernel, factor

    def run(self, kernel, bufs, attrs=()):
        reference.run(kernel, bufs, attrs)
        if kernel == self.kernel:
            next(b for s, b in zip(KERNELS[kernel].slots, bufs) if s.written).reshape(-1)[-1] *= self.factor


@pytest.mark.parametrize("kernel", ["matmul", "dense_tanh", "softmax", "adam", "mse_grad"])
def test_checked_names_the_kernel_that_diverges(kernel):
    bufs, attrs = operands(kernel, 50, np.float32, random(kernel))
    slot = next(s.name for s in KERNELS[kernel].slots if s.written)
    with pytest.raises(AssertionError, match=rf"{kernel}: {slot}\[.*broken.*reference.*ulp"):
        Checked(Broken(kernel), Reference()).run(kernel, tuple(bufs), attrs)


@each_backend
def test_checked_accepts_every_kernel(backend):
    checked = Checked(make_backend(backend), Reference())
    for kernel in KERNELS:
        bufs, attrs = operands(kernel, 50, np.float32, random(kernel))
        checked.run(kernel, tuple(bufs), attrs)


def test_traced_counts_calls():
    traced = Traced(make_backend("native"))
    with pn.backend(traced):
        (pn.ones(3) + 1).exp().exp()
    assert traced.calls["exp"] == 2 and traced.calls["add"] == 1
    assert "exp" in str(traced) and "native" in str(traced)
