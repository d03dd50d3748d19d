# SPDX-License-Identifier: BSD-3-Clause
"""Neural networks on the CPU: PyTorch's names over C kernels, with a NumPy twin of every kernel.

import pyneuro as torch
"""

from ._origin import prefer_complete

prefer_complete(__path__)

from typing import Any as _Any  # noqa: E402

import numpy as _np  # noqa: E402

from . import autograd, kernels, linalg, nn, optim, random, utils  # noqa: E402
from ._config import __version__, config, show_config  # noqa: E402
from .autograd import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled  # noqa: E402
from .functions import functions as _more  # noqa: E402
from .kernels import (  # noqa: E402
    DeviceError,
    DtypeError,
    ShapeError,
    backend,
    current_backend,
    get_num_threads,
    set_backend,
    set_num_threads,
)
from .random import (  # noqa: E402
    Generator,
    bernoulli,
    initial_seed,
    manual_seed,
    multinomial,
    normal,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    seed,
)
from .tensor import (  # noqa: E402
    Size,
    Tensor,
    allclose,
    arange,
    as_tensor,
    cat,
    device,
    empty,
    empty_like,
    equal,
    eye,
    finfo,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    functions,
    get_default_dtype,
    get_float32_matmul_precision,
    iinfo,
    is_tensor,
    linspace,
    logspace,
    matmul,
    ones,
    ones_like,
    result_type,
    scalar_tensor,
    set_default_dtype,
    set_float32_matmul_precision,
    stack,
    tensor,
    where,
    zeros,
    zeros_like,
)

float32 = float = _np.dtype(_np.float32)
float64 = double = _np.dtype(_np.float64)
int64 = long = _np.dtype(_np.int64)
int32 = int = _np.dtype(_np.int32)
int16 = short = _np.dtype(_np.int16)
int8, uint8, bool = _np.dtype(_np.int8), _np.dtype(_np.uint8), _np.dtype(_np.bool_)

_LATER = {"NotRecordable": "plan", "compile": "plan", "History": "training", "fit": "training"}


def __getattr__(name: str) -> _Any:
    """What most programs that import this do not use is imported when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found


_functions = {**functions(), **_more()}
del functions
globals().update(_functions)


class cuda:
    """There is none."""

    @staticmethod
    def is_available() -> _Any:
        return False

    @staticmethod
    def device_count() -> _Any:
        return 0


__all__ = [
    "inference_mode",
    "scalar_tensor",
    "logspace",
    "iinfo",
    "finfo",
    "Size",
    "randint_like",
    "normal",
    "multinomial",
    "bernoulli",
    "DeviceError",
    "DtypeError",
    "Generator",
    "History",
    "NotRecordable",
    "ShapeError",
    "Tensor",
    "__version__",
    "allclose",
    "arange",
    "as_tensor",
    "autograd",
    "backend",
    "bool",
    "cat",
    "compile",
    "config",
    "cuda",
    "current_backend",
    "device",
    "double",
    "empty",
    "empty_like",
    "enable_grad",
    "equal",
    "eye",
    "fit",
    "float",
    "float32",
    "float64",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "get_default_dtype",
    "get_float32_matmul_precision",
    "get_num_threads",
    "initial_seed",
    "int",
    "int16",
    "int32",
    "int64",
    "int8",
    "is_grad_enabled",
    "is_tensor",
    "kernels",
    "linalg",
    "linspace",
    "long",
    "manual_seed",
    "matmul",
    "nn",
    "no_grad",
    "ones",
    "ones_like",
    "optim",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "random",
    "randperm",
    "result_type",
    "seed",
    "set_backend",
    "set_default_dtype",
    "set_float32_matmul_precision",
    "set_grad_enabled",
    "set_num_threads",
    "short",
    "show_config",
    "stack",
    "tensor",
    "uint8",
    "utils",
    "where",
    "zeros",
    "zeros_like",
    *_functions,
]
