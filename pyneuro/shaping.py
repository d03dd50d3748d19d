# SPDX-License-Identifier: BSD-3-Clause
"""Tensors in other shapes, joined, cut, and picked apart by number: torch's names, made of the views and rows of the op table.

What `METHODS` names is a method too; what `IN_PLACE` names has a form that ends in an underscore. Only functions whose
result has a shape that depends on the data read values.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import ops
from .kernels import DtypeError, ShapeError
from .tensor import (
    Tensor,
    _constant,
    _key,
    _one_dim,
    as_tensor,
    cat,
    positions,
    result_type,
    stack,
    where,
    wrap,
)

INT64, BOOL = np.dtype(np.int64), np.dtype(bool)


def _tensors(tensors: Any) -> list:
    """f(a, b) and f([a, b])."""
    return list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else list(tensors)


def _sizes(sizes: tuple) -> tuple[int, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and not hasattr(sizes[0], "__index__") else sizes


# Broadcasting


def broadcast_shapes(*shapes: Any) -> tuple[int, ...]:
    """The shape that tensors of these have together. Raises ShapeError where there is none."""
    out: tuple[int, ...] = ()
    for shape in shapes:
        out = ops.broadcast_shape(out, (shape,) if hasattr(shape, "__index__") else tuple(shape))
    return out


def broadcast_tensors(*tensors: Any) -> tuple:
    parts = _tensors(tensors)
    shape = broadcast_shapes(*[t.shape for t in parts])
    return tuple(t.expand(shape) for t in parts)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple:
    """Coordinates of a grid, one tensor for each line; indexing 'xy' swaps the first two axes."""
    parts = [t.reshape(-1) for t in _tensors(tensors)]
    if indexing not in ("ij", "xy"):
        raise ValueError(f"meshgrid takes indexing 'ij' or 'xy', not {indexing!r}")
    swap = indexing == "xy" and len(parts) > 1
    lines = [parts[1], parts[0], *parts[2:]] if swap else parts
    shape = tuple(t.numel() for t in lines)
    grids = [t.reshape((1,) * i + (t.numel(),) + (1,) * (len(lines) - 1 - i)).expand(shape) for i, t in enumerate(lines)]
    return (grids[1], grids[0], *grids[2:]) if swap else tuple(grids)


def cartesian_prod(*tensors: Any) -> Tensor:
    """Every combination of an element of each, one a row."""
    parts = _tensors(tensors)
    return parts[0] if len(parts) == 1 else stack([g.reshape(-1) for g in meshgrid(parts)], 1)


def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """Every choice of r elements of a line, one a row."""
    if input.ndim != 1:
        raise ShapeError(f"combinations takes a tensor of one axis, this one has shape {list(input.shape)}")
    choose: Any = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    chosen = list(choose(range(len(input)), r))
    return input[np.array(chosen, np.int64).reshape(len(chosen), r)] if r else input[:0]


# Axes


def swapaxes(input: Tensor, axis0: int, axis1: int) -> Tensor:
    return input.transpose(axis0, axis1)


def swapdims(input: Tensor, dim0: int, dim1: int) -> Tensor:
    return input.transpose(dim0, dim1)


def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Axes moved to other places; the others keep their order."""
    many = isinstance(source, (tuple, list))
    if many != isinstance(destination, (tuple, list)) or (many and len(source) != len(destination)):
        raise ShapeError(f"movedim takes as many destinations as sources, given {source} and {destination}")
    origin = [_one_dim(input.shape, d) for d in (source if many else (source,))]
    target = [_one_dim(input.shape, d) for d in (destination if many else (destination,))]
    if len(set(origin)) != len(origin) or len(set(target)) != len(target):
        raise ShapeError(f"movedim from {source} to {destination} names an axis twice")
    order = dict(zip(target, origin))
    rest = iter(d for d in range(input.ndim) if d not in origin)
    return input.permute([order[d] if d in order else next(rest) for d in range(input.ndim)]) if input.ndim else input


