# SPDX-License-Identifier: BSD-3-Clause
"""What stands in for the compiled binding where there is none: no native backend, and a tensor without buffer protocol."""

from typing import Any

import numpy as np

from . import threads

empty = np.empty


def isas() -> list[str]:
    return []


def get_num_threads() -> int:
    return 1


def set_num_threads(n: int) -> None:
    threads.checked(n)                   # NumPy's own are not ours to set


def build_info() -> dict[str, Any]:
    return {"compiled": False}


class Native:
    def __init__(self, isa: str | None = None) -> None:
        raise RuntimeError("pyneuro's native kernels are not built here; the 'reference' backend is")


class TensorBase:
    """The fields of a tensor; _native.pyx has the same ones in C."""

    array: Any
    storage: Any
    node: Any = None
    needs_grad: bool = False
    _grad: Any = None
    _hooks: Any = None
