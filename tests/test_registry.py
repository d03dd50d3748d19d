# SPDX-License-Identifier: BSD-3-Clause
"""The tables agree with each other and with what was compiled, and no row of them is dead."""
import inspect
import operator
from collections import defaultdict

import numpy as np
import pytest
from cases import NATIVES, applied, sample

import pyneuro as pn
import pyneuro.nn.functional as F
from pyneuro.kernels import reference, signature
from pyneuro.kernels.signature import HOST, KERNELS, element_dtype, spec_for
from pyneuro.ops import OPS
from pyneuro.optim.optimizers import OPTIMIZERS

native = pytest.mark.skipif(not NATIVES, reason="the extension is not built")


# -------------------------------------------------------------------------------------------------- kernels.def, parsed

@native
def test_what_is_compiled_is_what_the_table_says():
    from pyneuro.kernels import _native
    assert _native.signatures() == {name: spec.text for name, spec in KERNELS.items()}


@pytest.mark.parametrize(("name", "text"), [
    ("matmul", "a:mk b:kn -> c:mn | mn"),
    ("elu_curve", "g:... dy:... x:... -> dx:... ; alpha=1"),
    ("dense_silu", "x:mk w:nk b:n -> z:mn y:mn | mn"),
    ("dense_tanh", "x:mk w:nk b:n -> y:mn | mn"),
    ("huber_grad", "dl:... x:... t:... -> dx:... ; delta=1"),
])
def test_macros_are_spelled_out_as_a_compiler_would(name, text):
    assert KERNELS[name].text == text


def test_every_row_says_what_it_writes():
    for spec in [*KERNELS.values(), *HOST.values()]:
        names = [s.name for s in spec.slots]
        assert len(set(names)) == len(names), spec
        assert any(s.written for s in spec.slots), spec
        assert all(not s.within or s.within in spec.letters for s in spec.slots), spec


# -------------------------------------------------------------------------------------------------- reference and twins

@pytest.mark.parametrize("name", sorted(KERNELS | HOST))
def test_a_definition_takes_the_slots_and_attrs_of_its_row(name):
    for spec in filter(None, (KERNELS.get(name), HOST.get(name))):
        expected = [s.name for s in spec.slots] + [attr for attr, _ in spec.attrs]
        assert list(inspect.signature(reference.DEFINITIONS[name]).parameters) == expected
    assert reference.DEFINITIONS[name].__doc__, f"{name} has no formula"


def test_there_is_a_definition_for_each_row_and_no_other():
    assert set(reference.DEFINITIONS) == set(KERNELS | HOST)


@native
def test_twins_have_equal_signatures():
    from pyneuro.kernels import native as native_twins
    for name in KERNELS | HOST:
        ours, theirs = getattr(native_twins, name), getattr(reference, name)
        assert inspect.signature(ours) == inspect.signature(theirs), name
        assert ours.__doc__ == theirs.__doc__, name


def test_twins_allocate_what_they_return():
    a, b = np.ones((2, 3)), np.ones((3, 4))
    assert reference.matmul(a, b).tolist() == [[3.0] * 4] * 2
    out = np.zeros((2, 4))
    assert reference.matmul(a, b, out=out) is out
    assert reference.dense_elu(a, b.T, np.zeros(4), alpha=2.0)[1].shape == (2, 4)


# -------------------------------------------------------------------------------------------------------------- op rows

@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_op_rows_are_sane(op):
    arrays, attrs = sample(op, 60)
    assert op.formula
    assert op.sums(*arrays) >= 1
    assert op.work(*arrays) > 0
    assert all(-1 <= i < len(arrays) for i in op.saves)
    before = [a.copy() for a in arrays]
    y, _ = applied(op, arrays, attrs)
    assert y.numel(), "the sample is empty"
    for a, b in zip(arrays, before):
        assert np.array_equal(a, b, equal_nan=True), "the op wrote its input"
    assert np.isfinite(y.detach().array).all(), "the sample lies where the op is not defined"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_samples_grow_with_n_and_are_never_square(op):
    def shapes(n):
        return [np.shape(a) for a in op.inputs(np.random.default_rng(0), n)[0]]

    assert max(np.prod(s) for s in shapes(400)) > max(np.prod(s) for s in shapes(20))
    assert not any(len(s) == 2 and s[0] == s[1] for s in shapes(60)), "a square sample hides a transposed result"


def test_ops_and_kernels_that_share_a_name_share_parameters():
    for name in OPS.keys() & KERNELS.keys():
        if OPS[name].params:
            assert OPS[name].params == KERNELS[name].attrs, name


# -------------------------------------------------------------------------------------------- every kernel is reachable

class Spy:
    """The reference, remembering which rows of which table it served."""
    name = "spy"

    def __init__(self):
        self.inner, self.seen = pn.kernels.Reference(), defaultdict(set)

    def run(self, kernel, bufs, attrs=()):
        self.seen["HOST" if spec_for(kernel, element_dtype(kernel, bufs)).host else "KERNELS"].add(kernel)
        self.inner.run(kernel, bufs, attrs)


