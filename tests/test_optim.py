# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers: groups, state and steps. Their numbers are test_torch.py's affair."""
import copy
import functools
import itertools

import numpy as np
import pytest
from cases import BACKENDS, FLOATS, random
from peers import doubles

import pyneuro as pn
from pyneuro import nn
from pyneuro.optim.optimizers import OPTIMIZERS

each = pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)


def parameters(*values, dtype="float64"):
    return [pn.tensor([float(v), v + 1.0], dtype=dtype, requires_grad=True) for v in values]


def with_gradients(params, *gradients):
    for p, g in zip(params, gradients):
        p.grad = None if g is None else pn.full(p.shape, float(g), dtype=p.dtype)
    return params


def steps(optimizer, params, *rows):
    for row in rows:
        with_gradients(params, *row)
        optimizer.step()
    return [p.tolist() for p in params]


@each
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_optimizer_descends(cls, on, dtype):
    x = pn.tensor([3.0, -2.0], dtype=dtype, requires_grad=True)
    optimizer = cls([x], lr=0.1)
    first = None
    for _ in range(300):
        optimizer.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < first * 0.95
    assert x.dtype == dtype


@each
def test_a_parameter_without_gradient_stays_and_its_state_does_not_begin(cls):
    """As in torch each parameter counts its own steps: one that joins later begins at step 1."""
    together = parameters(1, 1)
    optimizer = cls(together)
    steps(optimizer, together, (1, None), (1, None), (1, 1))
    assert together[0].tolist() != [1.0, 2.0]
    alone = parameters(1)
    fresh = cls(alone)
    steps(fresh, alone, (1,))
    assert together[1].tolist() == alone[0].tolist()
    assert float(optimizer.state[together[0]]["step"]) == 3 and float(optimizer.state[together[1]]["step"]) == 1


@each
def test_a_parameter_whose_state_is_taken_away_begins_anew(cls):
    together = parameters(1, 2)
    optimizer = cls(together)
    steps(optimizer, together, (1, 1), (2, 1))
    alone = [pn.tensor(together[0].tolist(), dtype="float64", requires_grad=True)]
    del optimizer.state[together[0]]
    steps(optimizer, together, (1, 1), (3, 1))
    assert steps(cls(alone), alone, (1,), (3,)) == [together[0].tolist()]
    assert [float(optimizer.state[p]["step"]) for p in together] == [2, 4]


@each
def test_cohorts_that_part_and_meet_step_as_if_alone(cls):
    pattern = [(1, 1, None), (2, None, 1), (1, 1, 1), (None, 3, 1), (1, 1, 1), (2, 1, None)]
    together = parameters(1, 2, 3)
    got = steps(cls(together), together, *pattern)
    alone = []
    for i in range(3):
        p = parameters(i + 1)
        alone += steps(cls(p), p, *[(row[i],) for row in pattern])
    assert got == alone


@pytest.mark.parametrize("cls", [c for c in OPTIMIZERS.values() if c not in (pn.optim.Rprop, pn.optim.ASGD)])
def test_groups_have_their_own_numbers(cls):
    """Of all that read lr at every step: Rprop reads it at the first, ASGD a step ahead."""
    a, b = parameters(1, 1)
    optimizer = cls([{"params": [a]}, {"params": b, "lr": 0.0, "weight_decay": 0.0}], lr=0.1)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.0]
    steps(optimizer, [a, b], (1, 1))
    assert a.tolist() != [1.0, 2.0] and b.tolist() == [1.0, 2.0]
    c, = parameters(5)
    optimizer.add_param_group({"params": [c]})
    assert optimizer.param_groups[2]["lr"] == 0.1
    optimizer.param_groups[0]["lr"] = 0.0                   # schedulers write here
    before = a.tolist()
    steps(optimizer, [a, b, c], (1, 1, 1))
    assert (a.tolist() == before) == (optimizer.param_groups[0].get("weight_decay", 0) == 0 or cls.__name__ == "AdamW")
    assert c.tolist() != [5.0, 6.0]


@each
def test_named_parameters_and_generators_are_taken(cls):
    net = nn.Linear(2, 2)
    assert len(cls(net.parameters()).param_groups[0]["params"]) == 2
    assert cls(net.named_parameters()).param_groups[0]["param_names"] == ["weight", "bias"]


def test_zero_grad():
    params = with_gradients(parameters(1, 2), 3, None)
    optimizer = pn.optim.SGD(params)
    optimizer.zero_grad(set_to_none=False)
    assert params[0].grad.tolist() == [0, 0] and params[1].grad is None
    optimizer.zero_grad()
    assert params[0].grad is None


@each
def test_closures(cls):
    x, = parameters(2)
    optimizer = cls([x])

    def closure():
        optimizer.zero_grad()
        assert pn.is_grad_enabled()
        loss = (x * x).sum()
        loss.backward()
        return loss

    with pn.no_grad():
        assert optimizer.step(closure).item() == 13.0


