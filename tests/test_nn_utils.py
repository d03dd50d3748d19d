# SPDX-License-Identifier: BSD-3-Clause
"""nn.utils: clipping, parameters as a vector, weight norm; torch's numbers, and no number read on the way."""
import math

import numpy as np
import pytest
from cases import BACKENDS, FLOATS, random

import pyneuro as pn
from pyneuro import nn
from pyneuro.nn import utils

ORDERS = [2.0, 1.0, 0.0, 0.5, 3.0, math.inf, -math.inf, -1.0]
SHAPES = [(3, 4), (5,), (), (2, 3, 2)]


def parameters(t, dtype=np.float64, scale=1.0):
    out = []
    for i, shape in enumerate(SHAPES):
        p = t.tensor(random("p", i).normal(size=shape).astype(dtype), requires_grad=True)
        p.grad = t.tensor(np.asarray(random("g", i).normal(size=shape) * scale, dtype))
        out.append(p)
    return [*out, t.zeros(2, requires_grad=True)]           # one without a gradient


def gradients(params):
    return [p.grad.tolist() for p in params if p.grad is not None]


def near(a, b, rtol=1e-12):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("highest", [0.7, 100.0])
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
@pytest.mark.parametrize("dtype", FLOATS)
def test_norms_are_torchs(order, highest, on, dtype, torch):
    mine, theirs = parameters(pn, dtype), parameters(torch, dtype)
    norms = [float(t.nn.utils.clip_grad_norm_(p, highest, order)) for t, p in ((pn, mine), (torch, theirs))]
    rtol = 1e-12 if dtype == np.float64 else 1e-5
    assert norms[0] == pytest.approx(norms[1], rel=rtol)
    near(gradients(mine), gradients(theirs), rtol)


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_clipping_bounds_the_norm(on):
    params = parameters(pn, scale=10)
    before = [np.asarray(g) for g in gradients(params)]
    norm = utils.clip_grad_norm_(params, 1.0)
    assert norm.item() == pytest.approx(math.sqrt(sum((g**2).sum() for g in before)))
    assert norm.shape == () and not norm.requires_grad
    assert utils.get_total_norm([p.grad for p in params[:-1]]).item() == pytest.approx(1.0, rel=1e-6)
    ratios = np.concatenate([(np.asarray(a) / b).ravel() for a, b in zip(gradients(params), before)])
    np.testing.assert_allclose(ratios, ratios[0])
    again = gradients(params)
    utils.clip_grad_norm_(params, 2.0)
    near(gradients(params), again)


def test_clipping_has_the_same_bits_on_any_number_of_threads():
    def run(threads):
        pn.set_num_threads(threads)
        p = pn.tensor(random("p").normal(size=(1000, 700)), requires_grad=True)
        p.grad = pn.tensor(random("g").normal(size=(1000, 700)))
        return utils.clip_grad_norm_(p, 1.0).item(), p.grad.numpy().tobytes()

    runs = [run(n) for n in (1, 2, 4)]
    assert runs[0] == runs[1] == runs[2]


def test_clipping_reads_no_number(monkeypatch):
    """A step that clips can be recorded."""
    params = parameters(pn)

    def read(self, *_):
        raise AssertionError("a number was read")

    for name in ("item", "__bool__", "__float__", "numpy", "__array__", "tolist"):
        monkeypatch.setattr(pn.Tensor, name, read)
    for order in ORDERS:
        utils.clip_grad_norm_(params, 1.0, order)
    utils.clip_grad_value_(params, 1.0)


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_values_are_clamped(on, torch):
    mine, theirs = parameters(pn), parameters(torch)
    for t, p in ((pn, mine), (torch, theirs)):
        assert t.nn.utils.clip_grad_value_(p, 0.3) is None
    near(gradients(mine), gradients(theirs))
    utils.clip_grad_value_(mine[0], 0.1)
    assert abs(mine[0].grad.numpy()).max() == pytest.approx(0.1)


def test_total_norms_and_their_use_apart():
    params = parameters(pn)
    norm = utils.get_total_norm([p.grad for p in params[:-1]])
    utils.clip_grads_with_norm_(params, 0.5, norm)
    twin = parameters(pn)
    utils.clip_grad_norm_(twin, 0.5)
    assert gradients(params) == gradients(twin)
    assert utils.get_total_norm([]).item() == 0.0


def test_norms_that_are_not_finite():
    params = parameters(pn)
    params[1].grad[0] = math.inf
    with pytest.raises(RuntimeError, match="inf"):
        utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert gradients(params)[0] == parameters(pn)[0].grad.tolist()
    assert utils.clip_grad_norm_(params, 1.0).item() == math.inf


def test_a_generator_that_is_used_up_is_noticed():
    net = nn.Linear(2, 2)
    drawn = net.parameters()
    list(drawn)
    with pytest.warns(UserWarning, match="used up"):
        assert utils.clip_grad_norm_(drawn, 1.0).item() == 0.0


def test_floats_of_two_kinds():
    a, b = parameters(pn)[0], parameters(pn, np.float32)[1]
    norm = utils.clip_grad_norm_([a, b], 1.0)
    assert norm.dtype == np.float64 and b.grad.dtype == np.float32
    assert utils.get_total_norm([a.grad, b.grad]).item() == pytest.approx(1.0, rel=1e-5)


# --------------------------------------------------------------------------------------------------------- as one vector

def test_parameters_to_a_vector_and_back():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    vector = utils.parameters_to_vector(net.parameters())
    assert vector.shape == (3 * 4 + 4 + 4 * 2 + 2,)
    assert vector.tolist()[:12] == net[0].weight.flatten().tolist()
    vector.sum().backward()
    assert all((p.grad == 1).all() for p in net.parameters())
    moved = vector.detach() * 2
    utils.vector_to_parameters(moved, net.parameters())
    assert utils.parameters_to_vector(net.parameters()).tolist() == moved.tolist()
    moved.zero_()                                            # they are views of it, as in torch
    assert net[0].weight.tolist() == [[0.0] * 3] * 4


def test_a_vector_that_does_not_fit():
    with pytest.raises(TypeError, match="list"):
        utils.vector_to_parameters([1.0], [pn.zeros(1)])
    with pytest.raises(RuntimeError, match="too short"):
        utils.vector_to_parameters(pn.zeros(3), [pn.zeros(2), pn.zeros(2)])


# ----------------------------------------------------------------------------------------------------------- weight norm

@pytest.mark.parametrize("dim", [0, 1, None, -1])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_is_torchs(dim, torch):
    x = random("x").normal(size=(5, 4))
    results = []
    for t in (pn, torch):
        layer = t.nn.Linear(4, 3).double()
        for p, value in zip(layer.parameters(), ((3, 4), (3,))):
            p.data = t.tensor(random(value).normal(size=value))
        layer = t.nn.utils.weight_norm(layer, dim=dim)
        optimizer = t.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (layer(t.tensor(x)) ** 2).sum().backward()
            optimizer.step()
        state = {k: v.tolist() for k, v in layer.state_dict().items()}
        with pytest.raises(RuntimeError):
            t.nn.utils.weight_norm(layer)
        y = layer(t.tensor(x)).tolist()
        t.nn.utils.remove_weight_norm(layer)
        assert sorted(dict(layer.named_parameters())) == ["bias", "weight"]
        with pytest.raises(ValueError):
            t.nn.utils.remove_weight_norm(layer)
        results.append([*state.values(), y, layer.weight.tolist(), layer(t.tensor(x)).tolist()])
        names = list(state)
    assert names == ["bias", "weight_g", "weight_v"]
    near(*results, rtol=1e-9)
