# SPDX-License-Identifier: BSD-3-Clause
"""A module for every activation of the op table, named as in torch; by hand only those that are no row of their own."""

import warnings
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any

from ..autograd import no_grad
from ..kernels import ShapeError
from ..ops import OPS, Op
from ..tensor import Tensor, full
from . import functional as F
from . import module
from .module import Module, keeping

ACTIVATIONS = F.activation_names()


def _module(op: Op) -> type[Module]:
    names = [name for name, _ in op.params]

    def forward(self: Module, input: Tensor) -> Tensor:
        values = [getattr(self, name) for name in names]
        return getattr(F, op.name)(input, *values, **({"inplace": True} if self.inplace else {}))

    def extra_repr(self: Module) -> str:
        return ", ".join(
            [f"{name}={getattr(self, name)}" for name in names] + (["inplace=True"] if self.inplace else [])
        )

    def arguments() -> Signature:
        return Signature([
            *[Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=Parameter.empty if value is None else value)
              for name, value in op.params],
            Parameter("inplace", Parameter.POSITIONAL_OR_KEYWORD, default=False),
        ])

    return keeping(arguments, op.module, __name__, f"{op.formula}.", forward=forward, extra_repr=extra_repr)


for _op in OPS.values():
    if _op.kind == "activation" and _op.module:
        globals()[_op.module] = _module(_op)


class Identity(Module):
    """x; takes and ignores any arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return input


class GELU(Module):
    """x Phi(x), Phi the standard normal distribution; approximate="tanh" is the older formula."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Hardtanh(Module):
    """min(max(x, min_val), max_val); min_value and max_value are older names of these."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False, min_value: float | None = None,
                 max_value: float | None = None) -> None:
        if min_value is not None or max_value is not None:
            warnings.warn("min_value and max_value are deprecated: use min_val and max_val", FutureWarning, stacklevel=2)
        low, high = min_val if min_value is None else min_value, max_val if max_value is None else max_value
        if not low < high:
            raise ValueError(f"Hardtanh takes min_val < max_val, got {low} and {high}")
        super().__init__()
        self.min_val, self.max_val, self.inplace = low, high, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)  # type: ignore[attr-defined]

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}" + (", inplace=True" if self.inplace else "")


def _calls(name: str, function: Callable, *names: str, training: bool = False) -> type[Module]:
    """A module that keeps these arguments of a function and hands them on; training: and says whether it trains."""
    def arguments() -> Signature:
        given = signature(function).parameters
        return Signature([given[name] for name in names])

    def forward(self: Module, input: Tensor) -> Tensor:
        extra = {"training": self.training} if training else {}
        return function(input, **{name: getattr(self, name) for name in names}, **extra)

    def extra_repr(self: Module) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in names if name != "inplace" or self.inplace)

    return keeping(arguments, name, __name__, function.__doc__, forward=forward, extra_repr=extra_repr)


RReLU = _calls("RReLU", F.rrelu, "lower", "upper", "inplace", training=True)
GLU = _calls("GLU", F.glu, "dim")
Softmin = _calls("Softmin", F.softmin, "dim")
Maxout = _calls("Maxout", F.maxout, "pieces", "dim")
Sparsemax = _calls("Sparsemax", F.sparsemax, "dim")
Sin = _calls("Sin", F.sin)
Exponential = _calls("Exponential", F.exponential)


class PReLU(Module):
    """x where x > 0, else a learned slope times x: one for all, or one for each of num_parameters channels."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.num_parameters, self.init = num_parameters, init
        self.weight = module.Parameter(full((num_parameters,), init, dtype=dtype, device=device))

    def reset_parameters(self) -> None:
        with no_grad():
            self.weight.fill_(self.init)

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class Softmax2d(Module):
    """softmax over the channels of [channels, height, width], with or without a batch before."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim not in (3, 4):
            raise ShapeError(f"Softmax2d takes 3 or 4 axes, got shape {list(input.shape)}")
        return input.softmax(-3)


MODULES = [op.module for op in OPS.values() if op.kind == "activation" and op.module]
MODULES += ["Exponential", "GLU", "Maxout", "PReLU", "RReLU", "Sin", "Softmax2d", "Softmin", "Sparsemax"]
__all__ = ["ACTIVATIONS", *MODULES]
