# SPDX-License-Identifier: BSD-3-Clause
"""Modules as functions of their parameters, and gradients as functions; torch.func's names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from .autograd import functional
from .graph import enable_grad
from .graph import grad as _gradients
from .tensor import Tensor

__all__ = ["functional_call", "grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp", "vjp"]


@contextmanager
def _swapped(module: Any, tensors: dict[str, Any], tie_weights: bool, strict: bool) -> Iterator[None]:
    """The module with these tensors under their names; what it had is put back."""
    names = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for table in (owner._parameters, owner._buffers):
            for name, value in table.items():
                if value is not None:
                    names[f"{path}.{name}" if path else name] = (table, name, value)
    unknown, missing = tensors.keys() - names.keys(), names.keys() - tensors.keys()
    if unknown or (strict and missing):
        raise RuntimeError(f"functional_call: {type(module).__name__} has no {', '.join(sorted(unknown))}" if unknown else
                           f"functional_call: strict, but not given are {', '.join(sorted(missing))}")
    new = {id(names[name][2]): t for name, t in tensors.items()} if tie_weights else {}
    changed = []
    try:
        for name, (table, key, value) in names.items():
            t = tensors.get(name, new.get(id(value)))
            if t is not None:
                changed.append((table, key, value))
                table[key] = t
        yield
    finally:
        for table, key, value in changed:
            table[key] = value


def functional_call(module: Any, parameter_and_buffer_dicts: Any, args: Any = None, kwargs: dict[str, Any] | None = None, *,
                    tie_weights: bool = True, strict: bool = False) -> Any:
    """module(*args, **kwargs) with these tensors instead of its parameters and buffers of the same names, which stay as they
    are. tie_weights: what is one tensor in the module is one here."""
    dicts = parameter_and_buffer_dicts
    tensors: dict[str, Any] = {}
    for some in [dicts] if isinstance(dicts, dict) else dicts:
        if both := tensors.keys() & some.keys():
            raise ValueError(f"functional_call: {', '.join(sorted(both))} in more than one dict")
        tensors |= some
    given = () if args is None else args if isinstance(args, tuple) else (args,)
    with _swapped(module, tensors, tie_weights, strict):
        return module(*given, **(kwargs or {}))


# Arguments may be tensors, and lists, tuples and dicts of them.


def _leaves(tree: Any) -> list:
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [leaf for part in parts for leaf in _leaves(part)]


def _mapped(tree: Any, values: Iterator) -> Any:
    if isinstance(tree, Tensor):
        return next(values)
    if isinstance(tree, dict):
        return {k: _mapped(v, values) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        parts = [_mapped(v, values) for v in tree]
        return tuple(parts) if isinstance(tree, tuple) else parts
    return tree


def grad_and_value(func: Callable, argnums: Any = 0, has_aux: bool = False) -> Callable:
    """A function that returns (gradients along these arguments, value), or (gradients, (value, aux)) if func returns two."""
    @wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        many = isinstance(argnums, tuple)
        picked = tuple(args[i] for i in (argnums if many else (argnums,)))
        leaves = _leaves(picked)
        with enable_grad():
            views = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in leaves]
            given, new = list(args), _mapped(picked, iter(views))
            for i, part in zip(argnums if many else (argnums,), new):
                given[i] = part
            result = func(*given, **kwargs)
            value, aux = result if has_aux else (result, None)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise RuntimeError("grad takes a function that returns one number")
            recorded = any(t.requires_grad for t in leaves)
            found = _gradients(value, views, create_graph=recorded, allow_unused=True, materialize_grads=True)
        slopes = _mapped(picked, iter(found))
        value = value if recorded else value.detach()
        return slopes if many else slopes[0], (value, aux) if has_aux else value

    return wrapped


def grad(func: Callable, argnums: Any = 0, has_aux: bool = False) -> Callable:
    """A function that returns the gradient of func along an argument, or several; grad(grad(f)) is the second derivative."""
    both = grad_and_value(func, argnums, has_aux)

    @wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        slopes, value = both(*args, **kwargs)
        return (slopes, value[1]) if has_aux else slopes

    return wrapped


def _along(func: Callable, argnums: Any, find: Callable) -> Callable:
    @wraps(func)
    def wrapped(*args: Any) -> Any:
        many = isinstance(argnums, tuple)
        picked = tuple(args[i] for i in (argnums if many else (argnums,)))

        def of_picked(*some: Any) -> Any:
            given = list(args)
            for i, part in zip(argnums if many else (argnums,), some):
                given[i] = part
            return func(*given)

        recorded = any(t.requires_grad for t in picked)
        return find(of_picked, picked if many else picked[0], recorded)

    return wrapped


def jacrev(func: Callable, argnums: Any = 0) -> Callable:
    """A function that returns the Jacobian of func, by one walk back for each output, or for each column of them where their
    rows are apart."""
    return _along(func, argnums, lambda f, x, again: functional.jacobian(f, x, again, vectorize=True))


def jacfwd(func: Callable, argnums: Any = 0) -> Callable:
    """The same by one product for each input."""
    return _along(func, argnums, lambda f, x, again: functional.jacobian(f, x, again, strategy="forward-mode"))


def hessian(func: Callable, argnums: Any = 0) -> Callable:
    """A function that returns the second derivatives of func."""
    return _along(func, argnums, functional.hessian)


def vjp(func: Callable, *primals: Any) -> tuple:
    """(func(*primals), a function of v that returns v^T J for each of primals)."""
    with enable_grad():
        views = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in primals]
        y = func(*views)

    def products(v: Any) -> tuple:
        return tuple(_gradients(y, views, v, retain_graph=True, create_graph=any(t.requires_grad for t in primals),
                                allow_unused=True, materialize_grads=True))

    return y.detach() if not any(t.requires_grad for t in primals) else y, products


def jvp(func: Callable, primals: tuple, tangents: tuple) -> tuple:
    """(func(*primals), J tangents)"""
    return functional.jvp(func, primals, tangents)
