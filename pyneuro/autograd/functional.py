# SPDX-License-Identifier: BSD-3-Clause
"""Jacobians, Hessians, and their products with vectors, of functions of tensors; torch.autograd.functional's names."""

from collections.abc import Callable
from typing import Any

from ..graph import _edge, _reachable, enable_grad, grad
from ..kernels import ShapeError
from ..ops import Op
from ..tensor import Tensor, stack
from .rows import jacobian_of_rows, one_at

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]


def _tuple(value: Any, what: str) -> tuple[bool, tuple]:
    many = isinstance(value, tuple)
    parts = value if many else (value,)
    for t in parts:
        if not isinstance(t, Tensor):
            raise TypeError(f"{what} must be a tensor or a tuple of tensors, not {type(t).__name__}")
    return many, parts


def _prepared(inputs: tuple, create_graph: bool) -> tuple:
    """Inputs to differentiate along: of this call alone, or views through which their own graph goes on."""
    if create_graph:
        return tuple(x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs)
    return tuple(x.detach().requires_grad_() for x in inputs)


def _grad(outputs: Any, inputs: Any, weights: Any, create_graph: bool) -> list:
    """Gradients, None where the outputs are recorded but do not depend on an input."""
    recorded = [(y, v) for y, v in zip(outputs, weights) if y.requires_grad]
    if not recorded:
        return [None] * len(inputs)
    ys, vs = zip(*recorded)
    return list(grad(ys, inputs, vs, retain_graph=True, create_graph=create_graph, allow_unused=True))


def _filled(gradients: Any, like: Any, strict: bool, what: str) -> tuple:
    if strict and any(g is None for g in gradients):
        which = [g is None for g in gradients].index(True)
        raise RuntimeError(f"{what} does not depend on input {which}, which strict=True forbids")
    return tuple(x._full(x.shape, 0.0) if g is None else g for g, x in zip(gradients, like))


def _results(values: Any, many: bool, create_graph: bool) -> Any:
    values = tuple(v if create_graph else v.detach() for v in values)
    return values if many else values[0]


def _vectors(v: Any, like: tuple, many: bool, what: str) -> tuple:
    if v is None:
        if len(like) != 1 or like[0].numel() != 1:
            raise RuntimeError(f"v may be left out only where the {what} is one number")
        return (like[0]._full(like[0].shape, 1.0),)
    _, vectors = _tuple(v, "v")
    if [t.shape for t in vectors] != [t.shape for t in like]:
        raise ShapeError(f"v must have the shapes of the {what}, {[list(t.shape) for t in like]}; "
                         f"given {[list(t.shape) for t in vectors]}")
    return vectors


def vjp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(func(inputs), v^T J): one walk back."""
    with enable_grad():
        many_in, xs = _tuple(inputs, "inputs")
        xs = _prepared(xs, create_graph)
        many_out, ys = _tuple(func(*xs), "what func returns")
        weights = _vectors(v, ys, many_out, "output")
        products = _filled(_grad(ys, xs, weights, create_graph), xs, strict, "the output")
    return _results(ys, many_out, create_graph), _results(products, many_in, create_graph)


def jvp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(func(inputs), J v): two walks back, as v^T J is linear in its vector."""
    with enable_grad():
        _, xs = _tuple(inputs, "inputs")
        weights = _vectors(v, xs, True, "input")
        xs = _prepared(xs, create_graph)
        many_out, ys = _tuple(func(*xs), "what func returns")
        probes = tuple(y._full(y.shape, 0.0).requires_grad_() for y in ys)
        back = _filled(_grad(ys, xs, probes, True), xs, strict, "the output")
        products = _filled(_grad(back, probes, weights, create_graph), probes, strict, "the output")
    return _results(ys, many_out, create_graph), _results(products, many_out, create_graph)


def _one_number(ys: tuple) -> None:
    if len(ys) != 1 or ys[0].numel() != 1:
        raise RuntimeError(f"the function must return one number, not {[list(y.shape) for y in ys]}")


def vhp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(func(inputs), v^T H) of a function with one number as its value."""
    with enable_grad():
        many, xs = _tuple(inputs, "inputs")
        vectors = _vectors(v, xs, many, "input")
        xs = _prepared(xs, create_graph)
        many_out, ys = _tuple(func(*xs), "what func returns")
        _one_number(ys)
        first = _filled(_grad(ys, xs, [y._full(y.shape, 1.0) for y in ys], True), xs, strict, "the output")
        products = _filled(_grad(first, xs, vectors, create_graph), xs, strict, "the gradient")
    return _results(ys, many_out, create_graph), _results(products, many, create_graph)


def hvp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(func(inputs), H v); vhp gives the same numbers with one walk less where H is symmetric."""
    with enable_grad():
        many, xs = _tuple(inputs, "inputs")
        vectors = _vectors(v, xs, many, "input")
        xs = _prepared(xs, create_graph)
        many_out, ys = _tuple(func(*xs), "what func returns")
        _one_number(ys)
        first = _filled(_grad(ys, xs, [y._full(y.shape, 1.0) for y in ys], True), xs, strict, "the output")
        probes = tuple(g._full(g.shape, 0.0).requires_grad_() for g in first)
        twice = _filled(_grad(first, xs, probes, True), xs, strict, "the gradient")
        products = _filled(_grad(twice, probes, vectors, create_graph), probes, strict, "the gradient")
    return _results(ys, many_out, create_graph), _results(products, many, create_graph)


