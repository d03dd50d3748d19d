# SPDX-License-Identifier: BSD-3-Clause
"""Memory for time: a part of a network that keeps nothing for backward, which runs it again instead."""

from collections.abc import Callable
from typing import Any

from ..autograd.function import Function
from ..graph import _edge, _reachable, enable_grad, grad, is_grad_enabled
from ..random import default_generator
from ..tensor import Tensor

__all__ = ["checkpoint", "checkpoint_sequential"]


class Recomputed(Function):
    """Outputs that were computed before, as a function of the tensors that they depend on."""

    @staticmethod
    def forward(ctx: Any, run: Any, outputs: tuple, *tensors: Tensor) -> Any:
        ctx.run = run
        ctx.save_for_backward(*tensors)
        return tuple(y.detach() if isinstance(y, Tensor) else y for y in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        tensors, again = ctx.saved_tensors, is_grad_enabled()
        with enable_grad():
            leaves = [t if again else t.detach().requires_grad_(t.requires_grad) for t in tensors]
            outputs, held = ctx.run(leaves)
        wanted = [t for t in held if t.requires_grad]
        pairs = [(y, g) for y, g in zip(outputs, grads) if isinstance(y, Tensor) and y.requires_grad and g is not None]
        found = iter(grad([y for y, _ in pairs], wanted, [g for _, g in pairs], create_graph=again, allow_unused=True))
        return None, None, *(next(found) if t.requires_grad else None for t in held)


def checkpoint(function: Callable, *args: Any, use_reentrant: bool | None = None, context_fn: Any = None,
               determinism_check: str = "default", debug: bool = False, preserve_rng_state: bool = True, **kwargs: Any) -> Any:
    """function(*args, **kwargs), of which backward keeps only the tensor arguments and what it was made from.

    backward calls function again, with the random numbers it had. What it computes in between is kept while it runs, so that
    the parameters that it uses are found. Arguments after **kwargs are torch's, and there is one way to do it here.
    """
    if not is_grad_enabled():
        return function(*args, **kwargs)
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    begin = default_generator.get_state()

    def call(inputs: list) -> Any:
        given = list(args)
        for i, t in zip(places, inputs):
            given[i] = t
        y = function(*given, **kwargs)
        return y, y if isinstance(y, tuple) else (y,)

    inputs = [args[i].detach().requires_grad_(args[i].requires_grad) for i in places]
    result, outputs = call(inputs)
    roots = [_edge(y) for y in outputs if isinstance(y, Tensor) and _edge(y) is not None]
    nodes = _reachable(roots)
    own = {id(t) for t in inputs}
    found = {id(p): p for p in [*roots, *(p for n in nodes for p in n.parents)] if isinstance(p, Tensor) and id(p) not in own}
    others = list(found.values())
    del nodes, roots, found
    if not any(t.requires_grad for t in (*[args[i] for i in places], *others)):
        return result

    def run(tensors: list) -> tuple:
        """Again, on these inputs; the other leaves are themselves."""
        now = default_generator.get_state()
        if preserve_rng_state:
            default_generator.set_state(begin)
        try:
            again = call(tensors[:len(places)])[1]
        finally:
            if preserve_rng_state:
                default_generator.set_state(now)
        return again, [*tensors[:len(places)], *others]

    made = Recomputed.apply(run, outputs, *[args[i] for i in places], *others)
    return made if isinstance(result, tuple) else made[0]


def checkpoint_sequential(functions: Any, segments: int, input: Any, use_reentrant: bool | None = None, **kwargs: Any) -> Any:
    """The functions one after another, in so many segments, all but the last with checkpoint."""
    steps = list(functions.children() if hasattr(functions, "children") else functions)
    size = len(steps) // segments

    def chain(start: int, end: int) -> Callable:
        def run(x: Any) -> Any:
            for step in steps[start:end]:
                x = step(x)
            return x

        return run

    at = 0
    for _ in range(segments - 1):
        input = checkpoint(chain(at, at + size), input, use_reentrant=use_reentrant, **kwargs)
        at += size
    return chain(at, len(steps))(input)
