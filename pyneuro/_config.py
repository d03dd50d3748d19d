# SPDX-License-Identifier: BSD-3-Clause
"""What runs here: versions, processor, kernels, build and environment."""

import os
import platform
from typing import Any

from . import kernels

__version__ = "0.1.0"

VARIABLES = ("PYNEURO_BACKEND", "PYNEURO_ISA", "PYNEURO_NUM_THREADS", "PYNEURO_CHECK", "PYNEURO_TRACE", "PYNEURO_FTZ",
             "PYNEURO_CACHE_MB")


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def config() -> dict[str, Any]:
    """Versions, CPU, ISAs (best first), backend, build and environment, as plain data."""
    import numpy

    return {
        "version": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": kernels.get_num_threads(),
        "isas": kernels.isas(),
        "backend": kernels.current_backend().name,
        "build": kernels.build_info(),
        "location": os.path.dirname(kernels.__file__),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def show_config() -> None:
    """Print what `config()` says."""
    for key, value in config().items():
        if isinstance(value, dict):
            text = ", ".join(f"{k} {_words(v)}" for k, v in value.items() if v or v == 0)
        else:
            text = _words(value)
        print(f"{key:<12} {text or 'none'}")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
