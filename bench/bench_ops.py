# SPDX-License-Identifier: BSD-3-Clause
"""Every row of the op table, as a user calls it: on tensors, forward, and forward with gradients."""
import zlib

import numpy as np
import pytest

import pyneuro as pn
from pyneuro.autograd import grad
from pyneuro.kernels import has_native
from pyneuro.ops import OPS
from pyneuro.tensor import apply

IMPLS = ["reference", *(["native"] if has_native else [])]
ROWS = list(OPS.values())


def sample(op, size, dtype):
    """Tensors of about `size` elements, those with a gradient asking for it, and attrs."""
    arrays, attrs = op.inputs(np.random.default_rng(zlib.crc32(op.name.encode())), size)
    tensors = tuple(pn.from_numpy(np.ascontiguousarray(a, dtype if a.dtype.kind == "f" else None)) for a in arrays)
    for i, t in enumerate(tensors):
        t.requires_grad_(t.is_floating_point() and (op.kind != "labels" or i == 0))
    return tensors, attrs


def forward(op, tensors, attrs):
    with pn.no_grad():
        return apply(op, tensors, attrs),


def with_gradients(op, tensors, attrs):
    """A function that runs the op and asks for its inputs' gradients, given that of its result."""
    wanted = [t for t in tensors if t.requires_grad]
    y = apply(op, tensors, attrs).numpy(force=True)
    first = pn.from_numpy(np.asarray(np.random.default_rng(1).normal(size=y.shape), y.dtype))

    def run():
        y = apply(op, tensors, attrs)
        return y, *grad(y, wanted, first)
    return run


def agrees(f, op, tensors):
    """Refuse to time what is wrong: f gives on this backend what it gives on the reference."""
    with pn.backend("reference"):
        expected = f()
    terms = op.sums(*[t.numpy(force=True) for t in tensors])
    for y, definition in zip(f(), expected):
        got, want = y.numpy(force=True), definition.numpy(force=True)
        eps = np.finfo(want.dtype).eps if want.dtype.kind == "f" else 0
        atol = (16 + 4 * terms ** 0.5) * eps * np.max(np.abs(want), initial=0)
        np.testing.assert_allclose(got, want, rtol=256 * eps, atol=atol)


def flops(op, tensors):
    """Of a product; of a row that memory bounds, nothing."""
    return op.work(*[t.numpy(force=True) for t in tensors]) if op.kind in ("matrix", "dense") else 0


def nbytes(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("op", ROWS, ids=lambda op: op.name)
def test_forward(op, size, impl, dtype, measure):
    tensors, attrs = sample(op, size, dtype)

    def run():
        return forward(op, tensors, attrs)

    with pn.backend(impl):
        agrees(run, op, tensors)
        work = {} if op.view else {"flops": flops(op, tensors), "nbytes": nbytes(*tensors, *run())}
        measure(run, f"{op.name}-{size}", impl, dtype=dtype, **work)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("op", [op for op in ROWS if op.kind != "curve"], ids=lambda op: op.name)
def test_with_gradients(op, size, impl, dtype, measure):
    tensors, attrs = sample(op, size, dtype)
    run = with_gradients(op, tensors, attrs)
    with pn.backend(impl):
        agrees(run, op, tensors)
        work = {}
        if not op.view:
            y, *gradients = run()
            saved = [y if i < 0 else tensors[i] for i in op.saves]
            # Forward a product, backward two. Bytes: the forward's, then its result's gradient, saved ones, gradients.
            work = {"flops": 3 * flops(op, tensors), "nbytes": nbytes(*tensors, y, y, *saved, *gradients)}
        measure(run, f"{op.name}-{size}-gradients", impl, dtype=dtype, **work)
