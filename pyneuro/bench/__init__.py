# SPDX-License-Identifier: BSD-3-Clause
"""The shipped benchmarks: rows of work, each by pyneuro and by whichever peers are installed, and the gates that they are
held to. `pyneuro bench` runs them; pytest's suites in bench/ are made of the same rows. No import of pyneuro imports this.
"""
from .rows import ROWS
from .run import Run, choose
from .timing import FULL, QUICK

__all__ = ["FULL", "QUICK", "ROWS", "Run", "choose"]
