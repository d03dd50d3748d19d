# SPDX-License-Identifier: BSD-3-Clause
"""Tensors: made as torch makes them, indexed as NumPy indexes, and sharing memory with whoever asks."""
import copy
import pickle

import numpy as np
import pytest
from cases import BACKENDS, NATIVES, WRITABLE, laid_out
from programs import Programs, check

import pyneuro as pn

programs = Programs()
gives, refused = programs.gives, programs.refused
DTYPES = [pn.float32, pn.float64, pn.int64, pn.int32, pn.int16, pn.int8, pn.uint8, pn.bool]


def dtype(t):
    return str(t.dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------------------------- programs

@gives("float32", "int64", "bool", "float32", "float64", "float32", "int64")
def dtypes_of_new_tensors(t):
    return tuple(dtype(t.tensor(v)) for v in (1.5, 2, True, [1, 2.5], np.float64(1), [], [[1], [2]]))


@gives([[0.0, 0.0]], [1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], [7, 7], "float32", [0, 0], [2.5])
def filled(t):
    return (t.zeros(1, 2), t.ones((2,)), t.eye(2), t.full((2,), 7), dtype(t.empty(1)), t.zeros_like(t.tensor([1, 2])),
            t.full_like(t.ones(1), 2.5))


@gives([0, 1, 2], [1.0, 1.5], [5, 3, 1], "int64", "float32", [0.0, 0.5, 1.0], [3.0], [])
def ranges(t):
    return (
        t.arange(3),
        t.arange(1, 2, 0.5),
        t.arange(5, 0, -2),
        dtype(t.arange(3)),
        dtype(t.arange(3.0)),
        t.linspace(0, 1, 3),
        t.linspace(3, 9, 1),
        t.arange(0),
    )


@gives([2, 3], 2, 6, 2, 3, [3, 1], 1, 4, True, False, 2)
def shapes(t):
    x = t.zeros(2, 3)
    return (
        list(x.shape),
        x.ndim,
        x.numel(),
        x.dim(),
        x.size(-1),
        list(x.stride()),
        x.stride(1),
        x.element_size(),
        x.is_contiguous(),
        x.t().is_contiguous(),
        len(x),
    )


@gives(
    [[0, 3], [1, 4], [2, 5]],
    [[[0, 1, 2]], [[3, 4, 5]]],
    [0, 1, 2, 3, 4, 5],
    [[0, 1], [2, 3], [4, 5]],
    [2, 3],
    [2, 1, 3],
    [1, 2, 3, 1],
)
def reshaped(t):
    x = t.arange(6).reshape(2, 3)
    return (x.t(), x.unsqueeze(1), x.flatten(), x.view(-1, 2), list(x.unsqueeze(0).squeeze().shape),
            list(x.reshape(2, 1, 3).squeeze(0).shape), list(x[None, ..., None].shape))


@gives(
    [[0, 1], [3, 4]], [[2], [5]], [[0, 1, 2]], [[0, 3], [1, 4], [2, 5]], [[0, 1, 2, 0, 1, 2]], [[0, 0], [1, 1], [2, 2]]
)
def split_and_joined(t):
    x = t.arange(6).reshape(2, 3)
    a, b = x.split(2, 1)
    first = x.chunk(2)[0]
    return a, b, first, t.stack(x.unbind(), 1), t.cat([first, first], -1), t.stack([first[0], first[0]], -1)


@gives(15, 15.0, [3, 5, 7], [[3], [12]], 2.5, 3.5, [1.5, 2.5, 3.5], 0, 5, "int64", "int64")
def sums_and_means(t):
    x = t.arange(6).reshape(2, 3)
    f = x.to(t.float32)
    return (
        x.sum(),
        f.sum(),
        x.sum(0),
        x.sum(1, keepdim=True),
        f.mean(),
        f.var(),
        f.mean(0),
        x.min(),
        x.max(),
        dtype(x.sum()),
        dtype((x > 2).sum()),
    )


@gives([3, 4, 5], [1, 1, 1], [[2], [5]], 5, [2, 2], [0, 0], True, False, [False, True])
def extremes_and_truth(t):
    x = t.arange(6).reshape(2, 3)
    values, indices = x.max(0)
    return (
        values,
        indices,
        x.amax(1, keepdim=True),
        x.argmax(),
        x.argmax(1),
        x.argmin(1),
        (x >= 0).all(),
        (x > 9).any(),
        (x > 2).all(1),
    )


@gives([0, -2], [1, 1], [-0.5, 0.5], [False, True], [6, -1], [1, 4], "float32", "float32", [1.0, 8.0], [2.0, 0.25])
def arithmetic(t):
    x = t.tensor([1, -2])
    return (
        x // 2 * 1 + t.tensor([0, -1]),
        x % 3,
        x / -2 * t.tensor([1.0, 0.5]),
        x < 0,
        t.tensor([5, -2]) + 1,
        x * x,
        dtype(x / 2),
        dtype(x + 1.0),
        t.tensor([1.0, 2.0]) ** 3,
        2.0 ** t.tensor([1.0, -2.0]),
    )


@gives([True, False], [False, False], [True, True], [6], [1], [7], [-1, 0])
def logic(t):
    a, b = t.tensor([True, False]), t.tensor([True, True])
    return a & b, a & ~a, a | b, t.tensor([4]) | 2, t.tensor([5]) & 3, t.tensor([5]) ^ 2, ~t.tensor([0, -1])


@gives([1.0, -1.0], [0.0, 2.0], [1.0, 2.0], [0.5, -0.5], [3.0, -1.0])
def choices(t):
    x = t.tensor([1.0, -1.0])
    return (x.where(x > -2, x * 9), t.where(x > 0, t.tensor(0.0), t.tensor(2.0)), t.maximum(x, t.tensor([0.0, 2.0])),
            x.clamp(min=-0.5, max=0.5), x.masked_fill(x > 0, 3.0))


@gives([[6.0]], [6.0], 6.0, [[[6.0]], [[6.0]]], [2, 5, 3, 7])
def products(t):
    row, column = t.tensor([[1.0, 2.0, 1.0]]), t.tensor([[1.0], [2.0], [1.0]])
    batch = t.stack([row, row])
    return (
        row @ column,
        row @ column[:, 0],
        row[0] @ column[:, 0],
        batch @ column,
        list((t.zeros(2, 1, 3, 4) @ t.zeros(5, 4, 7)).shape),
    )


@gives(2.5, 2, True, [1, 2], 3, "2.50", 1)
def to_python(t):
    return (
        t.tensor([[2.5]]).item(),
        int(t.tensor(2)),
        bool(t.tensor([1])),
        t.tensor([1, 2]).tolist(),
        [10, 20, 30, 3][t.tensor(3)],
        f"{t.tensor(2.5):.2f}",
        sum(1 for _ in t.zeros(1, 4)),
    )


@gives([9, 1], [9, 1], True)
def views_share_memory(t):
    x = t.tensor([0, 1])
    y = x.view(2, 1)
    y[0] = 9
    return x, x.detach(), x.data_ptr() == y.data_ptr()


@gives("cpu", True, False, 0, True)
def devices(t):
    x = t.zeros(1, device="cpu")
    return x.device.type, x.device == t.device("cpu"), t.cuda.is_available(), t.cuda.device_count(), x.to("cpu") is x


@gives([2], [2.0], True, "float64")
def conversions(t):
    x = t.tensor([2.9])
    return x.long(), x.to(t.int32).float(), x.to(t.float32) is x, dtype(x.type_as(t.zeros(1, dtype=t.float64)))


@gives(True, True, False, True)
def equality(t):
    x = t.tensor([1.0, 2.0])
    return t.equal(x, x.clone()), t.allclose(x, x + 1e-7), t.equal(x, x[:1]), 2.0 in x


@pytest.mark.parametrize(("program", "expected"), programs.values)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_program(program, expected, on):
    check(program, expected, pn)


@pytest.mark.parametrize(("program", "expected"), programs.values)
def test_torch_agrees(program, expected, torch):
    check(program, expected, torch)


# -------------------------------------------------------------------------------------------------- in and out of NumPy


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_from_numpy_and_back_shares_memory(kind, layout):
    x = laid_out(np.arange(12).reshape(3, 4).astype(kind), layout)
    t = pn.from_numpy(x)
    assert np.shares_memory(t.numpy(), x) and t.numpy().strides == x.strides
    t[1, 2] = 0
    assert x[1, 2] == 0
    x[0, 0] = 1
    assert t[0, 0].item() == 1


def test_tensor_copies_and_as_tensor_shares():
    x = np.zeros(3)
    assert not np.shares_memory(pn.tensor(x).numpy(), x)
    assert np.shares_memory(pn.as_tensor(x).numpy(), x)
    assert pn.as_tensor(x, dtype="float32").dtype == np.float32
    t = pn.tensor(x)
    assert pn.as_tensor(t) is t


def test_numpy_functions_take_tensors():
    t = pn.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert np.asarray(t) is t.array or np.shares_memory(np.asarray(t), t.array)
    assert not np.shares_memory(np.array(t, copy=True), t.array)
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    assert np.sum(t.numpy()) == 10 and np.allclose(np.linalg.inv(t) @ t.numpy(), np.eye(2))
    assert isinstance(np.ones(2, np.float32) + t, pn.Tensor) and isinstance(np.float32(2) * t, pn.Tensor)
    with pytest.raises(ValueError):
        np.asarray(t, dtype=np.float64, copy=False)
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(pn.ones(1, requires_grad=True))


@pytest.mark.parametrize("layout", WRITABLE)
def test_dlpack_shares_memory_both_ways(layout):
    x = laid_out(np.arange(6.0).reshape(2, 3), layout)
    t = pn.from_dlpack(x)
    assert np.shares_memory(np.from_dlpack(t), x) and t.tolist() == x.tolist()
    with pytest.raises(BufferError, match="detach"):
        np.from_dlpack(pn.ones(1, requires_grad=True))


def test_dlpack_with_torch(torch):
    theirs = torch.arange(6.0).reshape(2, 3).t()
    mine = pn.from_dlpack(theirs)
    mine[0, 1] = 9.0
    assert theirs[0, 1].item() == 9
    assert torch.from_dlpack(mine).data_ptr() == theirs.data_ptr()


@pytest.mark.skipif(not NATIVES, reason="the buffer protocol sits in the extension")
def test_buffer_protocol():
    t = pn.tensor([[1.0, 2.0], [3.0, 4.0]])
    view = memoryview(t)
    assert view.shape == (2, 2) and view.format == "f" and not view.readonly
    view[0, 1] = 7.0
    assert t[0, 1].item() == 7
    kept = memoryview(pn.arange(1000))
    assert kept[999] == 999                                # the memory outlives the tensor
    assert np.shares_memory(np.frombuffer(t, np.float32), t.array)


@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_pickles_and_copies(kind):
    t = pn.tensor([[1, 0, 1]], dtype=kind)
    for other in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t), copy.copy(t)):
        assert pn.equal(other, t) and other.dtype == t.dtype
    p = pn.nn.Parameter(pn.ones(2))
    p.grad = pn.ones(2)
    twin = copy.deepcopy(p)
    assert type(twin) is pn.nn.Parameter and twin.requires_grad and twin.grad is None          # as torch
    assert not np.shares_memory(twin.detach().numpy(), p.detach().numpy())
    assert pickle.loads(pickle.dumps(p)).requires_grad
    shared = [t, t]
    a, b = copy.deepcopy(shared)
    assert a is b


