# SPDX-License-Identifier: BSD-3-Clause
"""Layers, activations and losses."""

from . import activations, functional, init, losses, utils
from .activations import *  # noqa: F403  the classes are made from the op table
from .containers import ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from .layers import (
    AlphaDropout,
    Bilinear,
    CosineSimilarity,
    Dense,
    Dropout,
    Dropout1d,
    Embedding,
    FeatureAlphaDropout,
    Flatten,
    Linear,
    LogSoftmax,
    PairwiseDistance,
    Softmax,
    Unflatten,
)
from .losses import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, MSELoss, NLLLoss
from .module import Module, Parameter
from .norm import BatchNorm1d, GroupNorm, LayerNorm, RMSNorm

__all__ = [
    "AlphaDropout",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "Bilinear",
    "CosineSimilarity",
    "CrossEntropyLoss",
    "Dense",
    "Dropout",
    "Dropout1d",
    "Embedding",
    "FeatureAlphaDropout",
    "Flatten",
    "GroupNorm",
    "HuberLoss",
    "L1Loss",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "PairwiseDistance",
    "Parameter",
    "ParameterDict",
    "ParameterList",
    "RMSNorm",
    "Sequential",
    "Softmax",
    "Unflatten",
    "functional",
    "init",
    "utils",
    *activations.MODULES,
]