def moveaxis(input: Tensor, source: Any, destination: Any) -> Tensor:
    return movedim(input, source, destination)


def ravel(input: Tensor) -> Tensor:
    return input.reshape(-1)


def unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    """One axis as several; one of the sizes may be -1."""
    d, sizes = _one_dim(input.shape, dim), tuple(sizes)
    known = math.prod(n for n in sizes if n != -1)
    if not sizes or sizes.count(-1) > 1 or (input.shape[d] % known if -1 in sizes and known else input.shape[d] != known):
        raise ShapeError(f"unflatten: sizes {list(sizes)} do not multiply to the {input.shape[d]} of dim {d}")
    sizes = tuple(input.shape[d] // known if n == -1 else n for n in sizes)
    return input.reshape(input.shape[:d] + sizes + input.shape[d + 1 :])


def _at_least(ndim: int, axes: Callable) -> Callable:
    def function(*tensors: Any) -> Any:
        parts = [as_tensor(t) for t in _tensors(tensors)]
        parts = [t if t.ndim >= ndim else t.reshape(axes(t.shape)) for t in parts]
        return parts[0] if len(tensors) == 1 and not isinstance(tensors[0], (list, tuple)) else tuple(parts)

    function.__name__ = function.__qualname__ = f"atleast_{ndim}d"
    function.__doc__ = f"With axes of one until there are {ndim}."
    return function


atleast_1d = _at_least(1, lambda shape: (1,))
atleast_2d = _at_least(2, lambda shape: (1, *(shape or (1,))))
atleast_3d = _at_least(3, lambda shape: (*shape, 1) if len(shape) == 2 else (1, *(shape or (1,)), 1))


# Order and repetition


def flip(input: Tensor, *args: Any, dims: Any = ()) -> Tensor:
    """Axes in reverse, in new memory."""
    dims = _sizes(args) if args else (dims,) if hasattr(dims, "__index__") else dims
    axes = [_one_dim(input.shape, d) for d in dims]
    if len(set(axes)) != len(axes):
        raise ShapeError(f"flip of dims {list(dims)} names an axis twice")
    if not input.ndim or not axes:
        return input.clone()
    key = tuple(slice(None, None, -1) if d in axes else slice(None) for d in range(input.ndim))
    return input._op("slice", attrs=(key,)).clone()


def fliplr(input: Tensor) -> Tensor:
    if input.ndim < 2:
        raise ShapeError(f"fliplr takes at least 2 axes, this tensor has {input.ndim}")
    return flip(input, 1)


def flipud(input: Tensor) -> Tensor:
    if not input.ndim:
        raise ShapeError("flipud takes at least 1 axis, this tensor has 0")
    return flip(input, 0)


def rot90(input: Tensor, k: int = 1, dims: Any = (0, 1)) -> Tensor:
    """Turned by k right angles, from the first of the two axes towards the second."""
    if len(dims) != 2 or input.ndim < 2:
        raise ShapeError(f"rot90 takes two dims of a tensor that has them, given {list(dims)} of {list(input.shape)}")
    a, b = (_one_dim(input.shape, d) for d in dims)
    if a == b:
        raise ShapeError(f"rot90 takes two different dims, given {list(dims)}")
    turns = k % 4
    if turns == 2:
        return flip(input, a, b)
    return input.clone() if not turns else flip(input, b).transpose(a, b) if turns == 1 else flip(input.transpose(a, b), b)


def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Moved along dims, what leaves at the end coming in at the front; without dims, along the flattened tensor."""
    shifts = shifts if isinstance(shifts, (tuple, list)) else (shifts,)
    if dims is None or dims == () or dims == []:
        if len(shifts) != 1:
            raise ShapeError(f"roll takes as many dims as shifts, given {list(shifts)} and none")
        return roll(input.reshape(-1), shifts[0], 0).reshape(input.shape)
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    if len(dims) != len(shifts):
        raise ShapeError(f"roll takes as many dims as shifts, given {list(shifts)} and {list(dims)}")
    for shift, dim in zip(shifts, dims):
        d = _one_dim(input.shape, dim)
        n = input.shape[d] if input.ndim else 0
        if n and shift % n:
            input = cat([narrow(input, d, n - shift % n, shift % n), narrow(input, d, 0, n - shift % n)], d)
    return input.clone() if input._base is not None or not input.ndim else input


def repeat(input: Tensor, *repeats: Any) -> Tensor:
    """Copies side by side, as often along each axis as repeats say; more of these than axes add axes in front."""
    times = _sizes(repeats)
    lead = len(times) - input.ndim
    if lead < 0 or any(n < 0 for n in times):
        raise ShapeError(f"repeat takes a number, not negative, for each axis of {list(input.shape)}, given {list(times)}")
    shape = (1,) * lead + input.shape
    apart = input.reshape(tuple(k for n in shape for k in (1, n)))
    full = tuple(k for times, n in zip(times, shape) for k in (times, n))
    y = apart.expand(full).reshape(tuple(times * n for times, n in zip(times, shape)))
    return y.clone() if y.storage is input.storage else y


def tile(input: Tensor, *dims: Any) -> Tensor:
    """repeat, where fewer dims than axes are for the last ones."""
    times = _sizes(dims)
    return repeat(input, (1,) * (input.ndim - len(times)) + tuple(times))


def repeat_interleave(input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """Each element, or part along dim, repeats times in place. Of counts alone: the number of each, as often as it says."""
    if repeats is None:
        return wrap(np.repeat(np.arange(len(input)), input._look()))
    x = input.reshape(-1) if dim is None else input
    d = _one_dim(x.shape, dim or 0)
    if not x.ndim:
        x = x.reshape(1)
    counts = as_tensor(repeats)
    if counts.dtype.kind not in "iu" or (counts._look() < 0).any():
        raise ValueError("repeat_interleave takes whole numbers of repeats that are not negative")
    if counts.ndim > 1 or (counts.numel() != 1 and counts.numel() != x.shape[d]):
        raise ShapeError(f"repeats of shape {list(counts.shape)} do not fit the {x.shape[d]} of dim {d}")
    index = np.repeat(np.arange(x.shape[d]), np.broadcast_to(counts._look().reshape(-1), x.shape[d : d + 1]))
    return x.index_select(d, wrap(index.astype(np.int64)))


# Parts


def narrow(input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """length parts along dim, from start: a view."""
    d, start = _one_dim(input.shape, dim), int(start)
    if not input.ndim:
        raise ShapeError("narrow takes a tensor with at least one axis")
    n = input.shape[d]
    if not -n <= start <= n or length < 0 or start % (n + (start >= 0)) + length > n:
        raise IndexError(f"narrow: {length} from {start} on are not in the {n} of dim {d}")
    start = start + n if start < 0 else start
    return input._op("slice", attrs=((*(slice(None),) * d, slice(start, start + length)),))


def select(input: Tensor, dim: int, index: int) -> Tensor:
    """One part along dim, without that axis: a view."""
    d = _one_dim(input.shape, dim)
    return input[(slice(None),) * d + (int(index),)]


def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple:
    """In so many parts, the first ones larger by one where it does not divide; or cut at these places."""
    d = _one_dim(input.shape, dim)
    if not input.ndim:
        raise ShapeError("tensor_split takes a tensor with at least one axis")
    n, at = input.shape[d], indices_or_sections
    at = at.tolist() if isinstance(at, Tensor) else at
    if hasattr(at, "__index__"):
        if at < 1:
            raise ShapeError(f"tensor_split takes at least 1 section, got {at}")
        sizes = [n // at + (i < n % at) for i in range(at)]
        at = np.cumsum(sizes)[:-1].tolist()
    cuts = [0, *at, n]
    whole = (slice(None),) * d
    return tuple(input[(*whole, slice(a, b if i < len(at) else None))] for i, (a, b) in enumerate(itertools.pairwise(cuts)))


def _split_along(name: str, axis: Callable, least: int) -> Callable:
    def function(input: Tensor, indices_or_sections: Any) -> tuple:
        d = axis(input)
        if input.ndim < least:
            raise ShapeError(f"{name} takes at least {least} axes, this tensor has {input.ndim}")
        if hasattr(indices_or_sections, "__index__") and (indices_or_sections < 1 or input.shape[d] % indices_or_sections):
            raise ShapeError(f"{name} into {indices_or_sections} parts does not divide the {input.shape[d]} of dim {d}")
        return tensor_split(input, indices_or_sections, d)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = "Equal parts, or cut at these places, along one axis."
    return function


hsplit = _split_along("hsplit", lambda t: 0 if t.ndim == 1 else 1, 1)
vsplit = _split_along("vsplit", lambda t: 0, 2)
dsplit = _split_along("dsplit", lambda t: 2, 3)


def split_with_sizes(input: Tensor, split_sizes: Any, dim: int = 0) -> tuple:
    return input.split(list(split_sizes), dim)


def unsafe_split(input: Tensor, split_size: int, dim: int = 0) -> tuple:
    return input.split(split_size, dim)


def unsafe_chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple:
    return input.chunk(chunks, dim)


# Joining


def _joined(name: str, lift: Callable | None, axis: Callable, about: str) -> Callable:
    def function(tensors: Any) -> Tensor:
        parts = [as_tensor(t) for t in tensors]
        if not parts:
            raise ValueError(f"{name} takes at least one tensor")
        parts = [lift(t) for t in parts] if lift else parts
        return cat(parts, axis(parts[0]))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = about
    return function


hstack = _joined("hstack", atleast_1d, lambda t: 0 if t.ndim == 1 else 1,
                 "Side by side, along the second axis; lines along their own.")
vstack = _joined("vstack", atleast_2d, lambda t: 0, "One below the other; lines as rows.")
dstack = _joined("dstack", atleast_3d, lambda t: 2, "One behind the other, along the third axis.")
column_stack = _joined("column_stack", lambda t: t.reshape(t.numel(), 1) if t.ndim < 2 else t, lambda t: 1,
                       "Side by side; lines as columns.")
row_stack = vstack


def concat(tensors: Any, dim: int = 0) -> Tensor:
    return cat(tensors, dim)


def concatenate(tensors: Any, dim: int = 0) -> Tensor:
    return cat(tensors, dim)


def block_diag(*tensors: Any) -> Tensor:
    """Matrices along the diagonal of one that is 0 elsewhere; lines and numbers count as rows."""
    parts = [atleast_2d(t) for t in tensors]
    dtype = result_type(*parts)
    if any(p.ndim > 2 for p in parts):
        raise ShapeError("block_diag takes tensors of at most 2 axes")
    columns = sum(p.shape[1] for p in parts)
    rows, at = [], 0
    for p in parts:
        n, m = p.shape
        rows.append(p.to(dtype)._op("slice_grad", attrs=((n, columns), (slice(None), slice(at, at + m)))))
        at += m
    return cat(rows, 0)


# Diagonals and triangles


def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The diagonal of two axes as the last axis, offset columns to the right: a view."""
    if input.ndim < 2:
        raise IndexError(f"diagonal takes at least 2 axes, this tensor has {input.ndim}")
    a, b = _one_dim(input.shape, dim1), _one_dim(input.shape, dim2)
    if a == b:
        raise ShapeError(f"diagonal takes two different dims, given {dim1} and {dim2}")
    return input._op("diagonal", attrs=(int(offset), a, b))


def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """The last axis as a diagonal of two axes, which is 0 elsewhere."""
    ndim = input.ndim + 1
    if not input.ndim:
        raise ShapeError("diag_embed takes a tensor with at least one axis")
    probe = (1,) * ndim
    a, b = _one_dim(probe, dim1), _one_dim(probe, dim2)
    if a == b:
        raise ShapeError(f"diag_embed takes two different dims, given {dim1} and {dim2}")
    shape = list(input.shape[:-1])
    for d in sorted((a, b)):
        shape.insert(d, input.shape[-1] + abs(offset))
    return input._op("diagonal_grad", attrs=(tuple(shape), int(offset), a, b))


def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """The diagonal of a matrix, or the matrix that has a line as its diagonal."""
    if input.ndim not in (1, 2):
        raise ShapeError(f"diag takes a tensor of 1 or 2 axes, this one has {input.ndim}")
    return diag_embed(input, diagonal) if input.ndim == 1 else input._op("diagonal", attrs=(int(diagonal), 0, 1)).clone()


def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    return diag_embed(input.reshape(-1), offset)


def trace(input: Tensor) -> Tensor:
    if input.ndim != 2:
        raise ShapeError(f"trace takes a matrix, this tensor has {input.ndim} axes")
    return diagonal(input).sum()


def _triangle(input: Tensor, diagonal: int, upper: bool) -> Tensor:
    if input.ndim < 2:
        raise ShapeError(f"{'triu' if upper else 'tril'} takes at least 2 axes, this tensor has {input.ndim}")
    n, m = input.shape[-2:]
    below = np.tri(n, m, int(diagonal) - upper, dtype=bool)
    return where(wrap(~below if upper else below), input, _constant(0, input.dtype))


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """What is not above the diagonal; 0 elsewhere."""
    return _triangle(input, diagonal, False)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """What is not below the diagonal; 0 elsewhere."""
    return _triangle(input, diagonal, True)


def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = INT64, device: Any = None) -> Tensor:
    """Where tril of a row by col matrix keeps: rows and columns."""
    return wrap(np.stack(np.tril_indices(row, offset, col)).astype(np.int64)).to(dtype=dtype, device=device)


