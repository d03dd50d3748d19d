# SPDX-License-Identifier: BSD-3-Clause
"""The elementary functions, on every ISA: errors over the whole range, and the special values of C99's annex F.

The error is counted in units in the last place of the correctly rounded result, for all numbers whose result is a normal
number. Each bound was seen to hold for every float32 there is (.ci/sweep.py, which uses this file; pow: on a grid), and
for float64 in some two million samples:

    exp, log     1.5 ulp, mostly the rounding of the last sum. log keeps it where it goes through 0, at 1.
    expm1        2.5 ulp, worst where 2^n (e^r - 1) and 2^n - 1 nearly cancel, below 0.
    log1p        2 ulp: 1 + x is exact, as the sum of two numbers.
    tanh         2.5 ulp, worst about 0.55, where e / (e + 2) turns into 1 - 2 / (e + 2).
    sigmoid      2.5 ulp: an exponential, a sum and a division, each rounded once.
    softplus     2 ulp, worst where ln(1 + e^x) is about 1.
    erf          2.5 ulp, worst before x (1 + p(x^2)) turns into 1 - e^-q(x).
    sin, cos     2.5 ulp for any x: beyond 1e5 (float64: 1e9) they are libm's. The worst is about the extremes, as their
                 polynomial reaches from one zero to the next; near a zero all digits are right.
    pow          1.5 ulp: the logarithm is the sum of two numbers. Squares, cubes, roots and inverses are products.
"""
import functools
import math
from fractions import Fraction

import numpy as np
import pytest
from cases import FLOATS, NATIVES, random

from pyneuro.kernels import make_backend
from pyneuro.kernels.reference import DEFINITIONS
from pyneuro.kernels.signature import KERNELS

ULPS = {"exp": 1.5, "log": 1.5, "expm1": 2.5, "log1p": 2.0, "tanh": 2.5, "sigmoid": 2.5, "softplus": 2.0, "erf": 2.5,
        "sin": 2.5, "cos": 2.5, "pow": 1.5}
UNARY = [name for name in ULPS if name != "pow"]
WIDER = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}

each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])
each_backend = pytest.mark.parametrize("backend", NATIVES)


def attrs_of(function):
    return tuple({"threshold": math.inf}.get(name, default) for name, default in KERNELS[function].attrs)


def wanted(function, *operands):
    """The value in a wider type. softplus has no threshold here."""
    wide = WIDER[operands[0].dtype]
    y = np.empty(operands[0].shape, wide)
    with np.errstate(all="ignore"):
        if function == "erf" and operands[0].dtype == np.float64:
            y[...] = [wide_erf(x) for x in operands[0].tolist()]
        else:
            DEFINITIONS[function](*[x.astype(wide) for x in operands], y, *attrs_of(function))
    return y


PLACES = 160
ROOT = int(Fraction("1.12837916709551257389615890312154517168810125865800") * 2**PLACES)      # 2 / sqrt(pi)


def wide_erf(x):
    """erf of a float as a longdouble: 1 - erfc(x), and where that cancels its series, in integers of 160 places."""
    if not abs(x) < 1:
        return np.copysign(1 - np.longdouble(math.erfc(abs(x))), x)
    if abs(x) < 2.0**-40:
        return np.ldexp(np.longdouble(ROOT), -PLACES) * np.longdouble(x)              # x^3 is beyond the last place
    power = int(Fraction(x) * 2**PLACES)
    square = power * power >> PLACES
    total = 0
    for n in range(40):
        total += power // (2 * n + 1)
        power = -power * square // (n + 1) >> PLACES
    return np.ldexp(np.longdouble(total * ROOT >> PLACES), -PLACES)


def evaluated(backend, function, *operands):
    y = np.empty_like(operands[0])
    make_backend(backend).run(function, (*operands, y), attrs_of(function))
    return y


def right(function, *operands):
    """What may come out: the value in a wider type, and where denormals count as 0."""
    tiny = np.finfo(operands[0].dtype).tiny
    flushed = [np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x) for x in operands]
    changed = any((np.abs(x) < tiny).any() for x in operands)
    return [wanted(function, *given) for given in ([operands, flushed] if changed else [operands])]


def ulps(function, got, *operands, wants=None):
    """The error of each result; 0 where infinity, NaN or next to nothing is right. Denormals may count as 0."""
    return np.min([_ulps(got, want) for want in wants or right(function, *operands)], axis=0)


def _ulps(got, want):
    fine = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)
        error = (np.abs(got - want) / np.spacing(np.abs(rounded))).astype(float)
        error[np.isnan(error)] = np.inf
        right = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        nothing = (np.abs(want) < fine.tiny) & (np.abs(got) <= fine.tiny)
        at_the_end = np.minimum(np.abs(got), np.abs(want)) >= fine.max * (1 - 2 * fine.eps)     # infinite or not
    return np.where(right | nothing | at_the_end, 0, error)


