# SPDX-License-Identifier: BSD-3-Clause
"""How many threads: what the environment, the system and threadpoolctl have to say to the pool of csrc/core/threads.c."""
import operator
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

MOST = 1024                      # PN_MAX_THREADS


class ThreadsError(ValueError, RuntimeError):
    """Not a number of threads. PyTorch's users catch RuntimeError."""


def checked(threads: Any) -> int:
    """What set_num_threads is given, if it is a number of threads."""
    try:
        n = operator.index(threads)
    except TypeError:
        raise TypeError(f"set_num_threads expects an int, not {type(threads).__name__}") from None
    if not 1 <= n <= MOST:
        raise ThreadsError(f"set_num_threads expects a number from 1 to {MOST}, got {n}")
    return n


def asked(environment: Mapping[str, str]) -> int | None:
    """What the environment says: PYNEURO_NUM_THREADS, which has to make sense, else OMP_NUM_THREADS, which is not ours."""
    if ours := environment.get("PYNEURO_NUM_THREADS", "").strip():
        if ours.isdecimal() and 1 <= int(ours) <= MOST:
            return int(ours)
        raise ValueError(f"PYNEURO_NUM_THREADS={ours!r} is not a number from 1 to {MOST}")
    if theirs := environment.get("OMP_NUM_THREADS", "").strip():
        outermost = theirs.partition(",")[0].strip()                  # OpenMP has a number for each level of nesting
        if outermost.isdecimal() and int(outermost) >= 1:
            return min(int(outermost), MOST)
        warnings.warn(f"OMP_NUM_THREADS={theirs!r} is not a number of threads; pyneuro ignores it",
                      RuntimeWarning, stacklevel=2)
    return None


def quota(folder: str = "/sys/fs/cgroup", mine: str = "/proc/self/cgroup") -> int:
    """How many cores' worth of time the control groups (version 1 and 2) allow this process, or 0 for no limit.

    Rounded down, but to 1: who uses up his share is stopped, all threads at once, until the next period.
    """
    found = []
    for line in _read(mine).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        while True:                                                   # a group is bound by those around it as well
            group = os.path.join(folder, controllers, path.strip("/"))
            if controllers:
                limit = [_read(f"{group}/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            else:
                limit = _read(f"{group}/cpu.max").split()
            if len(limit) == 2 and all(map(str.isdecimal, limit)) and int(limit[1]):        # not "max", not -1
                found.append(max(1, int(limit[0]) // int(limit[1])))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return min(found, default=0)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


class Introduction:
    """Has `threadpool_limits` of threadpoolctl limit us too, once somebody imports it: a finder that finds nothing else.

    filepath: of the library whose threads these are.
    """

    def __init__(self, filepath: str, get: Callable[[], int], set: Callable[[int], None]) -> None:
        self.filepath, self.get, self.set = filepath, get, set

    def make(self) -> None:
        if "threadpoolctl" in sys.modules:
            self.register(sys.modules["threadpoolctl"])
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "threadpoolctl" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: Any) -> None:
                load(module)
                self.register(module)

            spec.loader.exec_module = load_and_register               # type: ignore[method-assign]
        return spec

    def register(self, threadpoolctl: Any) -> None:
        get, set_ = self.get, self.set
        if not hasattr(threadpoolctl, "register"):                    # before 3.2
            return

        class PyneuroController(threadpoolctl.LibController):
            user_api = "blas"                                         # what people limit to 1 beside processes of their own
            internal_api = "pyneuro"
            filename_prefixes = (os.path.basename(self.filepath).lower(),)
            check_symbols = ("pyneuro_get_num_threads",)

            def get_num_threads(self) -> int:
                return get()

            def set_num_threads(self, num_threads: int) -> None:
                set_(max(1, num_threads))

            def get_version(self) -> None:
                return None

        threadpoolctl.register(PyneuroController)
