# SPDX-License-Identifier: BSD-3-Clause
"""The rows of `pyneuro bench` (but for the activations, which bench_ops.py has too), each contender by itself."""
import pytest

from pyneuro.bench.rows import ROWS
from pyneuro.bench.timing import DEFINITION, OURS, contenders, installed


def able(row):
    known = row.make()
    return [OURS, DEFINITION, *(peer for peer in installed() if peer in known)]


def pytest_generate_tests(metafunc):
    """All of them to be timed; to see that they run, those that take no time."""
    timed = not metafunc.config.getoption("benchmark_disable")
    metafunc.parametrize(("row", "name"), [
        pytest.param(row, name, id=f"{row}-{name}")
        for row in ROWS if row.gate != "activation" and (row.quick or timed) for name in able(row)])


def test_row(row, name, measure):
    found, left_out = contenders(row, [name])
    assert not left_out
    contender = found.get(name) or found[OURS]                # on the reference, pyneuro is its own definition
    with contender.on():
        measure(contender.call, str(row), name, flops=row.flops, nbytes=row.nbytes, dtype=row.dtype)