@each
def test_steps_bump_the_version(cls):
    """A graph that saved the parameter notices."""
    x, = parameters(2)
    y = (x * x).sum()
    steps(cls([x]), [x], (1,))
    with pytest.raises(RuntimeError, match="modified in place"):
        y.backward()


@each
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_saved_and_resumed_is_bitwise_the_same(cls, on):
    rows = [(1, 2), (2, None), (0.5, 1), (1, 1), (3, 0.25)]
    whole = parameters(1, 2)
    want = steps(cls(whole), whole, *rows)
    half = parameters(1, 2)
    first = cls(half)
    steps(first, half, *rows[:3])
    state = copy.deepcopy(first.state_dict())
    second = cls(half)
    second.load_state_dict(state)
    assert steps(second, half, *rows[3:]) == want


@each
def test_state_dict_is_plain_and_numbered(cls):
    a, b = params = parameters(1, 2)
    optimizer = cls([{"params": [a]}, {"params": [b], "lr": 0.5}])
    steps(optimizer, params, (1, 1))
    state = optimizer.state_dict()
    assert [g["params"] for g in state["param_groups"]] == [[0], [1]] and set(state["state"]) == {0, 1}
    assert state["param_groups"][1]["lr"] == 0.5 and float(state["state"][0]["step"]) == 1


