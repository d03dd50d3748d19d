# SPDX-License-Identifier: BSD-3-Clause
"""Operations of one's own: subclass Function with forward and backward as static methods, and call its apply."""

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any

from ..graph import is_grad_enabled, no_grad, record, set_grad_enabled
from ..kernels import ShapeError
from ..ops import broadcast_shape
from ..tensor import Tensor, wrap

__all__ = ["Function", "FunctionCtx", "once_differentiable"]


class FunctionCtx:
    """What forward hands to backward. Attributes of any name may be set."""

    needs_input_grad: tuple[bool, ...] = ()
    _to_save: tuple = ()
    _saved: tuple | None = ()                          # (tensor, version), or of an output (number, version)
    _fixed: tuple = ()                                 # outputs without a gradient
    _dirty: tuple = ()
    _materialize = True
    _outputs: tuple = ()                               # of each that is recorded: array, storage, its node weakly

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep inputs, outputs or other tensors for backward, which finds them in saved_tensors."""
        for t in tensors:
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(f"save_for_backward takes tensors, got {type(t).__name__}; set other things as attributes")
        self._to_save = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """These outputs have no gradient."""
        self._fixed = tensors

    def mark_dirty(self, *tensors: Any) -> None:
        """forward wrote these inputs in place, and returns them."""
        self._dirty = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """False: backward gets None, not zeros, for an output that nothing came back to."""
        self._materialize = value

    @property
    def saved_tensors(self) -> tuple:
        if self._saved is None:
            raise RuntimeError("backward through a Function a second time: what it saved was freed after the first; "
                               "call backward(retain_graph=True) the first time")
        out: list = []
        for kept, version in self._saved:
            if kept is None:
                out.append(None)
                continue
            array, storage, node = self._outputs[kept] if isinstance(kept, int) else (kept.array, kept.storage, None)
            if storage.version != version:
                raise RuntimeError(f"a Function saved a tensor for backward that has since been modified in place "
                                   f"(version {storage.version}, saved at {version}); work on a copy")
            out.append(kept if node is None else wrap(array, storage, node()))
        return tuple(out)


class _Gradients:
    """Those of a Function's outputs, on their way to it; they meet by addition."""

    def __init__(self, found: dict[int, Any]) -> None:
        self.found = found

    def __add__(self, other: "_Gradients") -> "_Gradients":
        found = dict(self.found)
        for i, g in other.found.items():
            found[i] = found[i] + g if i in found else g
        return _Gradients(found)


class _Output:
    """One of several outputs: its gradient goes on, with its number, to the Function."""

    name, saves, reads = "function_output", (), None

    @staticmethod
    def backward(node: Any, g: Any) -> tuple:
        return (_Gradients({node.attrs[0]: g}),)


class _Applied:
    """A Function that was applied, as a row of the op table."""

    saves, reads = (), None

    def __init__(self, kind: Any, ctx: FunctionCtx, places: tuple[int, ...], count: int) -> None:
        self.name, self.kind, self.ctx, self.places, self.count = kind.__name__, kind, ctx, places, count
        self.shapes: list = []
        self.example: Any = None

    def backward(self, node: Any, g: Any) -> tuple:
        ctx = self.ctx
        if not node.extras and ctx._saved:             # they were freed
            ctx._saved = None
        found = g.found if isinstance(g, _Gradients) else {0: g}
        some = next(iter(found.values()))
        given = [found.get(i) if found.get(i) is not None or not ctx._materialize or shape is None
                 else some._full(shape[0], 0.0).to(shape[1]) for i, shape in enumerate(self.shapes)]
        result = self.kind.backward(ctx, *given)
        result = result if isinstance(result, tuple) else (result,)
        if len(result) < self.count or any(r is not None for r in result[self.count:]):
            raise RuntimeError(f"{self.name}.backward returned {len(result)} gradients for {self.count} inputs")
        return tuple(self._fitting(result[i], shape, need) for i, shape, need in zip(self.places, node.shapes, node.needs))

    def _fitting(self, g: Any, shape: tuple[int, ...], need: bool) -> Any:
        if g is None or not need:
            return None
        if not isinstance(g, Tensor):
            raise TypeError(f"{self.name}.backward returns tensors or None, not {type(g).__name__}")
        if g.shape != shape:
            if len(shape) > g.ndim or broadcast_shape(g.shape, shape) != g.shape:
                raise ShapeError(f"{self.name}.backward returned a gradient of shape {list(g.shape)} for an input of {list(shape)}")
            g = g.sum_to(shape)
        return g


