# SPDX-License-Identifier: BSD-3-Clause
"""Jacobians of functions whose rows know nothing of each other, as those of a network on a batch: with y_i = f(w, x_i) one
walk back carries row i of the gradient of y_i, for all i at once, and what meets a parameter on the way is not summed over rows.
"""

import math
from collections.abc import Iterator
from typing import Any

from ..graph import Node, _edge, _reachable, no_grad
from ..kernels import unrecorded
from ..tensor import Tensor, stack

__all__ = ["jacobian_of_rows", "one_at"]


class _Mixed(Exception):
    """An op that is not known to keep rows apart."""


def one_at(like: Tensor, shape: tuple[int, ...], key: Any) -> Tensor:
    """0, but 1 at key: a constant to a function that is recorded."""
    with unrecorded():
        unit = like._full(shape, 0.0)
        unit.array[key] = 1
    return unit


def jacobian_of_rows(y: Tensor, xs: Any) -> list[Tensor] | None:
    """dy/dx of shape y.shape + x.shape for each leaf x, without a graph, by one walk back for each column of y; None unless
    every op between keeps the rows apart, which is known of elementwise ops, of dense layers, of products with a matrix on the
    right, and of reductions, softmax, views along other axes."""
    root = _edge(y)
    if type(root) is not Node or y.ndim == 0 or y.shape[0] < 2 or any(type(_edge(x)) is Node for x in xs):
        return None
    wanted, nodes = {id(x): x for x in xs}, _reachable([root])
    leads = set(wanted)
    for node in reversed(nodes):
        if any(id(p) in leads for p in node.parents if p is not None):
            leads.add(id(node))
    rows, width = y.shape[0], math.prod(y.shape[1:])
    columns: list[dict[int, Any]] = []
    try:
        with no_grad():
            for c in range(width):
                seed = one_at(y, (rows, width), (slice(None), c))
                columns.append(_walk(root, seed.reshape(y.shape), [n for n in nodes if id(n) in leads], leads, wanted))
    except _Mixed:
        return None
    out = []
    for x in xs:
        parts = [found[id(x)].reshape((rows, *x.shape)) for found in columns if id(x) in found]
        out.append(stack(parts, 1).reshape(y.shape + x.shape) if parts else y._full(y.shape + x.shape, 0.0))
    return out


def _walk(root: Node, seed: Tensor, nodes: list[Node], leads: set[int], wanted: dict[int, Any]) -> dict[int, Any]:
    """By parameter its gradient for each row."""
    pending: dict[int, Any] = {id(root): seed}
    for node in nodes:
        g = pending.pop(id(node), None)
        if g is None:
            continue
        if node.hooks:
            raise _Mixed
        node.fast = True
        for edge, dx, by_row in _gradients(node, g, leads):
            if by_row is not (id(edge) in wanted):       # rows of a parameter, or a parameter that is computed
                raise _Mixed
            before = pending.get(id(edge))
            pending[id(edge)] = dx if before is None else before + dx
    return {key: g for key, g in pending.items() if key in wanted}


def _gradients(node: Node, g: Any, leads: set[int]) -> Iterator[tuple[Any, Any, bool]]:
    """(edge, gradient, whether that is one of a whole operand for each row) of the operands on the way."""
    kind, name, rows, shapes = getattr(node.op, "kind", ""), node.op.name, g.shape[0], node.shapes
    if kind == "dense" or name == "matmul":
        if kind == "dense" and len(shapes[0]) != 2:
            raise _Mixed
        a, b, *rest = node.saved(g)
        if kind == "dense" and name != "dense_identity":
            s = g._wrap(node.extras[0]) if node.extras else rest[0]
            g = g._op(f"{name.removeprefix('dense_')}_grad", s, attrs=node.attrs)
        right, left = (g.unsqueeze(1), 2) if name == "matmul" else (g.unsqueeze(2), 1)
        found: list[Any] = [lambda: g @ (b.mT if name == "matmul" else b), lambda: right * a.unsqueeze(left), lambda: g]
        for i, edge in enumerate(node.parents):
            if edge is not None and id(edge) in leads:
                yield edge, found[i](), i > 0
        return
    attr: Any = node.attrs[0] if node.attrs else None
    whole = [False]
    if kind == "elementwise" or name == "expand":
        whole = [len(s) < g.ndim or s[0] != rows for s in shapes]
        # sum_to leaves the axis of rows of an operand that is the same for all of them
        node.shapes = tuple((rows, *(1,) * (g.ndim - 1 - len(s)), *s[1 if len(s) == g.ndim else 0:]) if w else s
                            for s, w in zip(shapes, whole))
    elif shapes[0][:1] != (rows,) or not (
            kind == "activation" or name == "reshape" or (name == "slice" and attr[:1] == (slice(None),))
            or (kind == "softmax" and attr > 0) or (kind == "reduction" and name != "sum_to" and all(d > 0 for d in attr))):
        raise _Mixed
    try:
        gradients = node.op.backward(node, g)
    finally:
        node.shapes = shapes
    for edge, dx, w in zip(node.parents, gradients, whole):
        if edge is not None and id(edge) in leads:
            yield edge, dx, w
