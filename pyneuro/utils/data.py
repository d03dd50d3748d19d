# SPDX-License-Identifier: BSD-3-Clause
"""Data sets, samplers and loaders, with torch's names. What is made of tensors is batched by index, never row by row;
order comes from a Generator, so a seed repeats it. Everything runs in this process: there are no workers.
"""

import copy
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from itertools import accumulate, islice
from typing import Any, Generic, TypeVar

import numpy as np

from .. import ops
from ..autograd import is_grad_enabled
from ..kernels import ShapeError
from ..random import Generator, rand, randint, randperm
from ..tensor import Tensor, as_tensor, stack, tensor, wrap

__all__ = ["BatchSampler", "ChainDataset", "ConcatDataset", "DataLoader", "Dataset", "IterableDataset", "RandomSampler",
           "Sampler", "SequentialSampler", "StackDataset", "Subset", "SubsetRandomSampler", "TensorDataset",
           "WeightedRandomSampler", "default_collate", "default_convert", "get_worker_info", "random_split"]

T = TypeVar("T", covariant=True)


# ------------------------------------------------------------------------------------------------------------ data sets


class Dataset(Generic[T]):
    """Base of data sets: define __getitem__, a sample by its number, and __len__."""

    def __getitem__(self, index: Any) -> T:
        raise NotImplementedError(f"{type(self).__name__} defines no __getitem__()")

    def __add__(self, other: "Dataset[Any]") -> Any:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T]):
    """Base of data sets that are read in their own order: define __iter__."""

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError(f"{type(self).__name__} defines no __iter__()")

    def __add__(self, other: Dataset[Any]) -> Any:
        return ChainDataset([self, other])


class TensorDataset(Dataset[Any]):
    """Samples are rows of tensors. Raises ShapeError where the tensors do not have equally many."""

    def __init__(self, *tensors: Any) -> None:
        if any(t.shape[0] != tensors[0].shape[0] for t in tensors):
            raise ShapeError(f"the tensors have {', '.join(str(t.shape[0]) for t in tensors)} rows, which must be equal")
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple:
        return tuple(t[index] for t in self.tensors)

    def __len__(self) -> int:
        return self.tensors[0].shape[0]


class StackDataset(Dataset[Any]):
    """Samples are tuples (or dicts) of the samples of other data sets, all of one length."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if bool(args) == bool(kwargs):
            raise ValueError("StackDataset takes data sets, for tuples, or named data sets, for dicts")
        self.datasets: Any = args or kwargs
        lengths = [len(d) for d in (args or kwargs.values())]
        if len(set(lengths)) > 1:
            raise ValueError(f"the data sets have {', '.join(map(str, lengths))} samples, which must be equal")
        self._length = lengths[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(self.datasets, dict):
            return {k: d[index] for k, d in self.datasets.items()}
        return tuple(d[index] for d in self.datasets)

    def __getitems__(self, indices: list) -> list:
        named = isinstance(self.datasets, dict)
        columns = []
        for d in self.datasets.values() if named else self.datasets:
            columns.append(_samples(d, indices))
            if len(columns[-1]) != len(indices):
                raise ValueError(f"a data set gave {len(columns[-1])} samples for {len(indices)} indices")
        return [dict(zip(self.datasets, row)) for row in zip(*columns)] if named else list(zip(*columns))

    def __len__(self) -> int:
        return self._length


class ConcatDataset(Dataset[T]):
    """Data sets one after another. Raises ValueError for none, or for one that has no numbers (IterableDataset)."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset takes at least one data set")
        if any(isinstance(d, IterableDataset) for d in self.datasets):
            raise ValueError("ConcatDataset cannot take an IterableDataset, whose samples have no number; ChainDataset can")
        self.cumulative_sizes = list(accumulate(len(d) for d in self.datasets))

    def __getitem__(self, idx: int) -> Any:
        if idx < 0:
            if -idx > len(self):
                raise ValueError(f"index {idx} of {len(self)} samples")
            idx += len(self)
        at = bisect_right(self.cumulative_sizes, idx)
        if at == len(self.datasets):
            raise IndexError(f"index {idx} of {len(self)} samples")
        return self.datasets[at][idx - (self.cumulative_sizes[at - 1] if at else 0)]

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]


