# SPDX-License-Identifier: BSD-3-Clause
"""Small programs of a torch-like module, with the numbers that they give, or what they refuse; for both libraries."""
import pytest


class Programs:
    """A list that `@programs.gives(...)` and `@programs.refused(...)` add to."""

    def __init__(self):
        self.values, self.refusals = [], []

    def gives(self, *expected):
        """Register a program and what it returns: tensors as lists."""
        def register(program):
            self.values.append(pytest.param(program, list(expected), id=program.__name__))
            return program
        return register

    def refused(self, words):
        """Register a program that ends in a RuntimeError; these words are in pyneuro's."""
        def register(program):
            self.refusals.append(pytest.param(program, words, id=program.__name__))
            return program
        return register


def plain(value):
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


def check(program, expected, t):
    value = program(t)
    assert (plain(value) if isinstance(value, tuple) else [plain(value)]) == expected


def leaf(t, *values):
    """A 1-d tensor that requires its gradient."""
    return t.tensor([float(v) for v in values], requires_grad=True)