class Function:
    """class Twice(Function): forward(ctx, x) returns 2 * x, backward(ctx, g) returns 2 * g, one gradient for each argument
    of forward; y = Twice.apply(x). forward may leave ctx out where there is a setup_context(ctx, inputs, output)."""

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a Function defines forward")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        raise NotImplementedError("a Function whose forward takes no ctx defines setup_context")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise NotImplementedError("a Function that is differentiated defines backward")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run forward, and record backward if an argument needs its gradient."""
        ctx = FunctionCtx()
        ctx.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        with no_grad():
            if cls.setup_context is Function.setup_context:
                output = cls.forward(ctx, *args)
            else:
                output = cls.forward(*args)
                cls.setup_context(ctx, args, output)
        many = isinstance(output, tuple)
        outputs = list(output) if many else [output]
        if not (is_grad_enabled() and any(ctx.needs_input_grad)):
            return output
        inputs = {id(a) for a in args if isinstance(a, Tensor)}
        dirty, fixed = {id(t) for t in ctx._dirty}, {id(t) for t in ctx._fixed}
        numbers = {id(t): i for i, t in enumerate(outputs) if isinstance(t, Tensor) and id(t) not in fixed}
        places = tuple(i for i, a in enumerate(args) if isinstance(a, Tensor))
        op = _Applied(cls, ctx, places, len(args))
        node = record(op, tuple(a for a in args if isinstance(a, Tensor)), (), None)
        node.extras = (ctx,)
        differentiable = [isinstance(t, Tensor) and t.is_floating_point() and id(t) not in fixed for t in outputs]
        alone = sum(isinstance(t, Tensor) for t in outputs) == 1
        kept: list = []
        for i, t in enumerate(outputs):
            op.shapes.append((t.shape, t.dtype) if isinstance(t, Tensor) else None)
            if not isinstance(t, Tensor):
                kept.append(None)
                continue
            if id(t) in dirty:
                t._check_writable()
                t.storage.version += 1
                t.storage.rewrites += 1
                t._seen = t.storage.rewrites
            elif id(t) in inputs or t.node is not None:
                outputs[i] = t = wrap(t.array, t.storage)
            if not differentiable[i]:
                kept.append(None)
                continue
            mine = node
            if not (alone and i == 0):
                mine = record(_Output, (wrap(t.array, t.storage, node),), (i,), None)
            t.node, t.needs_grad = mine, True
            kept.append((t.array, t.storage, weakref.ref(mine)))
        ctx._outputs = tuple(kept)
        ctx._saved = tuple(
            (None, 0) if t is None
            else (numbers[id(t)] if id(t) in numbers and id(t) not in inputs and kept[numbers[id(t)]] is not None else t,
                  t.storage.version)
            for t in ctx._to_save
        )
        ctx._to_save = ()
        return tuple(outputs) if many else outputs[0]


class _Refused:
    name, saves, reads = "once_differentiable", (), None

    @staticmethod
    def backward(node: Any, g: Any) -> tuple:
        raise RuntimeError("differentiating twice a Function whose backward is marked @once_differentiable")


def once_differentiable(backward: Callable) -> Callable:
    """For a backward that is not made of tensor operations: a second derivative is an error instead of wrong."""
    @wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        with set_grad_enabled(False):
            result = backward(ctx, *grads)
        recorded = tuple(g for g in grads if isinstance(g, Tensor) and g.requires_grad)
        if not is_grad_enabled() or not recorded:
            return result
        marked = [wrap(r.array, r.storage, record(_Refused, recorded, (), None)) if isinstance(r, Tensor) else r
                  for r in (result if isinstance(result, tuple) else (result,))]
        return tuple(marked) if isinstance(result, tuple) else marked[0]

    return wrapped
