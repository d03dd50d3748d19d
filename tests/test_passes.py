# SPDX-License-Identifier: BSD-3-Clause
"""Passes over recorded calls: each makes a shorter program with the same bits; weights that are packed follow their parameters."""
import numpy as np
import pytest
from cases import BACKENDS

import pyneuro as pn
from pyneuro import nn, optim
from pyneuro.kernels.signature import KERNELS
from pyneuro.nn import functional as F
from pyneuro.passes import PASSES

each_backend = pytest.mark.parametrize("on", BACKENDS, indirect=True)
ACTIVATIONS = [name for name in F.activation_names() if all(value is not None for _, value in KERNELS[name].attrs)]


def bits(arrays):
    return [(a.shape, a.dtype.str, a.tobytes()) for a in arrays]


def network(activation):
    pn.manual_seed(0)
    return nn.Linear(5, 7), nn.Linear(7, 3), getattr(F, activation)


def trained(activation, without):
    first, second, f = network(activation)
    optimizer = optim.Adam([*first.parameters(), *second.parameters()], lr=0.01)

    def step(x, labels):
        optimizer.zero_grad()
        unread = (x * 2).sum()                                  # nobody wants it
        loss = F.cross_entropy(second(f(first(x))), labels)
        loss.backward()
        optimizer.step()
        return loss, unread.detach() * 0 if without == "nothing" else loss

    compiled = pn.compile(step, without=without if without != "nothing" else ())
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(4):
        x, labels = pn.from_numpy(rng.normal(size=(6, 5)).astype("float32")), pn.from_numpy(rng.integers(0, 3, 6))
        losses.append(compiled(x, labels)[0])
    return bits([t.numpy() for t in losses] + [p.detach().numpy() for p in (*first.parameters(), *second.parameters())]), \
        [call.kernel for call in compiled.plan(x, labels).calls]


@each_backend
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_and_its_activation_become_one_call(on, activation):
    with_it, shorter = trained(activation, ())
    without, longer = trained(activation, ["activations"])
    assert with_it == without
    if activation not in ("identity", "arctan", "sinc"):       # the last two are functions of tensors under the same name
        assert activation in longer
        assert (activation in shorter) != (f"dense_{activation}" in KERNELS), shorter


@each_backend
@pytest.mark.parametrize("name", PASSES)
def test_each_pass_by_itself(on, name):
    alone, shorter = trained("tanh", [other for other in PASSES if other != name])
    none, longer = trained("tanh", list(PASSES))
    assert alone == none and len(shorter) < len(longer)


def test_an_unknown_pass_is_refused():
    with pytest.raises(ValueError, match=r"are no passes; choose from activations"):
        pn.compile(lambda x: x, without=["speed"])


@each_backend
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_packed_weights_follow_their_parameters(on, rows):
    model = nn.Sequential(nn.Linear(40, 256), nn.Tanh(), nn.Linear(256, 3))
    fast = pn.compile(model, prepack=True)
    x = pn.randn(rows, 40)
    labels = pn.zeros(rows, dtype="int64")

    def agree():
        with pn.no_grad():
            assert bits([fast(x).numpy()]) == bits([model(x).numpy()])

    agree()
    packed = [call.bufs[1].strides[0] == 4 for call in _plan(fast, x).calls if call.kernel.startswith("dense_")]
    assert packed == [on.name != "reference"] * 2
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()
    agree()
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    agree()
    with pn.no_grad():
        model[0].weight.mul_(0.5)
    agree()


def _plan(compiled, x):
    with pn.no_grad():
        return compiled.plan(x)
