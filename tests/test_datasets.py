# SPDX-License-Identifier: BSD-3-Clause
"""The data sets are the real ones, and metrics count."""
import hashlib
import pickle

import numpy as np
import pytest

import pyneuro as pn
from pyneuro.datasets import load_digits, load_iris
from pyneuro.kernels import DtypeError, ShapeError
from pyneuro.metrics import accuracy, confusion_matrix

# Of scikit-learn 1.7's loaders: sha256 of the bytes of data and target.
SETS = {
    load_digits: ((1797, 64), 10, "f6d9e39f37dc45d327f6db33428ee58970ccceabb2535a5c179de35886b70443", "Alpaydin"),
    load_iris: ((150, 4), 3, "aa06b8008ceba42efc654be0f83fdafc786239c9e8f13146044d078f5aab8f23", "Fisher"),
}


@pytest.mark.parametrize("load", SETS)
def test_data_is_that_of_scikit_learn(load):
    shape, classes, digest, author = SETS[load]
    data, target = load(return_X_y=True)
    assert data.shape == shape and target.shape == shape[:1]
    assert (data.dtype, target.dtype) == (np.float64, np.int64)
    assert hashlib.sha256(np.ascontiguousarray(data).tobytes() + target.tobytes()).hexdigest() == digest
    bunch = load()
    assert np.array_equal(bunch.data, data) and np.array_equal(bunch["target"], target)
    assert len(bunch.target_names) == classes and len(bunch.feature_names) == shape[1]
    assert author in bunch.DESCR and "CC BY 4.0" in bunch.DESCR
    assert np.array_equal(pickle.loads(pickle.dumps(bunch)).data, data)
    with pytest.raises(AttributeError, match="no 'dat' here; there are data, target"):
        bunch.dat  # noqa: B018


def test_two_loads_share_nothing():
    load_digits().data[:] = -1
    assert load_digits().images.min() == 0


@pytest.mark.parametrize("kind", [np.asarray, list, pn.tensor])
def test_metrics_count(kind):
    preds, target = kind([0, 2, 2, 1]), kind([0, 2, 1, 1])
    assert accuracy(preds, target) == 0.75
    assert confusion_matrix(preds, target, 4).tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_scores_count_as_their_largest():
    scores = pn.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    assert accuracy(scores, pn.tensor([1, 1])) == 0.5
    assert np.isnan(accuracy([], []))


@pytest.mark.parametrize("preds, target, classes, error", [
    ([0, 1], [0], 2, ShapeError),
    ([0.5, 1.0], [0, 1], 2, DtypeError),
    ([0, 2], [0, 1], 2, IndexError),
    ([0, 1], [0, -1], 2, IndexError),
    ([[np.nan, 1.0]], [0], 2, ValueError),
    ([0], [0], 0, ValueError),
    ([0], [0], True, ValueError),
])
def test_metrics_refuse(preds, target, classes, error):
    with pytest.raises(error):
        confusion_matrix(preds, target, classes)
