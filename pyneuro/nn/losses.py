# SPDX-License-Identifier: BSD-3-Clause
"""A module for every loss function of `functional`: the same arguments without input and target."""

from collections.abc import Callable
from inspect import Signature, signature
from typing import Any

from ..tensor import Tensor
from . import functional as F
from .module import Module


def _module(name: str, function: Callable, buffers: tuple[str, ...] = ()) -> type[Module]:
    """buffers: tensor arguments, kept in the state as torch does; `weight` otherwise belongs to the function alone."""
    given = signature(function).parameters
    keep = [
        p for p in given.values() if p.name not in ("input", "target") and (p.name != "weight" or "weight" in buffers)
    ]
    arguments = Signature(keep)

    def __init__(self: Module, *args: Any, **named: Any) -> None:
        Module.__init__(self)
        bound = arguments.bind(*args, **named)
        bound.apply_defaults()
        words = bound.arguments
        words["reduction"] = F._reduction(
            words["reduction"], words.pop("size_average", None), words.pop("reduce", None)
        )
        for key, value in words.items():
            if key in buffers:
                self.register_buffer(key, value)
            else:
                setattr(self, key, value)
        self.arguments = list(words)

    def forward(self: Module, input: Tensor, target: Tensor) -> Tensor:
        return function(input, target, **{key: getattr(self, key) for key in self.arguments})

    made = type(
        name,
        (Module,),
        {
            "__init__": __init__,
            "forward": forward,
            "__module__": __name__,
            "__doc__": f"{function.__doc__}\n\n    See functional.{function.__name__}.",
        },
    )
    made.__signature__ = arguments  # type: ignore[attr-defined]
    return made


MSELoss = _module("MSELoss", F.mse_loss)
L1Loss = _module("L1Loss", F.l1_loss)
HuberLoss = _module("HuberLoss", F.huber_loss)
BCEWithLogitsLoss = _module("BCEWithLogitsLoss", F.binary_cross_entropy_with_logits, ("weight", "pos_weight"))
CrossEntropyLoss = _module("CrossEntropyLoss", F.cross_entropy, ("weight",))
NLLLoss = _module("NLLLoss", F.nll_loss, ("weight",))

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss", "L1Loss", "MSELoss", "NLLLoss"]
