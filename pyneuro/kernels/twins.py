# SPDX-License-Identifier: BSD-3-Clause
"""One backend as plain functions on arrays: `matmul(a, b)`, `relu(x, out=y)`, `adam(p, m, v, g, hyper)`.

`pyneuro.kernels.reference` and `pyneuro.kernels.native` are made here from the signatures, so they cannot differ.
"""
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import numpy as np

from .signature import HOST, KERNELS, SLOT_DTYPE, ShapeError, Spec, element_dtype, spec_for

Run = Callable[[str, tuple[np.ndarray, ...], tuple[float, ...]], None]


def twins(run: Run, docs: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """A function for every kernel; its documentation is the reference function's."""
    return {name: twin(name, run, docs.get(name)) for name in KERNELS | HOST}


def twin(name: str, run: Run, definition: Callable[..., Any] | None) -> Callable[..., Any]:
    row = KERNELS.get(name) or HOST[name]
    inputs = [s for s in row.slots if s.read]
    outputs = sum(not s.read for s in row.slots)
    names = [s.name for s in inputs] + [a for a, _ in row.attrs]
    defaults = dict(row.attrs)

    def call(*args: Any, out: Any = None, **named: Any) -> Any:
        if len(args) > len(names):
            raise TypeError(f"{row} takes at most {len(names)} arguments, got {len(args)}")
        given = dict(zip(names, args))
        if clash := [k for k in named if k in given or k not in names]:
            raise TypeError(f"{row} does not take {clash[0]!r} here")
        given |= named
        values: list[Any] = [given.get(k, defaults.get(k)) for k in names]
        if None in [v if v is None else 0 for v in values]:
            raise TypeError(f"{row} is missing {[k for k, v in zip(names, values) if v is None]}")
        arrays = [v if s.written else np.asarray(v) for s, v in zip(inputs, values)]
        if out is None:
            results = _allocate(name, arrays) if outputs else ()
        else:
            results = out if isinstance(out, tuple) else (out,)
        run(name, (*arrays, *results), tuple(float(v) for v in values[len(inputs):]))
        if not outputs:
            return None
        return results[0] if len(results) == 1 else tuple(results)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{row}\n\n{(definition and definition.__doc__) or ''}".rstrip()
    order = [Parameter(k, Parameter.POSITIONAL_OR_KEYWORD,
                       default=Parameter.empty if defaults.get(k) is None else defaults[k]) for k in names]
    extra = [Parameter("out", Parameter.KEYWORD_ONLY, default=None)] if outputs else []
    call.__signature__ = Signature(order + extra)          # type: ignore[attr-defined]
    return call


def _allocate(name: str, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Outputs of the shapes and types that the inputs imply."""
    element = element_dtype(name, tuple(arrays))
    spec: Spec = spec_for(name, element)
    extents: dict[str | int, int] = {}
    loop: list[tuple[int, ...]] = []
    for slot, a in zip(spec.slots, arrays):
        if slot.axes == ("...",):
            loop.append(a.shape)
        else:
            extents.update(zip(slot.axes, a.shape))
    try:
        shape = np.broadcast_shapes(*loop)
    except ValueError:
        raise ShapeError(f"{spec}: shapes {', '.join(map(str, loop))} do not broadcast together") from None
    out = []
    for slot in spec.slots[len(arrays):]:
        if (slot.axes == ("...",) and not loop) or any(isinstance(a, str) and a != "..." and a not in extents for a in slot.axes):
            raise TypeError(f"{spec}: the inputs do not say how large {slot.name} is; give out=")
        size = shape if slot.axes == ("...",) else tuple(a if isinstance(a, int) else extents[a] for a in slot.axes)
        out.append(np.empty(size, SLOT_DTYPE.get(slot.type, element)))
    return tuple(out)
