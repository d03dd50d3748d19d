# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers and learning rates, with torch's names and defaults. Schedules are imported when they are first asked for."""

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
    from . import lr_scheduler

__all__ = ["ASGD", "LAMB", "OPTIMIZERS", "SGD", "AdaBelief", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW",
           "AdamWScheduleFree", "Adamax", "Lion", "Muon", "NAdam", "Optimizer", "RAdam", "RMSprop", "Rprop", "Yogi",
           "lr_scheduler"]


def __getattr__(name: str) -> Any:
    if name in ("lr_scheduler",):
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