def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = INT64, device: Any = None) -> Tensor:
    return wrap(np.stack(np.triu_indices(row, offset, col)).astype(np.int64)).to(dtype=dtype, device=device)


# By number


def _index(index: Any, name: str) -> Tensor:
    if isinstance(index, Tensor) and index.dtype == np.int32:
        return index.long()
    if not isinstance(index, Tensor) or index.dtype != INT64:
        raise DtypeError(f"{name} takes an int64 tensor as index, not {getattr(index, 'dtype', type(index).__name__)}")
    return index


def take(input: Tensor, index: Tensor) -> Tensor:
    """The flattened tensor at index, in the index's shape."""
    return input.reshape(-1)[_index(index, "take")]


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """gather, with input and indices broadcast to each other along the other axes."""
    if dim is None:
        return input.reshape(-1).gather(0, _index(indices, "take_along_dim").reshape(-1))
    if input.ndim != indices.ndim:
        raise ShapeError(f"take_along_dim takes indices of {input.ndim} axes, given {list(indices.shape)}")
    d = _one_dim(input.shape, dim)
    rest = broadcast_shapes(*[(*s[:d], 1, *s[d + 1 :]) for s in (input.shape, indices.shape)])
    full = [(*rest[:d], t.shape[d], *rest[d + 1 :]) for t in (input, indices)]
    indices = _index(indices, "take_along_dim")
    indices = where(indices < 0, indices + input.shape[d], indices)
    return input.expand(full[0]).gather(d, indices.expand(full[1]))


