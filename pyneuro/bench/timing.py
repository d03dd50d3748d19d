# SPDX-License-Identifier: BSD-3-Clause
"""Contenders at one piece of work: whether they agree, how long they take, in turn, and what the machine can do."""
import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from shutil import which
from timeit import Timer
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

import pyneuro as pn

OURS, DEFINITION = "pyneuro", "reference"             # pyneuro as it runs here; its NumPy backend, which is what is right
STEPS = "steps"                                       # pyneuro, what an epoch is made of
PEERS = ("numpy", "torch", "jax", "onnxruntime", "sklearn", "torch.compile")
METHOD = (
    "one process, one thread, one processor; in each round every contender runs one batch of calls, one after the other, the "
    "order rotated by one from round to round, without garbage collection. Times are processor time of the whole process, which "
    "a busy neighbour does not stretch (wall clock where a process cannot be bound to a processor), as medians over the rounds; "
    "ratios are medians of the rounds' ratios, peer / pyneuro. Before they are timed, results are asserted equal to the "
    "reference's, within 1e-5 of the largest element, 1e-12 in float64, a peer's losses of ten training steps within 1e-3. "
    "The share of peak is the time that the work would take at the peaks, of products and of copies, in parts of the time it takes")


# -------------------------------------------------------------------------------------------------- what can be compared

class Expression:
    """A contender written out, so that timing it adds no call: for work as short as a call."""

    def __init__(self, text: str, **names: Any) -> None:
        self.text, self.names, self.code = text, names, compile(text, "<row>", "eval")

    def __call__(self) -> Any:
        return eval(self.code, self.names)


Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A piece of work. make: new data, and for each contender what builds its call; a contender may need what is not
    installed, so nothing is built that is not asked for."""
    group: str
    name: str
    make: Callable[[], dict[str, Callable[[], Call]]]
    flops: float = 0
    nbytes: float = 0                # read and written besides products
    held: float = 0                  # bytes of all arrays, if some are touched more than once
    dtype: str = "float32"
    gate: str = ""                   # of GATES, the ones that it counts for
    rtol: float = 1e-5               # of the largest element: how far results may lie apart; ours never more than 1e-5
    calls: int = 1                   # that are compared: more than one, if a call changes the state that the next sees
    quick: bool = True
    threads: bool = False            # also a subject of --threads

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Contender:
    call: Call
    on: Callable[[], AbstractContextManager] = nullcontext

    def results(self, count: int) -> list[np.ndarray]:
        """What the first calls give, copied: the next may overwrite it."""
        with self.on():
            return [a for _ in range(count) for a in _arrays(self.call())]

    def timer(self, clock: Callable[[], float]) -> Callable[[int], float]:
        """Seconds of so many calls."""
        f = self.call
        text, names = (f.text, f.names) if isinstance(f, Expression) else ("f()", {"f": f})
        return Timer(text, timer=clock, globals=names).timeit


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, (tuple, list)):
        for v in value:
            yield from _arrays(v)
    else:
        yield np.array(value.detach() if hasattr(value, "detach") else value)


@cache
def load(peer: str) -> Any:
    """A peer, on one thread."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")            # or its compilers stay
    if peer == "jax":
        one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one}".strip()
    module = import_module(peer)
    if peer == "jax":
        module.config.update("jax_platforms", "cpu")
        module.config.update("jax_cpu_enable_async_dispatch", False)       # or each call waits for another thread
    elif peer == "torch":
        module.set_num_threads(1)
    return module


def installed() -> list[str]:
    """Peers that are here; torch.compile needs a C++ compiler too."""
    return [peer for peer in PEERS if find_spec(peer.partition(".")[0]) and (peer != "torch.compile" or which("g++"))]


