# SPDX-License-Identifier: BSD-3-Clause
"""Recorded calls as a list, and what makes a shorter list of the same meaning, bit for bit."""

from typing import NamedTuple

import numpy as np

from .kernels.signature import Spec, element_dtype, spec_for


class Call(NamedTuple):
    """One kernel call: its operands by slot, and its attrs."""
    kernel: str
    bufs: tuple[np.ndarray, ...]
    attrs: tuple[float, ...]

    @property
    def spec(self) -> Spec:
        return spec_for(self.kernel, element_dtype(self.kernel, self.bufs))


def root_of(array: np.ndarray) -> np.ndarray:
    """The array whose memory this one is a view of."""
    while type(array.base) is np.ndarray:
        array = array.base
    return array


def start_of(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
