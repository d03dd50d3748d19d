# SPDX-License-Identifier: BSD-3-Clause
"""The short ways of eager mode: what they give is what the long way gives, and what is not for them takes the long way."""
import gc
import itertools
import operator
import sys

import numpy as np
import pytest
from test_package import python

import pyneuro as pn
from pyneuro.kernels import Traced, has_native, owned, run_all
from pyneuro.ops import OPS

pytestmark = pytest.mark.skipif(not has_native, reason="the extension is not built")


def made(seed, shape=(4, 6), dtype="float32"):
    rng = np.random.default_rng(seed)
    return rng.integers(-5, 6, shape).astype(dtype) if dtype[0] in "iu" else rng.normal(size=shape).astype(dtype)


def rewritten():
    """A view whose base has been written in place while recording."""
    base = pn.from_numpy(made(5))
    view = base[1:3]
    base.mul_(pn.tensor(2.0, requires_grad=True))
    return view


def leaf(dtype="float32"):
    return pn.from_numpy(made(6, dtype=dtype)).requires_grad_()


OPERANDS = {
    "matrix": lambda: pn.from_numpy(made(1)),
    "float64": lambda: pn.from_numpy(made(2, dtype="float64")),
    "integers": lambda: pn.from_numpy(made(3, dtype="int64")),
    "transposed": lambda: pn.from_numpy(made(4, (6, 4))).T,
    "reversed": lambda: pn.from_numpy(made(4)[::-1]),
    "row": lambda: pn.from_numpy(made(7, (6,))),
    "0-d": lambda: pn.tensor(1.5),
    "0-d float64": lambda: pn.tensor(1.5, dtype=pn.float64),
    "empty": lambda: pn.zeros(0, 6),
    "large": lambda: pn.from_numpy(made(8, (200, 200))),
    "leaf": leaf,
    "rewritten view": rewritten,
    "parameter": lambda: pn.nn.Parameter(pn.from_numpy(made(9))),
    "read-only": lambda: pn.from_numpy(np.broadcast_to(np.float32(3), (4, 6))),
    "float": lambda: 2.5,
    "int": lambda: 3,
    "large int": lambda: 2 ** 60 + 1,
    "bool": lambda: True,
    "array": lambda: made(10),
    "array of float64": lambda: made(10, dtype="float64"),
    "NumPy scalar": lambda: np.float64(0.1),
}
BINARY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def outcome(f):
    """Bits, dtype, and whether it is recorded; or the kind of error."""
    try:
        y = f()
    except Exception as error:
        return type(error)
    return y.dtype, y.shape, y.detach().numpy().tobytes(), y.requires_grad, type(y)


def both_ways(f):
    short = outcome(f)
    with pn.backend(Traced(pn.kernels.make_backend("native"))):
        assert outcome(f) == short
    return short


@pytest.mark.parametrize("symbol", BINARY)
def test_operators(symbol):
    f = BINARY[symbol]
    tensors = [name for name in OPERANDS if isinstance(OPERANDS[name](), pn.Tensor)]
    for left, right in itertools.product(OPERANDS, OPERANDS):
        if left in tensors or right in tensors:
            x, y = OPERANDS[left](), OPERANDS[right]()
            both_ways(lambda x=x, y=y: f(x, y))
            with pn.no_grad():
                both_ways(lambda x=x, y=y: f(x, y))


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.kind == "activation" or op.name in ("exp", "abs", "neg")],
                         ids=lambda op: op.name)
def test_functions_of_one_operand(op):
    for make in OPERANDS.values():
        x = make()
        if isinstance(x, pn.Tensor):
            both_ways(lambda x=x: getattr(x, op.name)())


def test_products():
    shapes = [(4, 6), (6, 3), (6,), (3,), (0, 6), (6, 0), (0,), (2, 4, 6), ()]
    kinds = [pn.from_numpy(made(i, shape, dtype)) for i, shape in enumerate(shapes) for dtype in ("float32", "float64")]
    kinds += [pn.from_numpy(made(1, (6, 6))).T, pn.from_numpy(made(2, (12,)))[::2], pn.from_numpy(made(2, (6,)))[::-1], leaf(),
              pn.from_numpy(made(3, (6, 6), "int64"))]
    for x, y in itertools.product(kinds, kinds):
        for f in (operator.matmul, pn.matmul, pn.mm, pn.mv, pn.dot):
            both_ways(lambda f=f, x=x, y=y: f(x, y))


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin", "var"])
def test_reductions(name):
    for shape in [(4, 6), (2, 3, 4, 5), (7,), (), (0, 3), (3, 0), (1, 5, 1)]:
        x = pn.from_numpy(made(1, shape))
        dims = [None, *range(-len(shape), len(shape)), *itertools.combinations(range(len(shape)), 2)]
        for t, dim, keepdim in itertools.product([x, x.T if x.ndim == 2 else x, x.detach().requires_grad_()], dims, [False, True]):
            both_ways(lambda t=t, dim=dim, keepdim=keepdim: getattr(t, name)(dim, keepdim=keepdim))


@pytest.mark.filterwarnings("ignore")
def test_a_class_of_another_library_may_answer_for_itself():
    class Other:
        def __radd__(self, other):
            return "reflected"

        def __rmatmul__(self, other):
            return "reflected"

    assert pn.ones(2) + Other() == pn.ones(2) @ Other() == "reflected"
    for f in (operator.add, operator.matmul):
        with pytest.raises(TypeError, match="unsupported operand"):
            f(pn.ones(2), "two")
        with pytest.raises(TypeError):
            f("two", pn.ones(2))


