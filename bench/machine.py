# SPDX-License-Identifier: BSD-3-Clause
"""What this machine can do, measured once a session: the peaks that a share of the peak is a share of."""
import os
import time
from functools import cache, partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

import pyneuro as pn
from pyneuro.kernels import has_native, make_backend

TIMER = time.process_time            # everything runs on one thread: its own time, without what the neighbours took


def best(f, seconds=0.02, tries=5):
    """The shortest time of f, of at least so many tries and so many seconds of them."""
    times = []
    while len(times) < tries or sum(times) < seconds:
        start = TIMER()
        f()
        times.append(TIMER() - start)
    return min(times)


def copy_bandwidth(nbytes):
    """Bytes a second, read and written together, that NumPy copies when a copy touches about nbytes in all."""
    return _copy_bandwidth(max(12, nbytes.bit_length()))


@cache
def _copy_bandwidth(bits):
    n, rows, shift = (1 << bits) // 8 // 2, 64, 8
    source, target = np.ones(n + rows * shift), np.zeros(n + rows * shift)
    # One call copies `rows` overlapping windows, 64 bytes apart: the cost of calling NumPy is not in the bandwidth.
    windows = [as_strided(a, (rows, n), (shift * a.itemsize, a.itemsize)) for a in (target, source)]
    return 2 * rows * n * source.itemsize / best(lambda: np.copyto(*windows))


@cache
def flop_rate(dtype):
    """Operations a second of the best product here: of 128, 256 or 512 cubed, by NumPy's BLAS or by pyneuro."""
    rates = []
    for side in (128, 256, 512):
        a, b, c = (np.ones((side, side), dtype) for _ in range(3))
        rates.append(2 * side ** 3 / best(partial(np.matmul, a, b, c), seconds=0.1))
        if has_native:
            rates.append(2 * side ** 3 / best(partial(make_backend("native").run, "matmul", (a, b, c)), seconds=0.1))
    return max(rates)


def describe():
    """One line: processor, ISA, versions, BLAS and peaks."""
    config = pn.config()
    copies = ", ".join(f"{copy_bandwidth(n) / 1e9:.0f} GB/s at {n >> 10} KiB" for n in (1 << 15, 1 << 18, 1 << 22))
    products = ", ".join(f"{flop_rate(dtype) / 1e9:.0f} GFLOP/s in {dtype}" for dtype in ("float32", "float64"))
    return (f"{config['cpu']}, {(config['isas'] or ['no extension'])[0]}, one thread; pyneuro {config['version']}, "
            f"NumPy {config['numpy']} ({_blas()})\npeaks: a copy {copies}; a product {products}")


def _blas():
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "BLAS unknown: no threadpoolctl"
    found = [f"{pool['internal_api']} {pool['version']} {pool.get('architecture') or ''}".strip()
             for pool in threadpool_info() if pool["user_api"] == "blas"]
    forced = os.environ.get("OPENBLAS_CORETYPE")
    return ", ".join(found or ["no BLAS"]) + (f", slowed by OPENBLAS_CORETYPE={forced}" if forced else "")