def run_every_op():
    for op in OPS.values():
        arrays, attrs = sample(op, 20)
        y, given = applied(op, arrays, attrs)
        if y.requires_grad:
            y.backward(pn.ones(y.shape, dtype=y.dtype))
            x = next(t for t in given if t.requires_grad)
            (x + x).backward(pn.ones(x.shape, dtype=x.dtype))          # a second gradient: accumulate


def run_every_optimizer():
    switches = {"momentum": 0.9, "nesterov": True, "amsgrad": True, "centered": True}
    for cls in OPTIMIZERS.values():
        for names in ((), *((s,) for s in switches), ("momentum", "nesterov")):
            p = pn.zeros(3, requires_grad=True)
            p.grad = pn.ones(3)
            try:
                optimizer = cls([p], **{n: switches[n] for n in names})
            except (TypeError, ValueError):                            # not an option of this one
                continue
            optimizer.step()


def run_every_random_function():
    pn.rand(3), pn.randn(3), pn.randint(5, (3,)), pn.randperm(4)
    F.dropout(pn.ones(4), 0.5)
    pn.nn.init.trunc_normal_(pn.ones(4)), pn.nn.init.orthogonal_(pn.ones(3, 2))


def run_what_keeps_averages():
    pn.nn.BatchNorm1d(3)(pn.rand(2, 3))


def run_what_fit_reads():
    model = pn.nn.Linear(3, 2)
    X, y = np.ones((4, 3), np.uint8), np.array([0, 1, 0, 1])
    pn.fit(model, F.cross_entropy, pn.optim.SGD(model.parameters()), X, y, normalize=(0, 255))


def run_what_passes_make():
    pn.compile(lambda x, labels: pn.autograd.grad(F.cross_entropy(x, labels), (x,)))(pn.rand(2, 3, requires_grad=True), pn.arange(2))


def run_every_method(dtype):
    """Operators and methods on a dtype that has no gradient, with what they take; what it refuses does not count."""
    x = pn.tensor(np.arange(1, 7).reshape(2, 3), dtype=dtype)
    index = pn.tensor([[0, 1, 0], [1, 0, 1]])
    binary = ["add", "sub", "mul", "floordiv", "mod", "pow", "and_", "or_", "xor", "eq", "ne", "lt", "le", "gt", "ge"]
    calls = [lambda f=getattr(operator, name): f(x, x) for name in binary]
    calls += [lambda name=name: getattr(x, name)() for name in
              ("__neg__", "__invert__", "abs", "sign", "sum", "max", "min", "argmax", "argmin", "any", "all", "clone")]
    calls += [
        lambda: x.clamp(2, 4),
        lambda: pn.where(x > 2, x, x + x),
        lambda: x.maximum(x),
        lambda: x.minimum(x),
        lambda: x @ x.T,
        lambda: pn.stack([x, x]) @ pn.stack([x.T, x.T]),
        lambda: x[index[0]],
        lambda: x.gather(0, index),
        lambda: x.clone().__setitem__(x > 2, 1),
        lambda: pn.full((2,), 1, dtype=dtype),
        lambda: x.to(pn.int32),
        lambda: x.fmod(x),
        lambda: x.bitwise_left_shift(x),
        lambda: x.bitwise_right_shift(x),
        lambda: x.prod(0, dtype=dtype),
        lambda: x.mode(),
        lambda: x.cumsum(0, dtype=dtype),
        lambda: x.cumprod(0, dtype=dtype),
        lambda: x.cummax(0),
        lambda: x.cummin(0),
        lambda: x.sort(),
        lambda: pn.searchsorted(x, x),
        lambda: x.index_add(0, index[0], x[index[0]]),
        lambda: x.scatter(0, index, 1),
        lambda: x.scatter_add(0, index, x[index[0]]),
    ]
    for call in calls:
        try:
            call()
        except TypeError:
            pass


def test_every_kernel_is_reached():
    spy = Spy()
    with pn.backend(spy):
        run_every_op()
        run_every_optimizer()
        run_every_random_function()
        run_what_keeps_averages()
        run_what_fit_reads()
        run_what_passes_make()
        for dtype in ("float32", "int64", "int32", "bool"):
            run_every_method(dtype)
    dead = {"KERNELS": sorted(KERNELS.keys() - spy.seen["KERNELS"]), "HOST": sorted(HOST.keys() - spy.seen["HOST"])}
    assert dead == {"KERNELS": [], "HOST": []}


def test_the_table_knows_every_word_of_the_grammar():
    """Only letters that csrc/kernels.def explains appear as slot types."""
    used = {s.type for spec in [*KERNELS.values(), *HOST.values()] for s in spec.slots}
    assert used <= {"", "t", "a", *signature.SLOT_DTYPE}
