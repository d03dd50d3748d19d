# SPDX-License-Identifier: BSD-3-Clause
"""Keeps a checkout without compiled kernels from shadowing an installed build that has them."""
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES


def has_kernels(package: str) -> bool:
    return any(os.path.exists(os.path.join(package, "kernels", "_native" + suffix)) for suffix in EXTENSION_SUFFIXES)


def prefer_complete(path: list[str]) -> None:
    """Point `path`, the `__path__` of pyneuro, at an installed build, if this folder has no extension and that one has.

    After `pip install .`, Python started in the checkout finds ./pyneuro first. All submodules, and with them the
    kernels and their Python side, then come from one build: the installed one.
    """
    if has_kernels(path[0]):
        return
    for entry in sys.path:
        package = os.path.join(entry, "pyneuro")
        if has_kernels(package):
            path[:] = [os.path.abspath(package)]
            return
