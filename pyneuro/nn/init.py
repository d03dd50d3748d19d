# SPDX-License-Identifier: BSD-3-Clause
"""Initialisers: fill a tensor in place, outside the graph, and return it. Random ones depend only on the seed."""

import math
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

from .. import random
from ..autograd import no_grad
from ..kernels import ShapeError
from ..tensor import Tensor
from ..tensor import eye as identity

_LINEAR = ("linear", "identity", "sigmoid", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)))
_GAINS = {**dict.fromkeys(_LINEAR, 1.0), "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps variance through an activation; param is leaky_relu's slope (0.01)."""
    if nonlinearity == "leaky_relu":
        if isinstance(param, bool) or not isinstance(param, (int, float, type(None))):
            raise ValueError(f"the slope of leaky_relu must be a number, got {param!r}")
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise ValueError(
            f"no gain is known for {nonlinearity!r}; choose from {', '.join(sorted([*_GAINS, 'leaky_relu']))}"
        )
    return _GAINS[nonlinearity]


def _fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight [out, in, ...]."""
    if tensor.ndim < 2:
        raise ShapeError(f"fan in and fan out need a tensor of at least 2 axes, this one has {tensor.ndim}")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


@no_grad
def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    return random.uniform_(tensor, a, b, generator=generator)


@no_grad
def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    return random.normal_(tensor, mean, std, generator=generator)


@no_grad
def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0,
                  generator: Any = None) -> Tensor:
    """N(mean, std^2) within [a, b]: what lies outside is drawn again."""
    if not (std > 0 and a < b):
        raise ValueError(f"trunc_normal_ takes std > 0 and a < b, got std={std}, a={a}, b={b}")
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn("the mean of trunc_normal_ is more than 2 std away from [a, b]", stacklevel=3)
    return random._fill(tensor, "trunc_normal", generator, float(mean), float(std), float(a), float(b))


@no_grad
def constant_(tensor: Tensor, val: float) -> Tensor:
    return tensor.fill_(val)


def ones_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 0.0)


@no_grad
def eye_(tensor: Tensor) -> Tensor:
    """Ones on the diagonal of a matrix, else zeros."""
    _matrix(tensor, "eye_")
    return tensor.copy_(identity(*tensor.shape, dtype=tensor.dtype))


def _matrix(tensor: Tensor, name: str) -> None:
    if tensor.ndim != 2:
        raise ShapeError(f"{name} takes a tensor of 2 axes, this one has {tensor.ndim}")


@no_grad
def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """A convolution's weight that hands as many channels through as there are, in each of groups."""
    if tensor.ndim not in (3, 4, 5):
        raise ShapeError(f"dirac_ takes a tensor of 3, 4 or 5 axes, this one has {tensor.ndim}")
    if tensor.shape[0] % groups:
        raise ShapeError(f"dirac_ cannot part {tensor.shape[0]} channels into {groups} groups")
    each = tensor.shape[0] // groups
    middle = tuple(n // 2 for n in tensor.shape[2:])
    tensor.zero_()
    for group in range(groups):
        for d in range(min(each, tensor.shape[1])):
            tensor[(group * each + d, d, *middle)] = 1
    return tensor


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """U(-a, a), a = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out))."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(_fans(tensor))), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode.lower() not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    return calculate_gain(nonlinearity, a) / math.sqrt(_fans(tensor)[mode.lower() == "fan_out"])


def kaiming_uniform_(tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu",
                     generator: Any = None) -> Tensor:
    """U(-b, b), b = gain sqrt(3 / fan) (He et al. 2015)."""
    if not tensor.numel():
        return tensor
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu",
                    generator: Any = None) -> Tensor:
    """N(0, s^2), s = gain / sqrt(fan)."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator) if tensor.numel() else tensor


_MODES: dict[str, Callable[[int, int], float]] = {
    "fan_in": lambda inputs, outputs: inputs,
    "fan_out": lambda inputs, outputs: outputs,
    "fan_avg": lambda inputs, outputs: (inputs + outputs) / 2,
    "fan_geo_avg": lambda inputs, outputs: math.sqrt(inputs * outputs),
}
_TRUNCATED_STD = 0.87962566103423978  # of the standard normal distribution cut at -2 and 2


def variance_scaling_(tensor: Tensor, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal",
                      generator: Any = None) -> Tensor:
    """Numbers of variance scale / fan: mode "fan_in", "fan_out", "fan_avg" or "fan_geo_avg", distribution
    "truncated_normal" (cut at two standard deviations of what is cut), "normal" or "uniform". As in JAX."""
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if distribution not in ("truncated_normal", "normal", "uniform"):
        raise ValueError(f"distribution must be 'truncated_normal', 'normal' or 'uniform', got {distribution!r}")
    if not tensor.numel():
        return tensor
    std = math.sqrt(scale / _MODES[mode](*_fans(tensor)))
    if distribution == "normal":
        return normal_(tensor, 0.0, std, generator)
    if distribution == "uniform":
        return uniform_(tensor, -math.sqrt(3) * std, math.sqrt(3) * std, generator)
    std /= _TRUNCATED_STD
    return trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std, generator)


def lecun_normal_(tensor: Tensor, generator: Any = None) -> Tensor:
    """Truncated normal numbers of variance 1 / fan_in (LeCun et al. 1998)."""
    return variance_scaling_(tensor, generator=generator)


def lecun_uniform_(tensor: Tensor, generator: Any = None) -> Tensor:
    """U(-b, b), b = sqrt(3 / fan_in)."""
    return variance_scaling_(tensor, distribution="uniform", generator=generator)


@no_grad
def orthogonal_(tensor: Tensor, gain: float = 1, generator: Any = None) -> Tensor:
    """gain times a random matrix with orthonormal rows or columns, of those the fewer (Saxe et al. 2014).

    More axes than two: the matrix of the first by the others.
    """
    if tensor.ndim < 2:
        raise ShapeError(f"orthogonal_ takes a tensor of at least 2 axes, this one has {tensor.ndim}")
    return random._fill(tensor, "orthogonal", generator, float(tensor.shape[0]), float(gain)) if tensor.numel() else tensor


@no_grad
def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Any = None) -> Tensor:
    """N(0, std^2), with the share `sparsity` of each column set to 0 (Martens 2010)."""
    _matrix(tensor, "sparse_")
    rows, columns = tensor.shape
    zeros = math.ceil(sparsity * rows)
    normal_(tensor, 0.0, std, generator)
    for column in range(columns):
        tensor[random.randperm(rows, generator=generator)[:zeros], column] = 0
    return tensor


def _deprecated(new: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The name that it had before it ended in _, as in torch."""

    @wraps(new)
    def old(*args: Any, **kwargs: Any) -> Tensor:
        warnings.warn(f"nn.init.{old.__name__} is deprecated: it is nn.init.{new.__name__}", FutureWarning, stacklevel=2)
        return new(*args, **kwargs)

    old.__name__ = old.__qualname__ = new.__name__.removesuffix("_")
    return old


uniform, normal, constant, eye, dirac = map(_deprecated, (uniform_, normal_, constant_, eye_, dirac_))
xavier_uniform, xavier_normal = map(_deprecated, (xavier_uniform_, xavier_normal_))
kaiming_uniform, kaiming_normal = map(_deprecated, (kaiming_uniform_, kaiming_normal_))
orthogonal, sparse = map(_deprecated, (orthogonal_, sparse_))
