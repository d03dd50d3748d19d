#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The error of the elementary functions for every float32 there is: `python .ci/sweep.py [--isa ISA] [function ...]`.

Five to ten minutes a function, on one core. pow has two operands: of it a grid, one positive base of 2^density, with
powers all over the range of results. Status 1 if a bound of tests/test_vmath.py, which says what an error is, does not hold.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import test_vmath as vmath  # noqa: E402  what an error is

from pyneuro.kernels import isas  # noqa: E402

BLOCK = 1 << 20
LAST = {"erf": 0x40866666}                                 # the bits of 4.2: erf is 1 from here on


def blocks(function, density):
    """Operands: every float32, or for pow some of the positive ones."""
    if function == "pow":
        rng = np.random.default_rng(0)
        for start in range(0, 0x7F800000, BLOCK << density):
            x = np.arange(start, min(start + (BLOCK << density), 0x7F800000), 1 << density, np.int64)
            x = (x + rng.integers(0, 1 << density, len(x))).astype(np.uint32).view(np.float32)
            with np.errstate(all="ignore"):
                y = rng.uniform(-1, 1, len(x)) * 90 / np.abs(np.log(x.astype(float)))
            yield x, np.clip(np.nan_to_num(y), -1e30, 1e30).astype(np.float32)
        return
    for sign in (0, 1 << 31):
        for start in range(0, 1 << 31, BLOCK):
            x = np.arange(sign + start, sign + start + BLOCK, dtype=np.uint32).view(np.float32)
            if start > LAST.get(function, 1 << 31):        # the definition of erf is slow
                x = x[::64].copy()
            yield x,


def sweep(function, isa, density):
    """Print the largest and the mean error, and where the largest is; return whether the bound holds."""
    largest, total, count, where = -1.0, 0.0, 0, ()
    start = time.perf_counter()
    for operands in blocks(function, density):
        for x in operands:
            x[np.isnan(x)] = np.nan
        error = vmath.ulps(function, vmath.evaluated(f"native:{isa}", function, *operands), *operands)
        total, count, worst = total + error.sum(), count + len(error), error.argmax()
        if error[worst] > largest:
            largest, where = error[worst], tuple(x[worst].item() for x in operands)
    print(f"{function:<9}{isa:<9}max {largest:.4f} ulp at {', '.join(map(repr, where))}; mean {total / count:.4f}; "
          f"{count} numbers, {time.perf_counter() - start:.0f} s", flush=True)
    return largest <= vmath.ULPS[function]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("functions", nargs="*", metavar="function", help=f"of {', '.join(vmath.ULPS)}; all if none is given")
    parser.add_argument("--isa", choices=isas(), action="append", help="the best one if none is given")
    parser.add_argument("--density", type=int, default=4, help="of pow: one base of 2^DENSITY (default %(default)s)")
    given = parser.parse_args()
    unknown = set(given.functions) - vmath.ULPS.keys()
    if unknown:
        parser.error(f"no such function: {', '.join(sorted(unknown))}; choose from {', '.join(vmath.ULPS)}")
    held = [sweep(function, isa, given.density)
            for isa in given.isa or isas()[:1] for function in given.functions or vmath.ULPS]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