def contenders(row: Row, peers: Iterable[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """Who can do a row's work and gives the reference's result, and why the others do not.

    Raises FloatingPointError if it is pyneuro that gives another.
    """
    kinds = row.make()
    definition = Contender(kinds.get(DEFINITION, kinds[OURS])(), partial(pn.backend, pn.kernels.Reference()))
    want = definition.results(row.calls)
    found, left_out = {}, {}
    for name in (OURS, *(p for p in (STEPS, *peers) if p in kinds)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contender = Contender(kinds[name]())
                problem = _difference(contender.results(row.calls), want, min(row.rtol, 1e-5) if name == OURS else row.rtol)
        except Exception as error:             # of a peer, whatever it is: its version may not know what is asked of it
            if name == OURS:
                raise
            problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not problem:
            found[name] = contender
        elif name == OURS:
            raise FloatingPointError(f"{row}: pyneuro on {pn.current_backend().name} {problem}")
        else:
            left_out[name] = problem
    if pn.current_backend().name != DEFINITION:
        found[DEFINITION] = definition
    return found, left_out


def _difference(got: list[np.ndarray], want: list[np.ndarray], rtol: float) -> str:
    if [a.shape for a in got] != [a.shape for a in want]:
        return "gives results of other shapes than the reference"
    with np.errstate(all="ignore"):
        worst = max(float(np.max(np.abs(a - b) / np.max(np.abs(b)))) if np.any(a != b) else 0.0 for a, b in zip(got, want))
    return "" if worst <= rtol else f"differs from the reference by {worst:.1e} of the largest element"


# ---------------------------------------------------------------------------------------------------------------- timing

@dataclass(frozen=True)
class Effort:
    name: str
    rounds: int                      # at least
    seconds: float                   # of a row, if that takes more rounds, but at most ten times as many; of ten times
                                     # these, five rounds are enough
    batch: float                     # seconds of a contender's calls in a round, at least one call
    without: tuple[str, ...] = ()    # peers that would take longer to get ready than to time


# Batches shorter than 4 ms tell how long it takes to find its code in no cache, up to half as long again for some peers.
QUICK, FULL = Effort("quick", 5, 0.05, 4e-3, ("torch.compile",)), Effort("full", 15, 1.0, 1e-2)


def measure(given: dict[str, Contender], effort: Effort, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds a call of every contender, round by round."""
    names, timers = list(given), {name: c.timer(clock) for name, c in given.items()}
    counts, times, spent = dict.fromkeys(names, 1), {name: list[float]() for name in names}, 0.0

    def seconds(name: str, count: int) -> float:
        with given[name].on():
            return timers[name](count)

    gc.collect()
    gc.disable()                                                       # also between the batches
    try:
        for name in names:
            while (first := seconds(name, counts[name])) < effort.batch / 4:
                counts[name] *= 2
            counts[name] = max(1, round(counts[name] * effort.batch / first))
        for turn in range(10 * effort.rounds):
            if spent > effort.seconds and turn >= (effort.rounds if spent < 10 * effort.seconds else min(5, effort.rounds)):
                break
            for name in names[turn % len(names):] + names[:turn % len(names)]:
                seconds(name, counts[name] // 4 or counts[name] > 1)   # its data and code back into the caches
                times[name].append(seconds(name, counts[name]) / counts[name])
                spent += times[name][-1] * counts[name]
    finally:
        gc.enable()
    return times


def best(f: Call, seconds: float = 0.02, tries: int = 5) -> float:
    """The shortest time of f, of at least so many tries and so many seconds of them."""
    timer, times = Timer("f()", globals={"f": f}), [math.inf]
    while len(times) <= tries or sum(times[1:]) < seconds:
        times.append(timer.timeit(1))
    return min(times)


def copy_bandwidth(nbytes: float) -> float:
    """Bytes a second, read and written together, that NumPy copies when a copy touches about nbytes in all."""
    return _copy_bandwidth(max(48, round(4 * math.log2(nbytes))))


@cache
def _copy_bandwidth(quarters: int) -> float:
    n, shift, page = round(2 ** (quarters / 4) / 16), 8, 512                   # in elements of 8 bytes
    rows = max(1, min(64, (1 << 21) // n))
    size = -(-(n + rows * shift) // page) * page
    memory = np.ones(2 * size + 2 * page)
    first = -memory.ctypes.data % 4096 // 8
    times = []
    for apart in (0, 64, 256):                         # which is best, the processor knows: addresses may be too much alike
        source, target = memory[first:first + size], memory[first + size + apart:][:size]
        # One call copies `rows` overlapping windows, 64 bytes apart: the cost of calling NumPy is not in the bandwidth.
        to, of = (as_strided(a, (rows, n), (shift * 8, 8)) for a in (target, source))
        times.append(best(partial(np.copyto, to, of)))
    return 2 * rows * n * 8 / min(times)


@cache
def flop_rate(dtype: str) -> float:
    """Operations a second of the best product here, of operands that stay in the L2 cache, by NumPy's BLAS or by pyneuro."""
    rates = []
    for m, k, n in (96, 256, 96), (128, 128, 128), (192, 256, 192), (256, 256, 256):
        a, b, c = np.ones((m, k), dtype), np.ones((k, n), dtype), np.empty((m, n), dtype)
        for product in partial(np.matmul, a, b, out=c), partial(pn.kernels.run, "matmul", a, b, c):
            rates.append(2 * m * k * n / best(product, seconds=0.05))
    return max(rates)
