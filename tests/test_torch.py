# SPDX-License-Identifier: BSD-3-Clause
"""PyTorch's numbers, gradients, defaults, names: against values stored from torch 2.13, live where it is installed."""

import json
from pathlib import Path

import numpy as np
import peers
import pytest
from cases import BACKENDS

import pyneuro as pn
from pyneuro import nn
from pyneuro.nn import init

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def near(got, want, rtol=1e-10):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


def cases(rows):
    return pytest.mark.parametrize("case", [pytest.param(row, id=row.name) for row in rows])


# --------------------------------------------------------------------------------------------------- value and gradient


def wanted(kind, case):
    """torch's numbers: as stored, or for a row that is new since, live."""
    if case.name in GOLDEN[kind]:
        return GOLDEN[kind][case.name]
    torch = pytest.importorskip("torch", reason="not stored yet: run .ci/golden.py where torch is")
    return case.run(torch)


@cases([case for case in peers.LAYERS if f"nn.{case.module}" in GOLDEN["defaults"]])      # what torch has too
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_layer(case, on):
    near(case.run(pn), wanted("layers", case))


@cases(peers.OPTIMIZERS)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_optimizer(case, on):
    near(case.run(pn), wanted("optimizers", case))


def test_stored_values_are_torchs(torch):
    for kind, rows in (("layers", peers.LAYERS), ("optimizers", peers.OPTIMIZERS)):
        stored = [case for case in rows if case.name in GOLDEN[kind]]
        assert len(stored) == len(GOLDEN[kind]), "values of cases that are no more: run .ci/golden.py"
        for case in stored:
            near(case.run(torch), GOLDEN[kind][case.name])
    assert peers.promotion(torch) == GOLDEN["promotion"]
    live = json.loads(json.dumps(peers.defaults(torch)))
    assert live | GOLDEN["defaults"] == live
    for name in live.keys() - GOLDEN["defaults"].keys():
        if not hidden(live[name]):
            parameters_agree(name, live[name])


# --------------------------------------------------------------------------------------------------- names and defaults


def hidden(theirs):
    """Whether torch's signature is hidden from Python."""
    return theirs is None or [n for n, _ in theirs] == ["args", "kwargs"]


def parameters_agree(name, theirs):
    """Every parameter of torch's is there, in the same order, with the same default; pyneuro may take more."""
    space, _, attribute = name.partition(".")
    mine = peers.parameters(getattr(peers.namespaces(pn)[space], attribute))
    defaults = dict(map(tuple, mine))
    absent = [n for n, _ in theirs if n not in defaults]
    assert not absent, f"torch's {name} also takes {absent}"
    shared = [n for n, _ in theirs]
    assert [n for n, _ in mine if n in shared] == shared, "in another order"
    other = {n: (defaults[n], d) for n, d in theirs if defaults[n] != d}
    assert not other, f"{name}: (pyneuro's default, torch's)"


@pytest.mark.parametrize("name", GOLDEN["defaults"])
def test_parameters_and_defaults(name):
    theirs = GOLDEN["defaults"][name]
    if hidden(theirs):
        pytest.skip("torch's signature is hidden from Python")
    parameters_agree(name, theirs)


def test_promotion_is_torchs_table():
    mine = peers.promotion(pn)
    assert {k: (mine[k], v) for k, v in GOLDEN["promotion"].items() if mine[k] != v} == {}, "(pyneuro's, torch's)"


# ----------------------------------------------------------------------------------------------------------- state_dict


@pytest.mark.parametrize("name", peers.MODELS)
def test_state_dict_has_torchs_names_and_layout(name):
    state = peers.MODELS[name](nn).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == GOLDEN["state"][name]
    assert list(state) == list(GOLDEN["state"][name])


@pytest.mark.parametrize("name", ["linear", "sequential", "nested"])
def test_models_go_both_ways(name, torch):
    """A model trained in one library goes on in the other."""
    theirs, mine = peers.MODELS[name](torch.nn), peers.MODELS[name](nn)
    mine.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(0).normal(size=(7, 6 if name == "nested" else 4)).astype(np.float32)
    y = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(mine.eval()(pn.tensor(x)).detach().numpy(), y, rtol=1e-5, atol=1e-6)
    back = peers.MODELS[name](torch.nn)
    back.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in mine.state_dict().items()})
    assert np.array_equal(back.eval()(torch.from_numpy(x)).detach().numpy(), y)