class ChainDataset(IterableDataset[T]):
    """Iterable data sets one after another. Raises ValueError for one of another kind."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = datasets

    def _checked(self) -> Iterator[Any]:
        for d in self.datasets:
            if not isinstance(d, IterableDataset):
                raise ValueError(f"ChainDataset takes IterableDatasets, not {type(d).__name__}; ConcatDataset takes others")
            yield d

    def __iter__(self) -> Iterator[Any]:
        for d in self._checked():
            yield from d

    def __len__(self) -> int:
        return sum(len(d) for d in self._checked())


class Subset(Dataset[T]):
    """The samples of a data set that have these numbers."""

    def __init__(self, dataset: Any, indices: Any) -> None:
        self.dataset, self.indices = dataset, indices
        kind = type(self)
        if kind.__getitem__ is not Subset.__getitem__ and kind.__getitems__ is Subset.__getitems__:
            raise NotImplementedError(f"{kind.__name__} overrides __getitem__ and must override __getitems__(indices) too, "
                                      "which loaders call")

    def __getitem__(self, idx: Any) -> Any:
        return self.dataset[[self.indices[i] for i in idx] if isinstance(idx, list) else self.indices[idx]]

    def __getitems__(self, indices: list) -> list:
        return _samples(self.dataset, [self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)


def random_split(dataset: Any, lengths: Sequence[float], generator: Generator | None = None) -> list[Subset[Any]]:
    """Subsets of these lengths, or of these shares if they sum to 1, of a random order of the samples.

    What shares leave over goes to the first subsets, one each. Raises ValueError where the lengths do not sum to the whole.
    """
    whole = len(dataset)
    total = sum(lengths)
    if math.isclose(total, 1) and total <= 1:
        for i, share in enumerate(lengths):
            if not 0 <= share <= 1:
                raise ValueError(f"share {i} is {share}, not between 0 and 1")
        sizes = [math.floor(whole * share) for share in lengths]
        for i in range(whole - sum(sizes)):
            sizes[i % len(sizes)] += 1
        if 0 in sizes:
            warnings.warn(f"split {sizes.index(0)} is empty", stacklevel=2)
    else:
        sizes = list(lengths)                           # type: ignore[arg-type]
    if sum(sizes) != whole:
        raise ValueError(f"lengths {list(sizes)} sum to {sum(sizes)}, the data set has {whole} samples")
    order = randperm(whole, generator=generator).tolist()
    return [Subset(dataset, order[end - n:end]) for end, n in zip(accumulate(sizes), sizes)]


# ------------------------------------------------------------------------------------------------------------- samplers


class Sampler(Generic[T]):
    """Base of samplers: define __iter__, the numbers of samples in the order in which they are read."""

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError(f"{type(self).__name__} defines no __iter__()")


class SequentialSampler(Sampler[int]):
    """0, 1, 2, ..."""

    def __init__(self, data_source: Any) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """A random order; with replacement, or with more num_samples than there are, numbers come again."""

    def __init__(self, data_source: Any, replacement: bool = False, num_samples: int | None = None,
                 generator: Generator | None = None) -> None:
        if not isinstance(replacement, bool):
            raise TypeError(f"replacement must be True or False, got {replacement!r}")
        self.data_source, self.replacement, self.generator = data_source, replacement, generator
        self._num_samples = num_samples
        if not isinstance(self.num_samples, int) or self.num_samples <= 0:
            raise ValueError(f"num_samples must be a positive integer, got {self.num_samples!r}")

    @property
    def num_samples(self) -> int:
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def order(self) -> Any:
        """The numbers of one pass, drawn now."""
        n, count = len(self.data_source), self.num_samples
        if self.replacement:
            return randint(n, (count,), generator=self.generator).numpy()
        passes = [randperm(n, generator=self.generator).numpy() for _ in range(-(-count // n))]
        return passes[0] if count == n else np.concatenate(passes)[:count]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """The given numbers in random order."""

    def __init__(self, indices: Any, generator: Generator | None = None) -> None:
        self.indices, self.generator = indices, generator

    def __iter__(self) -> Iterator[int]:
        for i in randperm(len(self.indices), generator=self.generator).tolist():
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """num_samples numbers, drawn with probabilities proportional to weights."""

    def __init__(self, weights: Any, num_samples: int, replacement: bool = True,
                 generator: Generator | None = None) -> None:
        if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples <= 0:
            raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
        if not isinstance(replacement, bool):
            raise ValueError(f"replacement must be True or False, got {replacement!r}")
        self.weights = as_tensor(weights, dtype="float64")
        if self.weights.ndim != 1:
            raise ValueError(f"weights must have one axis, these have shape {list(self.weights.shape)}")
        self.num_samples, self.replacement, self.generator = num_samples, replacement, generator

    def __iter__(self) -> Iterator[int]:
        """Raises RuntimeError for weights that are negative, not finite or all 0, or too few that are not."""
        w = self.weights.detach().numpy()
        if not (np.isfinite(w).all() and (w >= 0).all() and w.any()):
            raise RuntimeError("weights must be finite, not negative, and not all 0")
        if not self.replacement and (w > 0).sum() < self.num_samples:
            raise RuntimeError(f"{self.num_samples} samples without replacement of {(w > 0).sum()} weights above 0")
        if self.replacement:
            u = rand(self.num_samples, generator=self.generator, dtype="float64").numpy()
            shares = np.cumsum(w)
            return iter(np.searchsorted(shares, u * shares[-1], side="right").clip(max=np.flatnonzero(w)[-1]).tolist())
        # The first to come of Poisson processes of these rates (Efraimidis and Spirakis 2006)
        u = rand(len(w), generator=self.generator, dtype="float64").numpy()
        come = np.full(len(w), np.inf)
        np.divide(-np.log1p(-u), w, out=come, where=w > 0)
        return iter(np.argsort(come, kind="stable")[:self.num_samples].tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of batch_size numbers of a sampler; the last may be shorter, unless drop_last."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        if not isinstance(drop_last, bool):
            raise ValueError(f"drop_last must be True or False, got {drop_last!r}")
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self) -> Iterator[list[int]]:
        numbers = iter(self.sampler)
        while batch := list(islice(numbers, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        n = len(self.sampler)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


# ------------------------------------------------------------------------------------------------- samples into a batch


def _stacked(tensors: Sequence[Any]) -> Any:
    first = tensors[0]
    if is_grad_enabled() and any(t.requires_grad for t in tensors):
        return stack(tensors)
    if any(t.shape != first.shape or t.dtype != first.dtype for t in tensors):
        return stack(tensors)                           # which promotes, or says what does not fit
    out = ops.empty((len(tensors), *first.shape), first.dtype)
    for i, t in enumerate(tensors):
        ops.run("copy", (t.array, out[i, ...]))
    return wrap(out)


def default_collate(batch: Any) -> Any:
    """Samples as one batch: numbers, arrays and tensors are stacked; tuples, lists and dicts are collated part by part;
    strings stay as they are. Raises TypeError for what is none of these, RuntimeError for lists of different lengths."""
    first = batch[0]
    if isinstance(first, Tensor):
        return _stacked(batch)
    if isinstance(first, np.ndarray):
        return _stacked([as_tensor(_numbers(a)) for a in batch])
    if isinstance(first, (np.bool_, np.number)):
        return as_tensor(np.asarray(batch))
    if isinstance(first, float):
        return tensor(batch, dtype="float64")
    if isinstance(first, int):
        return tensor(batch)
    if isinstance(first, (str, bytes)):
        return batch
    if isinstance(first, Mapping):
        return _like(first, {k: default_collate([d[k] for d in batch]) for k in first})
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(default_collate, zip(*batch)))
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            raise RuntimeError("the samples of a batch must be lists of one length")
        parts = [default_collate(part) for part in zip(*batch)]
        return parts if isinstance(first, tuple) else _like(first, parts)
    raise TypeError(f"a batch takes samples of tensors, arrays, numbers, strings, dicts, tuples and lists, not "
                    f"{type(first).__name__}; collate_fn can do others")


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a batch takes arrays of numbers, not of {array.dtype}")
    return array


def _like(first: Any, parts: Any) -> Any:
    """parts, list or dict, in a container of first's kind if it can be made so."""
    try:
        if isinstance(first, (MutableMapping, MutableSequence)):
            made = copy.copy(first)
            for k, v in parts.items() if isinstance(parts, dict) else enumerate(parts):
                made[k] = v
            return made
        return type(first)(parts)
    except TypeError:
        return parts


