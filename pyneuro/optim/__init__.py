# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers and learning rates, with torch's names and defaults."""

from . import lr_scheduler
from .optimizers import OPTIMIZERS, SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

__all__ = ["OPTIMIZERS", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "lr_scheduler"]
