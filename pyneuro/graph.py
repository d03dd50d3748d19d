# SPDX-License-Identifier: BSD-3-Clause
# cython: annotation_typing=False, auto_pickle=False
"""The graph of ops and the walk back through it.

A node remembers one op: what it read, where its inputs came from, and when (serial numbers grow). Creation order is a
topological order, so backward is a loop over nodes, newest first: no recursion, however deep the graph.
"""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from typing import Any

from .kernels import ShapeError, exchange, owned, value_of, watcher, watchers

__all__ = ["Node", "backward", "detect_anomaly", "enable_grad", "grad", "inference_mode", "is_grad_enabled", "no_grad", "record",
           "set_detect_anomaly", "set_grad_enabled"]


_recording: ContextVar[bool] = ContextVar("pyneuro.grad", default=True)


def is_grad_enabled() -> bool:
    return bool(value_of(_recording))


def inference_mode(mode: bool = True) -> Any:
    """no_grad, which is all that there is to infer; with mode=False nothing changes."""
    if callable(mode):
        return no_grad(mode)
    return no_grad() if mode else _Unchanged()


class set_detect_anomaly:
    """Accepted: errors of backward name the operation in any case."""

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class detect_anomaly(set_detect_anomaly):
    """Accepted, as set_detect_anomaly is."""

    def __init__(self, check_nan: bool = True) -> None:
        super().__init__(True, check_nan)


def _switch(mode: bool | None) -> Any:
    """Let recording be on or off, or None: as it is. How it was."""
    return value_of(_recording) if mode is None else exchange(_recording, mode)


class _Switch:
    """`with no_grad():`, `@no_grad()` and `@no_grad`."""

    mode: bool | None = False

    def __new__(cls, function: Callable | None = None) -> Any:
        self = object.__new__(cls)
        return self if function is None else self(function)

    def __enter__(self) -> None:
        self.previous = _switch(self.mode)

    def __exit__(self, *_: object) -> None:
        _switch(self.previous)

    def __call__(self, function: Callable) -> Callable:
        mode = self.mode

        @wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            before = _switch(mode)
            try:
                return function(*args, **kwargs)
            finally:
                _switch(before)

        # A compiled function needs to be told the mode, not to be run in it, where nobody can ask for it meanwhile.
        told = getattr(type(function), "__in_grad_mode__", None)
        return inner if told is None else told(function, mode, inner)


class no_grad(_Switch):
    """Record nothing within, in this thread: results do not require gradients."""


class _Unchanged(_Switch):
    mode = None


class enable_grad(_Switch):
    """Record within, inside a no_grad block."""

    mode = True


class set_grad_enabled(_Switch):
    """Switch recording on or off, in this thread: as a statement, a context manager or a decorator."""

    def __new__(cls, mode: bool) -> Any:
        return object.__new__(cls)

    def __init__(self, mode: bool) -> None:
        self.mode = bool(mode)
        self.previous = _switch(self.mode)

    def __enter__(self) -> None:
        pass

    def __call__(self, function: Callable) -> Callable:
        _switch(self.previous)
        return super().__call__(function)


def _edge(t: Any) -> Any:
    """What a gradient of t flows into: the node that made it, the leaf itself, or nothing."""
    if t.storage.rewrites:
        t._refresh()
    if t.node is not None:
        return t.node
    return t if t.needs_grad else None


class Node:
    """One recorded op."""

    op: Any
    attrs: tuple
    extras: tuple  # arrays beside its result that only backward needs
    parents: tuple  # where the gradient of each input goes, or None
    needs: tuple  # whether it is wanted
    shapes: tuple  # of the inputs
    dtype: Any  # of the first
    kept: Any  # what the rule reads; None once it is freed
    versions: tuple
    serial: int
    fast: bool  # nobody will differentiate the gradient
    hooks: Any
    retained: Any

    def saved(self, g: Any) -> tuple:
        """The tensors that the rule reads, if nothing has overwritten them since; None for what no gradient wanted reads."""
        if self.kept is None:
            raise RuntimeError(
                f"backward through {self.op.name} a second time: what it saved was freed after the first; "
                "call backward(retain_graph=True) the first time"
            )
        out: list[Any] = []
        for t, version in zip(self.kept, self.versions):
            if t is None:
                out.append(None)
                continue
            made_here = type(t) is tuple
            if (t[1] if made_here else t.storage).version != version:
                raise RuntimeError(
                    f"{self.op.name} saved a tensor for backward that has since been modified in place "
                    f"(version {(t[1] if made_here else t.storage).version}, saved at {version}); "
                    "work on a copy: x = x + 1 instead of x += 1"
                )
            out.append(g._wrap(t[0], t[1], self) if made_here else t)
        return tuple(out)

    def release(self) -> None:
        if self.kept or self.extras:
            self.kept, self.extras = None, ()

    @property
    def next_functions(self) -> tuple:
        return tuple((p, 0) for p in self.parents)

    def name(self) -> str:
        return "".join(part.capitalize() for part in self.op.name.split("_")) + "Backward"

    def __repr__(self) -> str:
        return f"<{self.name()}>"


