# SPDX-License-Identifier: BSD-3-Clause
"""Contenders at one piece of work: whether they agree, how long they take, in turn, and what the machine can do."""
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from timeit import Timer
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

import pyneuro as pn

OURS, DEFINITION = "pyneuro", "reference"             # pyneuro as it runs here; its NumPy backend, which is what is right
PEERS = ("numpy", "torch", "jax", "onnxruntime", "sklearn")
METHOD = ("one process, one thread, one processor; in each round every contender runs one batch of calls, one after the other, "
          "the order rotated by one from round to round; wall clock without garbage collection. Times are medians over the "
          "rounds, ratios medians of the rounds' ratios, peer / pyneuro. Before they are timed, results are asserted equal to "
          "the reference's")


# -------------------------------------------------------------------------------------------------- what can be compared

class Expression:
    """A contender written out, so that timing it adds no call: for work as short as a call."""

    def __init__(self, text: str, **names: Any) -> None:
        self.text, self.names = text, names

    def __call__(self) -> Any:
        return eval(self.text, self.names)


Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A piece of work. make: new data, and for each contender what builds its call; a contender may need what is not
    installed, so nothing is built that is not asked for."""
    group: str
    name: str
    make: Callable[[], dict[str, Callable[[], Call]]]
    flops: float = 0
    nbytes: float = 0                # read and written, where no product is: its peak is then a copy's
    dtype: str = "float32"
    gate: str = ""                   # of GATES, the ones that it counts for
    rtol: float = 1e-5               # of the largest element: how far results may lie apart
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

    def timer(self) -> Callable[[int], float]:
        """Seconds of so many calls."""
        f = self.call
        return (Timer(f.text, globals=f.names) if isinstance(f, Expression) else Timer("f()", globals={"f": f})).timeit


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, (tuple, list)):
        for v in value:
            yield from _arrays(v)
    else:
        yield np.array(value.detach() if hasattr(value, "detach") else value)


@cache
def load(peer: str) -> Any:
    """A peer, on one thread."""
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
    return [peer for peer in PEERS if find_spec(peer)]


def contenders(row: Row, peers: Iterable[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """Who can do a row's work and gives the reference's result, and why the others do not.

    Raises FloatingPointError if it is pyneuro that gives another.
    """
    kinds = row.make()
    definition = Contender(kinds[OURS](), partial(pn.backend, pn.kernels.Reference()))
    want = definition.results(row.calls)
    found, left_out = {}, {}
    for name in (OURS, *(p for p in peers if p in kinds)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contender = Contender(kinds[name]())
                problem = _difference(contender.results(row.calls), want, row.rtol)
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
    seconds: float                   # of a row, if that takes more rounds, but at most ten times as many
    batch: float                     # seconds of a contender's calls in a round, at least one call


QUICK, FULL = Effort("quick", 7, 0.06, 2e-4), Effort("full", 15, 0.8, 1e-3)


def measure(given: dict[str, Contender], effort: Effort) -> dict[str, list[float]]:
    """Seconds a call of every contender, round by round."""
    names, timers = list(given), {name: c.timer() for name, c in given.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    counts, spent = {}, 0.0
    for name, contender in given.items():
        with contender.on():
            count, seconds = 1, timers[name](1)
            while seconds < effort.batch / 4:
                count *= 2
                seconds = timers[name](count)
            counts[name] = max(1, round(count * effort.batch / seconds))
    for turn in range(10 * effort.rounds):
        if turn >= effort.rounds and spent > effort.seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            with given[name].on():
                if counts[name] > 1:
                    timers[name](1)                                    # its data back into the caches
                seconds = timers[name](counts[name])
            times[name].append(seconds / counts[name])
            spent += seconds
    return times


def best(f: Call, seconds: float = 0.02, tries: int = 5) -> float:
    """The shortest time of f, of at least so many tries and so many seconds of them."""
    timer, times = Timer("f()", globals={"f": f}), [math.inf]
    while len(times) <= tries or sum(times[1:]) < seconds:
        times.append(timer.timeit(1))
    return min(times)


def copy_bandwidth(nbytes: float) -> float:
    """Bytes a second, read and written together, that NumPy copies when a copy touches about nbytes in all."""
    return _copy_bandwidth(max(12, round(math.log2(nbytes))))


@cache
def _copy_bandwidth(bits: int) -> float:
    n, shift = (1 << bits) // 8 // 2, 8
    rows = max(1, min(64, (1 << 25) >> bits))
    source, target = np.ones(n + rows * shift), np.zeros(n + rows * shift)
    # One call copies `rows` overlapping windows, 64 bytes apart: the cost of calling NumPy is not in the bandwidth.
    to, of = (as_strided(a, (rows, n), (shift * a.itemsize, a.itemsize)) for a in (target, source))
    return 2 * rows * n * source.itemsize / best(lambda: np.copyto(to, of))


@cache
def flop_rate(dtype: str) -> float:
    """Operations a second of the best product here, of operands that stay in the L2 cache, by NumPy's BLAS or by pyneuro."""
    rates = []
    for m, k, n in (96, 256, 96), (128, 128, 128), (192, 256, 192), (256, 256, 256):
        a, b, c = np.ones((m, k), dtype), np.ones((k, n), dtype), np.empty((m, n), dtype)
        for product in partial(np.matmul, a, b, out=c), partial(pn.kernels.run, "matmul", a, b, c):
            rates.append(2 * m * k * n / best(product, seconds=0.05))
    return max(rates)
