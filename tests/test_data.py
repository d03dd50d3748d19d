# SPDX-License-Identifier: BSD-3-Clause
"""utils.data: data sets, samplers, loaders; torch's batches where order is given, its refusals, and batches by index."""
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
from cases import random

import pyneuro as pn
from pyneuro.utils import data

X = random("x").normal(size=(23, 3))
Y = random("y").integers(0, 4, 23)
Pair = namedtuple("Pair", "x y")


def squares(t):
    class Squares(t.utils.data.Dataset):
        def __init__(self, n, make=lambda i: i * i):
            self.n, self.make = n, make

        def __getitem__(self, i):
            if not 0 <= i < self.n:
                raise IndexError(i)
            return self.make(i)

        def __len__(self):
            return self.n

    return Squares


def streams(t):
    class Stream(t.utils.data.IterableDataset):
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return iter(t.tensor([float(i)]) for i in range(self.n))

        def __len__(self):
            return self.n

    return Stream


def tensors(t):
    return t.utils.data.TensorDataset(t.tensor(X), t.tensor(Y))


DATASETS = {  # of either library
    "tensors": tensors,
    "one tensor": lambda t: t.utils.data.TensorDataset(t.tensor(X)),
    "bools": lambda t: t.utils.data.TensorDataset(t.tensor(X > 0), t.tensor(Y.astype(np.int32))),
    "subset": lambda t: t.utils.data.Subset(tensors(t), [3, 1, 4, 1, 5, 9, 2, 6]),
    "subset by array": lambda t: t.utils.data.Subset(tensors(t), np.arange(20, 3, -2)),
    "subset of a subset": lambda t: t.utils.data.Subset(t.utils.data.Subset(tensors(t), range(2, 20)), [5, 3, 0, 17]),
    "stack": lambda t: t.utils.data.StackDataset(t.tensor(X), t.tensor(Y)),
    "stack of sets": lambda t: t.utils.data.StackDataset(tensors(t), squares(t)(23)),
    "stack by name": lambda t: t.utils.data.StackDataset(a=t.tensor(X), b=tensors(t)),
    "concat": lambda t: tensors(t) + tensors(t),
    "concat of others": lambda t: t.utils.data.ConcatDataset([squares(t)(4), squares(t)(3, lambda i: -i)]),
    "a tensor": lambda t: t.tensor(X),
    "an array": lambda t: X,
    "a list": lambda t: list(range(7)),
    "floats": lambda t: squares(t)(9, lambda i: i / 3),
    "bool": lambda t: squares(t)(9, lambda i: i > 3),
    "words": lambda t: squares(t)(9, lambda i: (str(i), b"b")),
    "dicts": lambda t: squares(t)(9, lambda i: {"x": t.tensor(X[i]), "more": [i, {"y": Y[i]}]}),
    "ordered dicts": lambda t: squares(t)(5, lambda i: OrderedDict(a=X[i], b=i)),
    "named tuples": lambda t: squares(t)(9, lambda i: Pair(t.tensor(X[i]), int(Y[i]))),
    "arrays": lambda t: squares(t)(9, lambda i: (X[i], Y[i], np.float32(i), np.asarray(i))),
    "0-d": lambda t: squares(t)(9, lambda i: t.tensor(i)),
    "stream": lambda t: streams(t)(11),
    "chain": lambda t: streams(t)(3) + streams(t)(6),
}
each = pytest.mark.parametrize("name", DATASETS)


def plain(batch):
    """A batch as something that == understands, with the kinds of its containers and numbers."""
    if hasattr(batch, "detach"):
        return str(batch.dtype).removeprefix("torch."), tuple(batch.shape), batch.tolist()
    if isinstance(batch, (np.ndarray, np.generic)):
        return type(batch).__name__, str(batch.dtype), batch.tolist()
    if isinstance(batch, dict):
        return type(batch).__name__, {k: plain(v) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch).__name__, [plain(b) for b in batch]
    return batch


LOADERS = {
    "whole": {"batch_size": 100},
    "one each": {},
    "four": {"batch_size": 4},
    "four, no less": {"batch_size": 4, "drop_last": True},
    "samples": {"batch_size": None},
    "collated": {"batch_size": 3, "collate_fn": lambda samples: samples},
    "workers": {"batch_size": 5, "num_workers": 2, "prefetch_factor": 3, "timeout": 5, "persistent_workers": True},
}


