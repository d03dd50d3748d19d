# SPDX-License-Identifier: BSD-3-Clause
"""Backends made of backends: modes for finding faults, which no kernel and no op knows about."""

import atexit
import os
import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np

from .signature import describe, element_dtype, spec_for


class Checked:
    """Runs every call on two backends and compares every written buffer: names the first kernel that diverges.

    rtol, atol: None takes what suits the element type. Raises AssertionError with kernel, slot, index and distance in ulp.
    """

    def __init__(self, inner: Any, trusted: Any, rtol: float | None = None, atol: float | None = None) -> None:
        self.inner, self.trusted, self.rtol, self.atol = inner, trusted, rtol, atol
        self.name = f"checked({inner.name}, {trusted.name})"

    def run(self, kernel: str, bufs: tuple[np.ndarray, ...], attrs: tuple[float, ...] = ()) -> None:
        spec = spec_for(kernel, element_dtype(kernel, bufs))
        copies = {id(b): _flushed(np.array(b, order="K")) for b in bufs}
        expected = tuple(copies[id(b)] for b in bufs)
        self.inner.run(kernel, bufs, attrs)
        self.trusted.run(kernel, expected, attrs)
        for slot, got, want in zip(spec.slots, bufs, expected):
            if slot.written and got.dtype.kind == "f":
                self._compare(kernel, slot.name, got, want, bufs)
            elif slot.written and not np.array_equal(got, want):
                raise AssertionError(f"{kernel}: {slot.name} differs between {self.inner.name} and {self.trusted.name}")

    def _compare(self, kernel: str, slot: str, got: np.ndarray, want: np.ndarray, bufs: tuple[np.ndarray, ...]) -> None:
        fine = np.finfo(got.dtype)
        rtol = self.rtol if self.rtol is not None else float(fine.eps) * 256
        scale = float(np.max(np.abs(want), initial=0, where=np.isfinite(want)))
        # what native flushes to zero on the way may be this large at the end
        flushed = float(fine.tiny) * 1024
        atol = self.atol if self.atol is not None else max(float(fine.eps) * 256 * scale, flushed)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True))
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            a, b = float(got[at]), float(want[at])
            ulp = abs(a - b) / float(np.spacing(got.dtype.type(abs(b)))) if np.isfinite([a, b]).all() else float("nan")
            raise AssertionError(
                f"{kernel}: {slot}{list(at)} is {a!r} on {self.inner.name}, {b!r} on {self.trusted.name} "
                f"({ulp:.3g} ulp apart; {int(wrong.sum())} of {wrong.size} elements diverge); "
                f"given {', '.join(map(describe, bufs))}"
            )


def _flushed(b: np.ndarray) -> np.ndarray:
    """b with its denormals as 0: how kernels read it, unless PYNEURO_FTZ is 0."""
    if b.dtype.kind == "f" and os.environ.get("PYNEURO_FTZ", "1") != "0":
        b[np.abs(b) < np.finfo(b.dtype).tiny] = 0
    return b


class Traced:
    """Counts calls and seconds of every kernel. `print(traced)` shows them; report=True prints at exit, to standard error."""

    def __init__(self, inner: Any, report: bool = False) -> None:
        self.inner = inner
        self.name = f"traced({inner.name})"
        self.calls: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        if report:
            atexit.register(lambda: print(self, file=sys.stderr))

    def run(self, kernel: str, bufs: tuple[np.ndarray, ...], attrs: tuple[float, ...] = ()) -> None:
        start = time.perf_counter()
        self.inner.run(kernel, bufs, attrs)
        self.seconds[kernel] += time.perf_counter() - start
        self.calls[kernel] += 1

    def __str__(self) -> str:
        rows = sorted(self.seconds, key=self.seconds.__getitem__, reverse=True)
        lines = [f"{'kernel':<24}{'calls':>10}{'total ms':>12}{'us a call':>12}   {self.inner.name}"]
        lines += [
            f"{k:<24}{self.calls[k]:>10}{self.seconds[k] * 1e3:>12.3f}{self.seconds[k] / self.calls[k] * 1e6:>12.2f}"
            for k in rows
        ]
        return "\n".join(lines)
