# SPDX-License-Identifier: BSD-3-Clause
"""One run of the suite, from the environment to RESULTS.md."""
import datetime
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

import pyneuro as pn

from .results import GATES, Result, cells, duration, gate_cells, markdown
from .rows import ROWS
from .timing import (
    DEFINITION,
    METHOD,
    OURS,
    PEERS,
    STEPS,
    Contender,
    Effort,
    Row,
    contenders,
    copy_bandwidth,
    flop_rate,
    installed,
    measure,
)

VECTOR_ISAS = ("amx", "avx512", "avx2", "neon")       # gates bind where one of these runs


@contextmanager
def alone() -> Iterator[int | None]:
    """One thread, on one processor: which one, or None where that cannot be chosen."""
    set_threads, before = getattr(pn, "set_num_threads", None), getattr(pn, "get_num_threads", lambda: 1)()
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        if set_threads:
            set_threads(1)
        if processors:
            os.sched_setaffinity(0, {max(processors)})
        yield max(processors) if processors else None
    finally:
        if processors:
            os.sched_setaffinity(0, processors)
        if set_threads:
            set_threads(before)


def choose(pattern: str, quick: bool) -> list[Row]:
    """The rows of a suite; with a pattern those whose group or name has it, * and ? standing for anything."""
    return [row for row in ROWS if (row.quick or not quick) and fnmatchcase(str(row).lower(), f"*{pattern.lower()}*")]


class Run:
    """One run of rows, and what is told of it. What is measured stands in it at any time, also after an interrupt."""

    def __init__(self, rows: list[Row], effort: Effort, say: Callable[..., None]) -> None:
        self.rows, self.effort, self.say = rows, effort, say
        self.peers = [peer for peer in installed() if peer not in effort.without]
        self.results: list[Result] = []
        self.threads: list[dict[str, Any]] = []
        self.environment: dict[str, Any] = {}
        self.complete = False

    def go(self, threads: bool = False) -> None:
        cores = pn.config()["cores"]
        with alone() as processor:
            clock = time.perf_counter if processor is None else time.process_time
            self.environment = environment(self.peers, processor) | {"cores": cores}
            self.say(*[f"{name:<12} {text}" for name, text in self.facts()])
            for row in self.rows:
                if not self.results or row.group != self.results[-1].row.group:
                    self.say("", row.group)
                found, left_out = contenders(row, self.peers)
                self.results.append(result := Result(row, measure(found, self.effort, clock), left_out))
                name, median, rate, share, *others = cells(result, self.columns([result]))
                self.say(f"  {name:<22}{median:>9}{rate:>15}{share:>6}   " + "".join(
                    f"{column} {cell}".ljust(28) for column, cell in zip(self.columns([result]), others)).rstrip())
                self.say(*[f"    without {peer}, which {why}" for peer, why in left_out.items()])
        if threads:
            self.compare_threads()
        self.complete = True

    def compare_threads(self) -> None:
        """The rows that are for it, by 1, 2, 4 ... threads and as many as there are processors, in turn."""
        set_threads = getattr(pn, "set_num_threads", None)
        if not set_threads or self.environment["cores"] < 2:
            self.say("", "threads: " + ("one processor" if set_threads else "this pyneuro has one"))
            return
        before, cores = pn.get_num_threads(), self.environment["cores"]        # type: ignore[attr-defined,unused-ignore]
        numbers = sorted({cores, *(1 << i for i in range(cores.bit_length()))})
        self.say("", "threads: time by one, and how much faster by more")

        @contextmanager
        def on(count: int) -> Iterator[None]:
            set_threads(count)
            try:
                yield
            finally:
                set_threads(before)

        for row in [r for r in self.rows if r.threads]:
            call = row.make()[OURS]()
            times = measure({str(n): Contender(call, partial(on, n)) for n in numbers}, self.effort)
            told = {n: statistics.median(one / t for one, t in zip(times["1"], times[str(n)])) for n in numbers}
            self.threads.append({"row": str(row), "seconds": {n: statistics.median(times[str(n)]) for n in numbers},
                                 "speedup": told})
            self.say(f"  {row!s:<80}{duration(statistics.median(times['1'])):>9}"
                     + "".join(f"{n:>5}: {ratio:.2f}x" for n, ratio in told.items() if n > 1))

    # What is told

    def columns(self, results: list[Result]) -> list[str]:
        return [name for name in (DEFINITION, STEPS, *PEERS) if any(name in {**r.times, **r.left_out} for r in results)]

    def facts(self) -> list[tuple[str, str]]:
        return [*facts(self.environment),
                ("method", f"{METHOD}. {self.effort.name.capitalize()} run: at least {self.effort.rounds} rounds"
                           + (", five of a row that takes long." if self.effort.rounds > 5 else "."))]

    def gates(self) -> list[dict[str, Any]]:
        binding = any(isa in pn.current_backend().name for isa in VECTOR_ISAS)
        return [gate.judge(self.results, binding) for gate in GATES]

    def as_dict(self) -> dict[str, Any]:
        def told(r: Result) -> dict[str, Any]:
            by = {name: {"median": r.median(name), "quartiles": statistics.quantiles(t, n=4), "rounds": len(t),
                         **({"ratio": r.ratio(name), "ratio_quartiles": statistics.quantiles(r.ratios(name), n=4)}
                            if name != OURS else {})} for name, t in r.times.items()}
            work = {"flops": r.row.flops, "bytes": r.row.nbytes, "rate": r.rate or None, "floor": r.floor or None,
                    "share_of_peak": r.share}
            return {"group": r.row.group, "name": r.row.name, "dtype": r.row.dtype, "rtol": r.row.rtol, **work, "seconds": by,
                    "left_out": r.left_out}

        return {"environment": self.environment, "method": METHOD, "effort": self.effort.name, "complete": self.complete,
                "rows": [told(r) for r in self.results], "gates": self.gates(), "threads": self.threads}

    def gate_lines(self) -> list[str]:
        return ["", "gates: ratio peer / pyneuro", *(
            f"  {work:<50}{against:<22}{least:<42}{measured:>9}  {verdict}" for work, against, least, measured, verdict in
            map(gate_cells, self.gates()) if measured), *(f"  {line}" for line in self.too_slow())]

    def too_slow(self) -> list[str]:
        """The rows that keep a gate from being met although all together would do."""
        return [f"under {gate['each_at_least']:g} of {', '.join(gate['against'])}: {line}"
                for gate in self.gates() for line in gate["short"]]

    def as_markdown(self) -> str:
        """RESULTS.md."""
        lines = ["# Benchmarks of one run", "", "Written by `python -m pyneuro bench --results`.", ""]
        lines += [f"- {name}: {text}" for name, text in self.facts()]
        lines += ["", "## Gates", "", "Ratio of the peer's time to pyneuro's; of several peers, the best counts.", "",
                  *markdown(("work", "against", "at least", "measured", ""), map(gate_cells, self.gates()))]
        lines += ["", *[f"- {line}" for line in self.too_slow()]] if self.too_slow() else []
        for group in dict.fromkeys(r.row.group for r in self.results):
            results = [r for r in self.results if r.row.group == group]
            columns = self.columns(results)
            lines += ["", f"## {group[0].upper()}{group[1:]}", "",
                      *markdown(("work", OURS, "rate", "of peak", *columns), (cells(r, columns) for r in results))]
            lines += [f"\n{r.row.name} without {peer}, which {why}" for r in results for peer, why in r.left_out.items()]
        if self.threads:
            numbers = list(self.threads[0]["speedup"])
            lines += ["", "## Threads", "", *markdown(("work", "1", *(str(n) for n in numbers[1:])), (
                (t["row"], duration(t["seconds"][1]), *(f"{t['speedup'][n]:.2f}x" for n in numbers[1:])) for t in self.threads))]
        return "\n".join(lines) + "\n"


