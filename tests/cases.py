# SPDX-License-Identifier: BSD-3-Clause
"""What the tests run over: backends, element types, sizes, layouts of memory, and operands for any kernel or op."""
import functools
import math
import zlib

import numpy as np

import pyneuro as pn
from pyneuro.kernels.signature import HOST, KERNELS
from pyneuro.optim.optimizers import OPTIMIZERS
from pyneuro.tensor import apply

ISAS = pn.kernels.isas()                                       # best first; empty without the extension
NATIVES = [f"native:{isa}" for isa in ISAS]
BACKENDS = ["reference", *NATIVES]
FMA = [f"native:{isa}" for isa in ISAS if isa != "baseline"]   # their matmuls have the same bits
FLOATS = [np.float32, np.float64]
WIDTHS = (4, 8, 16)                                            # lanes of a vector, on one ISA or another
SIZES = sorted({1, 3, 1000, *(n for w in WIDTHS for n in (w - 1, w, w + 1, 2 * w + 1))})


def random(*key):
    """A generator that depends on nothing but what it is for."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


# -------------------------------------------------------------------------------------------------------------- layouts

def _strided(x):
    view = np.zeros([2 * n for n in x.shape], x.dtype)[(slice(None, None, 2),) * x.ndim]
    view[...] = x
    return view


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


WRITABLE = {"contiguous": np.copy, "reversed": lambda x: np.flip(np.flip(x).copy()), "strided": _strided,
            "transposed": lambda x: x.T.copy().T}
READABLE = {**WRITABLE, "read-only": _read_only,                           # of the same values, but for this one:
            "repeated": lambda x: np.broadcast_to(x[:1].copy(), x.shape)}


def laid_out(x, layout, written=False):
    """A copy of x in that layout of memory, or where x is written and the layout cannot be, a plain one."""
    if not x.ndim or (written and layout not in WRITABLE):
        layout = "contiguous"
    return READABLE[layout](x)


def guarded(x, around=40):
    """x inside memory that holds NaN (integers -1, bool True) on all sides, and a function: is that so still?"""
    guard = {"f": np.nan, "i": -1, "u": 99, "b": True}[x.dtype.kind]
    room = np.full(x.size + 2 * around, guard, x.dtype)
    inside = room[around:around + x.size].reshape(x.shape)
    inside[...] = x
    edges = (room[:around], room[around + x.size:])
    return inside, lambda: all(np.array_equal(e, np.full(around, guard, x.dtype), x.dtype.kind == "f") for e in edges)


# ------------------------------------------------------------------------------------------------ operands for a kernel

HYPER = dict(lr=0.05, momentum=0.9, dampening=0.1, weight_decay=0.02, nesterov=0, maximize=0, lr_decay=0.1, eps=1e-6,
             rate=0.05, alpha=0.9, centered=0, rho=0.9, beta1=0.9, beta2=0.99, decoupled_weight_decay=0,
             root=0.3, step=3, eta_minus=0.5, eta_plus=1.2, step_min=1e-6, step_max=50, lambd=1e-3, t0=1, now=0.04, share=0.5,
             eta=0.05, mu=0.7, mu_next=0.75, mu_product=0.3, momentum_decay=0.004, r=0.5, weight_lr_power=2, warmup_steps=4,
             pull=0.3, lr_max=0.04, weight_sum=0.01, eps2=1e-3, d=1.0, beta2_decay=-0.8)


@functools.cache
def optimizer_of(kernel):
    """The optimizer class that runs a kernel, and the options that make it."""
    for cls in OPTIMIZERS.values():
        for options in ({}, {"momentum": 0.9}, {"amsgrad": True}, {"centered": True}):
            try:
                made = cls([pn.zeros(1)], **options)
            except TypeError:
                continue
            if kernel in (made.kernel(made.param_groups[0])[0], made.tick):
                return cls, options
    raise LookupError(kernel)


def hyper(kernel, size, **changes):
    values = HYPER | changes
    return np.array([values[name] for name in optimizer_of(kernel)[0].hyper][:size if isinstance(size, int) else None])


def extents(spec, n):
    """An extent for each axis letter: about n in all, no two the same, so that a mix-up shows."""
    letters = spec.letters
    if len(letters) < 2:
        return dict.fromkeys(letters, n)
    side = max(1, round(n ** (1 / len(letters))))
    return {letter: side + i for i, letter in enumerate(letters)}


def operands(kernel, n, dtype, rng, host=False):
    """(buffers, attrs) that a kernel takes, written ones filled too. n: about how many elements, or the axes' extents.

    Floats lie in [0.2, 1.7], where every kernel is defined.
    """
    spec = (HOST if host else KERNELS)[kernel]
    size = n if isinstance(n, dict) else extents(spec, n)
    n = size.get("...", 0) if isinstance(n, dict) else n
    integer = host and np.dtype(dtype).kind != "f"
    attrs = []
    for name, default in spec.attrs:
        attrs.append({"label_smoothing": 0.1, "correction": 1.0, "low": 1.0 if integer else 0.5,
                      "high": 5.0 if integer else 1.2, "p": 0.4, "value": 2.0
                      }.get(name, 1.0 if default is None else default))
    bufs = []
    for slot in spec.slots:
        shape = (n,) if slot.axes == ("...",) else tuple(a if isinstance(a, int) else size[a] for a in slot.axes)
        if slot.within:
            value = rng.integers(0, max(size[slot.within], 1), shape)
            if spec.ignore is not None:
                value.reshape(-1)[::5] = attrs[spec.ignore]
        elif slot.type == "d":
            value = hyper(kernel, slot.axes[0])
        elif slot.type == "u":
            value = np.array([7, 1, 3, 2], np.uint64)
        elif slot.type == "b":
            value = rng.random(shape) < 0.5
        elif slot.type == "i":
            value = rng.integers(0, 3, shape)
        elif integer:
            value = rng.integers(1, 7, shape).astype(dtype)
        else:
            value = rng.uniform(0.2, 1.7, shape).astype(dtype)
        bufs.append(value)
    return bufs, tuple(attrs)


def terms(kernel, n):
    """The longest sum that goes into an element."""
    spec = KERNELS[kernel]
    size = extents(spec, n)
    return max(math.prod(k for letter, k in size.items() if letter not in slot.axes)
               for slot in spec.slots if slot.written)


# --------------------------------------------------------------------------------------------------- operands for an op

def sample(op, n, dtype=np.float64, layout="contiguous"):
    """(arrays, attrs) of a row of the op table: floats in dtype, everything in that layout."""
    arrays, attrs = op.inputs(random(op.name, n), n)
    return [laid_out(a.astype(dtype) if a.dtype.kind == "f" else a, layout) for a in map(np.asarray, arrays)], attrs


def differentiable(op, arrays):
    """Which inputs have a gradient: the floats, but of a loss against labels only the scores, as in torch."""
    return [a.dtype.kind == "f" and (op.kind != "labels" or i == 0) for i, a in enumerate(arrays)]


def applied(op, arrays, attrs):
    """An op on arrays, in the layout that they have: (result, the tensors it was made from)."""
    given = [pn.from_numpy(a).requires_grad_(need) for a, need in zip(arrays, differentiable(op, arrays))]
    return apply(op, tuple(given), attrs), given
