# SPDX-License-Identifier: BSD-3-Clause
"""The matrix product alone, at the waist: pyneuro's kernel beside NumPy's BLAS, on squares and on skinny shapes."""
import numpy as np
import pytest

from pyneuro.kernels import has_native, make_backend

CUBES = [(n, n, n) for n in (16, 32, 64, 128, 256, 512, 1024)]
SKINNY = [(1, 512, 512), (512, 512, 1), (32, 64, 128), (32, 128, 10), (32, 784, 128), (128, 32, 64), (4096, 16, 16),
          (64, 4096, 64)]


def numpy(a, b, c):
    return lambda: np.matmul(a, b, out=c)


def native(a, b, c):
    backend = make_backend("native")
    return lambda: backend.run("matmul", (a, b, c))


@pytest.mark.parametrize("product", [numpy, *([native] if has_native else [])], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("m", "k", "n"), CUBES + SKINNY, ids=str)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_matmul(m, k, n, precision, product, measure):
    rng = np.random.default_rng(m * k + n)
    a, b = rng.normal(size=(m, k)).astype(precision), rng.normal(size=(k, n)).astype(precision)
    c = np.empty((m, n), precision)
    run = product(a, b, c)
    run()
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=k ** 0.5 * 64 * np.finfo(precision).eps)
    measure(run, f"matmul-{m}x{k}x{n}-{precision}", product.__name__, "numpy", flops=2 * m * k * n, dtype=precision)
