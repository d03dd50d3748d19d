# SPDX-License-Identifier: BSD-3-Clause
"""Parameters as one vector, and back."""

from collections.abc import Iterable
from typing import Any

from ...kernels import ShapeError
from ...tensor import Tensor, cat


def parameters_to_vector(parameters: Iterable[Tensor]) -> Any:
    """All elements of the parameters, one after another, in a vector that gradients flow through."""
    return cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Make the parameters views of vec, in turn, as parameters_to_vector laid them.

    Raises TypeError for what is no tensor, ShapeError for a vector that is too short.
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"vector_to_parameters takes a tensor, not {type(vec).__name__}")
    at = 0
    for p in parameters:
        n = p.numel()
        if at + n > vec.numel():
            raise ShapeError(f"a vector of {vec.numel()} elements is too short: parameters up to here have {at + n}")
        p.data = vec[at:at + n].view_as(p).data
        at += n
