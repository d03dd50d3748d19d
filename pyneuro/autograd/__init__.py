# SPDX-License-Identifier: BSD-3-Clause
"""Gradients, with torch.autograd's names. The graph itself, and the walk back through it, is pyneuro/graph.py."""

from typing import Any

from ..graph import (
    Node,
    backward,
    detect_anomaly,
    enable_grad,
    grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    record,
    set_detect_anomaly,
    set_grad_enabled,
)

__all__ = [
    "Function", "Node", "backward", "detect_anomaly", "enable_grad", "function", "functional", "grad", "gradcheck",
    "gradgradcheck", "inference_mode", "is_grad_enabled", "no_grad", "record", "set_detect_anomaly", "set_grad_enabled",
]
_LATER = {"Function": "function", "gradcheck": "numerical", "gradgradcheck": "numerical",
          "GradcheckError": "numerical"}


def __getattr__(name: str) -> Any:
    """What few need is imported when it is asked for."""
    from importlib import import_module

    if name in ("function", "functional"):
        return import_module(f"{__name__}.{name}")
    if name in _LATER:
        found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
