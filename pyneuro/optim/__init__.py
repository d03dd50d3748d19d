# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers and learning rates, with torch's names and defaults. What few programs need is imported when it is asked for."""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any

from .optimizers import (
    ASGD,
    LAMB,
    OPTIMIZERS,
    SGD,
    AdaBelief,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdamWScheduleFree,
    Lion,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    Yogi,
)

if _TYPE_CHECKING:
    from . import lr_scheduler, swa_utils
    from .closures import LBFGS, GradientDescent, LevenbergMarquardt
    from .range_test import lr_finder

__all__ = ["ASGD", "LAMB", "LBFGS", "OPTIMIZERS", "SGD", "AdaBelief", "Adadelta", "Adafactor", "Adagrad",
           "Adam", "AdamW", "AdamWScheduleFree", "Adamax", "GradientDescent", "LevenbergMarquardt", "Lion",
           "Muon", "NAdam", "Optimizer", "RAdam", "RMSprop", "Rprop", "Yogi", "lr_finder", "lr_scheduler", "swa_utils"]
_LATER = {"GradientDescent": "closures", "LBFGS": "closures", "LevenbergMarquardt": "closures", "lr_finder": "range_test"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("lr_scheduler", "swa_utils"):
        return import_module(f"{__name__}.{name}")
    if name in _LATER:
        found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