def test_results_cannot_be_pickled_or_copied():
    y = pn.ones(1, requires_grad=True) * 2
    for act in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="detach"):
            act(y)


# --------------------------------------------------------------------------------------------------------- how it looks

@pytest.mark.parametrize(("make", "text"), [
    (lambda: pn.tensor([1.0, 2.5]), "tensor([1. , 2.5])"),
    (lambda: pn.tensor([1.0, 2.0]), "tensor([1., 2.])"),
    (lambda: pn.tensor([1, -2]), "tensor([ 1, -2])"),
    (lambda: pn.tensor([[True], [False]]), "tensor([[ True],\n        [False]])"),
    (lambda: pn.tensor(3), "tensor(3)"),
    (lambda: pn.tensor([1.0], dtype="float64"), "tensor([1.], dtype=float64)"),
    (lambda: pn.tensor([1.0], requires_grad=True), "tensor([1.], requires_grad=True)"),
    (lambda: pn.tensor([1.0], requires_grad=True) * 2, "tensor([2.], grad_fn=<MulBackward>)"),
    (lambda: pn.zeros(0, 3), "tensor([], size=(0, 3))"),
])
def test_repr(make, text):
    assert repr(make()) == text


def test_repr_of_many_is_short():
    assert len(repr(pn.zeros(1000, 1000))) < 1000 and "..." in repr(pn.zeros(1000, 1000))


def test_tensors_are_hashed_by_identity():
    a, b = pn.ones(1), pn.ones(1)
    assert len({a, b, a}) == 2 and hash(a) != hash(b)


def test_the_precision_of_products_takes_torchs_words():
    assert pn.get_float32_matmul_precision() == "highest"
    try:
        for word in ("high", "medium", "highest"):
            pn.set_float32_matmul_precision(word)
            assert pn.get_float32_matmul_precision() == word
        with pytest.raises(ValueError, match="'highest', 'high' or 'medium', not 'low'"):
            pn.set_float32_matmul_precision("low")
    finally:
        pn.set_float32_matmul_precision("highest")