@each
@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s["param_groups"].append(s["param_groups"][0]),
        lambda s: s["param_groups"][0]["params"].append(7),
        lambda s: s["state"][1].update(
            {k: pn.zeros(5, dtype="float64") for k in s["state"][1] if k != "step"} or {"momentum_buffer": pn.zeros(5)}
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(cls, spoil):
    params = parameters(1, 2)
    optimizer = cls(params)
    steps(optimizer, params, (1, 1))
    twin = copy.deepcopy(optimizer.state_dict())
    spoiled = copy.deepcopy(optimizer.state_dict())
    spoil(spoiled)
    with pytest.raises(ValueError):
        optimizer.load_state_dict(spoiled)
    now = optimizer.state_dict()
    assert now["param_groups"] == twin["param_groups"]
    assert {i: {k: v.tolist() for k, v in s.items()} for i, s in now["state"].items()} == \
        {i: {k: v.tolist() for k, v in s.items()} for i, s in twin["state"].items()}


@each
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_parameters_in_any_layout(cls, on):
    """A transposed parameter, and gradients that are views."""
    base = np.arange(12.0).reshape(3, 4)
    flat, turned = pn.tensor(base, requires_grad=True), pn.from_numpy(base.copy().T.copy().T).requires_grad_()
    for p in (flat, turned):
        (p.t() * pn.arange(12.0, dtype="float64").reshape(4, 3)).sum().backward()
        cls([p]).step()
    np.testing.assert_allclose(flat.detach().array, turned.detach().array, rtol=1e-14)


def test_a_parameter_of_nothing():
    p = pn.zeros(0, 3, requires_grad=True)
    p.grad = pn.zeros(0, 3)
    pn.optim.Adam([p]).step()
    assert p.shape == (0, 3)


@each
def test_repr_tells_the_numbers(cls):
    assert cls.__name__ in repr(cls(parameters(1), lr=0.125)) and "lr: 0.125" in repr(cls(parameters(1), lr=0.125))


# ------------------------------------------------------------------------------------------- torch's own configurations

INEXACT = {  # options with which torch itself computes in float32 or less, and how near that comes
    ("Muon", "Tensor lr"): 1e-6}


def configurations():
    """(optimizer, description, options) as torch's own tests have them, of those that take dense parameters."""
    try:
        from torch.testing._internal.common_optimizers import optim_db
    except ImportError:
        return []
    return [(info.optim_cls.__name__, i.desc, i.kwargs) for info in optim_db for i in info.optim_inputs_func(device="cpu")
            if hasattr(pn.optim, info.optim_cls.__name__)]


def trained(t, name, options, dtype="float64", count=20):
    """Parameters after 20 steps, of which those of LBFGS are four of its own; the others have no gradient in every third."""
    shapes = ((3, 2), (2, 5)) if name == "Muon" else ((3, 2), (4,), (2, 3, 2))
    params = [t.tensor(random(name, s).normal(size=s), requires_grad=True, dtype=getattr(t, dtype)) for s in shapes]
    optimizer = getattr(t.optim, name)(params, **options)
    target = [t.tensor(random("to", s).normal(size=s), dtype=getattr(t, dtype)) for s in shapes]

    def closure():
        optimizer.zero_grad()
        loss = sum((((p - a) ** 2).sum() + (p**4).sum() / 8) for p, a in zip(params, target))
        loss.backward()
        return loss

    for step in range(count if name != "LBFGS" else count // 4):
        if name == "LBFGS":
            optimizer.step(closure)
            continue
        for i, p in enumerate(params):
            g = random(step, i).normal(size=tuple(p.shape))
            p.grad = None if i and step % 3 == 1 else t.tensor(g, dtype=getattr(t, dtype))
        optimizer.step()
    return np.concatenate([np.asarray(p.detach()).ravel() for p in params])


@pytest.mark.parametrize(("name", "description", "options"), configurations())
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_every_configuration_of_torchs_tests(name, description, options, on, torch, monkeypatch):
    """The same parameters after 20 steps, in float64, where torch keeps float64 too: Muon's bfloat16 is switched off."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    with doubles(torch):
        want = trained(torch, name, options)
    mine = {k: pn.tensor(v.item(), dtype="float64") if hasattr(v, "item") else v for k, v in options.items()}
    got = trained(pn, name, mine)
    np.testing.assert_allclose(got, want, rtol=INEXACT.get((name, description), 1e-9), atol=1e-12)


def refusals():
    try:
        from torch.testing._internal.common_optimizers import optim_db
    except ImportError:
        return []
    return [(info.optim_cls.__name__, e.optimizer_error_input.desc, i) for info in optim_db
            for i, e in enumerate(info.optim_error_inputs_func(device="cpu", dtype=info_dtype()))
            if hasattr(pn.optim, info.optim_cls.__name__)]


def info_dtype():
    import torch
    return torch.float64


@pytest.mark.parametrize(("name", "description", "i"), refusals())
def test_every_error_of_torchs_tests(name, description, i, torch):
    from torch.testing._internal.common_optimizers import optim_db
    info = next(o for o in optim_db if o.optim_cls.__name__ == name)
    error = info.optim_error_inputs_func(device="cpu", dtype=torch.float64)[i]

    made = {}

    def ours(v):
        if isinstance(v, torch.Tensor):
            if id(v) not in made:
                made[id(v)] = pn.tensor(v.detach().numpy(), requires_grad=v.requires_grad)
            return made[id(v)] if v.is_leaf else made[id(v)] * 1
        if isinstance(v, dict):
            return {k: ours(x) for k, x in v.items()}
        return type(v)(map(ours, v)) if isinstance(v, (list, tuple)) else v

    given = error.optimizer_error_input
    if "foreach" in given.kwargs or "capturable" in given.kwargs or "fused" in given.kwargs:
        pytest.skip("about torch's several implementations")
    if "complex" in str(error.error_regex):
        pytest.skip("there are no complex tensors to refuse")
    params = [pn.zeros(2, 3, requires_grad=True)] if given.params is None else ours(given.params)
    kind = ValueError if issubclass(error.error_type, Warning) else error.error_type     # a parameter twice in a group
    with pytest.raises(kind) as refused:
        getattr(pn.optim, name)(params, **ours(given.kwargs))
    assert str(refused.value)


# --------------------------------------------------------------------------- those without a twin in torch, by their papers

def lion(p, gradients, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    """Chen et al. 2023, algorithm 2."""
    m = np.zeros_like(p)
    for g in gradients:
        update = np.sign(betas[0] * m + (1 - betas[0]) * g)
        p = p - lr * (update + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
        yield p


def moments(m, v, g, t, betas):
    """Adam's, with what they are without their bias."""
    m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
    return m, v, m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)


def lamb(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0):
    """You et al. 2020, algorithm 2, phi the identity."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v, m_hat, v_hat = moments(m, v, g, t, betas)
        u = m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p
        p = p - lr * np.linalg.norm(p) / np.linalg.norm(u) * u
        yield p


def adabelief(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0, decoupled_weight_decay=True):
    """Zhuang et al. 2020, algorithm 2: eps is added to s too."""
    m = s = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        if decoupled_weight_decay:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        s = betas[1] * s + (1 - betas[1]) * (g - m) ** 2 + eps
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(s / (1 - betas[1] ** t)) + eps)
        yield p


def yogi(p, gradients, lr=1e-2, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0, initial_accumulator_value=1e-6):
    """Zaheer et al. 2018, algorithm 2, with Adam's factors against the bias as in the authors' code."""
    m, v = np.zeros_like(p), np.full_like(p, initial_accumulator_value)
    for t, g in enumerate(gradients, 1):
        g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = v - (1 - betas[1]) * np.sign(v - g * g) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield p


def adamwschedulefree(p, gradients, lr=2.5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=0, r=0.0,
                      weight_lr_power=2.0):
    """Defazio et al. 2024, algorithm 1, with v_t of Adam as in the authors' code; the points y at which gradients are taken."""
    x = z = y = p
    v, largest, total = np.zeros_like(p), 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        v = betas[1] * v + (1 - betas[1]) * g * g
        rate = lr * (min(1.0, t / warmup_steps) if warmup_steps else 1.0)
        largest = max(largest, rate)
        weight = t**r * largest**weight_lr_power
        total += weight
        z = z - rate * (g / (np.sqrt(v / (1 - betas[1] ** t)) + eps) + weight_decay * y)
        x = (1 - weight / total) * x + weight / total * z
        y = (1 - betas[0]) * z + betas[0] * x
        yield y


PAPERS = {"Lion": (lion, [{}, {"lr": 0.1, "betas": (0.5, 0.8), "weight_decay": 0.2}]),
          "LAMB": (lamb, [{}, {"lr": 0.1, "betas": (0.5, 0.8), "weight_decay": 0.2, "eps": 1e-2}]),
          "AdaBelief": (adabelief, [{}, {"lr": 0.1, "betas": (0.5, 0.8), "weight_decay": 0.2, "eps": 1e-3},
                                    {"weight_decay": 0.2, "decoupled_weight_decay": False}]),
          "Yogi": (yogi, [{}, {"lr": 0.1, "betas": (0.5, 0.8), "weight_decay": 0.2, "eps": 1e-2, "initial_accumulator_value": 0.3}]),
          "AdamWScheduleFree": (adamwschedulefree, [{}, {"lr": 0.1, "betas": (0.5, 0.8), "weight_decay": 0.2},
                                                    {"warmup_steps": 5, "r": 1.0, "weight_lr_power": 1.0}])}


@pytest.mark.parametrize(("name", "options"), [(k, o) for k, (_, rows) in PAPERS.items() for o in rows])
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_every_step_is_the_papers(name, options, on):
    g = random("paper", name)
    start, gradients = g.normal(size=(3, 5)), [g.normal(size=(3, 5)) for _ in range(20)]
    for maximize in (False, True):
        p = pn.tensor(start, requires_grad=True)
        optimizer = getattr(pn.optim, name)([p], maximize=maximize, **options)
        for given, want in zip(gradients, PAPERS[name][0](start, [-v if maximize else v for v in gradients], **options)):
            p.grad = pn.tensor(given)
            optimizer.step()
            np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-9, atol=1e-12)


