# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures: a generator of random operands, and the backend that a test runs on."""
import gc
import os
import signal
import zlib

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy is there: small products wait long for a busy second core

import numpy as np
import pytest

import pyneuro as pn

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a shell has begun with "&"; some tests interrupt themselves and others
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Tens of thousands of tests that only stay are not looked through by every collection of garbage."""
    gc.freeze()


@pytest.fixture
def rng(request):
    """Random numbers that depend on the test's name alone."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Every test begins with the same seed, and leaves grad mode, default dtype and backend as it found them. The number of
    threads is put back."""
    pn.manual_seed(0)
    before, threads = (pn.is_grad_enabled(), pn.get_default_dtype(), pn.current_backend()), pn.get_num_threads()
    yield
    if pn.get_num_threads() != threads:
        pn.set_num_threads(threads)
    assert (pn.is_grad_enabled(), pn.get_default_dtype(), pn.current_backend()) == before


@pytest.fixture
def on(request):
    """Parametrised with a backend's name (indirect): the test runs on it."""
    with pn.backend(request.param) as backend:
        yield backend


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: only stored values are compared")
    torch.set_num_threads(1)             # what is small takes longer on several, the more so beside other work
    torch.manual_seed = torch.default_generator.manual_seed       # not a stack formatted for each kind of device that is not there
    return torch