def all_magnitudes(dtype, n):
    """n numbers a stride apart among all there are, NaN and infinities too."""
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    stride = 2**(8 * bits.itemsize) // n | 1
    x = (np.arange(n, dtype=np.uint64) * np.uint64(stride)).astype(bits).view(dtype)
    x[np.isnan(x)] = np.nan                                            # a signalling one has rules of its own
    return x


def numbers(function, dtype, n):
    """All magnitudes, and more of those where functions bend, cross 0 or change their formula."""
    rng = random(function, np.dtype(dtype).name)
    x = [all_magnitudes(dtype, n), rng.uniform(-2, 2, n), rng.uniform(-20, 20, n), rng.uniform(-750, 750, n),
         1 + rng.normal(size=n) * 2.0**rng.integers(-50, 0, n)]
    if function in ("sin", "cos"):
        x += [np.round(rng.uniform(0, 1e6, n)) * (math.pi / 2), 10.0**rng.uniform(3, 12, n)]
    return np.r_[x[0], np.concatenate(x[1:]).astype(dtype)]


def pairs(dtype, n):
    """Powers over the whole range of results, of bases of all magnitudes and close to 1, and of negative ones."""
    rng = random("pow", np.dtype(dtype).name)
    near_one = np.r_[rng.uniform(0.5, 2, n), 1 + rng.normal(size=n) * 2.0**rng.integers(-20, 0, n)].astype(dtype)
    x = np.abs(np.r_[all_magnitudes(dtype, n), near_one])
    with np.errstate(all="ignore"):
        y = rng.uniform(-1, 1, x.size) * math.log(np.finfo(dtype).max) * 1.03 / np.abs(np.log(x.astype(float)))
    y = np.clip(np.nan_to_num(y), -1e30, 1e30).astype(dtype)
    whole = np.round(rng.uniform(-30, 30, n)).astype(dtype)
    return np.r_[x, -rng.uniform(0.1, 9, n).astype(dtype)], np.r_[y, whole]


def held(function, bound, got, *operands, wants=None):
    """Assert the bound; where there is no type wider than float64, the value compared with has an error of its own."""
    error = ulps(function, got, *operands, wants=wants)
    own = 1 if np.finfo(WIDER[got.dtype]).eps == np.finfo(got.dtype).eps else 0.01
    worst = error.argmax()
    at = ", ".join(repr(x[worst].item()) for x in operands)
    assert error[worst] <= bound + own, f"{function}({at}) is {got[worst]!r}: {error[worst]:.2f} ulp"


@functools.lru_cache(1)
def judged(function, dtype):
    """Numbers, and what is right of them: the costly part, and the same for every backend."""
    x = numbers(function, dtype, 1500 if function == "erf" else 30_000)
    return x, right(function, x)


@each_backend                              # the first varies fastest
@each_dtype
@pytest.mark.parametrize("function", UNARY)
def test_error(function, dtype, backend):
    x, wants = judged(function, dtype)
    held(function, ULPS[function], evaluated(backend, function, x), x, wants=wants)


@each_dtype
@each_backend
def test_error_of_powers(dtype, backend):
    x, y = pairs(dtype, 30_000)
    held("pow", ULPS["pow"], evaluated(backend, "pow", x, y), x, y)


@pytest.mark.parametrize("exponent", [2, 3, 0.5, -1, -0.5, 1, 0, 4, -2, 1.5, math.inf, math.nan])
@each_dtype
@each_backend
def test_error_of_powers_by_one_exponent(exponent, dtype, backend):
    """A single exponent may have a shorter way than others; signs, zeros and infinities come out alike."""
    x = np.r_[numbers("pow", dtype, 1000), np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -1], dtype)]
    x[np.abs(x) < np.finfo(dtype).tiny] = 0
    y = np.array(exponent, dtype)
    got = evaluated(backend, "pow", x, y)
    held("pow", 1.5, got, x, np.broadcast_to(y, x.shape))
    with np.errstate(all="ignore"):
        want = np.power(x, y)
    exact = (want == 0) & (got == 0) | np.isinf(want)
    assert np.array_equal(np.copysign(1, got[exact]), np.copysign(1, want[exact]))


# Annex F: what comes out of 0, -0, inf and -inf; NaN comes out of NaN.
SPECIAL = {"exp": (1, 1, math.inf, 0), "expm1": (0.0, -0.0, math.inf, -1), "log": (-math.inf, -math.inf, math.inf, math.nan),
           "log1p": (0.0, -0.0, math.inf, math.nan), "tanh": (0.0, -0.0, 1, -1), "sigmoid": (0.5, 0.5, 1, 0),
           "softplus": (math.log(2), math.log(2), math.inf, 0), "erf": (0.0, -0.0, 1, -1),
           "sin": (0.0, -0.0, math.nan, math.nan), "cos": (1, 1, math.nan, math.nan)}