# -------------------------------------------------------------------------- optimizers that evaluate the loss themselves

def rosenbrock(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def of_rosenbrock(t):
    x = t.tensor([-1.2, 1.0, 0.5, 2.0], dtype=t.float64, requires_grad=True)
    return [x], lambda: rosenbrock(x)


def of_a_network(t):
    g = random("network")
    net = t.nn.Sequential(t.nn.Linear(3, 5), t.nn.Tanh(), t.nn.Linear(5, 2)).double()
    for p in net.parameters():
        p.data = t.tensor(g.normal(0, 0.5, tuple(p.shape)))
    x, y = t.tensor(g.normal(size=(20, 3))), t.tensor(g.normal(size=(20, 2)))
    decay = 0.02                    # without it the last bit grows as fast as the loss falls
    return list(net.parameters()), lambda: t.nn.functional.mse_loss(net(x), y) + decay * sum((p * p).sum() for p in net.parameters())


def quadratic(condition=30.0):
    """A of this condition number, and b."""
    g = random("quadratic")
    q, _ = np.linalg.qr(g.normal(size=(6, 6)))
    return q @ np.diag(np.geomspace(1, condition, 6)) @ q.T, g.normal(size=6)


def of_a_quadratic(t):
    """x^T A x / 2 - b^T x"""
    a, b = map(t.tensor, quadratic())
    x = t.zeros(6, dtype=t.float64, requires_grad=True)
    return [x], lambda: ((a @ x) * x).sum() / 2 - (b * x).sum()


def closure_of(optimizer, loss_of):
    def closure():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss
    return closure


def whole(params):
    return np.concatenate([np.asarray(p.detach()).ravel() for p in params])


LBFGS_OPTIONS = {"defaults": {}, "small": {"lr": 0.01, "history_size": 3, "max_iter": 4},
                 "wolfe": {"line_search_fn": "strong_wolfe"},
                 "wolfe small": {"line_search_fn": "strong_wolfe", "max_iter": 3, "max_eval": 7, "history_size": 2},
                 "wolfe tolerant": {"lr": 0.1, "line_search_fn": "strong_wolfe", "tolerance_grad": 1e-3, "tolerance_change": 1e-4}}
SEARCHING = {"LBFGS": {}, "LBFGS wolfe": {"line_search_fn": "strong_wolfe", "max_iter": 3},
             **{f"GradientDescent {f}": {"line_search_fn": f, "lr": 0.02}
                for f in (None, "armijo", "strong_wolfe", "barzilai_borwein")}}
each_search = pytest.mark.parametrize(("name", "options"), [(k.split()[0], v) for k, v in SEARCHING.items()], ids=SEARCHING)
each_problem = pytest.mark.parametrize("problem", [of_rosenbrock, of_a_network, of_a_quadratic])


def steps_of_lbfgs(t, problem, options):
    """Parameters, and how often the loss was evaluated, after every step of 20."""
    params, loss_of = problem(t)
    optimizer = t.optim.LBFGS(params, **LBFGS_OPTIONS[options])
    rows = []
    for _ in range(20):
        loss = optimizer.step(closure_of(optimizer, loss_of))
        counts = optimizer.state_dict()["state"][0]
        rows.append((whole(params), loss.item(), counts["func_evals"], counts["n_iter"]))
    return rows


torchs_steps_of_lbfgs = functools.cache(steps_of_lbfgs)          # the same for every backend


@pytest.mark.parametrize("options", LBFGS_OPTIONS)
@each_problem
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_lbfgs_steps_are_torchs(options, problem, on, torch):
    for mine, theirs in zip(steps_of_lbfgs(pn, problem, options), torchs_steps_of_lbfgs(torch, problem, options), strict=True):
        np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-6, atol=1e-6 * abs(theirs[0]).max())
        np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-6, atol=1e-12)
        assert mine[2:] == theirs[2:]


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_state_goes_to_torch_and_back(search, torch):
    """Two steps here, two there, two here are six."""
    options = {"line_search_fn": search, "max_iter": 4, "lr": 0.05}

    def steps(t, state, values, count):
        params, loss_of = of_a_network(t)
        for p, v in zip(params, values or [p.detach() for p in params]):
            p.data = t.tensor(np.asarray(v))
        optimizer = t.optim.LBFGS(params, **options)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(count):
            optimizer.step(closure_of(optimizer, loss_of))
        return optimizer.state_dict(), [p.detach() for p in params]

    def theirs(v):
        return [*map(theirs, v)] if isinstance(v, list) else torch.tensor(v.numpy()) if isinstance(v, pn.Tensor) else v

    state, values = steps(pn, None, None, 2)
    moved = {"state": {0: {k: theirs(v) for k, v in state["state"][0].items()}}, "param_groups": copy.deepcopy(state["param_groups"])}
    state, values = steps(torch, moved, [v.numpy() for v in values], 2)
    assert set(state["state"][0]) - {"al"} <= set(moved["state"][0])
    _, got = steps(pn, state, values, 2)
    _, want = steps(torch, None, None, 6)
    np.testing.assert_allclose(whole(got), whole(want), rtol=1e-8)


