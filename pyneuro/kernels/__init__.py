# SPDX-License-Identifier: BSD-3-Clause
"""The waist: `run(kernel, *buffers, attrs=())` on the current backend is the only thing that writes tensor bytes.

A backend is any object with a `name` and `run(kernel, buffers, attrs)`. `quick` and its like are `run` of the native backend for
small operands, allocation included, in one call from Python; they do nothing where another backend is the current one.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any, Protocol

import numpy as np

from .signature import DeviceError, DtypeError, LinAlgError, ShapeError

try:
    from ._native import (
        Effects,
        Looks,
        Native,
        Program,
        Runnable,
        Storage,
        TensorBase,
        alias,
        alias_at,
        broadcast,
        build_info,
        current_backend,
        empty,
        exchange,
        follow,
        fresh,
        get_num_threads,
        isas,
        owned,
        quick,
        quick_fold,
        quick_matmul,
        quick_tensor,
        recorder_of,
        recording,
        renew,
        same_layout,
        serve,
        set_num_threads,
        value_of,
    )
except ModuleNotFoundError:  # built without a C compiler
    from ._fallback import (  # type: ignore[assignment]
        Effects,
        Looks,
        Native,
        Program,
        Runnable,
        Storage,
        TensorBase,
        alias,
        alias_at,
        broadcast,
        build_info,
        current_backend,
        empty,
        exchange,
        follow,
        fresh,
        get_num_threads,
        isas,
        owned,
        quick,
        quick_fold,
        quick_matmul,
        quick_tensor,
        recorder_of,
        recording,
        renew,
        same_layout,
        serve,
        set_num_threads,
        value_of,
    )

__all__ = [
    "Backend",
    "Checked",
    "DeviceError",
    "DtypeError",
    "LinAlgError",
    "Effects",
    "Looks",
    "Native",
    "Program",
    "Reference",
    "Runnable",
    "ShapeError",
    "Storage",
    "TensorBase",
    "Traced",
    "alias",
    "alias_at",
    "build_info",
    "backend",
    "broadcast",
    "current_backend",
    "empty",
    "exchange",
    "follow",
    "fresh",
    "get_num_threads",
    "has_native",
    "isas",
    "make_backend",
    "owned",
    "quick",
    "quick_fold",
    "quick_matmul",
    "quick_tensor",
    "recorder_of",
    "recording",
    "renew",
    "same_layout",
    "run",
    "run_all",
    "serve",
    "set_backend",
    "set_num_threads",
    "unrecorded",
    "value_of",
    "watcher",
    "watchers",
]


if _TYPE_CHECKING:
    from .reference import Reference
    from .wrap import Checked, Traced

_LATER = {"Reference": "reference", "Checked": "wrap", "Traced": "wrap"}      # what most programs do without, a tenth of the import


def __getattr__(name: str) -> Any:
    if name in ("native", "reference"):
        return import_module(f"{__name__}.{name}")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found


class Backend(Protocol):
    name: str

    def run(self, kernel: str, bufs: tuple[np.ndarray, ...], attrs: tuple[float, ...] = ()) -> None: ...


has_native = bool(isas())


def make_backend(name: str) -> Backend:
    """'reference', 'native' (the best ISA, or what PYNEURO_ISA caps it to) or 'native:<isa>'."""
    kind, _, isa = name.partition(":")
    if kind == "reference" and not isa:
        from .reference import Reference

        return Reference()
    if kind == "native" and has_native and (not isa or isa in isas()):
        return Native(isa or None)
    choices = ["reference"] + (["native"] if has_native else []) + [f"native:{i}" for i in isas()]
    missing = (
        ""
        if has_native
        else "; the native kernels are not built here (was there a C compiler when pyneuro was installed?)"
    )
    raise ValueError(f"{name!r} is not a backend of this machine; choose from {', '.join(choices)}{missing}")


def _default() -> Backend:
    if not has_native and "PYNEURO_BACKEND" not in os.environ:
        warnings.warn(
            "pyneuro's native kernels are not built; running on the NumPy reference backend, which is slower. "
            "Install a C compiler and reinstall pyneuro-core, or set PYNEURO_BACKEND=reference to agree.",
            RuntimeWarning,
            stacklevel=4,
        )
    chosen = make_backend(os.environ.get("PYNEURO_BACKEND") or ("native" if has_native else "reference"))
    if os.environ.get("PYNEURO_CHECK", "0") not in ("", "0"):
        from .wrap import Checked

        chosen = Checked(chosen, make_backend("reference"))
    if os.environ.get("PYNEURO_TRACE", "0") not in ("", "0"):
        from .wrap import Traced

        chosen = Traced(chosen, report=True)
    return chosen


_process: Backend = _default()
_chosen: ContextVar["Backend | None"] = ContextVar("pyneuro.backend", default=None)       # by `with backend(...)`
_chosen.set(None)                      # to look up a variable without a value takes three times longer
follow(_chosen, _process)


def set_backend(choice: str | Backend) -> None:
    """Choose the backend of the whole process: 'native', 'reference', 'native:avx2', or an object with `run`."""
    global _process
    _process = make_backend(choice) if isinstance(choice, str) else choice
    follow(_chosen, _process)


# Backends at work that record what they run, in any thread: nobody need tell them anything while there are none. What
# they are told: that a tensor's values are read, its gradient is used or dropped, a module is called, an optimizer steps.
watchers: list[Any] = []


def watcher() -> Any:
    """The one that records in this thread, or None."""
    found = _chosen.get()
    return found if found in watchers else None


@contextmanager
def unrecorded() -> Iterator[None]:
    """For what belongs to no recording, such as state that lasts: run a block on the backend that is recorded."""
    found = watcher()
    if found is None:
        yield
        return
    before = _chosen.set(found.inner)
    try:
        yield
    finally:
        _chosen.reset(before)


@contextmanager
def backend(choice: str | Backend) -> Iterator[Backend]:
    """Run a block, in this thread only, on another backend."""
    chosen = make_backend(choice) if isinstance(choice, str) else choice
    before = _chosen.set(chosen)
    try:
        yield chosen
    finally:
        _chosen.reset(before)


def run(kernel: str, *bufs: np.ndarray, attrs: tuple[float, ...] = ()) -> None:
    """Run one kernel of kernels.def on the current backend: buffers by slot, then attrs."""
    current_backend().run(kernel, bufs, attrs)


def run_all(kernel: str, calls: list[tuple[np.ndarray, ...]]) -> None:
    """Run one kernel without attrs on many sets of buffers: as one array of calls, where the backend can."""
    current = current_backend()
    if isinstance(current, Native):
        current.run_all(kernel, calls)
    else:
        for bufs in calls:
            current.run(kernel, bufs)