def _region(input: Tensor, dim: int, index: Tensor, name: str) -> tuple:
    """Axis, index and the part of input that it reaches: all but along dim no longer than the index."""
    d = _one_dim(input.shape, dim)
    index = _index(index, name)
    if index.ndim != input.ndim and index.numel():
        raise ShapeError(f"{name} takes an index of {input.ndim} axes, given {list(index.shape)}")
    if any(n > m for i, (n, m) in enumerate(zip(index.shape, input.shape)) if i != d):
        raise ShapeError(f"{name}: an index of shape {list(index.shape)} does not fit {list(input.shape)} along dim {d}")
    key = tuple(slice(None) if i == d else slice(n) for i, n in enumerate(index.shape))
    return d, index, key if any(n < m for i, (n, m) in enumerate(zip(index.shape, input.shape)) if i != d) else None


def _source(src: Any, index: Tensor, input: Tensor, name: str) -> Tensor:
    if not isinstance(src, Tensor):
        return _constant(src, input.dtype).expand(index.shape)
    if src.dtype != input.dtype:
        raise DtypeError(f"{name} of {src.dtype} into {input.dtype}: convert one of them with .to()")
    if src.ndim != index.ndim or any(n > m for n, m in zip(index.shape, src.shape)):
        raise ShapeError(f"{name}: an index of shape {list(index.shape)} does not fit a source of {list(src.shape)}")
    return src[tuple(slice(n) for n in index.shape)] if src.shape != index.shape else src