_serial = 0


def record(op: Any, inputs: tuple, attrs: tuple, out: Any, extras: tuple = ()) -> Any:
    """The node of an op that made out from inputs."""
    global _serial
    _serial += 1
    node = Node.__new__(Node)
    node.serial = _serial
    node.op, node.attrs, node.extras = op, attrs, extras
    node.hooks, node.retained, node.fast = None, None, True
    parents, needs, shapes = [], [], []
    for t in inputs:
        edge = _edge(t)
        parents.append(edge)
        needs.append(edge is not None)
        shapes.append(t.array.shape)
    node.parents, node.needs, node.shapes = tuple(parents), tuple(needs), tuple(shapes)
    node.dtype = inputs[0].array.dtype
    node.kept, node.versions = (), ()
    if op.saves:
        _keep(node, op, inputs, out)
    return node


def _keep(node: Any, op: Any, inputs: tuple, out: Any) -> None:
    """Of what the rule reads, what a gradient that is wanted reads."""
    kept: list[Any] = []
    versions = []
    for i in op.saves if op.reads is None else op.keep(node.needs):
        if i is None:
            kept.append(None)
            versions.append(0)
            continue
        t = out if i == -1 else inputs[i]
        kept.append((t.array, t.storage) if i == -1 else t)
        versions.append(t.storage.version)
    node.kept, node.versions = tuple(kept), tuple(versions)


def _reachable(roots: Iterable[Any]) -> list[Node]:
    """Every node that a root depends on, newest first."""
    found: dict[int, Node] = {}
    todo = [r for r in roots if type(r) is Node]
    while todo:
        node = todo.pop()
        if node.serial not in found:
            found[node.serial] = node
            todo.extend([p for p in node.parents if type(p) is Node and p.serial not in found])
    return [found[s] for s in sorted(found, reverse=True)]


def leaves(outputs: Iterable[Any]) -> list[Any]:
    """The leaf tensors that outputs depend on and that require gradients, in order of first use."""
    edges = [p for node in reversed(_reachable(map(_edge, outputs))) for p in node.parents if p is not None]
    return list({id(p): p for p in edges if type(p) is not Node}.values())


def whole(output: Any) -> bool:
    """Whether a graph leads from it, and nothing of that has been freed."""
    edge = _edge(output)
    return type(edge) is Node and all(node.kept is not None for node in _reachable([edge]))


class _Flow:
    """Gradients on their way: by node or leaf, summed as they meet."""

    def __init__(self) -> None:
        self.pending: dict[int, Any] = {}
        self.leaves: dict[int, Any] = {}

    def add(self, edge: Any, g: Any) -> None:
        key = id(edge)
        if type(edge) is not Node:
            self.leaves[key] = edge
        before = self.pending.get(key)
        self.pending[key] = g if before is None else before + g


def _walk(roots: list, gradients: list, retain_graph: bool, create_graph: bool, wanted: dict[int, Any] | None) -> _Flow:
    """Carry gradients from roots to leaves. wanted: collect these edges' gradients instead of the leaves'."""
    flow = _Flow()
    for root, g in zip(roots, gradients):
        flow.add(root, g)
    collected: dict[int, Any] = {}
    nodes = _reachable(roots)
    if wanted is not None:  # visit only what leads to a wanted edge
        leads = set(wanted)
        for node in reversed(nodes):
            if id(node) in leads or any(id(p) in leads for p in node.parents if p is not None):
                leads.add(id(node))
    with set_grad_enabled(create_graph):
        for node in nodes:
            g = flow.pending.pop(id(node), None)
            if g is None or (wanted is not None and id(node) not in leads):
                continue
            if node.hooks:
                g = _hooked(node.hooks, g)
            if node.retained is not None:
                keeper = node.retained()
                if keeper is not None and wanted is None:
                    _accumulate(keeper, g, create_graph, None)
            if wanted is not None and id(node) in wanted:
                collected[id(node)] = g
                if not any(id(p) in leads for p in node.parents if p is not None):
                    continue
            node.fast = not create_graph
            for edge, dx in zip(node.parents, node.op.backward(node, g)):
                if edge is not None and dx is not None and (wanted is None or id(edge) in leads):
                    flow.add(edge, dx)
            if not retain_graph:
                node.release()
    if wanted is not None:
        collected.update((k, flow.pending[k]) for k in flow.leaves if k in wanted and k in flow.pending)
        flow.pending = collected
    return flow


class After:
    """A hook that is called with a leaf when its gradient has been accumulated."""

    def __init__(self, hook: Callable) -> None:
        self.hook = hook


def _hooked(hooks: dict, g: Any) -> Any:
    for hook in list(hooks.values()):
        changed = None if type(hook) is After else hook(g)
        if changed is not None:
            g = changed
    return g