@each
@pytest.mark.parametrize("options", LOADERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_batches_are_torchs(name, options, torch):
    options = dict(LOADERS[options])
    mine = data.DataLoader(DATASETS[name](pn), **options)
    if options.pop("num_workers", 0):                       # here they are arguments; there they would be processes
        options = {"batch_size": 5}
    theirs = torch.utils.data.DataLoader(DATASETS[name](torch), **options)
    assert [plain(b) for b in mine] == [plain(b) for b in theirs]
    assert len(mine) == len(theirs)
    assert [plain(b) for b in mine] == [plain(b) for b in mine], "a second pass"


@each
@pytest.mark.parametrize("batches", [[[0, 2], [1]], [[3, 3, 0, -1]], []])
def test_batch_samplers_are_obeyed(name, batches, torch):
    if isinstance(DATASETS[name](pn), data.IterableDataset):
        with pytest.raises(ValueError, match="own order"):
            data.DataLoader(DATASETS[name](pn), batch_sampler=batches)
        return
    batches = [[i for i in b if i >= 0 or name in ("tensors", "a tensor", "an array")] for b in batches]
    mine = data.DataLoader(DATASETS[name](pn), batch_sampler=batches)
    theirs = torch.utils.data.DataLoader(DATASETS[name](torch), batch_sampler=batches)
    assert [plain(b) for b in mine] == [plain(b) for b in theirs]


@each
def test_by_index_is_as_one_by_one(name):
    dataset = DATASETS[name](pn)
    take = data.batches_by_index(dataset)
    if take is not None:
        for index in ([2, 0, 1], [3], [1, 1]):
            samples = [dataset[i] for i in index]
            assert plain(take(np.array(index))) == plain(data.default_collate(samples))
        assert plain(take(slice(1, 4))) == plain(data.default_collate([dataset[i] for i in (1, 2, 3)]))


def test_tensors_are_never_read_row_by_row(monkeypatch):
    """One take a batch and tensor, whatever the order, also through subsets."""
    whole = tensors(pn)
    sets = [whole, *data.random_split(whole, [0.5, 0.5]), data.StackDataset(whole, whole)]
    calls = []
    monkeypatch.setattr(data, "_rows", lambda t, index: calls.append(t) or t[index])
    monkeypatch.setattr(pn.Tensor, "__iter__", None)
    for dataset, each_takes in zip(sets, (2, 2, 2, 4)):
        for options in ({"shuffle": True}, {}, {"sampler": data.SubsetRandomSampler(range(8))}):
            loader = data.DataLoader(dataset, batch_size=5, **options)
            calls.clear()
            assert len(list(loader)) * each_takes == len(calls)


def test_a_data_set_that_overrides_is_asked_itself():
    class Doubled(data.TensorDataset):
        def __getitem__(self, i):
            return [2 * part for part in super().__getitem__(i)]

    for dataset in (Doubled(pn.tensor(X)), data.Subset(Doubled(pn.tensor(X)), range(23))):
        (x,), = data.DataLoader(dataset, batch_size=23)
        assert x.tolist() == (2 * X).tolist()

    class Several(data.Dataset):
        def __getitems__(self, indices):
            return [10 * i for i in indices]

        def __len__(self):
            return 4

    assert [b.tolist() for b in data.DataLoader(Several(), batch_size=3)] == [[0, 10, 20], [30]]

    class Half(data.Subset):
        def __getitem__(self, i):
            return 0

    with pytest.raises(NotImplementedError, match="__getitems__"):
        Half(Several(), [0])


def test_batches_are_copies():
    x = pn.tensor(X)
    for options in ({}, {"shuffle": True}):
        for batch, in data.DataLoader(data.TensorDataset(x), batch_size=4, **options):
            batch.zero_()
    assert x.tolist() == X.tolist()


def test_gradients_flow_through_batches():
    x = pn.tensor(X, requires_grad=True)
    for batch, in data.DataLoader(data.TensorDataset(x), batch_size=4, shuffle=True):
        batch.sum().backward()
    assert (x.grad == 1).all()
    first, second = pn.ones(2, requires_grad=True), pn.ones(2)
    data.default_collate([first, second]).sum().backward()
    assert first.grad.tolist() == [1, 1]


# ----------------------------------------------------------------------------------------------------------------- order

def order(**options):
    loader = data.DataLoader(data.TensorDataset(pn.arange(40)), batch_size=7, **options)
    return [b.tolist() for b, in loader]


def test_a_seed_repeats_the_order():
    runs = []
    for _ in range(2):
        pn.manual_seed(3)
        runs.append([order(shuffle=True), order(shuffle=True)])
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1]
    assert sorted(i for b in runs[0][0] for i in b) == list(range(40))
    alike = [order(shuffle=True, generator=pn.Generator().manual_seed(5)) for _ in range(2)]
    assert alike[0] == alike[1] != runs[0][0]


