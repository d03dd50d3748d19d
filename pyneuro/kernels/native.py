# SPDX-License-Identifier: BSD-3-Clause
"""Every kernel in C, as a plain function on NumPy arrays: the same names and signatures as `pyneuro.kernels.reference`."""
from . import make_backend
from .reference import DEFINITIONS
from .twins import twins

globals().update(twins(make_backend("native").run, DEFINITIONS))
