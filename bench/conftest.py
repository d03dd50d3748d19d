# SPDX-License-Identifier: BSD-3-Clause
"""How benchmarks run: one thread on one processor, short rounds, and at the end a table of ratios."""
import os
import statistics
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

for _pool in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR", "PYNEURO"):
    os.environ[f"{_pool}_NUM_THREADS"] = "1"                  # before NumPy and its BLAS start theirs
PROCESSOR = max(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None
if PROCESSOR is not None:
    os.sched_setaffinity(0, {PROCESSOR})

import pytest  # noqa: E402

import pyneuro as pn  # noqa: E402
from pyneuro.bench.run import environment, facts  # noqa: E402
from pyneuro.bench.timing import copy_bandwidth, flop_rate, installed  # noqa: E402

RESULTS = pytest.StashKey[list]()
QUICK = {"max_time": "0.05", "min_time": "0.0005", "min_rounds": 5, "timer": "time.process_time", "disable_gc": True, "quiet": True}
TABLES = ("--benchmark-columns", "--benchmark-sort", "--benchmark-group-by", "--benchmark-verbose")
WIDTHS = (22, 13, 11, 8, 15, 9)                               # of the last table's columns


def pytest_addoption(parser):
    group = parser.getgroup("pyneuro")
    group.addoption("--sizes", default="4096,262144", help="about how many elements an op is given: n[,n...]")
    group.addoption("--dtype", default="float32", choices=["float32", "float64"], help="of the ops' operands")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Short rounds, unless the command line says otherwise; pytest-benchmark's own tables only if it asks for them."""
    config.stash[RESULTS] = []
    given = " ".join(map(str, config.invocation_params.args))
    for name, value in QUICK.items():
        choices = TABLES if name == "quiet" else [f"--benchmark-{name.replace('_', '-')}"]
        if not any(option in given for option in choices):
            setattr(config.option, f"benchmark_{name}", value)


def pytest_generate_tests(metafunc):
    if "size" in metafunc.fixturenames:
        metafunc.parametrize("size", [int(n) for n in metafunc.config.option.sizes.split(",")])


@pytest.fixture
def dtype(request):
    return request.config.option.dtype


@dataclass
class Result:
    """A line of the table, or half of one: what was measured, on what, and against which."""
    group: str
    impl: str
    baseline: str
    seconds: float
    rate: float | None               # work a second
    unit: str
    share: float | None              # of the peak


@pytest.fixture
def measure(benchmark, request):
    """measure(f, group, impl, baseline, flops=, nbytes=): time f, and write down its rate and its share of the peak.

    With flops, the rate is of these and the peak a product's; else of bytes, and the peak that of a copy of as many.
    """
    def run(f, group, impl, baseline="reference", flops=0, nbytes=0, dtype="float32"):
        benchmark.group = group
        benchmark(f)
        if benchmark.stats is None:                           # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        rate = (flops or nbytes) / seconds or None
        unit = "GFLOP/s" if flops else "GB/s"
        peak = flop_rate(dtype) if flops else copy_bandwidth(nbytes) if nbytes else None
        share = rate / peak if rate and peak else None
        benchmark.extra_info.update({"impl": impl, "dtype": dtype})
        if rate:
            benchmark.extra_info.update({unit: rate / 1e9, "peak": peak / 1e9, "share of peak": share})
        request.config.stash[RESULTS].append(Result(group, impl, baseline, seconds, rate, unit, share))
    return run


@cache
def describe():
    return environment(installed(), PROCESSOR)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["pyneuro"] = {k: v for k, v in pn.config().items() if k != "environment"}
    machine_info["peaks"] = describe()["peaks"]


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not results:
        return
    write = terminalreporter.write_line
    terminalreporter.section("median times, on one thread", sep="-")
    for name, text in facts(describe()):
        write(f"{name:<12} {text}")
    width = max(len(r.group) for r in results) + 2
    heads = ["baseline", "", "median", "ratio", "rate", "of peak"]
    write("\n" + " " * width + "".join(f"{head:>{w}}" for head, w in zip(heads, WIDTHS)))
    times = {(r.group, r.impl): r.seconds for r in results}
    against = {r.group for r in results if r.impl != r.baseline}
    place = {name: i for i, name in enumerate(dict.fromkeys(_subject(r) for r in results))}
    ratios = defaultdict(list)
    for r in sorted(results, key=lambda r: place[_subject(r)]):
        if r.impl == r.baseline and r.group in against:
            continue                                          # it is in the others' lines
        before = times.get((r.group, r.baseline))
        ratio = before / r.seconds if before and r.impl != r.baseline else None
        if ratio:
            ratios[r.impl, r.baseline].append(ratio)
        cells = [f"{r.baseline} {_time(before)}" if ratio else "", r.impl, _time(r.seconds),
                 f"{ratio:.2f}x" if ratio else "",
                 f"{r.rate / 1e9:.1f} {r.unit}" if r.rate else "", f"{r.share:.0%}" if r.share else ""]
        write(f"{r.group:<{width}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, WIDTHS)))
    write("\nratio: baseline / median. rate: operations a second, or bytes of inputs and results. "
          "of peak: of a product's rate, or a copy's.")
    for (impl, baseline), values in ratios.items():
        mean = statistics.geometric_mean(values)
        write(f"{impl} against {baseline}: {mean:.2f}x in the geometric mean of {len(values)}")


def _subject(result):
    """The op, or the row: its lines stand together."""
    return result.group if ": " in result.group else result.group.partition("-")[0]


def _time(seconds):
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
