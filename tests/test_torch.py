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
    if isinstance(case, peers.Layer) and not hasattr(torch.nn, case.module):
        pytest.skip(f"torch has no {case.module}")
    return case.run(torch)


@cases(peers.LAYERS)
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
        if live[name] is not None:                             # else torch's signature is hidden from Python
            parameters_agree(name, live[name])


# --------------------------------------------------------------------------------------------------- names and defaults


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
    if theirs is None or [n for n, _ in theirs] == ["args", "kwargs"]:
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
    """Every initialiser with the numbers that it needs."""
    needs = {"constant_": (0.7,)}
    return [(name, needs.get(name, ())) for name in peers.ours("init") if name.endswith("_")]


@pytest.mark.parametrize(("name", "numbers"), fills())
@pytest.mark.parametrize("shape", [(300, 200), (100, 20, 3, 5)], ids=str)
def test_initialisers_have_torchs_distribution(name, numbers, shape, torch):
    mine = getattr(init, name)(pn.empty(*shape), *numbers).numpy().astype(float)
    theirs = getattr(torch.nn.init, name)(torch.empty(*shape), *numbers).numpy().astype(float)
    n = mine.size
    assert abs(mine.mean() - theirs.mean()) <= 8 * theirs.std() / n**0.5
    assert mine.std() == pytest.approx(theirs.std(), rel=8 / n**0.5)
    if "normal" not in name:                               # the bounds themselves
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