@each_search
def test_searches_saved_and_resumed_are_bitwise_the_same(name, options):
    def steps(count, state=None, values=None):
        params, loss_of = of_a_network(pn)
        for p, v in zip(params, values or []):
            p.data = v.clone()
        optimizer = getattr(pn.optim, name)(params, **options)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(count):
            optimizer.step(closure_of(optimizer, loss_of))
        return optimizer.state_dict(), [p.detach() for p in params]

    state, values = steps(3)
    kept = copy.deepcopy(state)
    assert whole(steps(2, state, values)[1]).tolist() == whole(steps(5)[1]).tolist()
    assert repr(kept) == repr(state), "what was saved does not change"
    params = [pn.zeros(3, dtype="float64", requires_grad=True)]
    with pytest.raises(ValueError):
        getattr(pn.optim, name)(params, **options).load_state_dict(state)


@each_search
def test_compiled_closures_serve_searches_and_steps_are_not_recorded(name, options):
    worlds = []
    for compiled in (False, True):
        params, loss_of = of_a_network(pn)
        optimizer = getattr(pn.optim, name)(params, **options)
        closure = closure_of(optimizer, loss_of)
        closure = pn.compile(closure) if compiled else closure
        for _ in range(5):
            optimizer.step(closure)
        worlds.append(whole(params).tolist())
    assert worlds[0] == worlds[1] and closure.recordings == 1
    with pytest.raises(pn.NotRecordable, match=r"decides by values.*test_optim.py.*compile its closure alone"):
        pn.compile(lambda: optimizer.step(closure_of(optimizer, loss_of)))()
    optimizer.step(closure)


@each_search
@pytest.mark.parametrize("dtype", FLOATS)
def test_searches_take_parameters_of_any_type_and_without_gradient(name, options, dtype):
    used, unused = (pn.ones(2, 3, dtype=dtype, requires_grad=True) for _ in range(2))
    optimizer = getattr(pn.optim, name)([unused, used.requires_grad_()], **options)
    first = optimizer.step(closure_of(optimizer, lambda: ((used - 0.3) ** 2).sum())).item()
    for _ in range(5):
        last = optimizer.step(closure_of(optimizer, lambda: ((used - 0.3) ** 2).sum())).item()
    assert last < first and used.dtype == dtype and unused.tolist() == [[1.0] * 3] * 2


