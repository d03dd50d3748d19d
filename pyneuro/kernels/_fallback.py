# SPDX-License-Identifier: BSD-3-Clause
"""What stands in for the compiled binding where there is none: no native backend, and a tensor without buffer protocol."""

from functools import partial
from typing import Any

import numpy as np

from . import threads

empty = np.empty
broadcast = np.broadcast_to


def owned(array: np.ndarray) -> bool:
    """Whether no other array can share its memory."""
    return array.base is None


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

    def run_all(self, kernel: str, calls: list[tuple[np.ndarray, ...]]) -> None: ...


def follow(variable: Any, backend: Any) -> None:
    pass


def quick(kernel: str, x: Any, y: Any, attrs: tuple[float, ...]) -> Any:
    """None: nothing is quick here."""
    return None


def quick_tensor(kernel: str, x: Any, y: Any) -> Any:
    return None


def quick_fold(kernel: str, x: np.ndarray, dims: tuple[int, ...], keepdim: bool, attrs: tuple[float, ...]) -> Any:
    return None


def quick_matmul(x: Any, y: Any) -> Any:
    return None


def fresh(array: Any) -> Any:
    """A tensor around an array that is nobody else's."""
    t = object.__new__(TensorBase.kind)
    t.array, t.storage = array, Storage()
    return t


def serve(kind: Any, arithmetic: Any, matmul: Any) -> None:
    """What tensor.py has for this file: its class, arithmetic(name, x, y) for x + y and its like, matmul(x, y)."""
    functions = {op: partial(arithmetic, op) for op in ("add", "sub", "mul", "div")}
    functions["truediv"], functions["matmul"] = functions.pop("div"), matmul
    for name, function in functions.items():
        setattr(TensorBase, f"__{name}__", lambda self, other, f=function: f(self, other))
        setattr(TensorBase, f"__r{name}__", lambda self, other, f=function: f(other, self))
    TensorBase.kind = kind


class Storage:
    """What tensors that share memory share: how often it was written, and how often in-place ops rewrote its graph."""

    version = 0
    rewrites = 0


class TensorBase:
    """The fields of a tensor; _native.pyx has the same ones in C."""

    kind: Any
    array: Any
    storage: Any
    _base: Any = None  # of a view made while recording: the tensor that owns the memory
    _seen = 0
    node: Any = None
    needs_grad: bool = False
    _grad: Any = None
    _hooks: Any = None
