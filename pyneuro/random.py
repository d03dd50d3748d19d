# SPDX-License-Identifier: BSD-3-Clause
"""Random numbers as a function of (seed, step): the same on every backend, ISA and number of threads.

The state is one small buffer; drawing moves it on through a kernel, so a recorded step draws afresh at every replay.
"""

import math
import os
from typing import Any

import numpy as np

from . import ops
from .kernels import DtypeError, watcher, watchers
from .tensor import Tensor, _device, _shape, as_dtype, wrap


class Generator:
    """A stream of random numbers. `counter` holds seed, stream, step and first sample."""

    def __init__(self, device: Any = None) -> None:
        _device(device)
        _check_not_recorded("a generator is made")
        self.counter = np.zeros(4, np.uint64)
        self.seed()

    def manual_seed(self, seed: int) -> "Generator":
        """Begin the stream of this seed: any integer, taken modulo 2^64."""
        return self._begin(np.array((int(seed) % (1 << 64), 0, 0, 0), np.uint64))

    def _begin(self, state: np.ndarray) -> "Generator":
        if watchers and watcher():
            ops.run("copy", (state, self.counter))
        else:
            self.counter[:] = state
        return self

    def seed(self) -> int:
        """Begin a stream that no one can foresee, and tell its seed."""
        _check_not_recorded("a seed is drawn that no one can foresee")
        return self.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1).initial_seed()

    def initial_seed(self) -> int:
        _check_not_recorded("a seed is read")
        return int(self.counter[0])

    def get_state(self) -> Any:
        return wrap(ops._copy(self.counter.view(np.int64)))

    def set_state(self, state: Any) -> "Generator":
        if isinstance(state, Tensor) and state.dtype == INT64 and state.shape == self.counter.shape:
            state._check_kept()
            return self._begin(state.array.view(np.uint64))
        return self._begin(np.asarray(state, np.int64).view(np.uint64))

    def next_key(self) -> np.ndarray:
        """A key that no other draw has."""
        key = ops.empty((4,), UINT64)
        ops.run("random_next", (self.counter, key))
        return key


def _check_not_recorded(what: str) -> None:
    if watchers and (found := watcher()):
        found.refuse(f"{what} while a function is recorded")


INT64, UINT64 = np.dtype(np.int64), np.dtype(np.uint64)
default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the default generator."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    return default_generator.seed()


def initial_seed() -> int:
    return default_generator.initial_seed()


def draw(y: np.ndarray, kernel: str, generator: Generator | None, *attrs: float) -> None:
    """Fill y, in C order, from a kernel of a key."""
    flat = ops.empty((y.size,), y.dtype) if not y.flags.c_contiguous else y.reshape(-1)
    ops.run(kernel, ((generator or default_generator).next_key(), flat), attrs)
    if not y.flags.c_contiguous:
        ops.run("copy", (flat.reshape(y.shape), y))


def _drawn(size: tuple, kernel: str, attrs: tuple, dtype: Any, device: Any, generator: Any, requires_grad: bool) -> Any:
    _device(device)
    kind = as_dtype(dtype)
    if kind not in ops.FLOATS:
        raise DtypeError(f"random numbers of this kind are float32 or float64, not {kind}")
    y = ops.empty(_shape(size), kind)
    draw(y, kernel, generator, *attrs)
    t = wrap(y)
    return t.requires_grad_() if requires_grad else t


def rand(*size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None,
         requires_grad: bool = False) -> Tensor:
    """Uniform in [0, 1)."""
    return _drawn(size, "uniform", (0.0, 1.0), dtype, device, generator, requires_grad)


def randn(*size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None,
          requires_grad: bool = False) -> Tensor:
    """Standard normal."""
    return _drawn(size, "normal", (0.0, 1.0), dtype, device, generator, requires_grad)


def rand_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    return rand(input.shape, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad)


def randn_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    return randn(input.shape, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad)


def randint(low: int, high: Any = None, size: Any = None, *, generator: Generator | None = None, dtype: Any = np.int64,
            device: Any = None) -> Tensor:
    """Integers in [low, high): randint(high, size) or randint(low, high, size)."""
    if size is None:
        low, high, size = 0, low, high
    if high <= low:
        raise ValueError(f"randint takes low < high, got {low} and {high}")
    _device(device)
    y = ops.empty(_shape((size,)), INT64)
    draw(y, "randint", generator, float(low), float(high))
    return wrap(y).to(dtype)


def randperm(n: int, *, generator: Generator | None = None, dtype: Any = np.int64, device: Any = None) -> Tensor:
    """The numbers 0 to n - 1 in random order."""
    _device(device)
    y = ops.empty(_shape((n,)), INT64)
    draw(y, "permutation", generator)
    return wrap(y).to(dtype)