def jacobian(func: Callable, inputs: Any, create_graph: bool = False, strict: bool = False, vectorize: bool = False,
             strategy: str = "reverse-mode") -> Any:
    """dy/dx of shape y.shape + x.shape, one walk back for each element of y; nested in tuples as outputs and inputs are.

    strategy 'forward-mode': one product J v for each element of x instead, for few inputs and many outputs. vectorize: one
    walk back for each column of y where the rows of y are known not to depend on each other, only on x as a whole.
    """
    if strategy not in ("reverse-mode", "forward-mode"):
        raise ValueError(f"jacobian takes strategy 'reverse-mode' or 'forward-mode', not {strategy!r}")
    with enable_grad():
        many_in, xs = _tuple(inputs, "inputs")
        xs = _prepared(xs, create_graph)
        many_out, ys = _tuple(func(*xs), "what func returns")
        quick = [jacobian_of_rows(y, xs) if vectorize and not create_graph and not strict else None for y in ys]
        if strategy == "forward-mode" and any(q is None for q in quick):
            rows: list[Any] = _by_columns(ys, xs, create_graph)
        else:
            rows = [_by_rows(y, xs, create_graph, strict) if q is None else q for q, y in zip(quick, ys)]
    full = tuple(_results(row, many_in, create_graph) for row in rows)
    return full if many_out else full[0]


def jacobian_of(y: Tensor, xs: tuple) -> list[Tensor]:
    """dy/dx of shape y.shape + x.shape for each leaf x that y has a graph to, by the fewest walks back."""
    found = jacobian_of_rows(y, xs)
    if found is not None:
        return found
    with enable_grad():
        if sum(x.numel() for x in xs) < y.numel() and all(type(node.op) is Op for node in _reachable([_edge(y)])):
            rows = _by_columns((y,), xs, False)[0]
        else:
            rows = _by_rows(y, xs, False, False)
    return [j.detach() for j in rows]


def _by_rows(y: Tensor, xs: tuple, create_graph: bool, strict: bool) -> list:
    found: list[list] = [[] for _ in xs]
    line = y.reshape(-1)
    for i in range(y.numel()):
        unit = one_at(line, line.shape, i)
        row = _filled(_grad((line,), xs, (unit,), create_graph), xs, strict, "the output")
        for rows, g in zip(found, row):
            rows.append(g)
    return [stack(rows).reshape(y.shape + x.shape) if rows else y._full(y.shape + x.shape, 0.0) for rows, x in zip(found, xs)]


def _by_columns(ys: tuple, xs: tuple, create_graph: bool) -> list:
    probes = tuple(y._full(y.shape, 0.0).requires_grad_() for y in ys)
    back = _filled(_grad(ys, xs, probes, True), xs, False, "")
    found: list[list] = [[] for _ in ys]
    for b, x in zip(back, xs):
        columns: list[list] = [[] for _ in ys]
        for i in range(x.numel()):
            unit = one_at(x, (x.numel(),), i)
            products = _filled(_grad((b,), probes, (unit.reshape(x.shape),), create_graph), probes, False, "")
            for column, p in zip(columns, products):
                column.append(p)
        for row, column, y in zip(found, columns, ys):
            row.append(stack(column, -1).reshape(y.shape + x.shape) if column else y._full(y.shape + x.shape, 0.0))
    return found


def hessian(func: Callable, inputs: Any, create_graph: bool = False, strict: bool = False, vectorize: bool = False,
            outer_jacobian_strategy: str = "reverse-mode") -> Any:
    """The second derivatives of a function with one number as its value, of shape x.shape + x.shape."""
    many, xs = _tuple(inputs, "inputs")

    def slope(*args: Any) -> tuple:
        _, ys = _tuple(func(*args), "what func returns")
        _one_number(ys)
        return _filled(_grad(ys, args, [y._full(y.shape, 1.0) for y in ys], True), args, strict, "the output")

    with enable_grad():
        found = jacobian(slope, xs, create_graph, strict, vectorize, outer_jacobian_strategy)
    return found if many else found[0][0]