def _accumulate(leaf: Any, g: Any, create_graph: bool, taken: set[int] | None) -> None:
    """leaf.grad += g. A first gradient becomes leaf.grad itself only if no one else can hold its memory."""
    if watchers:
        tell_grad(leaf, True)
    if leaf._grad is not None:
        leaf._grad = leaf._grad + g if create_graph else leaf._grad._accumulate(g)
    elif create_graph:
        leaf._grad = g
    else:
        array = g.array
        if (
            taken is None
            or not owned(array)
            or not array.flags.c_contiguous
            or not array.flags.writeable
            or id(array) in taken
        ):
            g = g.detach().clone()
        else:
            taken.add(id(array))
            g = g._wrap(array)
        leaf._grad = g


def tell_grad(leaf: Any, used: bool) -> None:
    """Tell who records that leaf.grad is used as it stands, or replaced whatever it is."""
    found = watcher()
    if found is not None:
        found.touches_grad(leaf, used)


def _first_gradients(outputs: list, gradients: Any) -> list:
    """One for each output: as given, or 1 for an output of one element."""
    if gradients is None:
        gradients = [None] * len(outputs)
    elif not isinstance(gradients, (list, tuple)):
        gradients = [gradients]
    if len(gradients) != len(outputs):
        raise RuntimeError(f"{len(outputs)} outputs need as many gradients, got {len(gradients)}")
    first = []
    for y, g in zip(outputs, gradients):
        if _edge(y) is None:
            raise RuntimeError(
                "this tensor does not require grad and has no grad_fn: nothing it was made from has "
                "requires_grad=True, or it was made under no_grad"
            )
        if g is None:
            if y.numel() != 1:
                raise RuntimeError(
                    f"grad can be created implicitly only for a scalar; this tensor has shape {list(y.shape)}: "
                    "sum it, or pass gradient= of that shape"
                )
            g = y._full(y.shape, 1.0)
        elif not hasattr(g, "array") or g.shape != y.shape:
            raise ShapeError(
                f"gradient must be a tensor of shape {list(y.shape)}, "
                f"got {list(g.shape) if hasattr(g, 'shape') else type(g).__name__}"
            )
        elif g.dtype != y.dtype:
            g = g.to(y.dtype)
        first.append(g)
    return first


def backward(tensors: Any, grad_tensors: Any = None, retain_graph: bool | None = None, create_graph: bool = False,
             inputs: Any = None) -> None:
    """Add d(tensors)/d(leaf), weighted by grad_tensors, to leaf.grad of every leaf that requires it.

    grad_tensors: one for each tensor, of its shape; may be left out for a tensor of one element. inputs: only these leaves.
    Raises RuntimeError if nothing requires grad, or the graph was freed by an earlier backward without retain_graph.
    """
    roots = [tensors] if hasattr(tensors, "array") else list(tensors)
    gradients = _first_gradients(roots, grad_tensors)
    keep = create_graph if retain_graph is None else retain_graph
    only = None if inputs is None else {id(t) for t in ([inputs] if hasattr(inputs, "array") else inputs)}
    flow = _walk([_edge(t) for t in roots], gradients, keep, create_graph, None)
    taken = {id(g.array) for g in gradients}
    with set_grad_enabled(create_graph):
        for key, leaf in flow.leaves.items():
            if only is not None and key not in only:
                continue
            g = flow.pending[key]
            if leaf._hooks:
                g = _hooked(leaf._hooks, g)
            _accumulate(leaf, g, create_graph, taken)
            if leaf._hooks:
                for hook in list(leaf._hooks.values()):
                    if type(hook) is After:
                        hook.hook(leaf)


def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None,
         create_graph: bool = False, allow_unused: bool | None = None, is_grads_batched: bool = False,
         materialize_grads: bool = False) -> tuple:
    """d(outputs)/d(inputs), as a tuple of tensors; leaves' .grad is left alone.

    is_grads_batched: grad_outputs have an axis in front, and so have the gradients, one walk back for each of its parts.

    Raises RuntimeError for an input that the outputs do not depend on, unless allow_unused (its gradient is None) or
    materialize_grads (zeros).
    """
    ys = [outputs] if hasattr(outputs, "array") else list(outputs)
    xs = [inputs] if hasattr(inputs, "array") else list(inputs)
    if is_grads_batched:
        weights = [grad_outputs] if hasattr(grad_outputs, "array") else list(grad_outputs)
        parts = [grad(ys, xs, list(some), True, create_graph, allow_unused, False, materialize_grads) for some in zip(*weights)]
        return tuple(None if column[0] is None else
                     column[0].unsqueeze(0)._op("cat", *[g.unsqueeze(0) for g in column[1:]], attrs=(0,))
                     for column in zip(*parts))
    for x in xs:
        if _edge(x) is None:
            raise RuntimeError("one of the inputs does not require grad")
    keep = create_graph if retain_graph is None else retain_graph
    wanted = {id(_edge(x)): x for x in xs}
    flow = _walk([_edge(y) for y in ys], _first_gradients(ys, grad_outputs), keep, create_graph, wanted)
    out = []
    for x in xs:
        g = flow.pending.get(id(_edge(x)))
        if g is None and materialize_grads:
            g = x._full(x.shape, 0.0)
        elif g is None and not allow_unused:
            raise RuntimeError(
                "one of the inputs was not used to make the outputs; pass allow_unused=True if that is meant"
            )
        out.append(g)
    return tuple(out)
