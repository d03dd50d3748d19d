# SPDX-License-Identifier: BSD-3-Clause
"""`python -m pyneuro` is the console script `pyneuro`."""
import sys

from .cli import program

if __name__ == "__main__":
    sys.exit(program())
