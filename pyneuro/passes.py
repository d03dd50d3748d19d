# SPDX-License-Identifier: BSD-3-Clause
"""Recorded calls as a list, and what makes a shorter list of the same meaning, bit for bit."""

from typing import NamedTuple

import numpy as np


class Call(NamedTuple):
    """One kernel call: its operands by slot, and its attrs."""
    kernel: str
    bufs: tuple[np.ndarray, ...]
    attrs: tuple[float, ...]


def root_of(array: np.ndarray) -> np.ndarray:
    """The array whose memory this one is a view of."""
    while type(array.base) is np.ndarray:
        array = array.base
    return array


def start_of(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def extent(array: np.ndarray) -> tuple[int, int]:
    """Its memory, first byte and the one after the last."""
    if not array.size:
        return 0, 0
    low = high = start_of(array)
    for n, step in zip(array.shape, array.strides):
        if step < 0:
            low += (n - 1) * step
        else:
            high += (n - 1) * step
    return low, high + array.itemsize
