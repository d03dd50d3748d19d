# SPDX-License-Identifier: BSD-3-Clause
"""A module for every activation of the op table, named as in torch; this file names none but GELU, which has two rows."""

from inspect import Parameter, Signature
from typing import Any

from ..ops import OPS, Op
from ..tensor import Tensor
from . import functional as F
from .module import Module

ACTIVATIONS = F.activation_names()


def _module(op: Op) -> type[Module]:
    names = [name for name, _ in op.params]

    def __init__(self: Module, *args: Any, **named: Any) -> None:
        Module.__init__(self)
        given = signature.bind(*args, **named)
        given.apply_defaults()
        for name, value in given.arguments.items():
            setattr(self, name, value)

    def forward(self: Module, input: Tensor) -> Tensor:
        values = [getattr(self, name) for name in names]
        return getattr(F, op.name)(input, *values, **({"inplace": True} if self.inplace else {}))

    def extra_repr(self: Module) -> str:
        return ", ".join(
            [f"{name}={getattr(self, name)}" for name in names] + (["inplace=True"] if self.inplace else [])
        )

    signature = Signature(
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=Parameter.empty if value is None else value)
         for name, value in op.params]
        + [Parameter("inplace", Parameter.POSITIONAL_OR_KEYWORD, default=False)]
    )
    made = type(
        op.module,
        (Module,),
        {
            "__init__": __init__,
            "forward": forward,
            "extra_repr": extra_repr,
            "__doc__": f"{op.formula}.",
            "__module__": __name__,
        },
    )
    made.__signature__ = signature  # type: ignore[attr-defined]
    return made


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


MODULES = [op.module for op in OPS.values() if op.kind == "activation" and op.module]
__all__ = ["ACTIVATIONS", *MODULES]
