# SPDX-License-Identifier: BSD-3-Clause
"""Layers, activations and losses."""

from . import activations, functional, init, losses, utils
from .activations import *  # noqa: F403  the classes are made from the op table
from .containers import ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from .layers import (
    AdaptiveLogSoftmaxWithLoss,
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
    MultiheadAttention,
    PairwiseDistance,
    Softmax,
    Unflatten,
)
from .losses import *  # noqa: F403
from .module import Module, Parameter
from .norm import BatchNorm1d, GroupNorm, LayerNorm, RMSNorm
from .recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNBase, RNNCell, RNNCellBase

__all__ = [
    "AdaptiveLogSoftmaxWithLoss",
    "AlphaDropout",
    "BatchNorm1d",
    "Bilinear",
    "CosineSimilarity",
    "Dense",
    "Dropout",
    "Dropout1d",
    "Embedding",
    "FeatureAlphaDropout",
    "Flatten",
    "GRU",
    "GRUCell",
    "GroupNorm",
    "LSTM",
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiheadAttention",
    "PairwiseDistance",
    "Parameter",
    "ParameterDict",
    "ParameterList",
    "RMSNorm",
    "RNN",
    "RNNBase",
    "RNNCell",
    "RNNCellBase",
    "Sequential",
    "Softmax",
    "Unflatten",
    "functional",
    "init",
    "utils",
    *activations.MODULES,
    *losses.__all__,
]