def scatter(input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None) -> Tensor:
    """input with src, or a number, at index along dim: out[i, index[i, j]] = src[i, j] for dim = 1.

    reduce: 'add' or 'multiply' with what is there instead. Of repeated indices the last one stays.
    """
    src = value if src is None else src
    if reduce == "add":
        source = src if isinstance(src, Tensor) else _constant(src, input.dtype).expand(index.shape)
        return scatter_add(input, dim, index, source)
    if reduce not in (None, "multiply"):
        raise ValueError(f"scatter takes reduce 'add' or 'multiply', not {reduce!r}")
    return _scattered("scatter" if reduce is None else "scatter_mul", input, dim, index, src, "scatter")


def _scattered(op: str, input: Tensor, dim: int, index: Tensor, src: Any, name: str) -> Tensor:
    """An op of input, index and src, of which the index may reach a part only."""
    if not input.ndim:
        source = src.reshape(-1) if isinstance(src, Tensor) else src
        return _scattered(op, input.reshape(1), 0, index.reshape(-1), source, name).reshape(())
    d, index, key = _region(input, dim, index, name)
    if not index.numel():
        return input.clone()
    part = (input if key is None else input[key])._op(op, index, _source(src, index, input, name), attrs=(d,))
    return part if key is None else input._op("put_at", part, attrs=(positions(input.shape, key),))