def default_convert(data: Any) -> Any:
    """Arrays in data as tensors, in whatever tuples, lists and dicts they are."""
    if isinstance(data, Tensor):
        return data
    if isinstance(data, (np.ndarray, np.bool_, np.number)):
        return as_tensor(data) if np.asarray(data).dtype.kind in "fiub" else data
    if isinstance(data, Mapping):
        return _like(data, {k: default_convert(v) for k, v in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*map(default_convert, data))
    if isinstance(data, tuple):
        return [default_convert(d) for d in data]
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return _like(data, [default_convert(d) for d in data])
    return data


def get_worker_info() -> None:
    """None: this is no worker."""
    return


# -------------------------------------------------------------------------------------------------------------- loading


def _samples(dataset: Any, indices: list) -> list:
    """The samples of these numbers, by the data set's own method for that if it has one."""
    several = getattr(dataset, "__getitems__", None)
    return several(indices) if callable(several) else [dataset[i] for i in indices]


def _index(numbers: Any) -> Any:
    return numbers if isinstance(numbers, slice) else np.asarray(numbers, np.int64)


def _rows(t: Any, index: Any) -> Any:
    return t[index].clone() if isinstance(index, slice) else t[index]


def batches_by_index(dataset: Any) -> Callable[[Any], Any] | None:
    """A function of an index array (or slice) that gives what default_collate makes of those samples, in one take for
    each tensor; None where samples have to be asked for one by one."""
    if isinstance(dataset, Tensor):
        return lambda index: _rows(dataset, index)
    if isinstance(dataset, np.ndarray):
        return batches_by_index(as_tensor(dataset)) if dataset.dtype.kind in "fiub" else None
    kind = type(dataset)
    if isinstance(dataset, TensorDataset):
        if kind.__getitem__ is not TensorDataset.__getitem__ or hasattr(kind, "__getitems__"):
            return None
        return lambda index: [_rows(t, index) for t in dataset.tensors]
    if isinstance(dataset, Subset):
        whole = batches_by_index(dataset.dataset)
        if whole is None or kind.__getitems__ is not Subset.__getitems__:
            return None

        def of_subset(index: Any) -> Any:
            numbers = dataset.indices
            if isinstance(numbers, Tensor):
                numbers = numbers.array
            if isinstance(index, slice) or isinstance(numbers, np.ndarray):
                return whole(_index(numbers[index]))
            return whole(_index([numbers[i] for i in index.tolist()]))

        return of_subset
    if isinstance(dataset, StackDataset):
        named = isinstance(dataset.datasets, dict)
        parts = [batches_by_index(d) for d in (dataset.datasets.values() if named else dataset.datasets)]
        if None in parts or kind.__getitems__ is not StackDataset.__getitems__:
            return None
        if named:
            return lambda index: {k: part(index) for k, part in zip(dataset.datasets, parts)}  # type: ignore[misc]
        return lambda index: [part(index) for part in parts]                                   # type: ignore[misc]
    return None


_FIXED = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")


class DataLoader(Generic[T]):
    """Batches of a data set: `for x, y in DataLoader(TensorDataset(xs, ys), batch_size=32, shuffle=True)`.

    generator: orders the samples (None: the default one, which manual_seed seeds). batch_size None: samples one by one.
    num_workers, prefetch_factor, persistent_workers, timeout, worker_init_fn, multiprocessing_context, pin_memory and
    in_order are taken and checked as torch does, and change nothing: samples are read in this process, in order, so
    worker_init_fn is not called and get_worker_info() is None.
    """

    def __init__(self, dataset: Any, batch_size: int | None = 1, shuffle: bool | None = None, sampler: Any = None,
                 batch_sampler: Any = None, num_workers: int = 0, collate_fn: Callable[[Any], Any] | None = None,
                 pin_memory: bool = False, drop_last: bool = False, timeout: float = 0,
                 worker_init_fn: Callable[[int], None] | None = None, multiprocessing_context: Any = None,
                 generator: Generator | None = None, *, prefetch_factor: int | None = None,
                 persistent_workers: bool = False, pin_memory_device: str = "", in_order: bool = True) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        if timeout < 0:
            raise ValueError(f"timeout must not be negative, got {timeout}")
        if num_workers == 0 and prefetch_factor is not None:
            raise ValueError("prefetch_factor is for num_workers > 0")
        if prefetch_factor is not None and prefetch_factor < 0:
            raise ValueError(f"prefetch_factor must not be negative, got {prefetch_factor}")
        if num_workers == 0 and persistent_workers:
            raise ValueError("persistent_workers is for num_workers > 0")
        if num_workers == 0 and multiprocessing_context is not None:
            raise ValueError("multiprocessing_context is for num_workers > 0")
        self._iterable = isinstance(dataset, IterableDataset)
        if self._iterable:
            for name, value in (("shuffle", shuffle or None), ("sampler", sampler), ("batch_sampler", batch_sampler)):
                if value is not None:
                    raise ValueError(f"an IterableDataset has its own order: {name} cannot be given")
        if sampler is not None and shuffle:
            raise ValueError("sampler and shuffle exclude each other")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError("batch_sampler excludes batch_size, shuffle, sampler and drop_last")
            batch_size = None
        elif batch_size is None and drop_last:
            raise ValueError("batch_size=None makes no batches, and excludes drop_last")
        if sampler is None and not self._iterable:
            sampler = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
        if batch_size is not None and batch_sampler is None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.dataset, self.batch_size, self.drop_last, self.generator = dataset, batch_size, drop_last, generator
        self.sampler, self.batch_sampler = sampler, batch_sampler
        self.collate_fn = collate_fn or (default_convert if batch_sampler is None else default_collate)
        self.num_workers, self.prefetch_factor, self.persistent_workers = num_workers, prefetch_factor, persistent_workers
        if num_workers and prefetch_factor is None:
            self.prefetch_factor = 2
        self.timeout, self.worker_init_fn, self.multiprocessing_context = timeout, worker_init_fn, multiprocessing_context
        self.pin_memory, self.pin_memory_device, self.in_order = pin_memory, pin_memory_device, in_order
        self._made = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and getattr(self, "_made", False):
            raise ValueError(f"{name} cannot be set once the DataLoader is made; make another")
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Any]:
        if self._iterable:
            return self._stream()
        take = batches_by_index(self.dataset) if self.collate_fn is default_collate else None
        if take is not None:
            return map(take, self._indices())
        return self._one_by_one()

    def _stream(self) -> Iterator[Any]:
        samples = iter(self.dataset)
        if self.batch_size is None:
            yield from map(self.collate_fn, samples)
            return
        while batch := list(islice(samples, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield self.collate_fn(batch)

    def _one_by_one(self) -> Iterator[Any]:
        if self.batch_sampler is None:
            for i in self.sampler:
                yield self.collate_fn(self.dataset[i])
        else:
            for batch in self.batch_sampler:
                yield self.collate_fn(_samples(self.dataset, batch))

    def _indices(self) -> Iterator[Any]:
        """The batches of the batch sampler, as arrays; those of the usual samplers without a list on the way."""
        batches = self.batch_sampler
        if type(batches) is not BatchSampler or type(batches.sampler) not in (SequentialSampler, RandomSampler):
            yield from map(_index, batches)
            return
        size = batches.batch_size
        order = batches.sampler.order() if type(batches.sampler) is RandomSampler else None
        n = len(batches.sampler)
        for start in range(0, n - size + 1 if batches.drop_last else n, size):
            part = slice(start, min(start + size, n))
            yield part if order is None else order[part]

    def __len__(self) -> int:
        """Batches; of an iterable data set, by what its own len() says."""
        if not self._iterable:
            return len(self.sampler if self.batch_sampler is None else self.batch_sampler)
        n = len(self.dataset)
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
