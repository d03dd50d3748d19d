# SPDX-License-Identifier: BSD-3-Clause
"""Recorded calls as a list, and what makes a shorter list of the same meaning, bit for bit.

A pass takes the calls, and what must outlive them, and returns calls. PASSES names them in the order in which they run.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from .kernels.signature import KERNELS, Spec, element_dtype, spec_for


class Call(NamedTuple):
    """One kernel call: its operands by slot, and its attrs."""
    kernel: str
    bufs: tuple[np.ndarray, ...]
    attrs: tuple[float, ...]

    @property
    def spec(self) -> Spec:
        return spec_for(self.kernel, element_dtype(self.kernel, self.bufs))

    def operands(self, written: bool) -> list[np.ndarray]:
        """Those that are written, or those that are read."""
        return [b for s, b in zip(self.spec.slots, self.bufs) if (s.written if written else s.read)]

    def extents(self) -> dict[str, int]:
        pairs = [pair for s, b in zip(self.spec.slots, self.bufs) for pair in zip(s.axes, b.shape)]
        return {a: n for a, n in pairs if isinstance(a, str) and a != "..."}

    @property
    def flops(self) -> int:
        """Of a product: two for each pair of numbers. 0 for other kernels."""
        spec, extents = self.spec, self.extents()
        return 2 * math.prod(extents[a] for a in spec.walked) if spec.sums and not spec.map else 0

    @property
    def nbytes(self) -> int:
        """Of memory that it reads and writes; of a table that an index chooses from, nothing."""
        chosen = {s.within for s in self.spec.slots} - {""}
        return sum(b.nbytes * (1 + (s.read and s.written)) for s, b in zip(self.spec.slots, self.bufs) if not chosen & set(s.axes))


def root_of(array: np.ndarray) -> np.ndarray:
    """The array whose memory this one is a view of."""
    while type(array.base) is np.ndarray:
        array = array.base
    return array


def start_of(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class Span(NamedTuple):
    """Memory of an operand."""
    root: int
    low: int
    high: int

    @classmethod
    def of(cls, array: np.ndarray) -> "Span":
        low = high = start_of(array)
        for n, step in zip(array.shape, array.strides):
            low, high = (low + (n - 1) * step, high) if step < 0 else (low, high + (n - 1) * step)
        return cls(id(root_of(array)), low, high + array.itemsize if array.size else low)

    def meets(self, other: "Span") -> bool:
        return self.low < other.high and other.low < self.high


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (start_of(a) == start_of(b) and a.shape == b.shape and a.strides == b.strides and a.dtype == b.dtype)


def without_dead(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """Drop calls that only write private memory that nobody reads afterwards."""
    kept: list[Call] = []
    wanted: list[Span] = []
    for call in reversed(calls):
        written = call.operands(True)
        if written and all(private(root_of(b)) and not any(Span.of(b).meets(w) for w in wanted) for b in written):
            continue
        kept.append(call)
        wanted += [Span.of(b) for b in call.operands(False)]
    return kept[::-1]


def with_activations(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """dense_identity and then an activation: one dense layer that ends in it."""
    out = list(calls)
    i = 0
    while i < len(out):
        call = out[i]
        found = _activated(out, i, private) if call.kernel == "dense_identity" else None
        if found is not None:
            at, fused = found
            out[i] = fused
            del out[at]
        i += 1
    return out


def _activated(calls: list[Call], i: int, private: Callable[[np.ndarray], bool]) -> tuple[int, Call] | None:
    x, w, b, y = calls[i].bufs
    for at in range(i + 1, len(calls)):
        call = calls[at]
        kernel = KERNELS.get(f"dense_{call.kernel}")
        if kernel is not None and len(call.bufs) == 2 and _flat_same(call.bufs[0], y):
            z = call.bufs[1].reshape(y.shape) if call.bufs[1].flags.c_contiguous else None
            if z is None or not private(root_of(y)) or Span.of(z).meets(Span.of(y)):
                return None
            if any(Span.of(o).meets(Span.of(z)) for between in calls[i:at] for o in between.bufs):
                return None
            keeps = kernel.slots[3].name == "z"
            if not keeps and _read_later(calls, i, at, y):
                return None
            return at, Call(f"dense_{call.kernel}", (x, w, b, y, z) if keeps else (x, w, b, z), call.attrs)
        # Only what has nothing to do with these operands may come between.
        spans = [Span.of(a) for a in (x, w, b, y)]
        if any(Span.of(o).meets(s) for o in call.operands(True) for s in spans):
            return None
        if any(Span.of(o).meets(spans[3]) for o in call.operands(False)):
            return None
    return None


def _flat_same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.size == b.size and a.flags.c_contiguous and b.flags.c_contiguous and start_of(a) == start_of(b) and a.dtype == b.dtype


def _read_later(calls: list[Call], i: int, but: int, y: np.ndarray) -> bool:
    return any(Span.of(o).meets(Span.of(y)) for at in range(i + 1, len(calls)) if at != but for o in calls[at].operands(False))


PASSES: dict[str, Callable] = {"activations": with_activations, "dead": without_dead}


def shortened(calls: list[Call], private: Callable[[np.ndarray], bool], but: Iterable[str] = ()) -> list[Call]:
    """The calls after every pass, but for those named."""
    for name, apply in PASSES.items():
        if name not in but:
            calls = apply(calls, private)
    return calls