@each_search
def test_searches_have_one_group(name, options):
    a, b = parameters(1, 2)
    cls = getattr(pn.optim, name)
    with pytest.raises(ValueError, match="one param group"):
        cls([{"params": [a]}, {"params": [b]}], **options)
    optimizer = cls([a], **options)
    with pytest.raises(ValueError, match="one param group"):
        optimizer.add_param_group({"params": [b]})
    assert name in repr(optimizer)
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()


@pytest.mark.parametrize("make", [lambda p: pn.optim.LBFGS(p, line_search_fn="strong_wolfe"), lambda p: pn.optim.GradientDescent(p),
                                  lambda p: pn.optim.LevenbergMarquardt(p)])
def test_a_closure_that_fails_amid_a_search_leaves_the_parameters(make):
    x, = parameters(1)
    optimizer, asked = make([x]), []

    def closure():
        asked.append(x.tolist())
        if len(asked) > 1:
            raise KeyboardInterrupt
        if isinstance(optimizer, pn.optim.LevenbergMarquardt):
            return x - 5.0
        return closure_of(optimizer, lambda: ((x - 5.0) ** 2).sum())()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert x.tolist() == [1.0, 2.0] == asked[0] != asked[1]


def test_lbfgs_knows_one_search():
    x, = parameters(1)
    optimizer = pn.optim.LBFGS([x], line_search_fn="armijo")
    with pytest.raises(RuntimeError, match=r"strong_wolfe.*got 'armijo'"):
        optimizer.step(closure_of(optimizer, lambda: (x * x).sum()))


def along_steps(problem, count, **options):
    """(loss, gradient before, length) of steps of GradientDescent, and the parameters after the last."""
    params, loss_of = problem(pn)
    optimizer = pn.optim.GradientDescent(params, **options)
    closure, rows = closure_of(optimizer, loss_of), []
    for _ in range(count):
        f = closure().item()
        x, g = whole(params), np.concatenate([p.grad.numpy().ravel() for p in params])
        assert optimizer.step(closure).item() == f
        t = optimizer.state[params[0]]["t"]
        np.testing.assert_allclose(whole(params), x - t * g, rtol=1e-12, atol=1e-15)
        rows.append((f, g, t))
    return rows, whole(params)


@each_problem
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_armijo_steps_are_as_long_as_the_condition_lets_them(problem, on):
    rows, _ = along_steps(problem, 30, lr=4.0, c1=0.3, tolerance_grad=0.0)
    lasts = [2.0, *[t for *_, t in rows]]
    for (f, g, t), (f_new, *_), last in zip(rows, rows[1:], lasts):
        assert f_new <= f - 0.3 * t * (g @ g)
        halvings = np.log2(2 * last / t)
        assert halvings == round(halvings) >= 0
        if problem is of_a_quadratic:        # f(t) = f - t g.g + t^2 / 2 g.A.g: the condition holds up to t = 1.4 g.g / g.A.g
            longest = 1.4 * (g @ g) / (g @ quadratic()[0] @ g)
            assert t <= longest * (1 + 1e-9) and (halvings == 0 or 2 * t > longest * (1 - 1e-9))


@each_problem
@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_strong_wolfe_steps_meet_both_conditions(problem, c2):
    rows, _ = along_steps(problem, 30, lr=0.3, line_search_fn="strong_wolfe", c2=c2, tolerance_grad=0.0)
    for (f, g, t), (f_new, g_new, _) in itertools.pairwise(rows):
        assert f_new <= f - 1e-4 * t * (g @ g) and abs(g_new @ g) <= c2 * (g @ g)


def test_barzilai_borwein_on_a_quadratic():
    """t is the inverse of a Rayleigh quotient of A, the loss may rise, x converges, in far fewer steps than by Armijo's."""
    a, b = quadratic()
    rows, x = along_steps(of_a_quadratic, 60, lr=0.01, line_search_fn="barzilai_borwein", tolerance_grad=1e-12)
    for (_, g_before, t_before), (_, g, t) in itertools.pairwise(rows[:20]):
        s, y = -t_before * g_before, g - g_before
        assert t == pytest.approx(s @ s / (s @ y), rel=1e-9) and 1 / 30 * (1 - 1e-9) <= t <= 1 + 1e-9
    np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=1e-8)
    losses = [f for f, *_ in rows]
    assert any(later > f for f, later in itertools.pairwise(losses))
    _, slower = along_steps(of_a_quadratic, 60, lr=0.01)
    assert abs(slower - x).max() > 1e-6


def test_gradient_descent_without_a_search_is_sgd():
    worlds = []
    for make in (lambda p: pn.optim.GradientDescent(p, 0.02, None), lambda p: pn.optim.SGD(p, 0.02)):
        params, loss_of = of_a_network(pn)
        optimizer = make(params)
        for _ in range(5):
            optimizer.step(closure_of(optimizer, loss_of))
        worlds.append(whole(params))
    np.testing.assert_allclose(*worlds, rtol=1e-14)