def test_a_generator_of_its_own_leaves_the_others():
    pn.manual_seed(3)
    want = pn.rand(3).tolist()
    pn.manual_seed(3)
    order(shuffle=True, generator=pn.Generator().manual_seed(5))
    assert pn.rand(3).tolist() == want


def test_shuffling_by_index_or_by_lists_is_one_order():
    for options in ({}, {"replacement": True}, {"num_samples": 90}):
        dataset = data.TensorDataset(pn.arange(40))
        orders = []
        for wrap in (lambda s: s, list):
            sampler = data.RandomSampler(dataset, generator=pn.Generator().manual_seed(5), **options)
            orders.append([b.tolist() for b, in data.DataLoader(dataset, batch_size=7, sampler=wrap(sampler))])
        assert orders[0] == orders[1]


def test_samplers():
    g = pn.Generator().manual_seed(1)
    assert list(data.SequentialSampler(range(4))) == [0, 1, 2, 3]
    assert sorted(data.RandomSampler(range(9), generator=g)) == list(range(9))
    more = list(data.RandomSampler(range(9), num_samples=20, generator=g))
    assert len(more) == 20 and sorted(more[:9]) == sorted(more[9:18]) == list(range(9))
    again = data.RandomSampler(range(9), replacement=True, num_samples=200, generator=g)
    assert set(again) == set(range(9)) and len(again) == 200
    assert sorted(data.SubsetRandomSampler([4, 2, 7], g)) == [2, 4, 7]
    assert list(data.BatchSampler(range(7), 3, False)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(data.BatchSampler(range(7), 3, True)) == [[0, 1, 2], [3, 4, 5]]
    assert len(data.BatchSampler(range(7), 3, False)) == 3 and len(data.BatchSampler(range(7), 3, True)) == 2


def test_weights_are_probabilities():
    w = np.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.0])
    drawn = list(data.WeightedRandomSampler(w, 8000, generator=pn.Generator().manual_seed(1)))
    shares = np.bincount(drawn, minlength=6) / 8000
    np.testing.assert_allclose(shares, w / 8, atol=0.025)
    assert (shares[w == 0] == 0).all()
    g = pn.Generator().manual_seed(2)
    first = [0] * 6
    for _ in range(2000):
        one, two, three = data.WeightedRandomSampler(w.tolist(), 3, replacement=False, generator=g)
        assert {one, two, three} == {1, 2, 4}
        first[one] += 1
    np.testing.assert_allclose(np.array(first) / 2000, w / 8, atol=0.05)
    assert len(data.WeightedRandomSampler(w, 5)) == 5


@pytest.mark.parametrize(("weights", "n", "replacement"), [
    ([1.0, -1.0], 1, True), ([0.0, 0.0], 1, True), ([1.0, np.inf], 1, True), ([1.0, 0.0], 2, False)])
def test_weights_that_are_none(weights, n, replacement):
    with pytest.raises(RuntimeError):                       # as in torch, but for the last, where it goes on with any
        list(data.WeightedRandomSampler(weights, n, replacement))


def test_random_split():
    whole = tensors(pn)
    parts = data.random_split(whole, [0.5, 0.3, 0.2], generator=pn.Generator().manual_seed(4))
    assert [len(p) for p in parts] == [12, 7, 4]
    assert sorted(i for p in parts for i in p.indices) == list(range(23))
    again = data.random_split(whole, [12, 7, 4], pn.Generator().manual_seed(4))
    assert [p.indices for p in again] == [p.indices for p in parts]
    x, y = parts[1][0]
    assert x.tolist() == X[parts[1].indices[0]].tolist() and y.item() == Y[parts[1].indices[0]]
    with pytest.warns(UserWarning, match="empty"):
        data.random_split(range(1), [0.5, 0.5])


