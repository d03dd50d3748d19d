# SPDX-License-Identifier: BSD-3-Clause
"""Weights as magnitude and direction (Salimans and Kingma 2016)."""

from typing import Any

from ...tensor import Tensor
from ..module import Module, Parameter


def _norm(v: Any, dim: int | None) -> Any:
    """The norm over all axes but dim, which are kept; over all of them, to one number, where dim is None or -1."""
    if dim is None or dim == -1:
        return (v * v).sum().sqrt()
    rest = [i for i in range(v.ndim) if i != dim]
    return (v * v).sum(rest, keepdim=True).sqrt() if rest else v.abs()


class WeightNorm:
    """The hook that makes the weight g v / |v| anew before each forward."""

    def __init__(self, name: str, dim: int | None) -> None:
        self.name, self.dim, self.handle = name, dim, None

    def compute_weight(self, module: Module) -> Any:
        g, v = getattr(module, self.name + "_g"), getattr(module, self.name + "_v")
        return v * (g / _norm(v, self.dim))

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self.name, self.compute_weight(module))


def weight_norm(module: Any, name: str = "weight", dim: int | None = 0) -> Any:
    """Replace a module's parameter w by w_g, its norms along dim (None: one for all of it), and w_v, its direction.

    Raises RuntimeError if it has been done already.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            raise RuntimeError(f"{name!r} of this {type(module).__name__} has a weight_norm already")
    weight: Tensor = getattr(module, name).detach()
    hook = WeightNorm(name, dim)
    delattr(module, name)
    module.register_parameter(name + "_g", Parameter(_norm(weight, dim)))
    module.register_parameter(name + "_v", Parameter(weight))
    setattr(module, name, hook.compute_weight(module))
    hook.handle = module.register_forward_pre_hook(hook)
    return module


def remove_weight_norm(module: Any, name: str = "weight") -> Any:
    """Put the parameter back, with its present value. Raises ValueError if there is no weight_norm."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            weight = hook.compute_weight(module).detach()
            for old in (name, name + "_g", name + "_v"):
                delattr(module, old)
            setattr(module, name, Parameter(weight))
            hook.handle.remove()                        # type: ignore[attr-defined]
            return module
    raise ValueError(f"{name!r} of this {type(module).__name__} has no weight_norm")