def test_no_function_is_left_out():
    assert set(SPECIAL) == set(UNARY)


@pytest.mark.parametrize("function", SPECIAL)
@each_dtype
@each_backend
def test_special_values(function, dtype, backend):
    """In each lane of a vector, alone and among ordinary numbers."""
    given = [(0.0, -0.0, math.inf, -math.inf, math.nan), (*SPECIAL[function], math.nan)]
    if function in ("log", "log1p"):
        edge = 0.0 if function == "log" else -1.0
        given = [(*given[0], edge, edge - 0.5), (*given[1], -math.inf, math.nan)]
    for x, y in zip(*given):
        for lane in range(17):
            operand = np.full(17, 0.75, dtype)
            operand[lane] = x
            got = evaluated(backend, function, operand)
            np.testing.assert_array_equal(got[lane], np.array(y, dtype), f"{function}({x})")
            assert y != 0 or math.copysign(1, got[lane]) == math.copysign(1, y), f"{function}({x}) has the wrong sign"
            assert np.delete(got, lane).tolist() == [got[(lane + 1) % 17]] * 16, "a lane changed its neighbours"


@pytest.mark.parametrize("function", [*UNARY, "pow"])
@each_dtype
@each_backend
def test_a_lane_has_the_same_bits_beside_any_other(function, dtype, backend):
    """Vectors with special lanes go another way; which numbers share one depends on the ISA and on where a part begins."""
    rng, fine, n = random(function, np.dtype(dtype).name), np.finfo(dtype), 10_000
    large = np.ldexp(rng.uniform(-2, 2, n), rng.integers(fine.nmant - 4, fine.nmant + 8, n)).astype(dtype)      # 1 + x is x or next to it
    operands = [np.r_[numbers(function, dtype, n), large]]
    if function == "pow":
        near_one = (1 + rng.integers(-40, 41, n) * fine.eps).astype(dtype)
        far = np.where(rng.random(n) < 0.1, fine.max, large)
        operands = [np.r_[a, b] for a, b in zip(pairs(dtype, 3000), (near_one, far))]
    alone = evaluated(backend, function, *(x.repeat(16) for x in operands))[::16]
    beside = evaluated(backend, function, *(np.c_[x, x, np.full_like(x, np.nan), x].ravel() for x in operands))
    np.testing.assert_array_equal(beside.reshape(-1, 4)[:, [0, 3]], np.c_[alone, alone])
    np.testing.assert_array_equal(evaluated(backend, function, *operands), alone)


@each_dtype
@each_backend
def test_square_roots_are_rounded_correctly(dtype, backend):
    """As IEEE 754 has it and NumPy's are. With AVX-512 they are worked out, not left to the instruction: so all significands of
    float32 there are, which is two octaves; and some of all numbers there are, neighbours of which go another way."""
    if dtype == np.float32:
        x = np.r_[np.arange(0x3F800000, 0x40800000), np.arange(0, 1 << 32, 4099)].astype(np.uint32).view(dtype)
    else:
        x = random("sqrt", "float64").integers(0, 1 << 63, 100_000, dtype=np.uint64).view(dtype)
    x = np.r_[x, np.array([0, -0.0, np.inf, -np.inf, np.nan, -1, np.finfo(dtype).tiny, np.finfo(dtype).max], dtype)]
    x[np.abs(x) < np.finfo(dtype).tiny] *= 0                             # denormals count as that
    with np.errstate(all="ignore"):
        want = np.sqrt(x)
    for begin in 0, 1:                                                   # other neighbours in a vector, and a tail
        got = evaluated(backend, "sqrt", x[begin:])
        np.testing.assert_array_equal(got, want[begin:])
        np.testing.assert_array_equal(np.signbit(got[want[begin:] == 0]), np.signbit(want[begin:][want[begin:] == 0]))


def test_special_values_of_powers():
    """Annex F, and Python's own, which follows it: every pair of these, in all lanes at once."""
    values = [0.0, 1.0, 2.0, 3.0, 0.5, 2.5, 1e30, math.inf, math.nan]
    values += [-v for v in values]
    x, y = (a.reshape(-1) for a in np.meshgrid(values, values))
    for backend in NATIVES:
        for dtype in FLOATS:
            got = evaluated(backend, "pow", x.astype(dtype), y.astype(dtype))
            with np.errstate(all="ignore"):
                want = np.power(x, y).astype(dtype)
            np.testing.assert_allclose(got, want, 1e-6 if dtype == np.float32 else 1e-15)
            same = (got == 0) | np.isinf(got)
            assert np.array_equal(np.signbit(got[same]), np.signbit(want[same]))