# ---------------------------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "batch_size 0": lambda t, d: d.DataLoader(tensors(t), batch_size=0),
    "batch_size -1": lambda t, d: d.DataLoader(tensors(t), batch_size=-1),
    "batch_size 1.5": lambda t, d: d.DataLoader(tensors(t), batch_size=1.5),
    "drop_last of none": lambda t, d: d.DataLoader(tensors(t), batch_size=None, drop_last=True),
    "num_workers": lambda t, d: d.DataLoader(tensors(t), num_workers=-1),
    "timeout": lambda t, d: d.DataLoader(tensors(t), timeout=-1),
    "prefetch_factor": lambda t, d: d.DataLoader(tensors(t), prefetch_factor=2),
    "persistent_workers": lambda t, d: d.DataLoader(tensors(t), persistent_workers=True),
    "multiprocessing_context": lambda t, d: d.DataLoader(tensors(t), multiprocessing_context="fork"),
    "sampler and shuffle": lambda t, d: d.DataLoader(tensors(t), shuffle=True, sampler=[1]),
    "batch_sampler and batch_size": lambda t, d: d.DataLoader(tensors(t), 3, batch_sampler=[[1]]),
    "batch_sampler and shuffle": lambda t, d: d.DataLoader(tensors(t), shuffle=True, batch_sampler=[[1]]),
    "shuffled stream": lambda t, d: d.DataLoader(streams(t)(3), shuffle=True),
    "sampled stream": lambda t, d: d.DataLoader(streams(t)(3), sampler=[1]),
    "set later": lambda t, d: setattr(d.DataLoader(tensors(t)), "batch_size", 3),
    "shuffled nothing": lambda t, d: d.DataLoader(t.zeros(0), shuffle=True),
    "replacement": lambda t, d: d.RandomSampler([1], replacement=1),
    "num_samples": lambda t, d: d.RandomSampler([1], num_samples=0),
    "num_samples 1.5": lambda t, d: d.RandomSampler([1], num_samples=1.5),
    "weighted num_samples": lambda t, d: d.WeightedRandomSampler([1.0], 0),
    "weighted replacement": lambda t, d: d.WeightedRandomSampler([1.0], 1, 2),
    "weights of two axes": lambda t, d: d.WeightedRandomSampler([[1.0]], 1),
    "batch sampler size": lambda t, d: d.BatchSampler([1], 0, False),
    "batch sampler drop_last": lambda t, d: d.BatchSampler([1], 2, 1),
    "split of too many": lambda t, d: d.random_split(range(5), [3, 3]),
    "split of a share below": lambda t, d: d.random_split(range(5), [1.5, -0.5]),
    "nothing stacked": lambda t, d: d.StackDataset(),
    "both stacked": lambda t, d: d.StackDataset([1], a=[1]),
    "unequal stacked": lambda t, d: d.StackDataset([1], [1, 2]),
    "concat too far": lambda t, d: (tensors(t) + tensors(t))[-47],
    "no samples": lambda t, d: d.Dataset()[0],
    "no collation": lambda t, d: d.default_collate([object()]),
    "no collation of words": lambda t, d: d.default_collate([np.array(["a"])]),
    "unequal lists": lambda t, d: d.default_collate([[1], [1, 2]]),
    "unequal tensors": lambda t, d: d.default_collate([t.zeros(2), t.zeros(3)]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_alike(name, torch):
    with pytest.raises(Exception) as theirs:
        REFUSED[name](torch, torch.utils.data)
    with pytest.raises(theirs.type) as mine:
        REFUSED[name](pn, data)
    assert str(mine.value)


@pytest.mark.parametrize("make", [                         # AssertionErrors in torch
    lambda: data.TensorDataset(pn.zeros(3), pn.zeros(4)),
    lambda: data.ConcatDataset([]),
    lambda: data.ConcatDataset([streams(pn)(3)]),
    lambda: list(data.ChainDataset([tensors(pn)])),
    lambda: len(data.ChainDataset([tensors(pn)])),
])
def test_what_does_not_fit_is_a_value_error(make):
    with pytest.raises(ValueError):
        make()


def test_an_index_out_of_range():
    with pytest.raises(IndexError):
        list(data.DataLoader(tensors(pn), batch_sampler=[[0, 40]]))
    with pytest.raises(IndexError):
        (tensors(pn) + tensors(pn))[46]


@pytest.mark.parametrize("name", ["an array", "dicts", "words", "named tuples"])
def test_conversion_without_a_batch(name, torch):
    a, b = (t.utils.data.default_convert(DATASETS[name](t)[3]) for t in (pn, torch))
    assert plain(a) == plain(b)
    assert data.get_worker_info() is None
