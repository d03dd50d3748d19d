# SPDX-License-Identifier: BSD-3-Clause
"""Initialisers beyond what test_torch.py compares: exact ones, shapes of distributions, seeds, refusals."""
import math

import numpy as np
import pytest
from cases import BACKENDS

import pyneuro as pn
from pyneuro import nn
from pyneuro.nn import init

RANDOM = {  # every initialiser that draws
    "uniform_": {}, "normal_": {}, "trunc_normal_": {}, "xavier_uniform_": {}, "xavier_normal_": {}, "kaiming_uniform_": {},
    "kaiming_normal_": {"mode": "FAN_OUT", "nonlinearity": "relu"}, "orthogonal_": {}, "sparse_": {"sparsity": 0.3},
    "lecun_normal_": {}, "lecun_uniform_": {}, "variance_scaling_": {"distribution": "normal", "mode": "fan_avg"}}


def filled(name, *shape, dtype="float64", generator=None, **options):
    return getattr(init, name)(pn.empty(*shape, dtype=dtype), **options, generator=generator)


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_decides_on_every_backend_and_number_of_threads(name):
    runs = []
    for backend in BACKENDS:
        for threads in (1, 3):
            pn.set_num_threads(threads)
            with pn.backend(backend):
                pn.manual_seed(5)
                runs.append(filled(name, 30, 20, **RANDOM[name]).tolist())
                runs.append(filled(name, 30, 20, generator=pn.Generator().manual_seed(5), **RANDOM[name]).tolist())
    assert all(run == runs[0] for run in runs)
    pn.manual_seed(6)
    assert filled(name, 30, 20, **RANDOM[name]).tolist() != runs[0]


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_fills_in_place_outside_the_graph_in_any_layout(name, dtype):
    weight = nn.Parameter(pn.zeros(12, 8, dtype=dtype))
    assert getattr(init, name)(weight, **RANDOM[name]) is weight and weight.is_leaf and weight.requires_grad
    pn.manual_seed(3)
    getattr(init, name)(weight, **RANDOM[name])
    turned = pn.zeros(8, 12, dtype=dtype)
    pn.manual_seed(3)
    getattr(init, name)(turned.t(), **RANDOM[name])
    np.testing.assert_array_equal(turned.t().numpy(), weight.detach().numpy())


@pytest.mark.parametrize(("name", "shape", "options"), [
    ("eye_", (4, 6), {}), ("eye_", (5, 3), {}), ("ones_", (2, 3), {}), ("zeros_", (2, 3), {}), ("constant_", (2,), {"val": 0.3}),
    ("dirac_", (4, 3, 5), {}), ("dirac_", (6, 2, 3, 4), {"groups": 3}), ("dirac_", (4, 2, 3, 3, 2), {"groups": 2})])
def test_exact_ones_are_torchs(name, shape, options, torch):
    mine = getattr(init, name)(pn.full(shape, 7.0), **options)
    theirs = getattr(torch.nn.init, name)(torch.full(shape, 7.0), **options)
    assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 2, 4), (3, 7, 2, 2)])
def test_orthogonal(shape):
    q = filled("orthogonal_", *shape, gain=3.0).numpy().reshape(shape[0], -1)
    small = q @ q.T if shape[0] < q.shape[1] else q.T @ q
    np.testing.assert_allclose(small, 9 * np.eye(len(small)), atol=1e-12)


def test_orthogonal_favours_no_direction():
    """The mean of such matrices is 0, which the Q of a QR decomposition alone is not."""
    drawn = np.mean([filled("orthogonal_", 2, 2).numpy() for _ in range(600)], axis=0)
    assert abs(drawn).max() < 0.12


@pytest.mark.parametrize(("mean", "std", "a", "b"), [(0, 1, -2, 2), (1, 2, -1, 2), (0, 1, 1, 3), (0, 1, 2, 2.5), (3, 0.5, 0, 2.5)])
def test_truncated_normal_numbers(mean, std, a, b):
    """Against the distribution function."""
    x = np.sort(filled("trunc_normal_", 20000, mean=mean, std=std, a=a, b=b).numpy())
    assert a <= x[0] and x[-1] <= b
    cdf = np.array([math.erf((v - mean) / std / math.sqrt(2)) for v in (a, *x[::200], b)])
    wanted = (cdf[1:-1] - cdf[0]) / (cdf[-1] - cdf[0])
    np.testing.assert_allclose(wanted, np.arange(0, 20000, 200) / 20000, atol=0.015)


