# SPDX-License-Identifier: BSD-3-Clause
"""More than 2^31 elements, of which only a few exist: a sparse file, or one element repeated."""
import numpy as np
import pytest
from cases import BACKENDS, NATIVES
from test_package import python

import pyneuro as pn
from pyneuro.kernels import make_backend

BEYOND = 2**31
ROW = 2**27                                    # BEYOND is in row 16
FAR = [0, 1, 15, 16, 17]                     # rows before, at and after it

pytestmark = pytest.mark.slow


@pytest.fixture
def table(tmp_path):
    """float32[18, 2^27] in a file of 9.7 GB that has no blocks but those written to."""
    made = np.memmap(tmp_path / "sparse", np.float32, "w+", shape=(18, ROW))
    made[FAR, :6] = np.random.default_rng(0).uniform(0.5, 2, (len(FAR), 6))
    made[17, -6:] = range(6)
    return made.view(np.ndarray)


each_backend = pytest.mark.parametrize("on", BACKENDS, indirect=True)


@each_backend
def test_elements_beyond(table, on):
    line, want = table.reshape(-1), table[16, :6].copy()
    x = pn.from_numpy(line)
    assert x.numel() > BEYOND
    assert x[BEYOND + 5].item() == want[5]
    assert x[BEYOND:BEYOND + 6].tolist() == want.tolist()
    x[BEYOND:BEYOND + 6] += 1
    x[-1] = 7.0
    assert np.array_equal(line[BEYOND:BEYOND + 6], want + 1) and line[-1] == 7
    assert np.array_equal(pn.from_numpy(line[::-1])[:6].numpy(), [7, 4, 3, 2, 1, 0])
    assert np.array_equal(pn.from_numpy(line[5::BEYOND]).neg().numpy(), -line[5::BEYOND])


@each_backend
def test_rows_beyond(table, on):
    """take, put and scatter_add reach rows whose offset in elements does not fit in 32 bits."""
    narrow, index = table[:, :5], np.array([17, 0, 16])
    y = np.empty((3, 5), np.float32)
    on.run("take", (narrow, index, y))
    assert np.array_equal(y, narrow[index])
    on.run("scatter_add", (narrow, np.array([17, 17]), y[:2]))
    assert np.array_equal(narrow[17], y[0] + y[0] + y[1]), "rounded once more at most"
    on.run("put", (narrow, index, np.ones_like(y)))
    assert (narrow[index] == 1).all()


@each_backend
def test_strides_beyond(table, on):
    """Rows 2^27 apart, as operands and results of every family of kernels."""
    x = table[::-1, :5]                        # from far to near
    near = x.copy()
    run, want = on.run, make_backend("reference").run

    def same(kernel, given, plain, out, attrs=()):
        got, expected = np.empty(out, np.float32), np.empty(out, np.float32)
        run(kernel, (*given, got), attrs)
        want(kernel, (*plain, expected), attrs)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    w = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    same("exp", [x], [near], x.shape)
    same("add", [x, x[:1]], [near, near[:1]], x.shape)
    for kernel, attrs in ("sum", ()), ("max", ()), ("var", (1.0,)):
        same(kernel, [x[None]], [near[None]], (1, 5), attrs)
        same(kernel, [x.T[None]], [near.T[None]], (1, 18), attrs)
    same("softmax", [x[None]], [near[None]], (1, *x.shape))
    same("softmax", [x[..., None]], [near[..., None]], (*x.shape, 1))
    same("matmul", [x, w], [near, w], (18, 4))
    same("matmul", [w.T, x.T], [w.T, near.T], (4, 18))
    same("dense_tanh", [x, w.T, w[0]], [near, w.T, w[0]], (18, 4))
    out = table[:, 10:15]
    run("mul", (x, x, out))
    assert np.array_equal(out, near * near)
    run("matmul", (near[:, :4], w.T.copy(), out))
    np.testing.assert_allclose(out, near[:, :4] @ w.T, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not NATIVES, reason="the extension is not built")
def test_a_sum_of_more_than_32_bits_can_count():
    ones, y = np.broadcast_to(np.float64(1), (1, BEYOND + 17, 1)), np.zeros((1, 1))
    make_backend("native").run("sum", (ones, y))
    assert y.item() == BEYOND + 17


def test_huge_extents_of_nothing_take_no_time():
    code = """if True:
        import pyneuro as pn
        x = pn.zeros(2**40, 0)
        assert x.relu().shape == x.softmax(1).shape == (x + x).shape == x.log_softmax(1).shape == (2**40, 0)
        assert (x.sum(0).shape, (x.mT @ pn.zeros(2**40, 0)).shape) == ((0,), (0, 0))
    """
    assert python(code, PYNEURO_BACKEND="" if NATIVES else "reference") == (0, "", "")