def test_tensors_take_attributes():
    x = pn.ones(2) + 1
    x.name = "x"
    assert (x.name, x.detach().__dict__) == ("x", {})


def test_many_calls_at_once_are_the_calls_one_by_one():
    def calls():
        """Of several shapes and types; a strided one; one in memory that the kernel does not take as it is."""
        hyper = np.array([0.1, 0, 0, 0, 0, 0, 0])
        arrays = [(made(1), made(2)), (made(3, (5,), "float64"), made(4, (5,), "float64")), (made(5).T, made(6, (6, 4)))]
        return [(p, g, hyper) for p, g in arrays], [(made(7), made(8), hyper[::1]), (made(9), made(1), np.zeros(14)[::2] + 0.1)]

    for kind in (0, 1):
        at_once, one_by_one = calls()[kind], calls()[kind]
        run_all("sgd", at_once)
        for bufs in one_by_one:
            pn.kernels.run("sgd", *bufs)
        assert [a[0].tobytes() for a in at_once] == [a[0].tobytes() for a in one_by_one]
    run_all("sgd", [])
    with pytest.raises(pn.kernels.ShapeError, match="sgd"):
        run_all("sgd", [*calls()[0], (made(1), made(2, (3,)), np.zeros(7))])
    with pytest.raises(ValueError, match="not a kernel"):
        run_all("no such kernel", calls()[0])


# Memory

keeps = pytest.mark.skipif(bool(pn.kernels.build_info().get("sanitize")), reason="for a sanitizer nothing is kept: it shall see memory that is freed")


def address(t):
    return t.numpy().ctypes.data


@keeps
@pytest.mark.parametrize("size", [256, 1000, 4096, 5000, 100_000, 524_288, 1_000_003])
def test_memory_is_aligned_and_used_again(size):
    gc.disable()                                                 # or what other tests left behind may be given back meanwhile
    try:
        x = pn.empty(size)
        assert address(x) % 64 == 0 and owned(x.numpy()) and x.numpy().flags.writeable
        seen = set()
        for _ in range(30):
            del x
            x = pn.empty(size)
            seen.add(address(x) // 4096)
    finally:
        gc.enable()
    assert len(seen) == 1                                        # the same block, perhaps at another place in its first page


def test_memory_outlives_its_tensor():
    x = pn.ones(5000)
    view = x.numpy()[10:20]
    del x
    others = [pn.zeros(5000) for _ in range(10)]
    assert view.sum() == 10 and len(others) == 10


def test_blocks_of_all_sizes_hold_what_they_are_for():
    held = []
    for size in [*range(250, 700), *(2 ** k + d for k in range(8, 21) for d in (-1, 0, 1))]:
        x = pn.full((size,), float(size % 97), dtype=pn.float32)
        held.append((x, size))
        if len(held) > 40:
            held.pop(size % 40)
    for x, size in held:
        assert x.shape == (size,) and (x.numpy() == size % 97).all()
    addresses = sorted((address(x), address(x) + 4 * size) for x, size in held)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(addresses))


@keeps
@pytest.mark.parametrize(("megabytes", "found"), [("128", "7.0"), ("50", "7.0"), ("10", "0.0"), ("0", "0.0")])
def test_the_limit_of_what_is_kept(megabytes, found):
    """40 MB are beyond what any malloc keeps: what is not kept here comes back as fresh pages."""
    code = "import pyneuro as pn; x = pn.full((10**7,), 7.0); del x; print(pn.empty(10**7)[10**6].item())"
    assert python(code, PYNEURO_CACHE_MB=megabytes)[1] == found


@keeps
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and elsewhere malloc has its way")
def test_memory_of_arrays_that_are_gone_is_given_back():
    """Of large arrays of all sizes, live and gone in any order: beside the live ones there is no more than is kept."""
    code = """if True:
        import random, pyneuro as pn
        def resident():
            with open("/proc/self/statm") as f:
                return int(f.read().split()[1]) * 4096 >> 20
        draw, live, first, most = random.Random(0), [], resident(), 0
        for _ in range(400):
            while sum(x.nbytes for x in live) > 100 << 20:
                live.pop(draw.randrange(len(live)))
            live.append(pn.ones(int(2 ** draw.uniform(19.5, 23))))
            most = max(most, resident() - first - (sum(x.nbytes for x in live) >> 20))
        print(most)"""
    assert int(python(code, PYNEURO_CACHE_MB="32")[1]) < 32 + 64


@keeps
def test_what_is_kept_makes_way_for_what_is_asked_for():
    """However much of other sizes was kept before: at most the first of these blocks are not used again."""
    code = """if True:
        import pyneuro as pn
        held = [pn.ones(750) for _ in range(12_000)]
        del held
        seen = []
        for _ in range(6):
            held = [pn.full((n << 18,), 7.0) for n in (3, 5, 20)]
            del held
            x = pn.empty(20 << 18)
            seen.append(x[10 ** 6].item())
            del x
        print(seen[-1])"""
    assert python(code, PYNEURO_CACHE_MB="32")[1] == "7.0"


def test_a_limit_is_a_number():
    code = "import pyneuro"
    for wrong in ("many", "-1", "nan"):
        status, _, err = python(code, PYNEURO_CACHE_MB=wrong)
        assert status == 1 and f"PYNEURO_CACHE_MB={wrong!r} is not a number of megabytes" in err
