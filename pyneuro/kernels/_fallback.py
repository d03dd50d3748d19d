# SPDX-License-Identifier: BSD-3-Clause
"""What stands in for the compiled binding where there is none: no native backend, and a tensor without buffer protocol."""

import weakref
from functools import partial
from typing import Any

import numpy as np

from . import threads

broadcast = np.broadcast_to


class _Lent:
    """What an array is made of that does not show where its memory comes from: its `base`."""

    recorder: Any = None

    def __init__(self, array: np.ndarray, interface: dict) -> None:
        self.array, self.__array_interface__ = array, interface


_recorders = 0
_chosen: Any = None
_process: Any = None


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    array = np.empty(shape, dtype)
    if not _recorders:
        return array
    lent = _Lent(array, array.__array_interface__)
    lent.recorder = _chosen.get()
    return np.asarray(lent)


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


class Runnable:
    """Recorded calls, whose arguments and results are bound before each run."""

    silent: bool

    def moved(self, tensors: Any) -> bool:
        return True


class Program(Runnable):
    def __init__(self, backend: Any, calls: list, places: list, roots: int, arena_bytes: int, arguments: int) -> None:
        raise RuntimeError("pyneuro's native kernels are not built here")

    def bind(self, root: int, array: np.ndarray) -> None: ...
    def run(self, first: int, last: int) -> None: ...
    def loop(self, last: int, times: int, moving: list) -> None: ...
    def clashes(self, tensors: Any) -> Any: ...


class Looks:
    """Where to look, and what stood there: see the compiled one."""

    def __init__(self, looks: list, missing: Any) -> None:
        self.looks, self.missing = looks, missing
        self.stood = [(True,) if look[0] == "array" else (look[-1],) if look[0] in ("item", "cell", "grad") else self._now(look)
                      for look in looks]

    def _now(self, look: tuple) -> tuple:
        kind, where = look[:2]
        if kind == "item":
            return (where.get(look[2], self.missing),)
        if kind == "keys":
            return tuple(where)
        if kind == "length":
            return (len(where),)
        if kind == "tensor":
            return where.array, where._hooks, where.needs_grad
        if kind == "body":
            return where.__code__, where.__defaults__, where.__kwdefaults__
        if kind == "array":
            kept = look[2]
            return (where.dtype is kept.dtype and where.shape == kept.shape and where.tobytes() == kept.tobytes(),)
        if kind == "grad":
            return (None if where._grad is None else where._grad.array,)
        try:
            return (where.cell_contents,)
        except ValueError:                       # empty
            return (self.missing,)

    def changed(self, start: int) -> int:
        """The first from `start` on where something else stands now; -1 if there is none."""
        for i in range(start, len(self.looks)):
            now, stood = self._now(self.looks[i]), self.stood[i]
            by_value = self.looks[i][0] == "length"
            if len(now) != len(stood) or any(a != b if by_value else a is not b for a, b in zip(now, stood)):
                return i
        return -1


class Effects:
    """What else a run does to tensors: see the compiled one."""

    def __init__(self, gradients: list, versions: list) -> None:
        self.gradients, self.versions = gradients, versions

    def happen(self) -> None:
        for tensor, gradient in self.gradients:
            tensor._grad = gradient
        for storage, more in self.versions:
            storage.version += more


def alias(array: np.ndarray) -> np.ndarray:
    """The same elements as an array that does not show where they come from."""
    return np.asarray(_Lent(array, array.__array_interface__))


def alias_at(root: np.ndarray, like: np.ndarray, offset: int) -> np.ndarray:
    """The elements of root's memory from `offset` bytes on, laid out as `like`."""
    start, fixed = root.__array_interface__["data"]
    return np.asarray(_Lent(root, {**like.__array_interface__, "data": (start + offset, fixed)}))


def renew(arrays: list[np.ndarray], layouts: list[np.ndarray]) -> None:
    """Let there be an array like each layout, uninitialised, that nobody has."""
    arrays[:] = [empty(layout.shape, layout.dtype) for layout in layouts]


def same_layout(array: np.ndarray, like: np.ndarray) -> bool:
    """Whether two arrays have the same shape, strides and element type, and both may be written or neither."""
    return (array.dtype == like.dtype and array.shape == like.shape and array.strides == like.strides
            and array.flags.writeable == like.flags.writeable)


def recording(change: int) -> None:
    global _recorders
    _recorders += change


def recorder_of(array: np.ndarray) -> Any:
    return getattr(array.base, "recorder", None)


def follow(variable: Any, backend: Any) -> None:
    global _chosen, _process
    _chosen, _process = variable, backend


def value_of(variable: Any) -> Any:
    """What a ContextVar is in this thread."""
    return variable.get()


def exchange(variable: Any, value: Any) -> Any:
    """Let a ContextVar be that in this thread. What it was."""
    before = variable.get()
    variable.set(value)
    return before


def current_backend() -> Any:
    """The backend of this thread: the innermost `with backend(...)`, else the process's."""
    return _chosen.get() or _process


def quick(kernel: str, x: Any, y: Any, attrs: tuple[float, ...]) -> Any:
    """None: nothing is quick here."""
    return None


def quick_tensor(kernel: str, x: Any, y: Any, attrs: tuple = ()) -> Any:
    return None


def quick_fold(kernel: str, x: np.ndarray, dims: tuple[int, ...], keepdim: bool, attrs: tuple[float, ...]) -> Any:
    return None


def quick_matmul(x: Any, y: Any) -> Any:
    return None


def fresh(array: Any) -> Any:
    """A tensor around an array that is nobody else's."""
    t = object.__new__(TensorBase.kind)
    t.array, t.storage = array, Storage()
    made = getattr(_chosen.get(), "made", None) if _recorders else None
    if made is not None:
        made.append(weakref.ref(t))
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