def _fill(tensor: Tensor, kernel: str, generator: Generator | None, *attrs: float) -> Tensor:
    tensor._check_writable()
    if not tensor.is_floating_point():
        raise DtypeError(f"random numbers of this kind go into float32 or float64 tensors, not {tensor.dtype}")
    draw(tensor.array, kernel, generator, *attrs)
    tensor.storage.version += 1
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with numbers uniform in [a, b)."""
    if not (math.isfinite(a) and math.isfinite(b) and a <= b):
        raise ValueError(f"uniform_ takes finite bounds a <= b, got {a} and {b}")
    return _fill(tensor, "uniform", generator, float(a), float(b))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with normal numbers."""
    if std < 0:
        raise ValueError(f"normal_ takes std >= 0, got {std}")
    return _fill(tensor, "normal", generator, float(mean), float(std))


# Distributions


def _uniforms(shape: tuple[int, ...], dtype: Any, generator: Generator | None) -> Tensor:
    return rand(*shape, dtype=dtype if dtype in ops.FLOATS else None, generator=generator)


def randint_like(input: Tensor, low: int, high: Any = None, *, dtype: Any = None, device: Any = None) -> Tensor:
    low, high = (0, low) if high is None else (low, high)
    return randint(low, high, input.shape, dtype=dtype or input.dtype, device=device)


def normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None, dtype: Any = None,
           device: Any = None) -> Tensor:
    """Normal numbers of these means and standard deviations: tensors, or numbers and a size."""
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    if not tensors and size is None:
        raise TypeError("normal takes a size where mean and std are numbers")
    if not isinstance(std, Tensor) and std < 0:
        raise ValueError(f"normal takes std >= 0, got {std}")
    shape = _shape((size,)) if not tensors else ops.broadcast_shape(tensors[0].shape, tensors[-1].shape)
    return randn(*shape, generator=generator, dtype=dtype or (tensors[0].dtype if tensors else None), device=device) * std + mean


def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that input says, or p, else 0."""
    if not input.is_floating_point() and p is None:
        raise DtypeError(f"bernoulli takes probabilities as floats, not {input.dtype}")
    chance = input.detach() if p is None else p
    return (_uniforms(input.shape, input.dtype, generator) < chance).to(input.dtype)


def multinomial(input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None) -> Tensor:
    """Numbers of categories, drawn in proportion to the weights of each row, without replacement or with.

    Without, these are the categories whose exponential times of rates as the weights come first (Efraimidis, Spirakis 2006).
    """
    if input.ndim not in (1, 2) or not input.is_floating_point():
        raise DtypeError(f"multinomial takes weights as floats of 1 or 2 axes, given {input.dtype}{list(input.shape)}")
    weights = input._look().astype(np.float64).reshape(-1, input.shape[-1])
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights.sum(1) > 0).all()):
        raise RuntimeError("multinomial takes weights that are finite, not negative, and not 0 all")
    if num_samples < 1 or (not replacement and num_samples > (weights > 0).sum(1).min(initial=num_samples)):
        raise RuntimeError(f"multinomial cannot draw {num_samples} of {weights.shape[1]} categories "
                           f"{'with' if replacement else 'without'} replacement")
    rows = len(weights)
    u = rand(rows, num_samples if replacement else weights.shape[1], dtype=np.float64, generator=generator).array
    if replacement:
        ends = np.cumsum(weights, axis=1)
        found = np.stack([np.searchsorted(e, v * e[-1], side="right") for e, v in zip(ends, u)]) if rows else u
    else:
        with np.errstate(divide="ignore"):
            found = np.argsort(-np.log1p(-u) / weights, axis=1, kind="stable")[:, :num_samples]
    return wrap(np.ascontiguousarray(found, np.int64).reshape((*input.shape[:-1], num_samples)))


def bernoulli_(tensor: Tensor, p: Any = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Fill with 1 with probability p, else 0."""
    tensor._check_writable()
    return tensor._overwrite((_uniforms(tensor.shape, tensor.dtype, generator) < p).to(tensor.dtype))


def exponential_(tensor: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with exponential numbers of mean 1 / lambd."""
    if lambd <= 0:
        raise ValueError(f"exponential_ takes lambd > 0, got {lambd}")
    tensor._check_writable()
    return tensor._overwrite((-_uniforms(tensor.shape, tensor.dtype, generator)).log1p() / -lambd)


def random_(tensor: Tensor, low: int = 0, high: int | None = None, *, generator: Generator | None = None) -> Tensor:
    """Fill with whole numbers in [low, high): random_(), random_(high) or random_(low, high)."""
    if high is None:
        most = 2 ** (np.finfo(tensor.dtype).nmant + 1) if tensor.is_floating_point() else np.iinfo(tensor.dtype).max
        low, high = (0, low) if low else (0, int(most))
    tensor._check_writable()
    return tensor._overwrite(randint(low, high, tensor.shape, generator=generator).to(tensor.dtype))


Tensor.bernoulli_, Tensor.exponential_, Tensor.random_ = bernoulli_, exponential_, random_  # type: ignore[attr-defined]
Tensor.bernoulli, Tensor.multinomial = bernoulli, multinomial  # type: ignore[attr-defined]
Tensor.uniform_, Tensor.normal_ = uniform_, normal_  # type: ignore[attr-defined]