def environment(peers: list[str], processor: int | None) -> dict[str, Any]:
    """All that the figures depend on, as plain data."""
    config, blas = pn.config(), np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    copies = {size: copy_bandwidth(size) for size in (1 << 15, 1 << 18, 1 << 20, 1 << 23, 1 << 26)}
    threads = {OURS: getattr(pn, "get_num_threads", lambda: 1)(), "BLAS": os.environ.get("OPENBLAS_NUM_THREADS", "as it likes")}
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **config,
            "blas": f"{blas['name']} {blas['version']}", "threads": threads, "processor": processor,
            "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
            "peers": {peer: _version(peer) for peer in peers},
            "peaks": {"float32": flop_rate("float32"), "float64": flop_rate("float64"), "copy": copies}}


def _version(peer: str) -> str:
    try:
        return metadata.version("scikit-learn" if peer == "sklearn" else peer.partition(".")[0])
    except metadata.PackageNotFoundError:              # a distribution of another name, such as onnxruntime-gpu
        return "of an unknown version"


def facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    """An environment in words, under headings."""
    peaks = told["peaks"]
    copies = ", ".join(f"{rate / 1e9:.1f} GB/s of {size >> 10:,} KiB" for size, rate in peaks["copy"].items())
    products = ", ".join(f"{peaks[dtype] / 1e9:.1f} GFLOP/s {dtype}" for dtype in ("float32", "float64"))
    missing = [peer for peer in PEERS if peer not in told["peers"]]
    variables = " ".join(f"{name}={value}" for name, value in told["environment"].items())
    return [
        ("date", told["date"]),
        ("processor", f"{told['cpu']}, {told['cores']} to use; {told['platform']}"),
        ("pyneuro", f"{told['version']} on {told['backend']}; ISAs here: {' '.join(told['isas']) or 'none'}"),
        ("peers", ", ".join(f"{peer} {version}" for peer, version in told["peers"].items())
         + (f"; not installed, and left out: {', '.join(missing)}" if missing else "")),
        ("BLAS", told["blas"]),
        ("threads", ", ".join(f"{name} {n}" for name, n in told["threads"].items()) + ", peers 1, "
         + ("not bound to a processor" if told["processor"] is None else f"on processor {told['processor']}")),
        ("load", " ".join(f"{x:.1f}" for x in told["load"]) + " at the start"),
        ("peak product", f"{products}, the best of pyneuro and NumPy"),
        ("peak copy", f"{copies}, read and written"),
        *([("environment", variables)] if variables else []),
    ]
