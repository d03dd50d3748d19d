# SPDX-License-Identifier: BSD-3-Clause
"""Layers with parameters, and layers that only shape their input."""

import math
from typing import Any

from ..tensor import Tensor, _device, empty
from . import functional as F
from . import init
from .module import Module, Parameter


class Linear(Module):
    """y = x W^T + b for x [..., in_features]; weight [out_features, in_features], bias [out_features] or None.

    Both start uniform in +-1/sqrt(in_features), as torch's do.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        _device(device)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(empty(out_features, in_features, dtype=dtype))
        self.register_parameter("bias", Parameter(empty(out_features, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Dense(Linear):
    """Linear and an activation by name in one kernel: Dense(64, 128, "relu"), Dense(64, 128, "leaky_relu", negative_slope=0.1).

    Raises ValueError for an activation that is not in the table, TypeError for a parameter that it does not have.
    """

    def __init__(self, in_features: int, out_features: int, activation: str | None = None, bias: bool = True,
                 device: Any = None, dtype: Any = None, **params: float) -> None:
        self.activation = activation or "identity"
        if self.activation not in F.activation_names():
            raise ValueError(f"{activation!r} is not an activation; choose from {', '.join(F.activation_names())}")
        known: dict[str, float] = dict(F.OPS[self.activation].params)
        if unknown := set(params) - set(known):
            raise TypeError(f"{self.activation} takes {sorted(known) or 'no parameters'}, not {sorted(unknown)}")
        self.params = tuple(float(params.get(name, value)) for name, value in known.items())
        super().__init__(in_features, out_features, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return F.dense(input, self.weight, self.bias, self.activation, *self.params)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


class Dropout(Module):
    """In training, zeroes each element with probability p and divides the others by 1 - p; otherwise the identity."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout takes a probability between 0 and 1, got {p}")
        self.p, self.inplace = p, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Flatten(Module):
    """Axes start_dim to end_dim as one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Softmax(Module):
    """e^x / sum e^x along dim."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """x - ln sum e^x along dim."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim)
