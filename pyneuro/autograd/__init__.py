# SPDX-License-Identifier: BSD-3-Clause
"""Gradients, with torch.autograd's names. The graph itself, and the walk back through it, is pyneuro/graph.py."""

from ..graph import Node, backward, enable_grad, grad, is_grad_enabled, no_grad, record, set_grad_enabled

__all__ = ["Node", "backward", "enable_grad", "grad", "is_grad_enabled", "no_grad", "record", "set_grad_enabled"]