@pytest.mark.parametrize("optimizer", peers.OPTIMIZER_NAMES)
def test_an_optimizers_state_goes_to_torch(optimizer, torch):
    """Ten steps here and ten there are twenty."""
    case = next(
        c
        for c in peers.OPTIMIZERS
        if c.optimizer == optimizer and ("momentum" in c.name or optimizer not in ("SGD", "RMSprop"))
    )
    params = case.start(pn)
    mine = getattr(pn.optim, optimizer)(params, **dict(case.options))

    def steps(t, params, opt, numbers):
        for step in numbers:
            for i, p in enumerate(params):
                p.grad = t.tensor(peers.random(f"{step} {i}").normal(size=tuple(p.shape)))
            opt.step()

    steps(pn, params, mine, range(10))
    moved = [torch.tensor(p.detach().numpy().copy(), requires_grad=True) for p in params]
    theirs = getattr(torch.optim, optimizer)(moved, **dict(case.options))
    state = mine.state_dict()
    theirs.load_state_dict({"param_groups": theirs.state_dict()["param_groups"], "state": {
        i: {k: torch.tensor(v.numpy().astype(np.float32 if k == "step" else np.float64)) for k, v in s.items()}
        for i, s in state["state"].items()}})
    assert [set(s) | {"step"} for s in state["state"].values()] == [
        set(s) | {"step"} for s in theirs.state_dict()["state"].values()
    ]
    with peers.doubles(torch):
        steps(torch, moved, theirs, range(10, 20))
    steps(pn, params, mine, range(10, 20))
    near([p.tolist() for p in params], [p.tolist() for p in moved])

    again = case.start(pn)
    fresh = getattr(pn.optim, optimizer)(again, **dict(case.options))
    steps(pn, again, fresh, range(10))
    resumed = [pn.tensor(p.detach().numpy(), requires_grad=True) for p in again]
    third = getattr(pn.optim, optimizer)(resumed, **dict(case.options))
    third.load_state_dict(fresh.state_dict())
    steps(pn, resumed, third, range(10, 20))
    assert [p.tolist() for p in resumed] == [p.tolist() for p in params], "resuming is not going on"


# --------------------------------------------------------------------------------------------------------- initialisers


def fills():
    """Every initialiser that torch has too, with the numbers that it needs and how many axes it takes."""
    needs = {"constant_": (0.7,), "sparse_": (0.3,)}
    axes = {"eye_": (2,), "sparse_": (2,), "dirac_": (4,)}
    ours_alone = ("lecun_normal_", "lecun_uniform_", "variance_scaling_")
    return [(name, needs.get(name, ()), shape) for name in peers.ours("init") if name.endswith("_") and name not in ours_alone
            for shape in ((300, 200), (100, 20, 3, 5)) if len(shape) in axes.get(name, (2, 4))]


