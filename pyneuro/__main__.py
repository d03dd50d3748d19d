# SPDX-License-Identifier: BSD-3-Clause
"""`python -m pyneuro` is the console script `pyneuro`."""
import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