def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """input plus src at index along dim, repeated indices in turn."""
    if not input.ndim:
        return scatter_add(input.reshape(1), 0, index.reshape(-1), src.reshape(-1)).reshape(())
    d, index, key = _region(input, dim, index, "scatter_add")
    if not index.numel():
        return input.clone()
    src = _source(src, index, input, "scatter_add")
    reached = tuple(m if i == d else n for i, (n, m) in enumerate(zip(index.shape, input.shape)))
    sums = src._op("gather_grad", index, attrs=(d, reached))
    return input + (sums if key is None else sums._op("slice_grad", attrs=(input.shape, key)))


REDUCED = {"prod": ("scatter_mul", 1), "amax": ("scatter_max", -math.inf), "amin": ("scatter_min", math.inf)}


def scatter_reduce(input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    """At each place the sum, prod, mean, amax or amin of input and of all of src that index along dim puts there.

    include_self=False: where index puts anything, of that alone. Raises ValueError for another word in reduce.
    """
    return _reduced_into("scatter_reduce", input, dim, index, src, reduce, include_self, ("sum", "mean", *REDUCED))


def index_reduce(input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    """scatter_reduce of whole parts along dim, without sum, which is index_add."""
    if input.ndim:
        dim, index = _lines(input, dim, index, "index_reduce")
        wanted = (*input.shape[:dim], index.numel(), *input.shape[dim + 1 :])
        source = source.reshape(1) if not source.ndim else source
        if source.shape != wanted:
            raise ShapeError(f"index_reduce takes a source of {list(wanted)}, given {list(source.shape)}")
        index = _spread(index, dim, input.shape)
    return _reduced_into("index_reduce", input, dim, index, source, reduce, include_self, ("mean", *REDUCED))


def _reduced_into(name: str, input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, include_self: bool,
                  known: tuple[str, ...]) -> Tensor:
    if reduce not in known:
        raise ValueError(f"{name} takes reduce as one of {', '.join(known)}, not {reduce!r}")
    op, start = REDUCED.get(reduce, ("", 0))
    if not include_self:
        if math.isinf(start) and input.dtype.kind in "iu":
            limits = np.iinfo(input.dtype)
            start = limits.max if start > 0 else limits.min
        input = _scattered("scatter", input, dim, index, start, name)
    if op:
        return _scattered(op, input, dim, index, src, name)
    total = scatter_add(input, dim, index, src)
    if reduce == "sum":
        return total
    ones = wrap(ops.filled(input.shape, input.dtype, 1.0))
    ones = ones if include_self else _scattered("scatter", ones, dim, index, 0, name)
    count = scatter_add(ones, dim, index, wrap(ops.filled(index.shape, input.dtype, 1.0))).clamp(min=1)
    return total / count if input.is_floating_point() else total // count


def _lines(input: Tensor, dim: int, index: Tensor, name: str) -> tuple[int, Tensor]:
    d, index = _one_dim(input.shape, dim), _index(index, name)
    if index.ndim > 1:
        raise ShapeError(f"{name} takes an index of one axis, given {list(index.shape)}")
    return d, index.reshape(-1)


def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """input plus alpha times source, whose parts along dim go where index says."""
    if not input.ndim:
        return input + source.reshape(()) * alpha
    d, index = _lines(input, dim, index, "index_add")
    source = source.reshape(1) if not source.ndim else source
    wanted = (*input.shape[:d], index.numel(), *input.shape[d + 1 :])
    if source.shape != wanted or source.dtype != input.dtype:
        raise ShapeError(f"index_add takes a source of {input.dtype}{list(wanted)}, given {source.dtype}{list(source.shape)}")
    rows = source if alpha == 1 else source * alpha
    shape = (input.shape[d], *(n for i, n in enumerate(input.shape) if i != d))
    sums = movedim(rows, d, 0)._op("take_grad", index, attrs=(shape,))
    return input + movedim(sums, 0, d)


def _spread(index: Tensor, d: int, shape: tuple[int, ...]) -> Tensor:
    """An index of lines as one of elements."""
    return index.reshape((-1,) + (1,) * (len(shape) - 1 - d)).expand((*shape[:d], index.numel(), *shape[d + 1 :]))


def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """input with the parts of source along dim where index says."""
    if not input.ndim:
        return source.reshape(()).clone()
    d, index = _lines(input, dim, index, "index_copy")
    return scatter(input, d, _spread(index, d, input.shape), source.reshape(1) if not source.ndim else source)


def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """input with a number in the parts along dim that index names."""
    d, index = _lines(input, dim, index, "index_fill")
    if isinstance(value, Tensor) and value.ndim:
        raise ShapeError(f"index_fill takes a number, given a tensor of shape {list(value.shape)}")
    value = value.to(input.dtype) if isinstance(value, Tensor) else _constant(value, input.dtype)
    extent = input.shape[d] if input.ndim else 1
    named = wrap(ops.filled((extent,), BOOL, 0.0))._op("scatter", where(index < 0, index + extent, index),
                                                      _constant(True, BOOL).expand(index.shape), attrs=(0,))
    return where(named.reshape((-1,) + (1,) * (input.ndim - 1 - d)) if input.ndim else named.reshape(()), value, input)


def index_put(input: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    """input with values at indices, one tensor for each axis; accumulate: added to what is there."""
    try:
        at = positions(input.shape, _key(tuple(indices)))
    except IndexError as error:
        raise IndexError(f"{error} (shape {list(input.shape)})") from None
    values = values.to(input.dtype).expand(at.shape)
    if accumulate:
        return input + values._op("take_at_grad", attrs=(at, input.shape))
    return input._op("put_at", values, attrs=(at,))


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where mask holds, as a line."""
    if mask.dtype != BOOL:
        raise DtypeError(f"masked_select takes a bool mask, not {mask.dtype}")
    input, mask = broadcast_tensors(input, mask)
    return input._op("take_at", attrs=(np.flatnonzero(mask._look()).astype(np.int64),))


def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """input with the elements of source, in order, where mask holds."""
    if mask.dtype != BOOL or source.dtype != input.dtype:
        raise DtypeError(f"masked_scatter takes a bool mask and a source of {input.dtype}, not {mask.dtype} and {source.dtype}")
    input, mask = broadcast_tensors(input, mask)
    at = np.flatnonzero(mask._look()).astype(np.int64)
    if len(at) > source.numel():
        raise ShapeError(f"masked_scatter: {len(at)} places, but a source of {source.numel()} elements")
    return input._op("put_at", source.reshape(-1)[: len(at)], attrs=(at,))


def argwhere(input: Tensor) -> Tensor:
    """The places of what is not 0, one a row."""
    return wrap(np.argwhere(input._look()).astype(np.int64))


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """argwhere, or with as_tuple a line for each axis."""
    if as_tuple:
        return tuple(wrap(i.astype(np.int64)) for i in np.nonzero(np.atleast_1d(input._look())))
    return argwhere(input)


def expand_copy(input: Tensor, size: Any) -> Tensor:
    return input.expand(size).clone()


def sum_to_size(input: Tensor, *size: Any) -> Tensor:
    """Summed to a shape that broadcasts to this one's."""
    shape = tuple(_sizes(size))
    if ops.broadcast_shape(shape, input.shape) != input.shape:
        raise ShapeError(f"shape {list(shape)} does not broadcast to {list(input.shape)}")
    return input.sum_to(shape)


def unfold(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Windows along an axis, step apart; what lies in them is a new last axis."""
    d = _one_dim(input.shape, dimension)
    n = input.shape[d] if input.ndim else 1
    if not 0 <= size <= n or step < 1:
        raise ShapeError(f"unfold takes a size of at most the {n} of dim {d}, and a positive step; given {size} and {step}")
    count = (n - size) // step + 1
    starts = np.arange(count)[:, None] * step + np.arange(size)
    if not input.ndim:
        return input.reshape(1)[:size]
    return movedim(movedim(input, d, 0)._op("take", wrap(starts.astype(np.int64))), (0, 1), (d, input.ndim))


METHODS = (
    "argwhere", "diag", "diag_embed", "diagflat", "diagonal", "dsplit", "expand_copy", "flip", "fliplr", "flipud", "hsplit",
    "index_add", "index_copy", "index_fill", "index_put", "index_reduce", "masked_scatter", "masked_select", "moveaxis",
    "movedim", "narrow", "nonzero", "ravel", "repeat_interleave", "roll", "rot90", "scatter", "scatter_add",
    "scatter_reduce", "select", "split_with_sizes", "swapaxes", "swapdims", "take", "take_along_dim", "tensor_split",
    "tile", "trace", "tril", "triu", "unflatten", "unsafe_chunk", "unsafe_split", "vsplit",
)
ONLY_METHODS = ("repeat", "sum_to_size", "unfold")
FUNCTIONS = (
    "atleast_1d", "atleast_2d", "atleast_3d", "block_diag", "broadcast_shapes", "broadcast_tensors", "cartesian_prod",
    "column_stack", "combinations", "concat", "concatenate", "dstack", "hstack", "meshgrid", "row_stack", "tril_indices",
    "triu_indices", "vstack",
)
IN_PLACE = ("index_add", "index_copy", "index_fill", "index_put", "index_reduce", "masked_scatter", "masked_fill", "scatter",
            "scatter_add", "scatter_reduce", "tril", "triu")
