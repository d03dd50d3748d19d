# SPDX-License-Identifier: BSD-3-Clause
"""Layers, activations and losses."""

from . import activations, functional, init, losses, utils
from .activations import *  # noqa: F403  the classes are made from the op table
from .layers import Dense, Dropout, Flatten, Linear, LogSoftmax, Softmax
from .losses import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, MSELoss, NLLLoss
from .module import Module, Parameter, Sequential

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "Dense",
    "Dropout",
    "Flatten",
    "HuberLoss",
    "L1Loss",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "Module",
    "NLLLoss",
    "Parameter",
    "Sequential",
    "Softmax",
    "functional",
    "init",
    "utils",
    *activations.MODULES,
]
