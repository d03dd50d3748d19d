# SPDX-License-Identifier: BSD-3-Clause
"""A training step in PyTorch's words: 64-128-10, 32 samples, cross-entropy, Adam; by PyTorch too, if installed."""
import importlib
import importlib.util

import numpy as np
import pytest

import pyneuro as pn
from pyneuro.kernels import has_native

IMPLS = ["reference", *(["native"] if has_native else []), *(["torch"] if importlib.util.find_spec("torch") else [])]
SIZES, BATCH = (64, 128, 10), 32


def training_step(torch):
    """One step after another on one batch; each returns its loss."""
    rng = np.random.default_rng(0)
    nn = torch.nn
    model = nn.Sequential(nn.Linear(SIZES[0], SIZES[1]), nn.ReLU(), nn.Linear(SIZES[1], SIZES[2]))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.from_numpy(rng.uniform(-0.1, 0.1, p.shape).astype("float32")))
    loss_of, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.from_numpy(rng.normal(size=(BATCH, SIZES[0])).astype("float32"))
    labels = torch.from_numpy(rng.integers(0, SIZES[2], BATCH))

    def step():
        optimizer.zero_grad()
        loss = loss_of(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss
    return step


def losses(impl, count):
    step = training_step(pn)
    with pn.backend(impl):
        return [step().item() for _ in range(count)]


@pytest.mark.parametrize("impl", IMPLS)
def test_training_step(impl, measure):
    expected = losses("reference", 20)
    products = 2 * BATCH * (SIZES[0] * SIZES[1] + SIZES[1] * SIZES[2])
    flops = 3 * products - 2 * BATCH * SIZES[0] * SIZES[1]                  # no one asks for the input's gradient
    if impl == "torch":
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        step = training_step(torch)
        np.testing.assert_allclose([step().item() for _ in range(20)], expected, rtol=1e-4)
        measure(step, "training step", impl, flops=flops)
        return
    np.testing.assert_allclose(losses(impl, 20), expected, rtol=1e-4)
    step = training_step(pn)
    with pn.backend(impl):
        measure(step, "training step", impl, flops=flops)
