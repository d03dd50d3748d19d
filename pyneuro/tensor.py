# SPDX-License-Identifier: BSD-3-Clause
# cython: annotation_typing=False
"""The tensor: an array that remembers how it was made. Semantics are PyTorch's; the bytes are NumPy's, never copied
on the way in by `from_numpy` or on the way out by `numpy()`.
"""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import graph, ops
from .graph import _edge, is_grad_enabled, record
from .kernels import (
    DeviceError,
    DtypeError,
    ShapeError,
    Storage,
    TensorBase,
    fresh,
    quick,
    quick_matmul,
    quick_tensor,
    serve,
    watcher,
    watchers,
)
from .ops import OPS

_TENSOR: Any = TensorBase             # what passes isinstance is a whole Tensor, which mypy cannot know
DTYPES = tuple(np.dtype(t) for t in ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"))
_FLOATS = DTYPES[:2]
_INT64, _BOOL = np.dtype(np.int64), np.dtype(bool)


class device:
    """Where a tensor lives: 'cpu', here always."""

    __slots__ = ()
    type = "cpu"
    index = None

    def __init__(self, type: Any = "cpu", index: int | None = None) -> None:
        if not (isinstance(type, device) or (isinstance(type, str) and type.partition(":")[0] == "cpu")):
            raise DeviceError(f"device {type!r} is not here: pyneuro runs on device='cpu'")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, device)

    def __hash__(self) -> int:
        return hash("cpu")

    def __repr__(self) -> str:
        return "device(type='cpu')"

    def __str__(self) -> str:
        return "cpu"


CPU = device()


_Defaults = SimpleNamespace(dtype=_FLOATS[0], precision="highest")


def get_default_dtype() -> np.dtype:
    return _Defaults.dtype


def set_default_dtype(dtype: Any) -> None:
    """float32 or float64: what Python floats become. Raises DtypeError for another."""
    chosen = as_dtype(dtype)
    if chosen not in _FLOATS:
        raise DtypeError(f"the default dtype must be float32 or float64, not {chosen}")
    _Defaults.dtype = chosen


def get_float32_matmul_precision() -> str:
    return _Defaults.precision


def set_float32_matmul_precision(precision: str) -> None:
    """"highest", "high" or "medium": how much products of float32 may be rounded before they are summed. "high" and "medium"
    allow less than float32, and no kernel here makes use of that. Raises ValueError for another word."""
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f"the precision of float32 products is 'highest', 'high' or 'medium', not {precision!r}")
    _Defaults.precision = precision


def as_dtype(dtype: Any) -> np.dtype:
    """np.dtype of a dtype, NumPy scalar type, name or Python type; None is the default dtype."""
    if dtype is None:
        return _Defaults.dtype
    if dtype is float:
        return _Defaults.dtype
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise DtypeError(f"{dtype!r} is not a dtype; choose from {', '.join(map(str, DTYPES))}") from None
    if found not in DTYPES or not found.isnative:
        raise DtypeError(f"tensors cannot hold {found}; choose from {', '.join(map(str, DTYPES))}")
    return found


# ------------------------------------------------------------------------------------------------------ making tensors


def wrap(array: np.ndarray, storage: Any = None, node: Any = None) -> Any:
    """A tensor around an array that is nobody else's, or that shares `storage`."""
    t = fresh(array)
    if storage is not None:
        t.storage = storage
    if node is not None:
        t.node, t.needs_grad = node, True
    return t


def apply(op: Any, inputs: tuple, attrs: tuple = ()) -> Any:
    """Run one op of the table on tensors, and record it if anyone may want its gradient."""
    first = inputs[0]
    count = len(inputs)
    second: Any = inputs[1] if count == 2 else None
    out = None
    if op.kernel is not None:
        if count == 1:
            out = quick(op.kernel, first.array, None, attrs)
        else:
            out = quick(op.kernel, first.array, second.array, attrs)
    extras = ()
    if out is None:
        if count == 1:
            out = op.forward(first.array, *attrs) if attrs else op.forward(first.array)
        elif count == 2 and not attrs:
            out = op.forward(first.array, second.array)
        else:
            out = op.forward(*[t.array for t in inputs], *attrs)
        if type(out) is tuple:
            out, extras = out[0], out[1:]
    is_view = op.view and (first.array.flags.c_contiguous or np.may_share_memory(out, first.array))
    return _made(op, inputs, attrs, out, extras, is_view)


def _made(op: Any, inputs: tuple, attrs: tuple, out: np.ndarray, extras: tuple, is_view: bool) -> Any:
    """The tensor of what op made, recorded if it has to be."""
    first = inputs[0]
    y = fresh(out)
    if is_view:
        y.storage = first.storage
    recorded = False
    for t in inputs:
        storage = t.storage
        if storage.rewrites:
            t._refresh()
        if t.needs_grad:
            recorded = True
    if (recorded or is_view) and is_grad_enabled():
        if recorded and out.dtype in _FLOATS:
            y.node = record(op, inputs, attrs, y, extras)
            y.needs_grad = True
        if is_view:
            y._base = first if first._base is None else first._base
            y._seen = y.storage.rewrites
    return y


def _array_of(data: Any, dtype: Any, name: str = "data") -> np.ndarray:
    """data as an array that a tensor can hold: torch's dtype for Python numbers, a sentence for what is no numbers."""
    if isinstance(data, _TENSOR):
        array = data._look()
    elif hasattr(data, "__array__"):
        array = np.asarray(data)
    else:
        try:
            array = np.array(_unwrapped(data))
        except ValueError as error:
            raise ShapeError(f"{name} is ragged: {error}") from None
        if array.dtype == np.float64 and dtype is None and not _holds_numpy(data):
            array = array.astype(_Defaults.dtype)
        if array.size == 0 and dtype is None and array.dtype == np.float64:
            array = array.astype(_Defaults.dtype)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if dtype is not None:
        wanted = as_dtype(dtype)
        if array.dtype.kind not in "fiub":
            raise DtypeError(f"{name} must hold real numbers, not {array.dtype}")
        if watchers and array.dtype in DTYPES and _laid_out(array) and array.dtype != wanted and watcher():
            return ops._cast(array, wanted)              # whose values are then those of each replay
        return array.astype(wanted) if array.dtype != wanted else array
    if array.dtype not in DTYPES:
        raise DtypeError(
            f"{name} of {array.dtype} cannot become a tensor; convert it to one of {', '.join(map(str, DTYPES))}"
        )
    return array


def _unwrapped(data: Any) -> Any:
    """Nested sequences with tensors inside, as nested sequences of arrays."""
    if isinstance(data, _TENSOR):
        return data._look()
    if isinstance(data, (list, tuple)):
        return [_unwrapped(d) for d in data]
    return data


def _holds_numpy(data: Any) -> bool:
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return isinstance(data, (np.ndarray, np.generic, TensorBase))


def _copied(array: np.ndarray) -> np.ndarray:
    """A copy in C order; while a function is recorded made by a kernel, so that a replay begins with it as well."""
    if watchers and watcher():
        return ops._copy(array if _laid_out(array) else array.copy())
    return np.array(array, order="C", copy=True)


def _laid_out(array: np.ndarray) -> bool:
    """Whether kernels can read it in place."""
    return array.flags.aligned and not any(s % array.itemsize for s in array.strides)


def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """A new tensor with a copy of data: numbers, nested sequences, arrays or tensors.

    Python floats become the default dtype, integers int64; NumPy arrays keep theirs. Raises DtypeError for what holds no
    real numbers, ShapeError for ragged sequences, DeviceError for a device other than the CPU.
    """
    _device(device)
    t = wrap(_copied(_array_of(data, dtype)))
    return t.requires_grad_() if requires_grad else t


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
    """data as a tensor, sharing memory with an array or tensor where dtype and layout allow it."""
    _device(device)
    if isinstance(data, _TENSOR) and (dtype is None or data.dtype == as_dtype(dtype)):
        return data
    array = _array_of(data, dtype)
    if not isinstance(data, np.ndarray):
        return wrap(_copied(array) if watchers else array)
    return wrap(array if _laid_out(array) else _copied(array))


