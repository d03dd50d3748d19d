# SPDX-License-Identifier: BSD-3-Clause
"""Random numbers: the published generator, the same on every backend, a function of seed, step and sample alone."""
import numpy as np
import pytest
from cases import BACKENDS, FLOATS

import pyneuro as pn
import pyneuro.nn.functional as F
from pyneuro.kernels import make_backend
from pyneuro.kernels.reference import _philox

VECTORS = [  # Random123's kat_vectors for philox4x32-10: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
GOLDEN_42 = {
    "uniform": [0.6129598617553711, 0.4685865044593811, 0.07323169708251953],
    "normal": [-0.24582198180663237, 0.45715821251458655],
    "order": [5, 0, 2, 1, 3, 4],
    "whole": [64, 30, 43, 76],
    "mask": [[0.0, 2.0, 0.0, 2.0, 0.0, 2.0], [0.0, 0.0, 2.0, 0.0, 2.0, 0.0]],
}


def words(text):
    return [int(w, 16) for w in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter, key, expected):
    k0, k1 = words(key)
    seed = np.array([k0 | k1 << 32, 0, 0, 0], np.uint64)
    got = _philox(seed, *[np.uint64(c) for c in words(counter)])
    assert [int(w) for w in got] == words(expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_begin_with_the_published_words(backend):
    """Seed 0, step 0 is counter 0, key 0: float32 takes the upper 24 bits of each word."""
    y = np.empty(4, np.float32)
    make_backend(backend).run("uniform", (np.zeros(4, np.uint64), y), (0.0, 1.0))
    assert (y * 2**24).astype(int).tolist() == [w >> 8 for w in words(VECTORS[0][2])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_bits_do_not_change(backend):
    """What seed 42 gives, on any machine, in any version."""
    with pn.backend(backend):
        pn.manual_seed(42)
        uniform, normal, order, whole = pn.rand(3), pn.randn(2, dtype="float64"), pn.randperm(6), pn.randint(100, (4,))
        mask = F.dropout(pn.ones(2, 6), 0.5)
    assert uniform.tolist() == GOLDEN_42["uniform"]
    assert normal.tolist() == pytest.approx(GOLDEN_42["normal"], rel=1e-14)
    assert order.tolist() == GOLDEN_42["order"]
    assert whole.tolist() == GOLDEN_42["whole"]
    assert mask.tolist() == GOLDEN_42["mask"]


def test_a_seed_decides_everything():
    def draws(seed):
        pn.manual_seed(seed)
        return [
            f().tolist()
            for f in (lambda: pn.rand(5), lambda: pn.randn(5), lambda: pn.randperm(9), lambda: F.dropout(pn.ones(9)))
        ]

    assert draws(3) == draws(3)
    assert all(a != b for a, b in zip(draws(3), draws(4)))
    assert all(a != b for a, b in zip(draws(0), draws(2**32)))             # all 64 bits count
    assert draws(-1) == draws(2**64 - 1)


def test_no_two_draws_are_alike():
    first, second = pn.rand(100), pn.rand(100)
    assert not np.intersect1d(first.array, second.array).size


def test_generators_are_their_own():
    a, b = pn.Generator().manual_seed(5), pn.Generator().manual_seed(5)
    first = pn.rand(3, generator=a)
    pn.rand(3)
    assert pn.rand(3, generator=b).tolist() == first.tolist()
    state = a.get_state()
    later = pn.rand(3, generator=a).tolist()
    assert pn.rand(3, generator=a.set_state(state)).tolist() == later
    assert a.initial_seed() == 5 and pn.Generator().initial_seed() != pn.Generator().initial_seed()


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
@pytest.mark.parametrize("split", [[10], [1, 9], [3, 3, 4], [1] * 10])
def test_a_dropout_mask_does_not_depend_on_the_split_into_batches(split, on):
    """A row's mask belongs to its sample: key[3] counts samples."""
    def mask(first, rows):
        y = np.empty((rows, 33), np.float32)
        pn.kernels.run(
            "dropout", np.ones((rows, 33), np.float32), np.array([1, 2, 3, first], np.uint64), y, attrs=(0.3,)
        )
        return y

    starts = np.cumsum([0, *split[:-1]])
    assert np.array_equal(np.concatenate([mask(s, n) for s, n in zip(starts, split)]), mask(0, 10))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_distributions(dtype, on):
    """Moments of 200,000 numbers, within five standard errors."""
    n = 200_000
    u, z = pn.rand(n, dtype=dtype).array.astype(float), pn.randn(n, dtype=dtype).array.astype(float)
    k = pn.randint(10, (n,)).array
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5 and abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    assert (
        abs(z.mean()) < 5 / n**0.5
        and abs(z.var() - 1) < 5 * (2 / n) ** 0.5
        and abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    )
    assert abs(np.bincount(k, minlength=10) - n / 10).max() < 5 * (n / 10) ** 0.5 and len(np.bincount(k)) == 10
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / n**0.5


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_uniform_never_reaches_its_upper_end(on):
    y = pn.empty(100_000).uniform_(1 - 2.0**-24, 1)                         # two float32 values apart
    assert y.max().item() < 1 and y.min().item() >= 1 - 2.0**-24


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_keeps_the_mean(p, on):
    y = F.dropout(pn.ones(400, 250), p).array
    n = y.size
    assert set(np.unique(y)) <= {np.float32(0), np.float32(1 / (1 - p)) if p < 1 else np.float32(0)}
    assert abs((y == 0).mean() - p) <= 5 * (p * (1 - p) / n) ** 0.5


def test_permutations_are_permutations_and_all_come():
    assert sorted(pn.randperm(1000).tolist()) == list(range(1000))
    assert len({tuple(pn.randperm(4).tolist()) for _ in range(600)}) == 24
    assert pn.randperm(0).shape == (0,)


def test_dropout_gradient_uses_the_same_mask():
    x = pn.ones(50, 7, requires_grad=True)
    y = F.dropout(x, 0.4)
    y.sum().backward()
    assert np.array_equal(x.grad.array, y.detach().array)
