# SPDX-License-Identifier: BSD-3-Clause
"""Recorded calls as a list, and what makes a shorter list of the same meaning, bit for bit.

A pass takes the calls, and what must outlive them, and returns calls. PASSES names them in the order in which they run.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from .kernels import alias_at
from .kernels.signature import KERNELS, Spec, element_dtype, same_steps, spec_for


class Call(NamedTuple):
    """One kernel call: its operands by slot, and its attrs. follows: the slot of what the call before it writes, if it is
    to be run on that part by part, as soon as a part is complete; else -1. rows: whether each of its rows needs nothing of
    the call before it, and those that that one goes on from, but the same row."""
    kernel: str
    bufs: tuple[np.ndarray, ...]
    attrs: tuple[float, ...]
    follows: int = -1
    rows: bool = False

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


_spans: dict[int, tuple] = {}            # while passes look at the same operands again and again: by id, the array and its span


class Span(NamedTuple):
    """Memory of an operand."""
    root: int
    low: int
    high: int

    @classmethod
    def of(cls, array: np.ndarray) -> "Span":
        if (known := _spans.get(id(array))) is not None:
            return known[1]
        low = high = start_of(array)
        if array.size:
            high += array.itemsize
            for n, step in zip(array.shape, array.strides):
                low, high = (low + (n - 1) * step, high) if step < 0 else (low, high + (n - 1) * step)
        return cls(id(root_of(array)), low, high)

    def meets(self, other: "Span") -> bool:
        return self.low < other.high and other.low < self.high


class Memory:
    """A union of spans, as the ends of disjoint ones in order: a question is a search, however many they are."""

    def __init__(self) -> None:
        self.lows: list[int] = []
        self.highs: list[int] = []

    def meets(self, span: Span) -> bool:
        at = bisect_right(self.highs, span.low)
        return at < len(self.lows) and self.lows[at] < span.high

    def add(self, span: Span) -> None:
        first, last = bisect_left(self.highs, span.low), bisect_right(self.lows, span.high)
        touched = slice(first, last)
        low, high = min([span.low, *self.lows[touched]]), max([span.high, *self.highs[touched]])
        self.lows[touched], self.highs[touched] = [low], [high]


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (start_of(a) == start_of(b) and same_steps(a, b))


def without_dead(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """Drop calls that only write private memory that nobody reads afterwards."""
    kept: list[Call] = []
    wanted = Memory()
    for call in reversed(calls):
        written = call.operands(True)
        if written and all(private(root_of(b)) and not wanted.meets(Span.of(b)) for b in written):
            continue
        kept.append(call)
        for b in call.operands(False):
            if b.size:
                wanted.add(Span.of(b))
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


def _disturbs(a: Call, b: Call) -> bool:
    """Whether it matters which of two calls comes first."""
    return any(Span.of(x).meets(Span.of(y))
               for one, other in ((a, b), (b, a)) for x in one.operands(True) for y in other.bufs)


def with_losses(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """cross_entropy and then its gradient: both at once, while the logits are in cache."""
    out = list(calls)
    for at in range(len(out) - 1, -1, -1):
        if out[at].kernel != "cross_entropy_grad":
            continue
        dloss, logits, labels, weight, lse, total, dlogits = out[at].bufs
        for i in range(at - 1, -1, -1):
            if out[i].kernel == "cross_entropy" and out[i].attrs == out[at].attrs and all(
                    map(_same_array, (out[i].bufs[k] for k in (0, 1, 2, 5, 6)), (logits, labels, weight, lse, total))):
                _, _, _, loss, losses, *_ = out[i].bufs
                both = (dloss, logits, labels, weight, loss, losses, lse, total, dlogits)
                if not any(_disturbs(out[i], c) for c in out[i + 1:at]) and not any(
                        Span.of(dloss).meets(Span.of(b)) for b in out[i].operands(True)):
                    out[at] = Call("cross_entropy_both", both, out[at].attrs)
                    del out[i]
                break
    return out


FEW = 64                  # bytes of a row that are less than a vector register, or all of one
BATCH = 4096              # bytes of all rows, of a batch that one thread works on


def by_columns(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """Few numbers to each row of a small batch, such as logits, lie column by column: products and losses, which take any strides,
    then have whole vectors where there would be parts of one to be transposed."""
    users: dict[int, list[np.ndarray]] = {}                    # by root, all that is used of it
    fixed: set[int] = set()                                    # roots that other calls use
    for call in calls:
        for b in call.bufs:
            users.setdefault(id(root_of(b)), []).append(b)
            if not _takes_columns(call):
                fixed.add(id(root_of(b)))
    turned: dict[int, np.ndarray] = {}                         # by root, how it lies
    for call in calls:
        for y in call.operands(True):
            root = root_of(y)
            if y.ndim == 2 and y.shape[1] > 1 and y.strides[0] <= FEW < y.itemsize * len(y) and y.nbytes <= BATCH and _whole(
                    y, root) and private(root) and id(root) not in fixed and all(_same_array(b, y) for b in users[id(root)]):
                turned[id(root)] = alias_at(root, np.empty(y.shape, y.dtype, "F"), 0)
    return [c._replace(bufs=tuple([turned.get(id(root_of(b)), b) for b in c.bufs])) for c in calls]


def _takes_columns(call: Call) -> bool:
    return call.kernel.startswith(("cross_entropy", "dense_", "matmul"))


def with_derivatives(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """A gradient's way back through a layer and then through its activation: the derivative comes right after the product,
    which runs it on each part that is complete, while that is in cache (pn_call.then)."""
    out: list[Call] = []
    products: dict[int, int] = {}                              # where each lies in `out`, by the address that it writes
    for call in calls:
        i = _product(call, out, products)
        if i is None or any(_disturbs(c, call) for c in out[i + 1:]):
            if call.kernel == "matmul":
                products[start_of(call.bufs[2])] = len(out)
            out.append(call)
        else:
            out.insert(i + 1, _following(call, out[i].bufs[2]))
            products = {start: at + (at > i) for start, at in products.items() if at != i}
    return out


def _following(call: Call, c: np.ndarray) -> Call:
    """A call that reads c, to be run part by part on what the call before it writes there."""
    return call._replace(follows=next(slot for slot, x in enumerate(call.bufs) if start_of(x) == start_of(c)))


def _product(call: Call, before: list[Call], products: dict[int, int]) -> int | None:
    """Which call writes what this one, a derivative, reads, if it could be run part by part."""
    if not call.kernel.endswith("_grad") or not call.spec.map:
        return None
    found = [products[start_of(x)] for x in call.operands(False) if start_of(x) in products]
    if not found:
        return None
    a, b, c = before[found[0]].bufs
    read = any(Span.of(y).meets(Span.of(x)) for y in call.operands(True) for x in (a, b))
    wide = all(x.flags.c_contiguous and x.dtype == c.dtype and x.size in (1, c.size) for x in (c, *call.bufs))
    return found[0] if wide and c.size > 1 and not read and any(_flat_same(x, c) for x in call.operands(False)) else None


def in_place(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """Elementwise calls write over what they read where nobody reads that again: less memory, that is in cache."""
    first: dict[int, int] = {}                                 # by root, the calls that use it
    last: dict[int, int] = {}
    for at, call in enumerate(calls):
        for root in map(root_of, call.bufs):
            first.setdefault(id(root), at)
            last[id(root)] = at
    home: dict[int, np.ndarray] = {}                           # by root, the one whose memory it shares
    for at, call in enumerate(calls):
        written = call.operands(True)
        if not call.spec.map or len(written) != 1 or any(s.written and s.read for s in call.spec.slots):
            continue
        y = written[0]
        root = root_of(y)
        if not _whole(y, root) or not private(root) or first[id(root)] != at:
            continue
        for x in call.operands(False):
            of = root_of(x)
            shared = home.get(id(of), of)
            if last[id(shared)] == at and x.dtype == y.dtype and x.shape == y.shape and _whole(x, of) and private(of) and all(
                    _same_array(b, x) for b in call.operands(False) if home.get(id(root_of(b)), root_of(b)) is shared):
                home[id(root)] = shared
                last[id(shared)] = last[id(root)]
                break
    return [c._replace(bufs=tuple([_moved(b, home.get(id(root_of(b)))) for b in c.bufs])) for c in calls]


def _whole(array: np.ndarray, root: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.nbytes == root.nbytes and start_of(array) == start_of(root)


def _moved(b: np.ndarray, to: np.ndarray | None) -> np.ndarray:
    """An array as it lies in its root, in the memory of another root."""
    return b if to is None else alias_at(to, b, start_of(b) - start_of(root_of(b)))


def by_rows(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """Products of the same batch, one after the other: a thread takes its rows through all of them, and waits for no one in
    between. Gradients of weights, which need all rows, move behind them."""
    out: list[Call] = []
    run: list[Call] = []                                       # products so far, and what follows each
    waiting: list[Call] = []                                   # what stood between them
    for unit in together(calls):
        product = unit[0]
        if run and _go_on(unit, run) and not any(_disturbs(c, call) for c in waiting for call in unit):
            run += [product._replace(rows=True), *unit[1:]]
        elif run and product.kernel == "dense_grad_w":
            waiting += unit
        else:
            out += run + waiting
            run, waiting = unit, []
    return out + run + waiting


def together(calls: list[Call]) -> list[list[Call]]:
    """Calls that may run at the same time, part by part."""
    units: list[list[Call]] = []
    for call in calls:
        if call.rows or call.follows >= 0:
            units[-1].append(call)
        else:
            units.append([call])
    return units


def _go_on(unit: list[Call], run: list[Call]) -> bool:
    rows = _rows(unit[0])
    return rows == _rows(run[0]) > 1 and all(
        _flat_same(a, b) and a.size % rows == 0
        for c in run for call in unit for one, other in ((c, call), (call, c))
        for a in one.operands(True) for b in other.bufs if Span.of(a).meets(Span.of(b)))


def _rows(call: Call) -> int:
    """Of a product with rows of its own, all contiguous, that are more than twice what they share; else 0."""
    if call.kernel != "matmul" and not (call.kernel.startswith("dense_") and call.spec.sums and call.kernel != "dense_grad_w"):
        return 0
    given, made = call.bufs[0], call.operands(True)
    return len(given) if 2 * call.bufs[1].nbytes < given.nbytes and all(b.flags.c_contiguous for b in (given, *made)) else 0


STREAM = 256 * 1024       # bytes of a gradient that, with all that its step reads and writes, do not stay in a core's cache


def with_optimizers(calls: list[Call], private: Callable[[np.ndarray], bool]) -> list[Call]:
    """The gradient of a layer's weights, and then what first becomes of it, as a rule an optimizer's step: side by side, so that
    the step is run on some rows at a time (pn_call.then): while they are in cache, and by the thread that worked them out. Small
    ones are better left where they are, as they stay in cache, and so does what they are made of."""
    out = list(calls)
    for i in range(len(out) - 1, -1, -1):
        gradient = out[i]
        if gradient.kernel != "dense_grad_w":
            continue
        dw = gradient.bufs[2]
        if dw.nbytes <= STREAM:
            continue
        at = next((j for j in range(i + 1, len(out)) if any(Span.of(b).meets(Span.of(dw)) for b in out[j].bufs)), None)
        if at is not None and _goes_by_rows(out[at], gradient) and not any(_disturbs(gradient, c) for c in out[i + 1:at]):
            out[i:at + 1] = [*out[i + 1:at], gradient, _following(out[at], dw)]
    return out


def _goes_by_rows(call: Call, gradient: Call) -> bool:
    """Whether a loop over numbers like those of a gradient needs no others of it than those at the same place."""
    dy, x, dw, db = gradient.bufs
    return call.spec.map and call.follows < 0 and not call.rows and len(dw) > 1 and all(
        _flat_same(b, dw) or not Span.of(b).meets(Span.of(dw)) for b in call.bufs) and all(
        b.shape == dw.shape and b.flags.c_contiguous for b, s in zip(call.bufs, call.spec.slots) if s.axes == ("...",)) and not any(
        Span.of(b).meets(Span.of(a)) for b in call.operands(True) for a in (dy, x, db))


PASSES: dict[str, Callable] = {"activations": with_activations, "losses": with_losses, "dead": without_dead,
                               "columns": by_columns, "in_place": in_place, "derivatives": with_derivatives, "rows": by_rows,
                               "optimizers": with_optimizers}
STRIDED = {"columns"}     # those that change strides: of NumPy's products they change the last bits as well


def shortened(calls: list[Call], private: Callable[[np.ndarray], bool], but: Iterable[str] = ()) -> list[Call]:
    """The calls after every pass, but for those named."""
    try:
        for name, apply in PASSES.items():
            if name not in but:
                _spans.update((id(b), (b, Span.of(b))) for call in calls for b in call.bufs)
                calls = apply(calls, private)
        return calls
    finally:
        _spans.clear()
