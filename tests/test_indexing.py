# SPDX-License-Identifier: BSD-3-Clause
"""Indexing, broadcasting and reductions are NumPy's, for whatever shapes and keys hypothesis thinks of."""
import math

import numpy as np
import pytest

import pyneuro as pn

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

quick = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@st.composite
def indexed(draw):
    """A shape, and any key that NumPy takes for it: basic, advanced, mixed, boolean."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    basic = hnp.basic_indices(shape, allow_newaxis=True)
    full = math.prod(shape)
    arrays = hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=4)) if full else basic
    masks = hnp.arrays(bool, shape)
    return shape, draw(st.one_of(basic, arrays, masks))


def converted(key):
    """Index arrays as tensors."""
    if isinstance(key, tuple):
        return tuple(converted(k) for k in key)
    return (
        pn.tensor(key.astype(bool) if key.dtype == bool else key.astype(np.int64))
        if isinstance(key, np.ndarray)
        else key
    )


@given(indexed())
@quick
def test_getitem_is_numpys(case):
    shape, key = case
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    t = pn.tensor(x, requires_grad=True)
    y, want = t[converted(key)], x[key]
    assert y.shape == want.shape and np.array_equal(y.detach().array, want)
    y.sum().backward()
    counts = np.zeros(shape, np.float32)
    np.add.at(counts, key, 1)
    assert np.array_equal(t.grad.array, counts)


@given(indexed(), st.booleans())
@quick
def test_setitem_is_numpys(case, record):
    shape, key = case
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    value = -1 - np.arange(x[key].size, dtype=np.float32).reshape(x[key].shape)
    want = x.copy()
    want[key] = value
    t = pn.tensor(x, requires_grad=record) * 1
    v = pn.tensor(value, requires_grad=record)
    t[converted(key)] = v
    assert np.array_equal(t.detach().array, want)
    if record:
        t.sum().backward()
        assert np.array_equal(v.grad.array, np.ones_like(value))          # of a place written twice, too, as in torch


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=4))
@quick
def test_broadcasting_is_numpys(shapes):
    (a, b), result = shapes.input_shapes, shapes.result_shape
    x, y = (pn.ones(*s, requires_grad=True) for s in (a, b))
    z = x + y * 2
    assert z.shape == result
    z.sum().backward()
    for t, factor in ((x, 1), (y, 2)):
        times = factor * math.prod(result) / max(math.prod(t.shape), 1)
        assert np.array_equal(t.grad.array, np.full(t.shape, times, np.float32))


@given(st.data())
@quick
def test_reductions_are_numpys(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    dims = data.draw(st.one_of(st.none(), hnp.valid_tuple_axes(len(shape), min_size=1)))
    keep = data.draw(st.booleans())
    x = np.random.default_rng(0).normal(size=shape)
    t = pn.tensor(x)
    for name in ("sum", "mean", "amax", "amin"):
        got, want = getattr(t, name)(dims, keepdim=keep), getattr(np, name)(x, axis=dims, keepdims=keep)
        assert np.allclose(got.array, want) and got.shape == want.shape