def from_numpy(array: np.ndarray) -> Any:
    """A tensor on the array's own memory: changes show on both sides. A read-only array gives a read-only tensor.

    Raises TypeError for anything but an array, DtypeError for its dtype, ValueError for memory that kernels cannot read.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy takes a NumPy array, got {type(array).__name__}; tensor() takes other things")
    if array.dtype not in DTYPES or not array.dtype.isnative:
        raise DtypeError(
            f"an array of {array.dtype} cannot be shared; convert it to one of {', '.join(map(str, DTYPES))}"
        )
    if not _laid_out(array):
        raise ValueError("the array is not aligned to its element size, so it cannot be shared; pass array.copy()")
    return wrap(np.asarray(array))


def from_dlpack(source: Any) -> Any:
    """A tensor on the memory of any object that speaks DLPack."""
    return from_numpy(np.from_dlpack(source))


def _device(where: Any) -> None:
    if where is not None:
        device(where)


def _shape(size: tuple) -> tuple[int, ...]:
    """zeros(2, 3) and zeros((2, 3)). Raises ShapeError for negative or absurd extents, TypeError for no integers."""
    shape = size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
    out = []
    for n in shape:
        if not hasattr(n, "__index__"):
            raise TypeError(f"a shape takes integers, got {n!r}")
        if n.__index__() < 0:
            raise ShapeError(f"shape {list(shape)} has a negative extent")
        out.append(n.__index__())
    if math.prod(n for n in out if n) * 8 > 1 << 62:
        raise ShapeError(f"shape {out} has more elements than memory has addresses")
    return tuple(out)


def _new(shape: tuple[int, ...], value: float | None, dtype: Any, where: Any, requires_grad: bool) -> Any:
    _device(where)
    kind = as_dtype(dtype)
    t = wrap(ops.empty(shape, kind) if value is None else ops.filled(shape, kind, value))
    return t.requires_grad_() if requires_grad else t


def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Uninitialised, of that shape."""
    return _new(_shape(size), None, dtype, device, requires_grad)


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    return _new(_shape(size), 0.0, dtype, device, requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    return _new(_shape(size), 1.0, dtype, device, requires_grad)


def full(size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """fill_value everywhere; without dtype, of the dtype that tensor(fill_value) has."""
    kind = _array_of(fill_value, None).dtype if dtype is None else dtype
    return _new(_shape((size,)), fill_value, kind, device, requires_grad)


def zeros_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    return _new(input.shape, 0.0, dtype or input.dtype, device, requires_grad)


def ones_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    return _new(input.shape, 1.0, dtype or input.dtype, device, requires_grad)


def full_like(input: Any, fill_value: Any, *, dtype: Any = None, device: Any = None,
              requires_grad: bool = False) -> Any:
    return _new(input.shape, fill_value, dtype or input.dtype, device, requires_grad)


def empty_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    return _new(input.shape, None, dtype or input.dtype, device, requires_grad)


def arange(start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None,
           requires_grad: bool = False) -> Any:
    """start, start + step, ... below end; int64 if all three are integers."""
    low, high, step = (v.item() if isinstance(v, _TENSOR) else v for v in ((0, start, step) if end is None else (start, end, step)))
    if dtype is None and any(isinstance(v, (float, np.floating)) for v in (low, high, step)):
        dtype = _Defaults.dtype
    return tensor(np.arange(low, high, step), dtype=dtype or _INT64, device=device, requires_grad=requires_grad)


def linspace(start: float, end: float, steps: int, *, dtype: Any = None, device: Any = None,
             requires_grad: bool = False) -> Any:
    """steps numbers from start to end, both included."""
    start, end = (v.item() if isinstance(v, _TENSOR) else v for v in (start, end))
    return tensor(np.linspace(start, end, steps), dtype=as_dtype(dtype), device=device, requires_grad=requires_grad)


def logspace(start: float, end: float, steps: int, base: float = 10.0, *, dtype: Any = None, device: Any = None,
             requires_grad: bool = False) -> Any:
    """base to the powers from start to end."""
    start, end = (v.item() if isinstance(v, _TENSOR) else v for v in (start, end))
    powers = np.power(float(base), np.linspace(start, end, steps))
    return tensor(powers, dtype=as_dtype(dtype), device=device, requires_grad=requires_grad)


def scalar_tensor(s: float, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    return tensor(s, dtype=as_dtype(dtype), device=device, requires_grad=requires_grad)


class Size(tuple):
    """A shape, as torch names it."""

    __slots__ = ()

    def numel(self) -> int:
        return math.prod(self)


class finfo:
    """Limits of a float dtype; the default one without."""

    def __init__(self, dtype: Any = None) -> None:
        kind = as_dtype(dtype)
        if kind not in _FLOATS:
            raise DtypeError(f"finfo takes float32 or float64, not {kind}; iinfo is for integers")
        found = np.finfo(kind)
        self.dtype, self.bits = str(kind), kind.itemsize * 8
        self.min, self.max, self.eps = float(found.min), float(found.max), float(found.eps)
        self.tiny = self.smallest_normal = float(found.tiny)
        self.resolution = float(found.resolution)

    def __repr__(self) -> str:
        return (f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, "
                f"smallest_normal={self.smallest_normal:g}, tiny={self.tiny:g}, dtype={self.dtype})")


class iinfo:
    """Limits of an integer dtype."""

    def __init__(self, dtype: Any) -> None:
        kind = as_dtype(dtype)
        if kind.kind not in "iu":
            raise DtypeError(f"iinfo takes integers, not {kind}; finfo is for floats")
        found = np.iinfo(kind)
        self.dtype, self.bits, self.min, self.max = str(kind), kind.itemsize * 8, int(found.min), int(found.max)

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    return tensor(np.eye(n, m), dtype=as_dtype(dtype), device=device, requires_grad=requires_grad)


# ------------------------------------------------------------------------------------------------- operands and dtypes

_constants: dict[tuple, Any] = {}


def _constant(value: Any, dtype: np.dtype) -> Any:
    """A 0-d tensor of a Python number; the usual ones are kept."""
    key = (value, dtype.char)
    t = _constants.get(key)
    if t is None or (value == 0 and math.copysign(1, value) < 0):
        try:
            t = wrap(np.array(value).astype(dtype))  # whole numbers wrap around, as in C
        except (OverflowError, TypeError):
            raise DtypeError(f"{value} does not fit {dtype}") from None
        t.array.flags.writeable = False
        if len(_constants) < 512 and not (value == 0 and math.copysign(1, value) < 0):
            _constants[key] = t
    return t


def _scalar_dtype(value: Any) -> np.dtype:
    return _BOOL if isinstance(value, bool) else _INT64 if isinstance(value, int) else _Defaults.dtype


_OPERANDS = (TensorBase, float, int, np.ndarray, np.generic)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def result_type(*operands: Any) -> np.dtype:
    """The dtype of arithmetic between tensors and Python numbers, by torch's table."""
    ranks: list[np.dtype | None] = [None, None, None]
    for x in operands:
        if isinstance(x, _TENSOR):
            level, dtype = (0 if x.array.ndim else 1), x.array.dtype
        else:
            level, dtype = 2, _scalar_dtype(x)
        before = ranks[level]
        ranks[level] = dtype if before is None else ops.promote_types(before, dtype)
    found = ops.combine(ranks[0], ops.combine(ranks[1], ranks[2]))
    assert found is not None
    return found


def _matched(x: Any, y: Any, floating: bool = False) -> tuple:
    """Two operands as tensors of their common dtype; the first may be a number too."""
    for t in (x, y):
        if isinstance(t, _TENSOR) and t.storage.rewrites < 0:
            t._look()
    if (type(y) is float or type(y) is int) and isinstance(x, _TENSOR):
        if x.array.dtype in _FLOATS:
            return x, _constant(y, x.array.dtype)
    elif isinstance(x, _TENSOR) and isinstance(y, _TENSOR) and x.array.dtype is y.array.dtype and not floating:
        return x, y
    x, y = [v if isinstance(v, _TENSOR) or _is_number(v) else as_tensor(v) for v in (x, y)]
    dtype = result_type(x, y)
    if floating and dtype not in _FLOATS:
        dtype = _Defaults.dtype
    return tuple([v.to(dtype) if isinstance(v, _TENSOR) else _constant(v, dtype) for v in (x, y)])


def _arithmetic(name: str, x: Any, y: Any) -> Any:
    """An op of two operands of any types that have a common one."""
    op = OPS[name]
    x, y = _matched(x, y, name == "div")
    if x.array.dtype in _FLOATS:
        return apply(op, (x, y))
    if x.array.dtype == _BOOL and name == "sub":
        raise DtypeError("subtraction of bool tensors means nothing; use ^ or logical_not, or convert with .to(int64)")
    return wrap(ops.whole(name, x.array, y.array))


def _comparison(name: str, x: Any, y: Any) -> Any:
    if type(y) is int and x.array.dtype.kind in "ui":
        x = x.to(_INT64)  # the number may not fit the smaller types, and must not wrap around
    x, y = _matched(x, y)
    return wrap(ops.compare(name, x.array, y.array))


def _operate(name: str, x: Any, y: Any) -> Any:
    """x + y and its like: one of them is a tensor."""
    if isinstance(x, _TENSOR) and isinstance(y, _TENSOR):
        t, u = x, y
        out = quick(name, t.array, u.array, ())
        if out is not None:
            return _made(OPS[name], (x, y), (), out, (), False)
    if not (isinstance(x, _OPERANDS) and isinstance(y, _OPERANDS)):
        return NotImplemented
    return _arithmetic(name, x, y)


def _product(x: Any, y: Any) -> Any:
    """x @ y"""
    arrays = (TensorBase, np.ndarray)
    return matmul(x, y) if isinstance(x, arrays) and isinstance(y, arrays) else NotImplemented


def _operator(name: str, rule: Callable, swapped: bool = False) -> Callable:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, _OPERANDS):
            return NotImplemented
        return rule(name, other, self) if swapped else rule(name, self, other)

    method.__name__ = name
    return method


def _logic(name: str, x: Any, y: Any) -> Any:
    x, y = _matched(x, y)
    if x.dtype in _FLOATS:
        raise DtypeError(f"{name} takes integers or bool, not {x.dtype}")
    return wrap(ops.whole(name, x.array, y.array))


def _host_arithmetic(name: str, x: Any, y: Any) -> Any:
    x, y = _matched(x, y)
    if x.dtype not in _FLOATS and not (watchers and watcher()) and not np.all(y.array):
        raise RuntimeError(f"ZeroDivisionError: {name} of integers by 0")
    return apply(OPS[name], (x, y)) if x.dtype in _FLOATS else wrap(ops.whole(name, x.array, y.array))


class MaxResult(NamedTuple):
    """What max(dim) and min(dim) return."""

    values: Any
    indices: Any


def _as_dims(shape: tuple[int, ...], dim: Any) -> tuple[int, ...]:
    """dim as sorted, non-negative axes; None is all of them. Raises IndexError as torch does."""
    ndim = len(shape)
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(ndim))
    out = []
    for d in dim if isinstance(dim, (tuple, list)) else (dim,):
        if not hasattr(d, "__index__"):
            raise TypeError(f"dim must be an integer, got {d!r}")
        at = d.__index__()
        limit = max(ndim, 1)
        if not -limit <= at < limit:
            raise IndexError(f"dim {at} is out of range for {ndim} axes: expected {-limit} to {limit - 1}")
        out.append(at % limit)
    if len(set(out)) != len(out):
        raise ShapeError(f"dim {dim} names an axis twice")
    return tuple(sorted(out)) if ndim else ()


def _one_dim(shape: tuple[int, ...], dim: int) -> int:
    found = _as_dims(shape, dim)
    return found[0] if found else 0


# --------------------------------------------------------------------------------------------------------- the tensor


class Tensor(TensorBase):
    """An n-dimensional array of numbers with automatic differentiation. Make one with `pn.tensor(...)`."""

    __slots__ = ()
    __array_priority__ = 1000  # ndarray + tensor is ours to do

    if TYPE_CHECKING:

        def __neg__(self) -> Any: ...
        def __abs__(self) -> Any: ...
        def __getattr__(self, name: str) -> Any: ...  # exp, relu, float, ...: the loops below attach them

    def __init__(self, *args: Any) -> None:
        """Tensor(data) of the default dtype, or Tensor(2, 3) uninitialised: as in torch, where tensor() is the better word."""
        if len(args) == 1 and not isinstance(args[0], int):
            self.array = _copied(_array_of(args[0], _Defaults.dtype))
        else:
            self.array = ops.empty(_shape(args) if args else (0,), _Defaults.dtype)
        self.storage = Storage()

    # What it is

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    device = CPU
    is_cuda = False

    def size(self, dim: int | None = None) -> Any:
        return self.array.shape if dim is None else self.array.shape[_one_dim(self.array.shape, dim)]

    def dim(self) -> int:
        return self.array.ndim

    def numel(self) -> int:
        return self.array.size

    nelement = numel

    def element_size(self) -> int:
        return self.array.itemsize

    def stride(self, dim: int | None = None) -> Any:
        steps = tuple(s // self.array.itemsize for s in self.array.strides)
        return steps if dim is None else steps[dim]

    def is_contiguous(self) -> bool:
        return self.array.flags.c_contiguous

    def is_floating_point(self) -> bool:
        return self.array.dtype in _FLOATS

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def __len__(self) -> int:
        if not self.array.ndim:
            raise TypeError("len() of a 0-d tensor")
        return len(self.array)

    def __iter__(self) -> Iterator:
        if not self.array.ndim:
            raise TypeError("iteration over a 0-d tensor")
        return iter([self[i] for i in range(len(self.array))])

    def __hash__(self) -> int:
        return id(self)

    def _look(self) -> np.ndarray:
        """The array, for one who reads its values: not while they are recorded, nor after a replay left them behind."""
        if self.storage.rewrites < 0:
            raise RuntimeError(
                f"a tensor of shape {list(self.shape)} was made within a compiled function, which since has not kept it: "
                "return it from the function"
            )
        if watchers and (found := watcher()):
            found.is_read(self)
        return self.array

    def __repr__(self) -> str:
        text = np.array2string(self._look(), separator=", ", prefix="tensor(", precision=4, threshold=1000)
        if self.array.size == 0:
            text = "[]" if self.array.ndim == 1 else f"[], size={self.array.shape}"
        if self.array.dtype not in (_Defaults.dtype, _INT64, _BOOL):
            text += f", dtype={self.array.dtype}"
        if self.node is not None:
            text += f", grad_fn={self.node!r}"
        elif self.needs_grad:
            text += ", requires_grad=True"
        return f"tensor({text})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if not self.array.ndim and spec else str(self)

    # The way out

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The array itself, not a copy. Raises RuntimeError if the tensor requires grad, unless force."""
        if self.needs_grad and not force:
            raise RuntimeError(
                "a tensor that requires grad gives no array, since changes to it would go unrecorded; "
                "use tensor.detach().numpy()"
            )
        return self._look()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return (
            np.array(self.numpy(), dtype=dtype, copy=copy)
            if copy is not None
            else np.asarray(self.numpy(), dtype=dtype)
        )

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self.needs_grad:
            raise BufferError("a tensor that requires grad cannot be exported; use tensor.detach()")
        return self._look().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def item(self) -> Any:
        """The one element as a Python number."""
        if self.array.size != 1:
            raise RuntimeError(f"item() takes a tensor of one element; this one has shape {list(self.shape)}")
        return self._look().item()

    def tolist(self) -> Any:
        return self._look().tolist()

    def __bool__(self) -> bool:
        if self.array.size != 1:
            raise RuntimeError(f"the truth of a tensor of shape {list(self.shape)} is ambiguous; use any() or all()")
        return bool(self._look().item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.array.dtype in _FLOATS:
            raise TypeError("only an integer tensor of one element can be an index")
        return int(self.item())

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __deepcopy__(self, memo: dict) -> Any:
        if self.node is not None:
            raise RuntimeError("only tensors made by the user can be deep-copied; use clone(), or detach() first")
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():  # without the extension the fields below are among them
            if name not in ("_base", "_seen", "_hooks"):
                setattr(copied, name, value)
        copied.array, copied.storage = np.array(self._look(), order="K"), Storage()
        copied.node, copied.needs_grad = None, self.needs_grad
        if self._grad is not None:
            copied._grad = self._grad.detach().clone()
        return copied

    def __reduce__(self) -> tuple:
        if self.node is not None:
            raise RuntimeError("only tensors made by the user can be pickled; use detach() first")
        return _rebuild, (type(self), self._look(), self.needs_grad)

    # The graph

    @property
    def requires_grad(self) -> bool:
        if self.storage.rewrites:
            self._refresh()
        return bool(self.needs_grad)

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Have operations on it recorded. Raises RuntimeError for integers, and for False on the result of an op."""
        if requires_grad and self.array.dtype not in _FLOATS:
            raise DtypeError(f"only float32 and float64 tensors can require gradients, not {self.array.dtype}")
        if not requires_grad and self.node is not None:
            raise RuntimeError("only leaf tensors can stop requiring grad; use detach()")
        self.needs_grad = bool(requires_grad)
        return self

    @property
    def is_leaf(self) -> bool:
        return _edge(self) is None or self.node is None

    @property
    def grad_fn(self) -> Any:
        _edge(self)
        return self.node

    @property
    def grad(self) -> Any:
        """The accumulated gradient, a tensor of this one's shape, or None."""
        if watchers:
            graph.tell_grad(self, True)
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            if not isinstance(value, _TENSOR):
                raise TypeError(f"grad must be a tensor or None, got {type(value).__name__}")
            if value.array.shape != self.array.shape:
                raise ShapeError(f"grad of shape {list(value.shape)} does not fit a tensor of shape {list(self.shape)}")
            if value.array.dtype != self.array.dtype:
                raise DtypeError(f"grad of {value.dtype} does not fit a tensor of {self.dtype}")
        if watchers:
            graph.tell_grad(self, False)
        self._grad = value

    @property
    def data(self) -> Any:
        """The same memory, outside the graph and its version checks."""
        self._check_kept()
        return wrap(self.array)

    @data.setter
    def data(self, value: Any) -> None:
        if value.array.dtype != self.array.dtype:
            raise DtypeError(f"data of {value.dtype} cannot replace {self.dtype}")
        self.array = value.array

    @property
    def _version(self) -> int:
        return self.storage.version

    def detach(self) -> Any:
        """The same memory, outside the graph."""
        return wrap(self.array, self.storage)

    def detach_(self) -> Any:
        self.node, self.needs_grad = None, False
        return self

    def backward(self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False,
                 inputs: Any = None) -> None:
        """Add d(self)/d(leaf) to leaf.grad of every leaf that requires it; see autograd.backward."""
        graph.backward(self, gradient, retain_graph, create_graph, inputs)

    def retain_grad(self) -> None:
        """Have backward fill .grad of this tensor too, though it is not a leaf."""
        import weakref

        edge = _edge(self)
        if edge is None:
            raise RuntimeError("retain_grad() on a tensor that does not require grad")
        if edge is not self:
            edge.retained = weakref.ref(self)

    def register_hook(self, hook: Callable) -> Any:
        """Call hook(gradient) in backward; what it returns, if anything, replaces the gradient. Returns a handle to remove()."""
        edge = _edge(self)
        if edge is None:
            raise RuntimeError("register_hook() on a tensor that does not require grad")
        if edge is self:
            self._hooks = hooks = self._hooks or {}
        else:
            edge.hooks = hooks = edge.hooks or {}
        return _Handle(hooks, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable) -> Any:
        """Call hook(tensor) when backward has added to the gradient of this leaf. Returns a handle to remove()."""
        if self.requires_grad and self.node is not None:
            raise RuntimeError("post accumulate grad hooks are for leaf tensors; register_hook is for the others")
        if not self.requires_grad:
            raise RuntimeError("register_post_accumulate_grad_hook() on a tensor that does not require grad")
        self._hooks = hooks = self._hooks or {}
        return _Handle(hooks, graph.After(hook))

    def _refresh(self) -> None:
        """A view whose base has been written in place since hangs on the base's new node."""
        if self.storage.rewrites < 0:
            self._look()
        if self._base is not None and self._seen != self.storage.rewrites:
            self._seen = self.storage.rewrites
            self.node, self.needs_grad = None, False
            if self._base.needs_grad:
                self.node, self.needs_grad = record(OPS["take_at"], (self._base,), (self._positions(),), self), True

    def _positions(self) -> np.ndarray:
        """Where the elements of this view lie in its base."""
        base = self._base.array
        if not base.flags.c_contiguous:
            raise RuntimeError(
                "an in-place operation that needs gradients, on a view of memory that is not contiguous: clone() first"
            )
        size = base.itemsize
        start = (self.array.ctypes.data - base.ctypes.data) // size
        flat = np.arange(base.size, dtype=np.int64)
        return np.ascontiguousarray(
            np.ndarray(self.array.shape, np.int64, flat, start * 8, [s // size * 8 for s in self.array.strides])
        )

    def _op(self, name: str, *others: Any, attrs: tuple = ()) -> Any:
        return apply(OPS[name], (self, *others), attrs)

    def _wrap(self, array: np.ndarray, storage: Any = None, node: Any = None) -> Any:
        return wrap(array, storage, node)

    def _full(self, shape: tuple[int, ...], value: float) -> Any:
        return wrap(ops.filled(shape, self.array.dtype, value))

    def _accumulate(self, g: Any) -> Any:
        """self += g, in this memory."""
        ops.run("accumulate", (self.array, g.array))
        self.storage.version += 1
        return self

    def new_constant(self, value: float) -> Any:
        return _constant(value, self.array.dtype)

    def grad_of(self, y: Any, x: Any) -> tuple:
        """d(y)/d(x) weighted by this gradient, itself differentiable."""
        return graph.grad(y, x, self, create_graph=True)

    def derivatives(self, f: Callable, at: tuple, along: tuple[int, ...] = (0,)) -> tuple:
        """Partial derivatives of f(*at) along some of its arguments, weighted by this gradient, zeros where there is none:
        themselves differentiable if that is wanted. f reads no other tensors that have gradients."""
        wanted = is_grad_enabled()
        with graph.enable_grad():
            # Views: arguments may be one tensor, or made of each other, which is nothing to a partial derivative.
            given = [x._op("expand", attrs=(x.shape,)) if x.requires_grad else x.detach().requires_grad_() for x in at]
            y = f(*given)
            if not y.requires_grad:
                return tuple([at[i]._full(at[i].shape, 0.0) for i in along])
            return graph.grad(y, [given[i] for i in along], self, create_graph=wanted, materialize_grads=True)

    # Writing in place

    def _check_kept(self) -> None:
        """Raise for what a compiled function has left behind: see _look."""
        if self.storage.rewrites < 0:
            self._look()

    def _check_writable(self) -> None:
        self._check_kept()
        owner = self if self._base is None else self._base
        if is_grad_enabled() and owner.needs_grad and owner.node is None:
            raise RuntimeError(
                "a leaf tensor that requires grad, or a view of one, cannot be written in place while recording; "
                "use `with no_grad():`, or work on a copy"
            )

    def _recording(self, *others: Any) -> bool:
        return is_grad_enabled() and (self.requires_grad or any(o.requires_grad for o in others))

    def _overwrite(self, y: Any) -> Any:
        """Take the values of y, and its place in the graph."""
        y._check_kept()
        if y.array.shape != self.array.shape:
            raise ShapeError(f"an in-place operation cannot change shape {list(self.shape)} to {list(y.shape)}")
        if ops.category(y.array.dtype) > ops.category(self.array.dtype):
            raise DtypeError(f"a result of {y.dtype} cannot be stored in place in {self.dtype}")
        y = y.to(self.array.dtype)
        ops.run("copy", (y.array, self.array))
        if self._recording(y):
            base = self._base
            if base is None:
                self.node, self.needs_grad = y.node, y.needs_grad
            else:
                at = self._positions()
                base.node, base.needs_grad = record(OPS["put_at"], (base, y), (at,), base), True
                self.node, self.needs_grad = record(OPS["take_at"], (base,), (at,), self), True
            self.storage.rewrites += 1
            self._seen = self.storage.rewrites
        self.storage.version += 1
        return self

    def _arithmetic_(self, name: str, other: Any) -> Any:
        self._check_writable()
        x, y = _matched(self, other, name == "div")
        if (
            x is self
            and x.array.dtype in _FLOATS
            and not self._recording(y)
            and y.storage is not self.storage
            and ops.broadcast_shape(x.array.shape, y.array.shape) == x.array.shape
        ):
            ops.run(name, (x.array, y.array, x.array))
            self.storage.version += 1
            return self
        old = self._before(y)
        return self._overwrite(_arithmetic(name, old if x is self else x, old if y is self else y))

    def _before(self, *others: Any) -> Any:
        """This tensor as it is now, for an op that may save it and is about to overwrite it."""
        return wrap(ops._copy(self.array), node=_edge(self)) if self._recording(*others) else self

    def copy_(self, source: Any) -> Any:
        self._check_writable()
        return self._overwrite(as_tensor(source).to(self.dtype).expand(self.shape))

    def fill_(self, value: Any) -> Any:
        self._check_writable()
        if isinstance(value, _TENSOR) or self._recording():
            filled = as_tensor(value, dtype=self.dtype).expand(self.shape)
            return self._overwrite(where(_constant(True, _BOOL), filled, self._before(filled)))  # its gradient is 0, not none
        ops.run("fill", (self.array,), (float(value),))
        self.storage.version += 1
        return self

    def zero_(self) -> Any:
        return self.fill_(0.0)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check_writable()
        key = _key(key)
        if not (isinstance(value, _TENSOR) or _is_number(value)):
            value = as_tensor(value)
        if isinstance(value, _TENSOR):
            value._check_kept()
        v = (
            value.to(self.dtype)
            if isinstance(value, _TENSOR)
            else _constant(self.dtype.type(value).item(), self.dtype)
        )
        at = None if _is_basic(key) else positions(self.shape, key)
        target = self.array[key] if at is None else at
        if isinstance(target, np.generic):
            target = self.array[(*key, ...)] if isinstance(key, tuple) else self.array[key, ...]
        while v.ndim > target.ndim and v.shape[0] == 1:
            v = v.reshape(v.shape[1:])
        if not ops.broadcast_shape(v.shape, target.shape) == target.shape:
            raise ShapeError(f"a value of shape {list(v.shape)} does not fit the {list(target.shape)} of the index")
        if self._recording(v):
            if at is None:
                at = positions(self.shape, key)
            self._overwrite(self._op("put_at", v.expand(at.shape), attrs=(at,)))
            return
        if v.storage is self.storage:
            v = v.clone()
        if at is None:
            ops.run("copy", (v.array, target))
        else:
            flat = ops.contiguous(self.array).reshape(-1, 1)
            ops.run("put", (flat, at.reshape(-1), ops.contiguous(np.broadcast_to(v.array, at.shape)).reshape(-1, 1)))
            if not self.array.flags.c_contiguous:
                ops.run("copy", (flat.reshape(self.shape), self.array))
        self.storage.version += 1

    # Reading parts

    def __getitem__(self, key: Any) -> Any:
        if watchers and isinstance(key, _TENSOR) and key.dtype == _INT64 and key.ndim and self.ndim and watcher():
            return self._op("take", key)         # the values are the replay's, which refuses negative ones
        key = _key(key)
        if _is_basic(key):
            try:
                return (
                    self._op("slice", attrs=(key if isinstance(key, tuple) else (key,),))
                    if self.ndim or key is not Ellipsis
                    else self
                )
            except IndexError as error:
                raise IndexError(f"{error} (shape {list(self.shape)})") from None
        try:
            if isinstance(key, np.ndarray) and key.dtype != _BOOL and self.ndim:
                index = np.where(key < 0, key + len(self), key) if key.size and key.min() < 0 else key
                return self._op("take", wrap(np.ascontiguousarray(index, np.int64).reshape(index.shape)))
            return self._op("take_at", attrs=(positions(self.shape, key),))
        except IndexError as error:
            raise IndexError(f"{error} (shape {list(self.shape)})") from None

    def index_select(self, dim: int, index: Any) -> Any:
        d = _one_dim(self.shape, dim)
        return self.transpose(0, d)[index].transpose(0, d)

    def gather(self, dim: int, index: Any) -> Any:
        """self at index along dim: out[i, j] = self[i, index[i, j]] for dim = 1. index: int64, extents as self's but along dim."""
        d = _one_dim(self.shape, dim)
        if index.dtype == np.int32:
            index = index.to(_INT64)
        if index.dtype != _INT64:
            raise DtypeError(f"gather takes an int64 index, not {index.dtype}")
        if index.ndim != self.ndim or any(n > m for i, (n, m) in enumerate(zip(index.shape, self.shape)) if i != d):
            raise ShapeError(f"index of shape {list(index.shape)} does not fit {list(self.shape)} along dim {d}")
        x = self[tuple(slice(None) if i == d else slice(n) for i, n in enumerate(index.shape))]
        return x._op("gather", index, attrs=(d,))

    # Shape

    def reshape(self, *shape: Any) -> Any:
        """The same elements in another shape; one extent may be -1. A view where there is one."""
        size = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        size = tuple(size)
        if size == self.array.shape:
            return self._op("reshape", attrs=(size,))
        unknown = [i for i, n in enumerate(size) if n == -1]
        known = math.prod(n for n in size if n != -1)
        if (
            len(unknown) > 1
            or any(n < -1 for n in size)
            or (known != self.array.size if not unknown else not known or self.array.size % known)
        ):
            raise ShapeError(f"shape {list(size)} does not hold the {self.array.size} elements of {list(self.shape)}")
        if unknown:
            size = tuple(self.array.size // known if n == -1 else int(n) for n in size)
        return self._op("reshape", attrs=(size,))

    def view(self, *shape: Any) -> Any:
        """reshape that never copies. Raises RuntimeError where it would have to."""
        y = self.reshape(*shape)
        if y.storage is not self.storage:
            raise RuntimeError(f"view of shape {list(y.shape)} does not exist for strides {self.stride()}; use reshape")
        return y

    def view_as(self, other: Any) -> Any:
        return self.view(other.shape)

    def reshape_as(self, other: Any) -> Any:
        return self.reshape(other.shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        if not self.ndim:
            return self.reshape(1)
        a, b = _one_dim(self.shape, start_dim), _one_dim(self.shape, end_dim)
        if a > b:
            raise ShapeError(f"flatten from dim {a} to {b}: the first must not come after the last")
        return self.reshape(self.shape[:a] + (math.prod(self.shape[a : b + 1]),) + self.shape[b + 1 :])

    def permute(self, *dims: Any) -> Any:
        order = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
        axes = tuple(_one_dim(self.shape, d) for d in order)
        if sorted(axes) != list(range(self.ndim)):
            raise ShapeError(f"permute{order} does not name each of the {self.ndim} axes once")
        return self._op("permute", attrs=(axes,))

    def transpose(self, dim0: int, dim1: int) -> Any:
        a, b = _one_dim(self.shape, dim0), _one_dim(self.shape, dim1)
        axes = list(range(self.ndim))
        if axes:
            axes[a], axes[b] = b, a
        return self._op("permute", attrs=(tuple(axes),))

    def t(self) -> Any:
        if self.ndim > 2:
            raise ShapeError(f"t() takes at most 2 axes, this tensor has {self.ndim}; use transpose or mT")
        return self.transpose(0, 1) if self.ndim == 2 else self

    @property
    def T(self) -> Any:
        return self._op("permute", attrs=(tuple(range(self.ndim - 1, -1, -1)),))

    @property
    def mT(self) -> Any:
        if self.ndim < 2:
            raise ShapeError(f"mT takes at least 2 axes, this tensor has {self.ndim}")
        return self.transpose(-2, -1)

    def squeeze(self, dim: Any = None) -> Any:
        dims = [i for i in (() if dim == () else _as_dims(self.shape, dim)) if self.shape[i] == 1]
        return self.reshape(tuple(n for i, n in enumerate(self.shape) if i not in dims))

    def unsqueeze(self, dim: int) -> Any:
        if not -self.ndim - 1 <= dim <= self.ndim:
            raise IndexError(f"dim {dim} is out of range: expected {-self.ndim - 1} to {self.ndim}")
        at = dim % (self.ndim + 1)
        return self.reshape(self.shape[:at] + (1,) + self.shape[at:])

    def expand(self, *shape: Any) -> Any:
        """Axes of 1 repeated, without copying; -1 keeps an extent."""
        size = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        lead = len(size) - self.ndim
        full = tuple(self.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(size))
        if full == self.array.shape:
            return self
        if lead < 0 or any(n < 0 for n in full) or any(m not in (1, n) for m, n in zip(self.shape, full[lead:])):
            raise ShapeError(f"shape {list(self.shape)} cannot be expanded to {list(size)}")
        try:
            return self._op("expand", attrs=(full,))
        except ValueError as error:  # more elements than memory has addresses
            raise ShapeError(f"shape {list(self.shape)} cannot be expanded to {list(size)}: {error}") from None

    def expand_as(self, other: Any) -> Any:
        return self.expand(other.shape)

    def broadcast_to(self, *shape: Any) -> Any:
        return self.expand(*shape)

    def sum_to(self, shape: tuple[int, ...]) -> Any:
        """Summed to a shape that broadcasts to this one's."""
        return self if self.array.shape == shape else self._op("sum_to", attrs=(shape,))

    def split(self, split_size: Any, dim: int = 0) -> tuple:
        d = _one_dim(self.shape, dim)
        n = self.shape[d]
        sizes = (
            list(split_size)
            if isinstance(split_size, (list, tuple))
            else [min(split_size, n - i) for i in range(0, max(n, 1), max(split_size, 1))]
        )
        if any(size < 0 for size in sizes) or (split_size == 0 and n):
            raise ShapeError(f"split takes sizes that are not negative, and not 0 for all; got {split_size}")
        if sum(sizes) != n:
            raise ShapeError(f"split sizes {sizes} do not add up to the {n} of dim {d}")
        ends = np.cumsum(sizes).tolist()
        return tuple(self[(slice(None),) * d + (slice(end - size, end),)] for size, end in zip(sizes, ends))

    def chunk(self, chunks: int, dim: int = 0) -> tuple:
        if chunks < 1:
            raise ValueError(f"chunk takes at least 1 chunk, got {chunks}")
        return self.split(max(1, -(-self.shape[_one_dim(self.shape, dim)] // chunks)), dim)

    def unbind(self, dim: int = 0) -> tuple:
        d = _one_dim(self.shape, dim)
        return tuple(self[(slice(None),) * d + (i,)] for i in range(self.shape[d]))

    # Memory and dtype

    def clone(self) -> Any:
        return self._op("clone")

    def contiguous(self) -> Any:
        return self if self.array.flags.c_contiguous else self.clone()

    def to(self, *args: Any, dtype: Any = None, device: Any = None, copy: bool = False,
           non_blocking: bool = False) -> Any:
        """to(dtype), to(device), to(device, dtype), to(other): itself if nothing changes and not copy."""
        for arg in args:
            if isinstance(arg, _TENSOR):
                dtype = arg.dtype
            elif arg is None or isinstance(arg, bool):
                continue
            elif _names_device(arg):
                _device(arg)
            else:
                dtype = arg
        _device(device)
        wanted = self.array.dtype if dtype is None else as_dtype(dtype)
        if wanted is self.array.dtype or wanted == self.array.dtype:
            return self.clone() if copy else self
        return self._op("cast", attrs=(wanted,))

    def type(self, dtype: Any = None) -> Any:
        return str(self.dtype) if dtype is None else self.to(dtype)

    def type_as(self, other: Any) -> Any:
        return self.to(other.dtype)

    def cpu(self) -> Any:
        return self

    def cuda(self, *_: Any) -> Any:
        raise DeviceError("there is no cuda here: pyneuro runs on device='cpu'")

    def new_zeros(self, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        return zeros(*size, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad)

    def new_ones(self, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        return ones(*size, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad)

    def new_empty(self, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        return empty(*size, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad)

    def new_full(self, size: Any, fill_value: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        return full(size, fill_value, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad)

    def new_tensor(self, data: Any, dtype: Any = None) -> Any:
        return tensor(data, dtype=dtype or self.dtype)

    # Elementwise with more than one operand

    def pow(self, exponent: Any) -> Any:
        if type(exponent) in (float, int) and exponent == 2 and self.array.dtype in _FLOATS:
            return apply(OPS["mul"], (self, self))
        if type(exponent) is int and exponent < 0 and self.array.dtype not in _FLOATS:
            raise DtypeError(f"{self.dtype} to the power {exponent} is not a whole number; convert with .float()")
        return _arithmetic("pow", self, exponent)

    def square(self) -> Any:
        return self * self

    def reciprocal(self) -> Any:
        return 1.0 / self

    @property
    def H(self) -> Any:
        return self.t() if self.ndim != 2 else self.mT

    @property
    def mH(self) -> Any:
        return self.mT

    @property
    def itemsize(self) -> int:
        return self.array.itemsize

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def maximum(self, other: Any) -> Any:
        return _arithmetic("maximum", self, other)

    def minimum(self, other: Any) -> Any:
        return _arithmetic("minimum", self, other)

    def clamp(self, min: Any = None, max: Any = None) -> Any:
        """min(max(x, low), high); either bound may be missing, a number or a tensor."""
        if min is None and max is None:
            raise ValueError("clamp takes at least one of min and max")
        if isinstance(min, _TENSOR) or isinstance(max, _TENSOR):
            x = self if min is None else self.maximum(min)
            return x if max is None else x.minimum(max)
        low, high = -math.inf if min is None else min, math.inf if max is None else max
        if self.array.dtype not in _FLOATS:
            x = self if min is None else self.maximum(min)
            return x if max is None else x.minimum(max)
        return self._op("clamp", attrs=(float(low), float(high)))

    clip = clamp

    def where(self, condition: Any, other: Any) -> Any:
        """This where condition holds, else other."""
        return where(condition, self, other)

    def masked_fill(self, mask: Any, value: Any) -> Any:
        return where(mask, value if isinstance(value, _TENSOR) else _constant(value, self.dtype), self)

    def isnan(self) -> Any:
        return self != self

    def logical_not(self) -> Any:
        return ~self.bool()

    # Reductions. dim: an axis, a tuple of axes, or None for all.

    def _reduce(self, name: str, dim: Any, keepdim: bool, *attrs: float) -> Any:
        dims = _as_dims(self.array.shape, dim)
        if (name == "max" or name == "min") and not math.prod(self.shape[d] for d in dims):
            raise IndexError(f"{name} of no elements (shape {list(self.shape)}, dim {dim}) is not defined")
        if self.array.dtype in _FLOATS:
            return self._op(name, attrs=(dims, bool(keepdim), *attrs))
        self._check_kept()
        return wrap(OPS[name].forward(self.array, dims, bool(keepdim)))

    def sum(self, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        x = self.to(dtype) if dtype is not None else self if self.array.dtype in _FLOATS else self.to(_INT64)
        return x._reduce("sum", dim, keepdim)

    def mean(self, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        x = self if dtype is None else self.to(dtype)
        if x.array.dtype not in _FLOATS:
            raise DtypeError(f"mean of {x.dtype} is not defined; use .float().mean()")
        return x._reduce("mean", dim, keepdim)

    def var(self, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
            correction: float | None = 1) -> Any:
        """sum (x - mean)^2 / (n - correction)."""
        if self.array.dtype not in _FLOATS:
            raise DtypeError(f"var takes float32 or float64, not {self.dtype}")
        if isinstance(dim, bool):  # var(unbiased), as torch also takes it
            dim, unbiased = None, dim
        less = unbiased if unbiased is not None else 1 if correction is None else correction
        return self._reduce("var", dim, keepdim, float(less))

    def std(self, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
            correction: float | None = 1) -> Any:
        y = self.var(dim, unbiased, keepdim, correction=correction)
        zero = y == 0  # whose root has no slope, as in norm
        return y.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)

    def amax(self, dim: Any = None, keepdim: bool = False) -> Any:
        return self._reduce("max", dim, keepdim)

    def amin(self, dim: Any = None, keepdim: bool = False) -> Any:
        return self._reduce("min", dim, keepdim)

    def max(self, dim: Any = None, keepdim: bool = False) -> Any:
        """max() the largest element; max(dim) (values, indices); max(other) elementwise."""
        return _extreme(self, "max", dim, keepdim)

    def min(self, dim: Any = None, keepdim: bool = False) -> Any:
        return _extreme(self, "min", dim, keepdim)

    def argmax(self, dim: Any = None, keepdim: bool = False) -> Any:
        return _arg(self, "argmax", dim, keepdim)

    def argmin(self, dim: Any = None, keepdim: bool = False) -> Any:
        return _arg(self, "argmin", dim, keepdim)

    def any(self, dim: Any = None, keepdim: bool = False) -> Any:
        return (self != 0).to(_INT64).sum(dim, keepdim) > 0

    def all(self, dim: Any = None, keepdim: bool = False) -> Any:
        return (self == 0).to(_INT64).sum(dim, keepdim) == 0

    def norm(self, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        """(sum |x|^p)^(1/p) over dim, 'fro' with p = 2; p = 0 counts what is not zero, inf and -inf are the largest and the
        smallest |x|."""
        x = (self if dtype is None else self.to(dtype))._float("norm")
        if p == "fro" or p is None:
            p = 2
        if isinstance(p, str):
            raise NotImplementedError(f"norm {p!r} needs singular values, which are not here; choose 'fro' or a number")
        if (p < 0 or p == math.inf) and not math.prod(x.shape[d] for d in _as_dims(x.shape, dim)):
            raise IndexError(f"the {p}-norm of no elements (shape {list(x.shape)}, dim {dim}) is not defined")
        if p == 0:
            return (x != 0).to(x.dtype).sum(dim, keepdim)
        if p == 2:
            total, power = (x * x).sum(dim, keepdim), lambda t: t.sqrt()
        elif p == 1:
            return x.abs().sum(dim, keepdim)
        elif math.isinf(p):
            return x.abs().amax(dim, keepdim) if p > 0 else x.abs().amin(dim, keepdim)
        else:
            none = x == 0  # whose power below 1 has no slope
            size = x.abs().pow(p) if p > 1 else x.abs().masked_fill(none, 1.0).pow(p).masked_fill(none, 0.0 if p > 0 else math.inf)
            total, power = size.sum(dim, keepdim), lambda t: t.pow(1 / p)
        zero = total == 0  # whose root has no slope; 0 stands for it, as in torch
        return power(total.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)

    def softmax(self, dim: int, dtype: Any = None) -> Any:
        return (
            (self if dtype is None else self.to(dtype))
            ._float("softmax")
            ._op("softmax", attrs=(_one_dim(self.shape, dim),))
        )

    def log_softmax(self, dim: int, dtype: Any = None) -> Any:
        return (
            (self if dtype is None else self.to(dtype))
            ._float("log_softmax")
            ._op("log_softmax", attrs=(_one_dim(self.shape, dim),))
        )

    def _float(self, name: str) -> Any:
        ops.check_float(self.array, name)
        return self

    # Products

    def matmul(self, other: Any) -> Any:
        return matmul(self, other)

    # Operators

    __rpow__ = _operator("pow", _arithmetic, True)
    __floordiv__, __rfloordiv__ = (
        _operator("floor_divide", _host_arithmetic),
        _operator("floor_divide", _host_arithmetic, True),
    )
    __mod__, __rmod__ = _operator("remainder", _host_arithmetic), _operator("remainder", _host_arithmetic, True)
    __and__, __rand__ = _operator("bitand", _logic), _operator("bitand", _logic, True)
    __or__, __ror__ = _operator("bitor", _logic), _operator("bitor", _logic, True)
    __xor__, __rxor__ = _operator("bitxor", _logic), _operator("bitxor", _logic, True)
    __eq__ = _operator("eq", _comparison)
    __ne__ = _operator("ne", _comparison)
    __lt__, __le__ = _operator("lt", _comparison), _operator("le", _comparison)
    __gt__, __ge__ = _operator("gt", _comparison), _operator("ge", _comparison)

    def __pow__(self, exponent: Any) -> Any:
        return self.pow(exponent)

    def __pos__(self) -> Any:
        return self

    def __invert__(self) -> Any:
        if self.dtype in _FLOATS:
            raise DtypeError(f"~ takes integers or bool, not {self.dtype}")
        self._check_kept()
        return wrap(ops.whole("bitnot", self.array))

    def __iadd__(self, other: Any) -> Any:
        return self._arithmetic_("add", other)

    def __isub__(self, other: Any) -> Any:
        return self._arithmetic_("sub", other)

    def __imul__(self, other: Any) -> Any:
        return self._arithmetic_("mul", other)

    def __itruediv__(self, other: Any) -> Any:
        return self._arithmetic_("div", other)

    def add(self, other: Any, *, alpha: float = 1) -> Any:
        return self + (other if alpha == 1 else other * alpha)

    def sub(self, other: Any, *, alpha: float = 1) -> Any:
        return self - (other if alpha == 1 else other * alpha)

    def mul(self, other: Any) -> Any:
        return self * other

    def div(self, other: Any) -> Any:
        return self / other

    def add_(self, other: Any, *, alpha: float = 1) -> Any:
        return self._arithmetic_("add", other if alpha == 1 else other * alpha)

    def sub_(self, other: Any, *, alpha: float = 1) -> Any:
        return self._arithmetic_("sub", other if alpha == 1 else other * alpha)

    def mul_(self, other: Any) -> Any:
        return self._arithmetic_("mul", other)

    def div_(self, other: Any, *, rounding_mode: str | None = None) -> Any:
        if rounding_mode is None:
            return self._arithmetic_("div", other)
        self._check_writable()
        return self._overwrite(self._before(as_tensor(other)).div(other, rounding_mode=rounding_mode))

    def clamp_(self, min: Any = None, max: Any = None) -> Any:
        self._check_writable()
        return self._overwrite(self._before().clamp(min, max))

    eq, ne, lt, le, gt, ge = __eq__, __ne__, __lt__, __le__, __gt__, __ge__


class _Handle:
    """What register_hook returns."""

    def __init__(self, hooks: dict, hook: Any) -> None:
        self.hooks, self.key = hooks, object()
        hooks[self.key] = hook

    def remove(self) -> None:
        self.hooks.pop(self.key, None)


def _rebuild(kind: Any, array: np.ndarray, requires_grad: bool) -> Any:
    t = kind.__new__(kind)
    t.array, t.storage, t.node, t.needs_grad = array, Storage(), None, requires_grad
    return t


def _names_device(arg: Any) -> bool:
    return isinstance(arg, device) or (
        isinstance(arg, str) and arg.partition(":")[0] in ("cpu", "cuda", "mps", "meta", "xpu")
    )


def _key(key: Any) -> Any:
    """An index with tensors and lists as arrays."""
    if isinstance(key, tuple):
        return tuple([_key(k) if not isinstance(k, (int, slice)) else k for k in key])
    if isinstance(key, _TENSOR):
        if key.array.dtype in _FLOATS:
            raise IndexError(f"an index must hold integers or bool, not {key.array.dtype}")
        array = key._look()
        return int(array) if not array.ndim and array.dtype != _BOOL else array
    if isinstance(key, (list, range)):
        array = np.array(_unwrapped(list(key)))
        return array.astype(np.int64) if array.size == 0 else array
    if isinstance(key, (np.ndarray, slice, int, type(None), type(Ellipsis), np.integer, np.bool_)):
        if isinstance(key, np.ndarray) and key.dtype.kind not in "iub":
            raise IndexError(f"an index must hold integers or bool, not {key.dtype}")
        return key
    raise IndexError(f"{key!r} is not an index; use integers, slices, None, ..., lists, or integer and bool tensors")


def _is_basic(key: Any) -> bool:
    """Integers, slices, None and ...: a view. bool is no integer here."""
    if isinstance(key, tuple):
        return all(map(_is_basic, key))
    return isinstance(key, (slice, np.integer, type(None), type(Ellipsis))) or type(key) is int


def positions(shape: tuple[int, ...], key: Any) -> np.ndarray:
    """Where x[key] lies in x.reshape(-1), for any key that NumPy takes: costs the size of the result, not that of x."""
    at: Any = None
    step = 1
    for axis in range(len(shape) - 1, -1, -1):
        line = np.arange(shape[axis], dtype=np.int64).reshape((-1,) + (1,) * (len(shape) - 1 - axis))
        part = np.broadcast_to(line, shape)[key] * step
        at = part if at is None else at + part
        step *= shape[axis]
    found = np.zeros((), np.int64)[key] if at is None else at
    return np.array(found, np.int64, order="C")


def _extreme(x: Any, name: str, dim: Any, keepdim: bool) -> Any:
    if isinstance(dim, _TENSOR):
        return _arithmetic(f"{name}imum", x, dim)
    if dim is None:
        return x._reduce(name, None, False)
    index = _arg(x, f"arg{name}", dim, True)
    values = x.gather(dim, index) if x.ndim else x
    if not keepdim and x.ndim:
        d = _one_dim(x.shape, dim)
        values, index = values.squeeze(d), index.squeeze(d)
    return MaxResult(values, index)


def _arg(x: Any, name: str, dim: Any, keepdim: bool) -> Any:
    if dim is None:
        y = _arg(x.reshape(-1), name, 0, False)
        return y.reshape((1,) * x.ndim) if keepdim else y
    d = _one_dim(x.shape, dim)
    x._check_kept()
    if not x.shape[d : d + 1] or x.shape[d]:
        y = ops.empty(ops.kept_shape(x.shape, (d,), keepdim), _INT64)
        middle = ops.along(x.array, d)
        ops.run(name, (middle, y.reshape(middle.shape[0], middle.shape[2])))
        return wrap(y)
    raise IndexError(f"{name} along dim {d} of shape {list(x.shape)}: there is nothing to choose from")


def where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """input where condition holds, else other; all three broadcast. With condition alone, its non-zero indices per axis."""
    if input is None and other is None:
        return tuple(wrap(np.ascontiguousarray(i)) for i in np.nonzero(condition._look()))
    mask = as_tensor(condition)
    if mask.dtype != _BOOL:
        raise DtypeError(f"where takes a bool condition, not {mask.dtype}; compare with 0")
    x, y = _matched(input, other)
    return apply(OPS["where"], (mask, x, y))


def matmul(input: Any, other: Any) -> Any:
    """Matrix product by NumPy's and torch's rules: vectors are lifted and dropped again, leading axes broadcast."""
    product = quick_matmul(input, other)
    if product is not None:
        return product
    a, b = as_tensor(input), as_tensor(other)
    if a.dtype != b.dtype:
        raise DtypeError(f"matmul of {a.dtype} and {b.dtype}: convert one of them with .to()")
    if not a.ndim or not b.ndim:
        raise ShapeError("matmul takes at least one axis on both sides; multiply by a number with *")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ShapeError(
            f"matmul of {list(a.shape)} and {list(b.shape)}: the {a.shape[-1]} columns of the first meet "
            f"the {b.shape[-2 if b.ndim > 1 else 0]} rows of the second"
        )
    if a.ndim == 2 and b.ndim == 2:
        return apply(OPS["matmul"], (a, b))
    if a.ndim == 1:
        return matmul(a.unsqueeze(0), b).squeeze(-2 if b.ndim > 1 else 0)
    if b.ndim == 1:
        return matmul(a, b.unsqueeze(1)).squeeze(-1)
    if b.ndim == 2:
        return apply(
            OPS["matmul"], (a.reshape((-1 if a.numel() else math.prod(a.shape[:-1]), a.shape[-1])), b)
        ).reshape(a.shape[:-1] + b.shape[1:])
    lead = ops.broadcast_shape(a.shape[:-2], b.shape[:-2])
    many = math.prod(lead)
    a3 = a.expand(lead + a.shape[-2:]).reshape((many, *a.shape[-2:]))
    b3 = b.expand(lead + b.shape[-2:]).reshape((many, *b.shape[-2:]))
    return apply(OPS["bmm"], (a3, b3)).reshape(lead + (a.shape[-2], b.shape[-1]))


def cat(tensors: Any, dim: int = 0) -> Any:
    """Tensors joined along an axis; every other extent must agree."""
    parts = [as_tensor(t) for t in tensors]
    if not parts:
        raise ValueError("cat takes at least one tensor")
    dtype = result_type(*parts)
    parts = [p.to(dtype) for p in parts if p.shape != (0,)] or parts[:1]
    d = _one_dim(parts[0].shape, dim)
    if (
        any(
            p.ndim != parts[0].ndim or p.shape[:d] + p.shape[d + 1 :] != parts[0].shape[:d] + parts[0].shape[d + 1 :]
            for p in parts
        )
        or not parts[0].ndim
    ):
        raise ShapeError(
            f"cat along dim {d} of shapes {', '.join(str(list(p.shape)) for p in parts)}: the other extents must agree"
        )
    return apply(OPS["cat"], tuple(parts), (d,))


def stack(tensors: Any, dim: int = 0) -> Any:
    """Tensors of one shape joined along a new axis."""
    parts = [as_tensor(t) for t in tensors]
    if any(p.shape != parts[0].shape for p in parts):
        raise ShapeError(f"stack takes tensors of one shape, got {', '.join(str(list(p.shape)) for p in parts)}")
    return cat([p.unsqueeze(dim) for p in parts], dim)


# One loop attaches a method for every op of one argument, and every activation with its parameters.


_OF_ONE: dict[str, Callable] = {}  # methods that are also functions, of what is no tensor as well


def _method(op: Any) -> Callable:
    names = [name for name, _ in op.params]
    defaults: dict[str, Any] = dict(op.params)
    signed = op.name in ("neg", "abs", "sign")

    def method(input: Any) -> Any:
        y = quick_tensor(op.name, input, None)
        if y is not None:
            return y
        t = input if isinstance(input, _TENSOR) else as_tensor(input)
        if t.array.dtype not in _FLOATS:
            if signed:
                t._check_kept()
                return wrap(ops.whole(op.name, t.array))
            if op.name == "relu" and t.array.dtype != _BOOL:
                return t.clamp(min=0)
            t = t.to(_Defaults.dtype)
        return apply(op, (t,))

    def checked(args: tuple, named: dict) -> tuple[float, ...]:
        given = defaults | dict(zip(names, args)) | named
        if len(args) > len(names) or len(given) > len(names):
            raise TypeError(f"{op.name} takes {names}, not {args or list(named)}")
        if missing := [k for k in names if given[k] is None]:
            raise TypeError(f"{op.name} also needs {' and '.join(missing)}")
        attrs = tuple([float(given[k]) for k in names])
        if op.requires and not op.requires[1](*attrs):
            raise ValueError(f"{op.name} takes {op.requires[0]}, got {', '.join(f'{k}={given[k]}' for k in names)}")
        return attrs

    usual = checked((), {}) if None not in defaults.values() else None

    def with_parameters(self: Any, *args: float, **named: float) -> Any:
        attrs = checked(args, named) if args or named or usual is None else usual
        y = quick_tensor(op.name, self, None, attrs)
        if y is not None:
            return y
        if self.array.dtype not in _FLOATS:
            self = self.to(_Defaults.dtype)
        return apply(op, (self,), attrs)

    made: Callable = with_parameters if names else method
    if not names:
        _OF_ONE[op.name] = method
    made.__name__, made.__qualname__, made.__doc__ = op.name, f"Tensor.{op.name}", op.formula
    return made


def _product_of(name: str, first: int, second: int) -> Callable:
    """matmul that takes operands of these ranks and no others."""

    def method(self: Any, other: Any) -> Any:
        if self.ndim != first or other.ndim != second or (name == "bmm" and len(self) != len(other)):
            raise ShapeError(f"{name} takes tensors of {first} and {second} axes" + (" and one batch" if first == 3 else "") +
                             f", given {list(self.shape)} and {list(other.shape)}")
        return matmul(self, other)

    method.__name__ = name
    return method


def _in_place(operator: str) -> Callable:
    """x **= y and its like, by way of the operator that is not in place."""

    def method(self: Any, other: Any) -> Any:
        self._check_writable()
        y = getattr(self._before(*([other] if isinstance(other, _TENSOR) else [])), operator)(other)
        return y if y is NotImplemented else self._overwrite(y)

    return method


_UNARY = ("neg", "abs", "sign", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "erf", "exp2", "log2", "log10", "rsqrt",
          "tan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "erfc", "lgamma")
for _op in OPS.values():
    if _op.kind == "activation" or _op.name in _UNARY:
        setattr(Tensor, _op.name, _method(_op))
for _name, _dtype in {
    "float": np.float32,
    "double": np.float64,
    "long": np.int64,
    "int": np.int32,
    "short": np.int16,
    "bool": np.bool_,
}.items():
    setattr(Tensor, _name, lambda self, _dtype=_dtype: self.to(_dtype))
for _name, _ranks in {"mm": (2, 2), "bmm": (3, 3), "mv": (2, 1), "dot": (1, 1)}.items():
    setattr(Tensor, _name, _product_of(_name, *_ranks))
for _name in ("pow", "floordiv", "mod", "and", "or", "xor"):
    setattr(Tensor, f"__i{_name}__", _in_place(f"__{_name}__"))
for _name in ("neg", "abs"):
    setattr(Tensor, f"__{_name}__", getattr(Tensor, _name))
serve(Tensor, _operate, _product)


# What torch also offers as functions, the tensor first.

FUNCTIONS = (
    "abs",
    "add",
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "bmm",
    "chunk",
    "clamp",
    "clip",
    "clone",
    "cos",
    "div",
    "dot",
    "eq",
    "erf",
    "exp",
    "expm1",
    "flatten",
    "gather",
    "ge",
    "gt",
    "index_select",
    "isnan",
    "le",
    "log",
    "log1p",
    "log_softmax",
    "logical_not",
    "lt",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mm",
    "mul",
    "mv",
    "ne",
    "neg",
    "norm",
    "permute",
    "pow",
    "reciprocal",
    "relu",
    "reshape",
    "sigmoid",
    "sign",
    "sin",
    "softmax",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "std",
    "sub",
    "sum",
    "t",
    "tanh",
    "transpose",
    "unbind",
    "unsqueeze",
    "var",
    "masked_fill",
    "numel",
)


def _function(name: str) -> Callable:
    if name in _OF_ONE:
        return _OF_ONE[name]

    def function(input: Any, *args: Any, **named: Any) -> Any:
        return getattr(as_tensor(input), name)(*args, **named)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = getattr(Tensor, name).__doc__
    return function


def functions() -> dict[str, Callable]:
    return {name: _function(name) for name in FUNCTIONS}


def is_tensor(obj: Any) -> bool:
    return isinstance(obj, _TENSOR)


def equal(input: Any, other: Any) -> bool:
    """Whether shapes and all elements agree."""
    return input.shape == other.shape and bool((input == other).all())


def allclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """|input - other| <= atol + rtol |other| everywhere."""
    return bool(np.allclose(input.detach()._look(), other.detach()._look(), rtol, atol, equal_nan))