@pytest.mark.parametrize(("name", "numbers", "shape"), fills(), ids=str)
def test_initialisers_have_torchs_distribution(name, numbers, shape, torch):
    mine = getattr(init, name)(pn.empty(*shape), *numbers).numpy().astype(float)
    theirs = getattr(torch.nn.init, name)(torch.empty(*shape), *numbers).numpy().astype(float)
    n = mine.size
    assert abs(mine.mean() - theirs.mean()) <= 8 * theirs.std() / n**0.5
    assert mine.std() == pytest.approx(theirs.std(), rel=8 / n**0.5)
    if "normal" not in name and name not in ("orthogonal_", "sparse_"):   # the bounds themselves
        assert (mine.min(), mine.max()) == pytest.approx((theirs.min(), theirs.max()), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("nonlinearity", ["linear", "identity", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gains(nonlinearity, torch):
    known = nonlinearity if nonlinearity != "identity" else "linear"
    assert init.calculate_gain(nonlinearity) == pytest.approx(torch.nn.init.calculate_gain(known))
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(torch.nn.init.calculate_gain("leaky_relu", 0.3))


def test_linear_starts_uniform_within_its_bound():
    layer = nn.Linear(25, 4000)
    for p in (layer.weight, layer.bias):
        x = p.detach().numpy()
        assert abs(x).max() <= 0.2 and abs(x).max() > 0.199
        assert x.std() == pytest.approx(0.2 / 3**0.5, rel=0.05)


# ------------------------------------------------------------------------------------ inverses and decompositions of matrices

MATRICES = {  # function of (library, matrices), which does not depend on the signs of vectors, and a shape
    "inv": (lambda t, a: t.linalg.inv(a), (2, 3, 4, 4)),
    "det": (lambda t, a: t.linalg.det(a), (2, 3, 4, 4)),
    "slogdet": (lambda t, a: t.linalg.slogdet(a)[0] * t.linalg.slogdet(a)[1], (3, 4, 4)),
    "solve": (lambda t, a: t.linalg.solve(a, a[..., :2] + 1), (2, 3, 4, 4)),
    "solve of lines": (lambda t, a: t.linalg.solve(a, a[..., 0] + 1), (3, 4, 4)),
    "solve from the right": (lambda t, a: t.linalg.solve(a, a[..., :2, :] + 1, left=False), (3, 4, 4)),
    "cholesky": (lambda t, a: t.linalg.cholesky(a @ a.mT + t.eye(4, dtype=a.dtype)), (3, 4, 4)),
    "cholesky, upper": (lambda t, a: t.linalg.cholesky(a @ a.mT + t.eye(4, dtype=a.dtype), upper=True), (3, 4, 4)),
    "eigvalsh": (lambda t, a: t.linalg.eigvalsh(a @ a.mT), (3, 4, 5)),
    "eigh": (lambda t, a: (lambda w, v: (v * w.unsqueeze(-2).sin()) @ v.mT)(*t.linalg.eigh(a @ a.mT)), (3, 4, 5)),
    **{f"{name} {shape}": (function, shape) for shape in ((3, 5, 3), (3, 3, 5), (4, 4)) for name, function in (
        ("svdvals", lambda t, a: t.linalg.svdvals(a)),
        ("svd", lambda t, a: (lambda u, s, vh: (u * s.unsqueeze(-2).sin()) @ vh)(*t.linalg.svd(a, full_matrices=False))),
        ("svd, its vectors", lambda t, a: t.linalg.svd(a, full_matrices=False)[0].square()),
        ("svd, whole", lambda t, a: (lambda u, s, vh: u[..., :3].square().sum(-1) * s.sum())(*t.linalg.svd(a))),
        ("qr, Q", lambda t, a: t.linalg.qr(a)[0]),
        ("qr, R", lambda t, a: t.linalg.qr(a)[1]),
        ("pinv", lambda t, a: t.linalg.pinv(a)),
        ("nuclear norm", lambda t, a: t.linalg.matrix_norm(a, "nuc")),
        ("2-norm", lambda t, a: t.linalg.matrix_norm(a, 2, keepdim=True)))},
    "powers": (lambda t, a: t.matrix_power(a, -3), (2, 4, 4)),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_decompositions_and_their_gradients(name, on, torch):
    function, shape = MATRICES[name]
    a = np.random.default_rng(3).normal(size=shape)
    a[..., range(min(shape[-2:])), range(min(shape[-2:]))] += 3 + np.arange(min(shape[-2:]))
    found = []
    for t in (pn, torch):
        x = t.tensor(a, requires_grad=True)
        y = function(t, x)
        weights = t.tensor(np.cos(np.arange(y.numel())).reshape(tuple(y.shape)))
        first, = t.autograd.grad((y * weights).sum(), x, create_graph=True)
        second, = t.autograd.grad(first.square().sum(), x)
        found.append([v.detach().numpy() for v in (y, first, second)])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-8 * max(1, abs(theirs).max()))


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_decompositions_by_their_definitions(on):
    a = pn.from_numpy(np.random.default_rng(0).normal(size=(2, 5, 3)))
    square, eye = a.mT @ a, np.broadcast_to(np.eye(3), (2, 3, 3))
    q, r = pn.linalg.qr(a, "complete")
    u, s, vh = pn.linalg.svd(a)
    w, v = pn.linalg.eigh(square)
    lower = pn.linalg.cholesky(square)
    for got, want in [(q.mT @ q, np.eye(5)), (q @ r, a), (u.mT @ u, np.eye(5)), (vh @ vh.mT, eye), ((u[..., :3] * s.unsqueeze(1)) @ vh, a),
                      (v.mT @ v, eye), (square @ v, v * w.unsqueeze(1)), (lower @ lower.mT, square),
                      (pn.linalg.inv(square) @ square, eye), (pn.linalg.pinv(a) @ a, eye), (pn.linalg.det(square), w.prod(-1)),
                      (pn.linalg.solve(square, a.mT), pn.inverse(square) @ a.mT), (pn.logdet(square), w.log().sum(-1))]:
        np.testing.assert_allclose(np.broadcast_to(want, got.shape), got.numpy(), atol=1e-9)
    assert pn.equal(lower, lower.tril()) and pn.linalg.qr(a, "r").Q.numel() == 0 and pn.linalg.svdvals(pn.ones(3, 0)).shape == (0,)


def test_decompositions_are_recorded():
    def step(a):
        w, v = pn.linalg.eigh(a @ a.mT)
        y = pn.linalg.solve(a, v).sum() + pn.linalg.svdvals(a).sum() + pn.linalg.cholesky(a @ a.mT).sum() + w.log().sum()
        return y, *pn.autograd.grad(y, [a])

    compiled = pn.compile(step)
    for i in range(3):
        a = pn.from_numpy(np.random.default_rng(i).normal(size=(4, 4)) + 4 * np.eye(4)).requires_grad_()
        assert [y.tolist() for y in compiled(a)] == [y.tolist() for y in step(a)]


def test_what_decompositions_refuse():
    singular = pn.zeros(2, 2)
    for act in (lambda: pn.linalg.inv(singular), lambda: pn.linalg.solve(singular, pn.ones(2, 1)), lambda: pn.linalg.cholesky(-pn.eye(2))):
        for error in (pn.linalg.LinAlgError, np.linalg.LinAlgError, RuntimeError):
            with pytest.raises(error, match=r"singular|positive definite"):
                act()
    for act, error, words in [
        (lambda: pn.linalg.inv(pn.ones(2, 3)), RuntimeError, r"square matrices, given \[2, 3\]"),
        (lambda: pn.linalg.det(pn.ones(2)), RuntimeError, "matrices"), (lambda: pn.linalg.inv(pn.eye(2, dtype="int64")), TypeError, "int64"),
        (lambda: pn.linalg.solve(pn.ones(2, 2), pn.ones(3, 1)), RuntimeError, r"\[3, 1\]"),
        (lambda: pn.linalg.qr(pn.ones(2, 2), "full"), ValueError, "reduced, complete, r"),
        (lambda: pn.linalg.qr(pn.ones(3, 2, requires_grad=True), "complete"), RuntimeError, "reduced"),
        (lambda: pn.linalg.eigh(pn.ones(2, 2), "X"), ValueError, "'L' or 'U'"),
        (lambda: pn.scatter_reduce(pn.ones(2), 0, pn.tensor([0]), pn.ones(1), "max"), ValueError, "amax"),
    ]:
        with pytest.raises(error, match=words):
            act()


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")
@pytest.mark.parametrize("reduce", ["sum", "prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_what_is_reduced_into_a_tensor(reduce, include_self, on, torch):
    rng = np.random.default_rng(1)
    x, src = rng.permutation(36).reshape(6, 6) / 7 - 2, rng.permutation(20).reshape(5, 4) / 5 - 1.7
    x[0, :3], src[1, 1], index = 0, 0, rng.integers(0, 3, (5, 4))
    calls = [lambda t, a, b: t.scatter_reduce(a, 0, t.tensor(index), b, reduce, include_self=include_self),
             lambda t, a, b: t.index_reduce(a[:5], 1, t.tensor([0, 5, 5, 2]), b, reduce, include_self=include_self),
             lambda t, a, b: (a * 1).scatter_reduce_(1, t.tensor(index), b, reduce, include_self=include_self)]
    for call in calls if reduce != "sum" else calls[::2]:
        found = []
        for t in (pn, torch):
            given = [t.tensor(v, requires_grad=True) for v in (x, src)]
            y = call(t, *given)
            y.backward(t.tensor(rng.permutation(y.numel()).reshape(tuple(y.shape)) * 0 + np.arange(y.numel()).reshape(tuple(y.shape)) / 3))
            whole = call(t, *[t.tensor((v * 9).astype(np.int64)) for v in (x, src)])
            found.append([y.detach().numpy(), *[v.grad.numpy() for v in given], whole.numpy()])
        for mine, theirs in zip(*found, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)