@pytest.mark.parametrize("search", ["armijo", "strong_wolfe", "barzilai_borwein", None])
def test_gradient_descent_stays_where_there_is_nowhere_to_go(search):
    x, = parameters(0)
    optimizer = pn.optim.GradientDescent([x], line_search_fn=search)
    optimizer.step(closure_of(optimizer, lambda: (x * 0).sum()))
    assert x.tolist() == [0.0, 1.0]
    if search == "armijo":                                  # a loss that is lower nowhere else, whatever its slope
        asked = []

        def rising():
            asked.append(1)
            optimizer.zero_grad()
            (x * 1).sum().backward()
            return pn.tensor(float(len(asked) > 1 and "nan"))

        optimizer.step(rising)
        assert x.tolist() == [0.0, 1.0] and len(asked) == 26


@pytest.mark.parametrize(("options", "says"), [
    ({"line_search_fn": "wolfe"}, "'armijo'.*got 'wolfe'"), ({"c1": 0.95}, "c1=0.95, c2=0.9"), ({"c2": 1.0}, "c2=1.0"),
    ({"backtrack": 1.0}, "backtrack.*1.0"), ({"max_eval": 0}, "max_eval.*0"), ({"max_eval": 2.5}, "max_eval.*2.5"),
    ({"lr": -1}, "lr must be.*-1")])
def test_gradient_descent_refuses(options, says):
    with pytest.raises(ValueError, match=says):
        pn.optim.GradientDescent(parameters(1), **options)


# -------------------------------------------------------------------------------------------------- Levenberg-Marquardt

each_damping = pytest.mark.parametrize("damping_fn", ["nielsen", "marquardt"])


def of_a_line(t=pn, rows=30):
    """Residuals A w - b, and the w for which their squares are least."""
    g = random("line")
    a, b = g.normal(size=(rows, 4)) * [1, 3, 0.2, 1], g.normal(size=rows)
    w = t.zeros(4, dtype=t.float64, requires_grad=True)
    return w, lambda: t.tensor(a) @ w - t.tensor(b), np.linalg.lstsq(a, b, rcond=None)[0]


def of_a_sine(activation=nn.Tanh):
    x = pn.linspace(-np.pi, np.pi, 60, dtype="float64").reshape(60, 1)
    net = nn.Sequential(nn.Linear(1, 10), activation(), nn.Linear(10, 1)).double()
    return net, lambda: net(x) - x.sin()


@each_damping
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_lm_solves_linear_models_in_a_few_steps(damping_fn, on):
    w, residuals, want = of_a_line()
    optimizer = pn.optim.LevenbergMarquardt([w], damping_fn=damping_fn)
    start = (residuals().detach().numpy() ** 2).sum() / 2
    assert optimizer.step(residuals).item() == pytest.approx(start)
    for _ in range(7):
        optimizer.step(residuals)
    np.testing.assert_allclose(w.detach().numpy(), want, atol=1e-8)         # root of the last bit of |r|^2
    w, residuals, want = of_a_line()
    pn.optim.LevenbergMarquardt([w], 1e-13, damping_fn).step(residuals)
    np.testing.assert_allclose(w.detach().numpy(), want, rtol=1e-9)


@each_damping
def test_lm_steps_are_the_papers(damping_fn):
    """The same x and mu as of the recursion of the papers, in NumPy on Rosenbrock's residuals, at every step."""
    x = pn.tensor([-1.2, 1.0], dtype="float64", requires_grad=True)
    optimizer = pn.optim.LevenbergMarquardt([x], 0.01, damping_fn)
    z, mu, nu = np.array([-1.2, 1.0]), None, 2.0

    def r(z):
        return np.array([10 * (z[1] - z[0] ** 2), 1 - z[0]])

    for _ in range(12):
        J = np.array([[-20 * z[0], 10.0], [-1.0, 0.0]])
        A, g = J.T @ J, J.T @ r(z)
        D = np.diag(np.diag(A)) if damping_fn == "marquardt" else np.eye(2)
        mu = mu or (0.01 if damping_fn == "marquardt" else 0.01 * np.diag(A).max())
        while True:
            d = np.linalg.solve(A + mu * D, -g)
            if r(z + d) @ r(z + d) < r(z) @ r(z):
                gain = (r(z) @ r(z) - r(z + d) @ r(z + d)) / (d @ (mu * D @ d - g))
                z, nu = z + d, 2.0
                mu = mu / 10 if damping_fn == "marquardt" else mu * max(1 / 3, 1 - (2 * gain - 1) ** 3)
                break
            mu, nu = (mu * 10, nu) if damping_fn == "marquardt" else (mu * nu, nu * 2)
        optimizer.step(lambda: pn.stack([10 * (x[1] - x[0] * x[0]), 1 - x[0]]))
        np.testing.assert_allclose(x.detach().numpy(), z, rtol=1e-7)
        assert optimizer.state[x]["mu"] == pytest.approx(mu, rel=1e-6)
    assert r(z) @ r(z) < 0.05 * (r(np.array([-1.2, 1.0])) ** 2).sum()