def test_far_means_warn():
    with pytest.warns(UserWarning, match="2 std"):
        init.trunc_normal_(pn.empty(3), mean=5.0)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg", "fan_geo_avg"])
@pytest.mark.parametrize("distribution", ["truncated_normal", "normal", "uniform"])
def test_variance_scaling(mode, distribution):
    x = filled("variance_scaling_", 200, 450, scale=2.0, mode=mode, distribution=distribution).numpy()
    fan = {"fan_in": 450, "fan_out": 200, "fan_avg": 325, "fan_geo_avg": 300}[mode]
    assert x.var() == pytest.approx(2 / fan, rel=0.03)
    assert abs(x.mean()) < 5 * x.std() / x.size**0.5
    bound = abs(x).max() / x.std()
    assert {"uniform": 1.72 < bound < 1.75, "truncated_normal": 2.2 < bound < 2.29, "normal": bound > 3.5}[distribution]


def test_lecun_is_variance_scaling():
    for name, distribution in (("lecun_normal_", "truncated_normal"), ("lecun_uniform_", "uniform")):
        x, y = (filled(n, 9, 7, generator=pn.Generator().manual_seed(1), **o) for n, o in
                ((name, {}), ("variance_scaling_", {"distribution": distribution})))
        assert x.tolist() == y.tolist()


@pytest.mark.parametrize("rows", [10, 7])
def test_sparse(rows):
    x = filled("sparse_", rows, 40, sparsity=0.25, std=2.0).numpy()
    assert ((x == 0).sum(axis=0) == math.ceil(rows * 0.25)).all()
    assert x[x != 0].std() == pytest.approx(2.0, rel=0.15)


REFUSED = {
    "eye": lambda i, t: i.eye_(t.zeros(3)),
    "dirac": lambda i, t: i.dirac_(t.zeros(3, 3)),
    "dirac groups": lambda i, t: i.dirac_(t.zeros(4, 3, 3), groups=3),
    "sparse": lambda i, t: i.sparse_(t.zeros(3), 0.5),
    "orthogonal": lambda i, t: i.orthogonal_(t.zeros(3)),
    "xavier": lambda i, t: i.xavier_uniform_(t.zeros(3)),
    "kaiming mode": lambda i, t: i.kaiming_normal_(t.zeros(3, 2), mode="fan_avg"),
    "kaiming nonlinearity": lambda i, t: i.kaiming_normal_(t.zeros(3, 2), nonlinearity="rleu"),
    "gain": lambda i, t: i.calculate_gain("rleu"),
    "slope": lambda i, t: i.calculate_gain("leaky_relu", True),
    "slope of words": lambda i, t: i.calculate_gain("leaky_relu", "steep"),
    "std": lambda i, t: i.normal_(t.zeros(3), 0.0, -1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_alike(name, torch):
    with pytest.raises(Exception) as theirs:
        REFUSED[name](torch.nn.init, torch)
    with pytest.raises(ValueError if theirs.type is RuntimeError else theirs.type) as mine:
        REFUSED[name](init, pn)
    assert str(mine.value)


@pytest.mark.parametrize("options", [{"mode": "fan"}, {"distribution": "laplace"}, {"scale": 0.0}])
def test_variances_that_are_none(options):
    with pytest.raises(ValueError):
        init.variance_scaling_(pn.zeros(3, 2), **options)
    with pytest.raises(ValueError):
        init.trunc_normal_(pn.zeros(3), std=0.0)


def test_all_of_torchs_are_there(torch):
    public = {n for n in dir(torch.nn.init) if callable(getattr(torch.nn.init, n)) and not n.startswith("_") and n[0].islower()}
    assert {n for n in public if getattr(torch.nn.init, n).__module__ == "torch.nn.init"} <= set(dir(init))


def test_old_names_warn():
    with pytest.warns(FutureWarning, match="xavier_uniform_"):
        init.xavier_uniform(pn.zeros(3, 2))
    assert init.eye.__name__ == "eye"
