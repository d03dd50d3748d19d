# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers: groups, state and steps. Their numbers are test_torch.py's affair."""
import copy

import numpy as np
import pytest
from cases import BACKENDS, FLOATS

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
def test_cohorts_that_part_and_meet_step_as_if_alone(cls):
    pattern = [(1, 1, None), (2, None, 1), (1, 1, 1), (None, 3, 1), (1, 1, 1), (2, 1, None)]
    together = parameters(1, 2, 3)
    got = steps(cls(together), together, *pattern)
    alone = []
    for i in range(3):
        p = parameters(i + 1)
        alone += steps(cls(p), p, *[(row[i],) for row in pattern])
    assert got == alone


@each
def test_groups_have_their_own_numbers(cls):
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
