# SPDX-License-Identifier: BSD-3-Clause
"""What times say: ratios and shares, the gates that they are held to, and both as cells of a table."""
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .rows import DOUBLE, LARGE, MIDDLE, PLANS, ROWS, SMALL, named
from .timing import DEFINITION, OURS, STEPS, Row, copy_bandwidth, flop_rate


@dataclass(frozen=True, eq=False)
class Result:
    row: Row
    times: dict[str, list[float]]    # seconds a call, by contender and round
    left_out: dict[str, str] = field(default_factory=dict)

    def median(self, name: str = OURS) -> float:
        return statistics.median(self.times[name])

    def ratios(self, name: str) -> list[float]:
        return [peer / ours for peer, ours in zip(self.times[name], self.times[OURS])]

    def ratio(self, name: str) -> float:
        return statistics.median(self.ratios(name))

    @property
    def rate(self) -> float:
        """Floating-point operations a second, or bytes."""
        return (self.row.flops or self.row.nbytes) / self.median()

    @property
    def floor(self) -> float:
        """Seconds that it takes at the least: its products at their measured peak, and a copy of its other bytes."""
        row = self.row
        return (row.flops / flop_rate(row.dtype) if row.flops else 0) + (
            row.nbytes / copy_bandwidth(row.held or row.nbytes) if row.nbytes else 0)

    @property
    def share(self) -> float | None:
        """Of the peak: the floor in parts of the time it takes."""
        return self.floor / self.median() or None


@dataclass(frozen=True)
class Gate:
    """How much faster than the best of some peers its rows have to be: by `of` all ratios, and each."""
    work: str
    rows: str
    against: tuple[str, ...]
    least: float
    of: Callable[[Iterable[float]], float] = min
    each: float = 0
    or_share: float = math.inf       # of the peak: who reaches it need not reach `each`

    def judge(self, results: list[Result], binding: bool) -> dict[str, Any]:
        """measured: the ratio, or None; met: also None where the machine has no ISA that gates are for."""
        ratios = {}
        for r in results:
            if r.row.gate == self.rows and (known := [r.ratio(peer) for peer in self.against if peer in r.times]):
                ratios[r] = min(known)
        measured = self.of(ratios.values()) if ratios else None
        short = [r for r, ratio in ratios.items() if ratio < self.each and (r.share or 0) < self.or_share]
        worst = min(ratios, key=ratios.__getitem__, default=None)
        return {"work": self.work, "against": list(self.against), "statistic": WORDS[self.of], "at_least": self.least,
                "each_at_least": self.each or None, "or_share_of_peak": self.or_share if self.each < self.or_share < 9 else None,
                "measured": measured, "met": measured >= self.least and not short if measured and binding else None,
                "lowest": ratios[worst] if worst else None, "lowest_row": str(worst.row) if worst else None,
                "short": [f"{r.row}: {ratios[r]:.2f}" for r in short],
                "rows": len(ratios), "of_rows": sum(row.gate == self.rows for row in ROWS)}


WORDS = {min: "lowest", statistics.geometric_mean: "geometric mean", statistics.median: "median"}
BLAS, COMPILERS = ("numpy", "torch"), ("torch", "torch.compile", "jax")
GATES = [
    Gate(SMALL, SMALL, BLAS, 1.5, statistics.geometric_mean),
    Gate(MIDDLE, MIDDLE, BLAS, 1.0, statistics.geometric_mean),
    Gate(LARGE, LARGE, BLAS, 0.95, statistics.geometric_mean),
    Gate(DOUBLE, DOUBLE, BLAS, 1.0, statistics.geometric_mean),
    Gate("dense forward with relu, 32x128x784", "dense", ("torch",), 1.5),
    Gate("activations, forward, and forward and gradient", "activation", (DEFINITION,), 4, statistics.median, 1.5, 0.9),
    Gate("activations, forward, and forward and gradient", "activation", ("torch",), 1, statistics.median, 0.8),
    Gate("softmax cross-entropy, forward and gradient", "cross-entropy", ("torch",), 1.5),
    Gate("Adam", "Adam", ("torch",), 1.2),
    Gate("eager x + y and relu(x), no gradient", "eager", ("numpy",), 1),
    Gate("eager x + y and relu(x), no gradient", "eager", ("torch",), 3),
    Gate("eager training step 64-128-10, batch 32, Adam", "step", ("torch",), 2),
    *(Gate(f"compiled step {name}", name, *against) for sizes, batch, best, by_hand in PLANS
      for name in [named(sizes, batch)] for against in ((COMPILERS, best), (("numpy",), by_hand))),
    *(Gate("inference 784-128-64-10, batch 1", "inference", (peer,), least)
      for peer, least in (("torch", 8), ("onnxruntime", 2.5), ("numpy", 2))),
    Gate("an epoch by fit, and the sum of its steps", "epoch", (STEPS,), 1 / 1.15),
]


# Cells

def duration(seconds: float) -> str:
    scale, unit = (1e9, "ns") if seconds < 1e-5 else (1e6, "us") if seconds < 1e-3 else (1e3, "ms")
    value = seconds * scale
    return f"{value:.{0 if unit == 'ns' or value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def cells(r: Result, columns: list[str]) -> list[str]:
    """Name, time, rate, share, and of each column time and ratio."""
    unit = "GFLOP/s" if r.row.flops else "GB/s"
    return [r.row.name, duration(r.median()), f"{r.rate / 1e9:.1f} {unit}" if r.rate else "",
            f"{r.share:.0%}" if r.share else "",
            *(f"{duration(r.median(name))} {r.ratio(name):.2f}x" if name in r.times else "" for name in columns)]


def gate_cells(gate: dict[str, Any]) -> list[str]:
    rest = f", each {gate['each_at_least']:g}" if gate["each_at_least"] else ""
    rest += f" or {gate['or_share_of_peak']:g} of a copy" if gate["or_share_of_peak"] else ""
    some = "" if gate["rows"] == gate["of_rows"] else f", of {gate['rows']} of {gate['of_rows']} rows"
    verdict = {True: "met", False: "not met", None: "reported"}[gate["met"]] + some
    if gate["rows"] > 1:
        verdict += f"; lowest {gate['lowest']:.2f} ({gate['lowest_row']})"
    if gate["short"]:
        verdict += f"; {len(gate['short'])} too slow, see below"
    return [gate["work"], "best of " * (len(gate["against"]) > 1) + ", ".join(gate["against"]),
            f"{gate['at_least']:.3g} {gate['statistic']}{rest}",
            f"{gate['measured']:.2f}" if gate["rows"] else "", verdict if gate["rows"] else "not measured"]


def markdown(head: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