@each_damping
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus])
def test_lm_fits_a_sine_in_a_hundred_steps(damping_fn, activation):
    net, residuals = of_a_sine(activation)
    optimizer = pn.optim.LevenbergMarquardt(net.parameters(), damping_fn=damping_fn)
    losses = [optimizer.step(residuals).item() for _ in range(100)]
    assert losses == sorted(losses, reverse=True)
    assert (residuals() ** 2).mean().item() < 1e-6


@each_damping
def test_lm_saved_and_resumed_is_bitwise_the_same(damping_fn):
    def steps(count, state=None, values=None):
        pn.manual_seed(1)
        net, residuals = of_a_sine()
        if values:
            net.load_state_dict(values)
        optimizer = pn.optim.LevenbergMarquardt(net.parameters(), damping_fn=damping_fn)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(count):
            optimizer.step(residuals)
        return optimizer.state_dict(), {k: v.clone() for k, v in net.state_dict().items()}

    want = steps(6)
    got = steps(3, *steps(3))
    assert got[0]["state"] == want[0]["state"] and [v.tolist() for v in got[1].values()] == [v.tolist() for v in want[1].values()]


def test_lm_residuals_by_every_way_of_their_jacobian():
    """Rows apart, few parameters, few residuals, compiled: nearly the same steps."""
    worlds = []
    for way in ("rows", "mixed", "transposed", "compiled"):
        pn.manual_seed(1)
        net, residuals = of_a_sine()
        mixed = {"rows": residuals, "compiled": pn.compile(residuals), "transposed": lambda residuals=residuals: residuals().t(),
                 "mixed": lambda residuals=residuals: residuals().flip(0)}[way]
        optimizer = pn.optim.LevenbergMarquardt(net.parameters())
        worlds.append([optimizer.step(mixed).item() for _ in range(8)])
    for other in worlds[1:]:
        np.testing.assert_allclose(other, worlds[0], rtol=1e-6)
    with pytest.raises(pn.NotRecordable, match="compile its closure alone"):
        pn.compile(lambda: optimizer.step(residuals))()


def test_lm_with_parameters_that_stay_and_with_fewer_residuals_than_parameters():
    net, _ = of_a_sine()
    net[0].weight.requires_grad_(False)
    first = net[0].weight.tolist()
    for damping_fn in ("nielsen", "marquardt"):
        optimizer = pn.optim.LevenbergMarquardt(net.parameters(), damping_fn=damping_fn)
        for _ in range(30):
            loss = optimizer.step(lambda: net(pn.tensor([[0.5], [1.0]], dtype="float64")) - 2.0)
        assert loss.item() < 1e-20 and net[0].weight.tolist() == first
        assert optimizer.step(lambda: net(pn.tensor([[0.5], [1.0]], dtype="float64")) - 2.0).item() < 1e-20
    single = nn.Linear(2, 1)
    optimizer = pn.optim.LevenbergMarquardt(single.parameters())
    for _ in range(5):
        optimizer.step(lambda: single(pn.eye(2)) - 1.0)
    assert (single(pn.eye(2)) - 1.0).abs().max().item() < 1e-6 and single.weight.dtype == np.float32


@pytest.mark.parametrize(("options", "says"), [({"damping": 0}, "damping must be positive, got 0"), ({"damping_fn": "ridge"}, "'ridge'"),
                                               ({"max_eval": 0}, "max_eval"), ({"damping": float("nan")}, "nan")])
def test_lm_refuses(options, says):
    with pytest.raises(ValueError, match=says):
        pn.optim.LevenbergMarquardt(parameters(1), **options)


def test_lm_wants_residuals():
    x, = parameters(1)
    optimizer = pn.optim.LevenbergMarquardt([x])

    def backward():
        loss = (x * x).sum()
        loss.backward()
        return loss

    for closure in (backward, lambda: x.detach(), lambda: x):
        with pytest.raises(ValueError, match="residuals with their graph"):
            optimizer.step(closure)
    with pytest.raises(TypeError, match="as a tensor, not float"):
        optimizer.step(lambda: 1.0)
    assert x.tolist() == [1.0, 2.0]


@each_damping
def test_lm_stays_where_residuals_are_no_numbers(damping_fn):
    x, = parameters(1)
    optimizer = pn.optim.LevenbergMarquardt([x], damping_fn=damping_fn)
    optimizer.step(lambda: x * float("nan"))
    assert x.tolist() == [1.0, 2.0]
    optimizer.step(lambda: (x if pn.is_grad_enabled() else x * float("inf")) * 1.0)       # wherever it looks
    assert x.tolist() == [1.0, 2.0]
    optimizer.step(lambda: x - 3.0)
    assert x.tolist() != [1.0, 2.0]
