# SPDX-License-Identifier: BSD-3-Clause
"""Layers against torch's, live: value, gradient of inputs and parameters, the gradient's gradient, state, text, errors."""

import inspect
import re
from dataclasses import dataclass, field

import numpy as np
import pytest
from cases import BACKENDS, FLOATS, random

import pyneuro as pn
import pyneuro.nn.functional as F
from pyneuro import nn


def flat(values):
    """What tuples within tuples hold."""
    return [part for value in values for part in (flat(value) if type(value) is tuple else [value])]


@dataclass(frozen=True)
class Case:
    """A module with its options and the shapes of its inputs; an integer and a shape are numbers below it, two shapes a pair."""

    module: str
    options: dict = field(default_factory=dict)
    inputs: tuple = ()

    def __str__(self):
        words = ",".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.module}({words}) " + " ".join(str(list(s) if type(s[0]) is int else s) for s in self.inputs)

    def arrays(self, dtype):
        rng = random(str(self))
        for shape in self.inputs:
            if shape and type(shape[0]) is tuple:
                yield tuple(rng.normal(0.3, 1.5, part).astype(dtype) for part in shape)
            elif shape and type(shape[-1]) is tuple:
                yield rng.integers(0, shape[0], shape[-1])
            else:
                yield rng.normal(0.3, 1.5, shape).astype(dtype)

    def module_of(self, t, dtype):
        module = getattr(t.nn, self.module)(**self.options)
        module = module.float() if dtype == np.float32 else module.double()
        for name, p in module.named_parameters():
            p.data = t.tensor(random(name).normal(size=tuple(p.shape)).astype(dtype))
        return module

    def run(self, t, dtype):
        """Everything that can be compared, by name."""
        module, found = self.module_of(t, dtype), {}
        xs = [tuple(map(t.tensor, a)) if type(a) is tuple else t.tensor(a) for a in self.arrays(dtype)]
        given = flat(xs)
        for x in given:
            x.requires_grad_(x.is_floating_point())
        of = [x for x in [*given, *module.parameters()] if x.requires_grad]
        for mode in (True, False):
            module.train(mode)
            y = module(*xs)
            parts = flat([y])
            found |= {f"{mode} y{i}": part for i, part in enumerate(parts)}
            weights = [t.tensor(random("out", i).uniform(0.5, 1, tuple(p.shape)).astype(dtype)) for i, p in enumerate(parts)]
            z = sum((part * w).sum() for part, w in zip(parts, weights))
            plain = t.autograd.grad(z, of, retain_graph=True, allow_unused=True)
            first = t.autograd.grad(z, of, create_graph=True, allow_unused=True)
            used = [g for g in first if g is not None]
            more = [t.tensor(random("in", i).uniform(0.5, 1, tuple(g.shape)).astype(dtype)) for i, g in enumerate(used)]
            z = sum((g * w).sum() for g, w in zip(used, more))
            second = t.autograd.grad(z, of, allow_unused=True) if z.requires_grad else []
            for kind, grads in (("plain", plain), ("first", first), ("second", second)):
                found |= {f"{mode} {kind}{i}": g for i, g in enumerate(grads) if g is not None}
        found |= {f"state {k}": v for k, v in module.state_dict().items()}
        return {k: v.numpy(force=True) for k, v in found.items()}


def cases(module, *inputs, **options):
    """One for each of some options, given as lists."""
    rows = [{}]
    for name, values in options.items():
        rows = [row | {name: v} for row in rows for v in values]
    return [Case(module, row, inputs) for row in rows]


CASES = [
    *cases("Bilinear", (5, 3), (5, 4), in1_features=[3], in2_features=[4], out_features=[2], bias=[True, False]),
    *cases("Bilinear", (2, 3, 3), (2, 3, 4), in1_features=[3], in2_features=[4], out_features=[5]),
    *cases("Bilinear", (3,), (4,), in1_features=[3], in2_features=[4], out_features=[5]),
    *cases("Embedding", (6, (4, 3)), num_embeddings=[6], embedding_dim=[5], padding_idx=[None, 2, -1],
           max_norm=[None, 1.0], scale_grad_by_freq=[False, True]),
    *cases("Embedding", (6, ()), num_embeddings=[6], embedding_dim=[5], max_norm=[1.5], norm_type=[1.0]),
    *cases("BatchNorm1d", (5, 4), num_features=[4], momentum=[0.1, None, 0.75], affine=[True, False],
           track_running_stats=[True, False]),
    *cases("BatchNorm1d", (3, 4, 6), num_features=[4], eps=[1e-5, 0.5], bias=[True, False]),
    *cases("BatchNorm1d", (70, 130), num_features=[130]),
    *cases("LayerNorm", (5, 4), normalized_shape=[4, (4,), [5, 4]], elementwise_affine=[True, False], bias=[True, False]),
    *cases("LayerNorm", (2, 3, 4, 5), normalized_shape=[(4, 5), 5], eps=[1e-5, 0.5]),
    *cases("LayerNorm", (3,), normalized_shape=[3]),
    *cases("LayerNorm", (70, 130), normalized_shape=[130]),
    *cases("RMSNorm", (5, 4), normalized_shape=[4, (5, 4)], eps=[None, 0.5], elementwise_affine=[True, False]),
    *cases("RMSNorm", (2, 3, 7), normalized_shape=[7]),
    *cases("GroupNorm", (3, 6), num_groups=[2, 1], num_channels=[6], affine=[True, False]),
    *cases("GroupNorm", (2, 6, 5), num_groups=[3, 6], num_channels=[6], eps=[1e-5, 0.5], bias=[True, False]),
    *cases("CosineSimilarity", (4, 3), (4, 3), dim=[1, 0, -1]),
    *cases("CosineSimilarity", (4, 3, 2), (3, 2), eps=[1e-8, 2.0]),
    *cases("PairwiseDistance", (4, 3), (4, 3), p=[2.0, 1.0, 3.0], keepdim=[False, True]),
    *cases("Unflatten", (3, 6, 2), dim=[1, -2], unflattened_size=[(2, 3), (-1, 2), (6,)]),
    *cases("RNNCell", (4, 3), input_size=[3], hidden_size=[5], bias=[True, False], nonlinearity=["tanh", "relu"]),
    *[case for cell in ("RNNCell", "GRUCell") for shapes in (((3,), (5,)), ((4, 3), (4, 5)), ((4, 3),))
      for case in cases(cell, *shapes, input_size=[3], hidden_size=[5])],
    *cases("LSTMCell", (3,), input_size=[3], hidden_size=[5], bias=[True, False]),
    *cases("LSTMCell", (4, 3), ((4, 5), (4, 5)), input_size=[3], hidden_size=[5]),
    *cases("RNN", (3, 4, 3), (3, 4, 5), input_size=[3], hidden_size=[5], num_layers=[3], nonlinearity=["tanh", "relu"]),
    *cases("LSTM", (3, 4, 3), ((4, 4, 2), (4, 4, 5)), input_size=[3], hidden_size=[5], num_layers=[2], bidirectional=[True],
           proj_size=[2], bias=[False]),
    *cases("LSTM", (4, 3, 3), ((1, 4, 5), (1, 4, 5)), input_size=[3], hidden_size=[5], batch_first=[True]),
    *cases("GRU", (4, 2, 3), (4, 4, 6), input_size=[3], hidden_size=[6], num_layers=[2], bidirectional=[True], batch_first=[True]),
    *cases("GRU", (3, 2, 3), input_size=[3], hidden_size=[4], bias=[False]),
    *[case for layer in ("RNN", "LSTM", "GRU") for case in cases(layer, (3, 3), input_size=[3], hidden_size=[4],
                                                                 batch_first=[layer == "LSTM"], bidirectional=[True])],
    *cases("Dropout1d", (3, 4, 2), p=[0.0, 1.0]),
    *cases("AlphaDropout", (3, 4, 2), p=[0.0, 1.0]),
    *cases("FeatureAlphaDropout", (3, 4, 2), p=[0.0, 1.0]),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
THEIRS = {}                                      # what torch says, once for all backends


@each_case
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_numbers_are_torchs(case, dtype, on, torch):
    key = str(case), dtype
    if key not in THEIRS:
        THEIRS[key] = case.run(torch, dtype)
    mine, theirs = case.run(pn, dtype), THEIRS[key]
    assert mine.keys() == theirs.keys()
    rtol, atol = (1e-10, 1e-11) if dtype == np.float64 else (2e-4, 2e-5)
    for name, value in theirs.items():
        assert (mine[name].shape, mine[name].dtype) == (value.shape, value.dtype), name
        np.testing.assert_allclose(mine[name], value, rtol=rtol, atol=atol * max(1, abs(value).max(initial=0)), err_msg=name)


@each_case
def test_modules_print_as_torchs(case, torch):
    assert repr(case.module_of(pn, np.float32)) == repr(case.module_of(torch, np.float32))


@pytest.mark.parametrize("name", ["bilinear", "cosine_similarity", "linear", "pairwise_distance"])
def test_functions_that_torch_has_in_c_take_the_same(name, torch):
    """Their parameters are on the first line of the text; the others are test_torch.py's affair."""
    line = re.search(r"\((.*?)\)", getattr(torch.nn.functional, name).__doc__).group(1)
    names = [word.partition("=")[0].strip() for word in line.split(",")]
    assert list(inspect.signature(getattr(F, name)).parameters) == [n for n in names if n != "*"]


# --------------------------------------------------------------------------------------------------------------- errors

INDEX = pn.tensor([1, 2])
BAD = {
    "embedding: floats": (lambda: F.embedding(pn.ones(2), pn.ones(3, 2)), TypeError, "integers"),
    "embedding: out of range": (lambda: F.embedding(pn.tensor([3]), pn.ones(3, 2)), IndexError, "3"),
    "embedding: negative": (lambda: F.embedding(pn.tensor([-1]), pn.ones(3, 2)), IndexError, "-1"),
    "embedding: padding": (lambda: F.embedding(INDEX, pn.ones(3, 2), padding_idx=3), ValueError, "3 rows, got 3"),
    "embedding: weight": (lambda: F.embedding(INDEX, pn.ones(3)), ValueError, "2 axes"),
    "embedding: sparse": (lambda: F.embedding(INDEX, pn.ones(3, 2), sparse=True), ValueError, "sparse=False"),
    "Embedding: sparse": (lambda: nn.Embedding(3, 2, sparse=True), ValueError, "sparse=False"),
    "Embedding: padding": (lambda: nn.Embedding(3, 2, padding_idx=-4), ValueError, "3 rows, got -4"),
    "Embedding: weight": (lambda: nn.Embedding(3, 2, _weight=pn.ones(2, 3)), ValueError, "3 rows of 2"),
    "from_pretrained": (lambda: nn.Embedding.from_pretrained(pn.ones(3)), ValueError, "2 axes"),
    "bilinear: features": (lambda: nn.Bilinear(2, 3, 4)(pn.ones(5, 3), pn.ones(5, 3)), RuntimeError, r"\[5, 3\]"),
    "bilinear: rows": (lambda: nn.Bilinear(2, 3, 4)(pn.ones(5, 2), pn.ones(4, 3)), RuntimeError, r"\[4, 3\]"),
    "bilinear: bias": (lambda: F.bilinear(pn.ones(1, 2), pn.ones(1, 3), pn.ones(4, 2, 3), pn.ones(3)), ValueError, "4 numbers"),
    "Bilinear: none": (lambda: nn.Bilinear(0, 3, 4), ValueError, "positive"),
    "batch_norm: channels": (lambda: nn.BatchNorm1d(3)(pn.ones(2, 4)), RuntimeError, r"3 channels was given \[2, 4\]"),
    "batch_norm: axes": (lambda: nn.BatchNorm1d(3)(pn.ones(3)), ValueError, "2 or 3 axes"),
    "batch_norm: one row": (lambda: nn.BatchNorm1d(3)(pn.ones(1, 3)), ValueError, "more than 1 value"),
    "batch_norm: one axis": (lambda: F.batch_norm(pn.ones(3), None, None), RuntimeError, "at least 2 axes"),
    "batch_norm: no averages": (lambda: F.batch_norm(pn.ones(2, 3), None, None), RuntimeError, "running_mean and running_var"),
    "batch_norm: eps": (lambda: F.batch_norm(pn.ones(2, 3), None, None, training=True, eps=0), ValueError, "eps, got 0"),
    "batch_norm: averages": (lambda: F.batch_norm(pn.ones(2, 3), pn.ones(2), pn.ones(2)), RuntimeError, "must be 3 numbers"),
    "batch_norm: dtypes": (lambda: nn.BatchNorm1d(3)(pn.ones(2, 3, dtype="float64")), RuntimeError, "float64 and float32"),
    "layer_norm: shape": (lambda: nn.LayerNorm(3)(pn.ones(2, 4)), RuntimeError, r"\[3\].*\[2, 4\]"),
    "layer_norm: weight": (lambda: F.layer_norm(pn.ones(2, 4), (4,), pn.ones(2)), RuntimeError, r"\[4\], given \[2\]"),
    "layer_norm: dtypes": (lambda: nn.LayerNorm(3)(pn.ones(2, 3, dtype="float64")), RuntimeError, "float64 and float32"),
    "layer_norm: integers": (lambda: nn.LayerNorm(3)(pn.ones(2, 3, dtype="int64")), RuntimeError, "int64"),
    "layer_norm: no shape": (lambda: F.layer_norm(pn.ones(2), ()), RuntimeError, "ends in"),
    "rms_norm: shape": (lambda: nn.RMSNorm((3, 4))(pn.ones(4)), RuntimeError, r"\[3, 4\].*\[4\]"),
    "group_norm: groups": (lambda: F.group_norm(pn.ones(2, 3), 2), RuntimeError, "3 channels.*2 groups"),
    "group_norm: one value": (lambda: F.group_norm(pn.ones(1, 3), 3), ValueError, "more than 1 value"),
    "group_norm: axes": (lambda: F.group_norm(pn.ones(3), 3), RuntimeError, "at least 2 axes"),
    "GroupNorm: groups": (lambda: nn.GroupNorm(2, 3), ValueError, "3 and 2"),
    "Unflatten: size": (lambda: nn.Unflatten(1, (2, 2))(pn.ones(3, 5)), RuntimeError, r"\[2, 2\] of axis 1"),
    "Unflatten: axis": (lambda: nn.Unflatten(3, (2, 2))(pn.ones(3, 4)), IndexError, "3"),
    "Unflatten: name": (lambda: nn.Unflatten("n", (2, 2)), TypeError, "integer"),
    "Unflatten: no tuple": (lambda: nn.Unflatten(1, 4), TypeError, "tuple"),
    "RNN: no such nonlinearity": (lambda: nn.RNN(2, 3, nonlinearity="elu"), ValueError, "'elu'.*tanh, relu"),
    "RNN: no such mode": (lambda: nn.RNNBase("ELMAN", 2, 3), ValueError, "'ELMAN'.*LSTM"),
    "RNN: dropout": (lambda: nn.RNN(2, 3, dropout=1.5), ValueError, "between 0 and 1, got 1.5"),
    "RNN: dropout of one layer": (lambda: nn.RNN(2, 3, dropout=0.5), UserWarning, "nothing is dropped"),
    "RNN: size": (lambda: nn.RNN(2, 0), ValueError, "hidden_size must be positive, got 0"),
    "RNN: no size": (lambda: nn.RNN(2, 2.5), TypeError, "hidden_size must be of type int, got 2.5"),
    "RNN: layers": (lambda: nn.RNN(2, 3, num_layers=0), ValueError, "num_layers"),
    "RNN: flags": (lambda: nn.RNN(2, 3, batch_first=1), TypeError, "batch_first"),
    "RNN: axes": (lambda: nn.RNN(2, 3)(pn.ones(2)), ValueError, r"2 or 3 axes, given \[2\]"),
    "RNN: features": (lambda: nn.RNN(2, 3)(pn.ones(4, 5, 6)), RuntimeError, r"2 features, given \[4, 5, 6\]"),
    "RNN: dtypes": (lambda: nn.RNN(2, 3)(pn.ones(4, 5, 2, dtype="float64")), ValueError, "float64 and float32"),
    "RNN: packed": (lambda: nn.RNN(2, 3)((pn.ones(4, 2), 1)), TypeError, "padded"),
    "RNN: nothing": (lambda: nn.RNN(2, 3)(pn.ones(0, 4, 2)), RuntimeError, "at least one"),
    "RNN: state": (lambda: nn.RNN(2, 3)(pn.ones(4, 5, 2), pn.ones(1, 4, 3)), RuntimeError, r"\[1, 5, 3\], given \[1, 4, 3\]"),
    "RNN: state of one": (lambda: nn.RNN(2, 3)(pn.ones(4, 2), pn.ones(1, 1, 3)), RuntimeError, r"\[1, 3\], given \[1, 1, 3\]"),
    "LSTM: state": (lambda: nn.LSTM(2, 3)(pn.ones(4, 5, 2), (pn.ones(1, 5, 3),)), RuntimeError,
                    r"\[1, 5, 3\] and \[1, 5, 3\], given \[1, 5, 3\]"),
    "LSTM: projection": (lambda: nn.LSTM(2, 3, proj_size=3), ValueError, "less than the hidden_size of 3 .* got 3"),
    "GRU: projection": (lambda: nn.GRU(2, 3, proj_size=2), TypeError, "proj_size"),
    "RNNCell: axes": (lambda: nn.RNNCell(2, 3)(pn.ones(1, 1, 2)), ValueError, "1 or 2 axes"),
    "RNNCell: state": (lambda: nn.RNNCell(2, 3)(pn.ones(4, 2), pn.ones(5, 3)), RuntimeError, r"\[4, 3\], given \[5, 3\]"),
    "LSTMCell: state": (lambda: nn.LSTMCell(2, 3)(pn.ones(2), (pn.ones(3), pn.ones(2))), ValueError, r"given \[3\] and \[2\]"),
    "attention: heads": (lambda: nn.MultiheadAttention(5, 2), ValueError, "multiple of num_heads, got 5 and 2"),
    "attention: axes": (lambda: nn.MultiheadAttention(4, 2)(*[pn.ones(4)] * 3), RuntimeError, "3 axes"),
    "attention: shapes": (lambda: nn.MultiheadAttention(4, 2)(pn.ones(3, 2, 4), pn.ones(3, 5, 4), pn.ones(3, 5, 4)), RuntimeError,
                          r"\[3, 5, 4\] do not fit"),
    "attention: mask": (lambda: nn.MultiheadAttention(4, 2)(*[pn.ones(3, 2, 4)] * 3, attn_mask=pn.ones(3, 2)), RuntimeError,
                        r"\[3, 3\] or \[4, 3, 3\], given \[3, 2\]"),
    "attention: hint": (lambda: nn.MultiheadAttention(4, 2)(*[pn.ones(3, 2, 4)] * 3, is_causal=True), RuntimeError, "hint"),
    "adaptive: cutoffs": (lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 9, [5, 3]), ValueError, r"ascending order.*\[5, 3\]"),
    "adaptive: shapes": (lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3])(pn.ones(2, 4), INDEX[0]), RuntimeError, "without N"),
    "adaptive: targets": (lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3])(pn.ones(2, 4), INDEX + 7), RuntimeError, "0 to 8, given 8 to 9"),
    "alpha_dropout: p": (lambda: F.alpha_dropout(pn.ones(2), 1.5), ValueError, "between 0 and 1, got 1.5"),
    "dropout1d: axes": (lambda: F.dropout1d(pn.ones(2)), RuntimeError, r"2 or 3 axes, given \[2\]"),
    "feature_alpha_dropout: axes": (lambda: F.feature_alpha_dropout(pn.ones(2)), RuntimeError, "at least 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_layers_refuse(name):
    act, error, words = BAD[name]
    with pytest.raises(error, match=words):
        act()


# ------------------------------------------------------------------------------------------------ what is drawn at random


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
@pytest.mark.parametrize(("name", "shape"), [("alpha_dropout", (1000, 100)), ("feature_alpha_dropout", (1000, 100, 2))])
def test_alpha_dropout_keeps_mean_and_variance(name, shape, on):
    pn.manual_seed(3)
    x = pn.from_numpy(random(name).normal(size=shape).astype(np.float32)).requires_grad_()
    y = getattr(F, name)(x, 0.3, True)
    out = y.detach().numpy()
    assert abs(out.mean()) < 0.02 and abs(out.std() - 1) < 0.02
    y.sum().backward()
    dropped = x.grad.numpy() == 0
    assert abs(dropped.mean() - 0.3) < 0.01
    assert len(np.unique(out[dropped])) == 1 and len(np.unique(x.grad.numpy()[~dropped])) == 1
    if len(shape) == 3:
        assert np.array_equal(dropped[..., 0], dropped[..., 1])


def test_channels_are_dropped_whole():
    x = pn.ones(50, 40, 3)
    y = F.dropout1d(x, 0.4).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.6)} and (y == y[..., :1]).all()
    assert abs((y == 0).mean() - 0.4) < 0.05
    one = F.dropout1d(x[0], 0.4).numpy()
    assert one.shape == (40, 3) and (one == one[:, :1]).all()
    assert F.dropout1d(x, 0.4, inplace=True) is x and (x.numpy() == 0).any()


# --------------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_running_averages_over_many_batches(momentum, on, torch):
    found = []
    for t in (pn, torch):
        norm = t.nn.BatchNorm1d(3, momentum=momentum).double()
        mean = norm.running_mean
        for step in range(5):
            norm(t.tensor(random(step).normal(step, 1 + step, (4, 3))))
        norm.eval()(t.ones(2, 3, dtype=t.float64))
        assert norm.running_mean is mean, "written in place"
        found.append([norm.running_mean.tolist(), norm.running_var.tolist(), norm.num_batches_tracked.item(),
                      str(norm.num_batches_tracked.dtype).removeprefix("torch."), norm.num_batches_tracked.ndim])
        norm.reset_running_stats()
        assert (norm.running_mean.sum(), norm.running_var.sum(), norm.num_batches_tracked) == (0, 3, 0)
    np.testing.assert_allclose(*[f[:2] for f in found], rtol=1e-12)
    assert found[0][2:] == found[1][2:]


@pytest.mark.parametrize("shape", [(3000, 40), (40, 9000)], ids=str)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_variance_far_from_zero(shape, on):
    """Of numbers much larger than their spread: the squares of these would cancel."""
    x = (1e4 + random(shape).normal(size=shape)).astype(np.float32)
    for axis, y in ((1, F.layer_norm(pn.from_numpy(x), shape[1:])),
                    (0, F.batch_norm(pn.from_numpy(x), None, None, training=True))):
        wide = x.astype(np.float64)
        want = (wide - wide.mean(axis, keepdims=True)) / np.sqrt(wide.var(axis, keepdims=True) + 1e-5)
        assert abs(y.numpy() - want).max() < 2e-3              # the mean is rounded to half of 2^-10


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_norms_of_nothing(on):
    for norm in (nn.LayerNorm(3), nn.RMSNorm(3), nn.GroupNorm(3, 3)):
        x = pn.zeros(0, 3, requires_grad=True)
        norm(x).sum().backward()
        assert x.grad.shape == (0, 3) and not norm.weight.grad.numpy().any()


# ------------------------------------------------------------------------------------------------------ recurrent layers

RECURRENT = [c for c in CASES if c.module.rstrip("Cel") in ("RNN", "LSTM", "GRU")]


@pytest.mark.parametrize("case", [c for c in RECURRENT if len(c.inputs) > 1], ids=str)
def test_recurrent_layers_have_torchs_parameters(case, torch):
    """By name and order; their first values fill the same interval."""
    for options in (case.options, case.options | {"hidden_size": 400, "bias": False}):
        mine, theirs = (getattr(t.nn, case.module)(**options) for t in (pn, torch))
        assert [(k, list(v.shape)) for k, v in mine.state_dict().items()] == [
            (k, list(v.shape)) for k, v in theirs.state_dict().items()]
        bound = options["hidden_size"] ** -0.5
        for p in mine.parameters():
            assert abs(p.detach().numpy()).max() <= bound
    assert abs(p.detach().numpy()).max() > 0.9 * bound


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("on", [b for b in BACKENDS if b != "reference"], indirect=True)
def test_compiled_recurrent_layers_have_the_same_bits(name, on):
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.3} if not name.endswith("Cell") else {}
    layer = getattr(nn, name)(4, 5, **options)
    parameters = list(layer.parameters())

    def step(x):
        y = flat([layer(x)])[0]
        return y, *pn.autograd.grad((y * y).sum(), parameters)

    compiled, seen = pn.compile(step), []
    for run in (step, compiled):
        pn.manual_seed(1)
        seen.append([[y.detach().numpy().tobytes() for y in run(pn.from_numpy(random(i).normal(size=shape).astype(np.float32)))]
                     for i in range(3) for shape in [(6, 4) if name.endswith("Cell") else (3, 2, 4)]])
    assert seen[0] == seen[1] and compiled.recordings == 1


def test_a_projection_keeps_the_width_of_the_state():
    y, (h, c) = nn.LSTM(3, 5, proj_size=2, bidirectional=True)(pn.ones(4, 2, 3))
    assert (y.shape, h.shape, c.shape) == ((4, 2, 4), (2, 2, 2), (2, 2, 5))


# ------------------------------------------------------------------------------------------ attention and many classes


def same_state(t, module):
    """float64, with the same numbers in both libraries."""
    module = module.double()
    for name, p in module.named_parameters():
        p.data = t.tensor(random(name).normal(size=tuple(p.shape)))
    return module


ATTENTION = {  # options of the module, of the call, and the shapes of query, key and value
    "plain": ({}, {}, [(3, 2, 6)] * 3),
    "one tensor": ({}, {}, [(3, 2, 6)]),
    "one tensor without a batch": ({"bias": False}, {}, [(3, 6)]),
    "batch first": ({"batch_first": True}, {"average_attn_weights": False}, [(2, 3, 6), (2, 4, 6), (2, 4, 6)]),
    "other widths": ({"kdim": 5, "vdim": 4}, {"need_weights": False}, [(3, 2, 6), (4, 2, 5), (4, 2, 4)]),
    "more keys": ({"add_bias_kv": True, "add_zero_attn": True}, {}, [(3, 2, 6), (4, 2, 6), (4, 2, 6)]),
    "masks": ({}, {"attn_mask": "bool", "key_padding_mask": "bool"}, [(3, 2, 6), (4, 2, 6), (4, 2, 6)]),
    "masks and more keys": ({"add_bias_kv": True, "add_zero_attn": True}, {"attn_mask": "heads", "key_padding_mask": "bool"},
                            [(3, 2, 6), (4, 2, 6), (4, 2, 6)]),
    "numbers as masks": ({"batch_first": True}, {"attn_mask": "float", "key_padding_mask": "float", "need_weights": False},
                         [(2, 3, 6), (2, 4, 6), (2, 4, 6)]),
}


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_attention_is_torchs(name, on, torch):
    options, call, shapes = ATTENTION[name]
    rng, found = random(name), []
    masks = {"attn_mask": {"bool": rng.random((3, 4)) < 0.4, "float": rng.normal(size=(3, 4)), "heads": rng.random((6, 3, 4)) < 0.4},
             "key_padding_mask": {"bool": np.array([[False, False, True, True], [False] * 4]), "float": rng.normal(size=(2, 4))}}
    for t in (pn, torch):
        module = same_state(t, t.nn.MultiheadAttention(6, 3, **options))
        xs = [t.tensor(random(i).normal(size=shape), requires_grad=True) for i, shape in enumerate(shapes)]
        given = {k: t.tensor(masks[k][v] & ~masks[k][v].all(-1, keepdims=True) if v in ("bool", "heads") else masks[k][v])
                 if k in masks else v for k, v in call.items()}
        y, weights = module(*(xs * 3 if len(xs) == 1 else xs), **given)
        parts = [y] if weights is None else [y, weights]
        total = sum((p * t.tensor(random("out").normal(size=tuple(p.shape)))).sum() for p in parts)
        grads = t.autograd.grad(total, [*xs, *module.parameters()])
        found.append(([v.detach().numpy() for v in (*parts, *grads)], repr(module), list(module.state_dict())))
    assert found[0][1:] == found[1][1:]
    for mine, theirs in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-10)


def test_attention_starts_as_torchs(torch):
    for t in (pn, torch):
        module = t.nn.MultiheadAttention(64, 4, add_bias_kv=True)
        assert not module.in_proj_bias.detach().numpy().any() and not module.out_proj.bias.detach().numpy().any()
        assert abs(abs(module.in_proj_weight.detach().numpy()).max() - (6 / 256) ** 0.5) < 2e-3
        assert [(k, list(v.shape)) for k, v in module.state_dict().items()] == [
            ("in_proj_weight", [192, 64]), ("in_proj_bias", [192]), ("bias_k", [1, 1, 64]), ("bias_v", [1, 1, 64]),
            ("out_proj.weight", [64, 64]), ("out_proj.bias", [64])]


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_adaptive_softmax_is_torchs(on, torch):
    found = []
    for t in (pn, torch):
        module = same_state(t, t.nn.AdaptiveLogSoftmaxWithLoss(12, 20, [4, 9], div_value=2.0, head_bias=True))
        x = t.tensor(random("x").normal(size=(7, 12)), requires_grad=True)
        result = module(x, t.tensor([0, 5, 19, 3, 8, 4, 12]))
        grads = t.autograd.grad(result.loss + (result.output * result.output).sum(), [x, *module.parameters()])
        one = module(x[0], t.tensor(15))
        found.append(([v.detach().numpy() for v in (*result, *grads, *one, module.log_prob(x), module.predict(x))], repr(module),
                      list(module.state_dict())))
    assert found[0][1:] == found[1][1:]
    for mine, theirs in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-10)


# ------------------------------------------------------------------------------------------------------------ embeddings


def test_embeddings_start_normal_and_their_padding_at_zero():
    e = nn.Embedding(400, 100, padding_idx=3)
    w = e.weight.detach().numpy()
    assert not w[3].any() and abs(np.delete(w, 3, 0).std() - 1) < 0.02
    again = nn.Embedding.from_pretrained(e.weight.detach(), padding_idx=3)
    assert not again.weight.requires_grad and np.shares_memory(again.weight.numpy(), w)
    assert nn.Embedding.from_pretrained(e.weight.detach(), freeze=False).weight.requires_grad


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_embeddings_take_any_integers(dtype):
    e = nn.Embedding(5, 2)
    assert pn.equal(e(pn.tensor([[4, 0]], dtype=dtype)), e.weight[pn.tensor([[4, 0]])])
    assert e(pn.zeros(0, 3, dtype="int64")).shape == (0, 3, 2)


# ------------------------------------------------------------------------------------------------------------- containers

EDITS = {
    "append": lambda s, n: s.append(n.Tanh()),
    "extend": lambda s, n: s.extend([n.Tanh(), n.ReLU()]),
    "extend itself": lambda s, n: s.extend(s[:2]),
    "insert": lambda s, n: s.insert(1, n.Tanh()),
    "insert first": lambda s, n: s.insert(0, n.Tanh()),
    "set": lambda s, n: s.__setitem__(-1, n.Tanh()),
    "delete": lambda s, n: s.__delitem__(1),
    "delete a slice": lambda s, n: s.__delitem__(slice(0, 2)),
    "pop": lambda s, n: s.pop(0),
    "slice": lambda s, n: s[1:],
    "slice backwards": lambda s, n: s[:-1],
    "add": lambda s, n: s + type(s)(*([n.Tanh()] if isinstance(s, n.Sequential) else [[n.Tanh()]])),
    "add in place": lambda s, n: s.__iadd__(type(s)(*([n.Tanh()] if isinstance(s, n.Sequential) else [[n.Tanh()]]))),
    "repeat": lambda s, n: s * 2 if isinstance(s, n.Sequential) else None,
    "repeat in place": lambda s, n: s.__imul__(3) if isinstance(s, n.Sequential) else None,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", ["Sequential", "ModuleList"])
def test_lists_of_modules(kind, edit, torch):
    seen = []
    for n in (nn, torch.nn):
        parts = [n.Linear(2, 3), n.ReLU(), n.Linear(3, 2)]
        held = n.Sequential(*parts) if kind == "Sequential" else n.ModuleList(parts)
        result = EDITS[edit](held, n)
        seen.append([repr(held), list(held.state_dict()), repr(result) if isinstance(result, n.Module) else None,
                     [name for name in dir(held) if name.isdigit()], len(held), repr(list(held))])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("held", [nn.Sequential(nn.ReLU()), nn.ModuleList([nn.ReLU()])], ids=["Sequential", "ModuleList"])
def test_what_lists_of_modules_refuse(held):
    for act, error in [(lambda: held[1], IndexError), (lambda: held[-2], IndexError), (lambda: held["0"], TypeError),
                       (lambda: held.append(1), TypeError), (lambda: held.insert(3, nn.ReLU()), IndexError),
                       (lambda: held.insert(0, 1), TypeError), (lambda: held.extend(1), TypeError),
                       (lambda: held.pop(5), IndexError)]:
        with pytest.raises(error):
            act()
    assert len(held) == 1
    for act, error in [(lambda: nn.Sequential() + [], ValueError), (lambda: nn.Sequential() * 0, ValueError),
                       (lambda: nn.Sequential() * 1.5, TypeError), (lambda: nn.ModuleList([nn.ReLU()])(1), NotImplementedError)]:
        with pytest.raises(error):
            act()


def test_dictionaries_of_modules(torch):
    seen = []
    for n in (nn, torch.nn):
        d = n.ModuleDict({"b": n.Linear(2, 3), "a": n.ReLU()})
        d["c"] = n.Tanh()
        d.update([("d", n.Linear(1, 1)), ("a", n.Sigmoid())])
        popped = d.pop("c")
        seen.append([repr(d), list(d), list(d.keys()), [k for k, _ in d.items()], len(d), "a" in d, "c" in d, repr(popped),
                     list(d.state_dict()), repr(list(d.values()))])
        del d["a"]
        d.clear()
        seen[-1].append(repr(d))
    assert seen[0] == seen[1]
    for act, error in [(lambda: nn.ModuleDict(3), TypeError), (lambda: nn.ModuleDict([("a",)]), ValueError),
                       (lambda: nn.ModuleDict({"a": 1}), TypeError), (lambda: nn.ModuleDict({"a.b": nn.ReLU()}), KeyError),
                       (lambda: nn.ModuleDict()["a"], KeyError)]:
        with pytest.raises(error):
            act()


def test_lists_of_parameters(torch):
    seen = []
    for t in (pn, torch):
        held = t.nn.ParameterList([t.nn.Parameter(t.ones(2, 3)), t.zeros(1)])
        held.append(t.ones(3))
        held += [t.ones(4)]
        held.extend([t.ones(5), 7])
        held[1] = t.ones(6)
        seen.append([len(held), [n for n, _ in held.named_parameters()], [tuple(p.shape) for p in held if p is not held[5]],
                     held[5], held[-1], isinstance(held[0], t.nn.Parameter), [tuple(p.shape) for p in held[1:3]],
                     repr(held).replace("torch.", ""), [n for n in dir(held) if n.isdigit()]])
    assert seen[0] == seen[1]
    for act, error in [(lambda: nn.ParameterList([pn.ones(1)])[1], IndexError), (lambda: nn.ParameterList(pn.ones(2)), TypeError),
                       (lambda: nn.ParameterList()(), RuntimeError)]:
        with pytest.raises(error):
            act()


def test_dictionaries_of_parameters(torch):
    seen = []
    for t in (pn, torch):
        d = t.nn.ParameterDict({"b": t.ones(2), "a": t.nn.Parameter(t.ones(3))})
        d["c"] = t.zeros(1)
        d.update([("d", t.ones(4))])
        d |= {"e": t.ones(5)}
        seen.append([list(d), [n for n, _ in d.named_parameters()], [tuple(p.shape) for p in d.values()], d.get("x", 3),
                     tuple(d.setdefault("f", t.ones(6)).shape), tuple(d.pop("a").shape), d.popitem()[0], "a" in d, len(d),
                     list(d.copy()), list(reversed(d)), sorted(d | {"g": t.ones(1)}), isinstance(d["b"], t.nn.Parameter),
                     list(d.fromkeys(["x", "y"]))])
        d.clear()
        seen[-1].append(len(d))
    assert seen[0] == seen[1]
    for act, error in [(lambda: nn.ParameterDict({1: pn.ones(1)}), TypeError), (lambda: nn.ParameterDict([("a",)]), ValueError),
                       (lambda: nn.ParameterDict()["a"], KeyError), (lambda: nn.ParameterDict()(), RuntimeError),
                       (lambda: nn.ParameterDict().popitem(), KeyError)]:
        with pytest.raises(error):
            act()


# ---------------------------------------------------------------------------------------------------- modules as torch's


def library_of_modules(t):
    """A model with everything in it, as both libraries write it."""

    class Block(t.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layers = t.nn.ModuleList([t.nn.Linear(width, width) for _ in range(3)])
            self.by_name = t.nn.ModuleDict({"act": t.nn.ReLU(), "out": t.nn.Linear(width, 2)})
            self.gain = t.nn.Parameter(t.ones(width))
            self.register_buffer("mean", t.zeros(width))
            self.register_buffer("cache", t.zeros(1), persistent=False)
            self.register_buffer("nothing", None)

        def extra_repr(self):
            return f"width={len(self.gain)}"

    class Net(t.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = t.nn.Embedding(7, 4)
            self.blocks = t.nn.Sequential(Block(4), Block(4))
            self.head = t.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight
            self.extra = t.nn.ParameterDict({"tau": t.ones(1)})

    return Net()


def walked(net):
    return {
        "repr": repr(net).replace("torch.", ""), "state": [(k, list(v.shape)) for k, v in net.state_dict().items()],
        "parameters": [k for k, _ in net.named_parameters()], "buffers": [k for k, _ in net.named_buffers()],
        "twice": [k for k, _ in net.named_parameters("x", remove_duplicate=False)],
        "own": [k for k, _ in net.named_parameters(recurse=False)], "children": [k for k, _ in net.named_children()],
        "modules": [(k, type(m).__name__) for k, m in net.named_modules(prefix="p")],
        "got": [type(net.get_submodule("blocks.0.layers.1")).__name__, list(net.get_parameter("blocks.1.gain").shape),
                list(net.get_buffer("blocks.0.mean").shape)],
        "prefix": list(net.state_dict(prefix="q."))[:3],
    }


def test_a_model_is_walked_as_torch_does(torch):
    mine, theirs = walked(library_of_modules(pn)), walked(library_of_modules(torch))
    theirs["repr"] = theirs["repr"].replace("FloatTensor", "float32")
    for key, value in theirs.items():
        assert mine[key] == value, key


def test_training_is_switched_through_overridden_methods():
    class Frozen(nn.Linear):
        def train(self, mode=True):
            return super().train(False)

    net = nn.Sequential(Frozen(2, 2), nn.Linear(2, 2))
    assert not net.train()[0].training and net[1].training


def test_parts_are_replaced_by_name():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    net.set_submodule("0.0", nn.Tanh())
    assert repr(net[0]) == "Sequential(\n  (0): Tanh()\n)"
    for act, error in [(lambda: net.set_submodule("", nn.ReLU()), ValueError), (lambda: net.set_submodule("0", 1), ValueError),
                       (lambda: net.set_submodule("5", nn.ReLU(), strict=True), AttributeError),
                       (lambda: net.get_buffer("0.x"), AttributeError), (lambda: net.half(), TypeError),
                       (lambda: net.cuda(), RuntimeError), (lambda: net.type("int64"), TypeError),
                       (lambda: net.register_parameter("w", pn.ones(1)), TypeError)]:
        with pytest.raises(error):
            act()
    assert net.type("float64") is net


def test_loading_says_what_torch_says(torch):
    """The kinds of complaint, their order and the names in them."""
    said = []
    for t in (pn, torch):
        net = t.nn.Sequential(t.nn.Linear(2, 3), t.nn.Linear(3, 2))
        state = dict(net.state_dict())
        result = net.load_state_dict(state)
        said.append([repr(result)])
        state["0.weight"] = t.ones(9, 9)
        state.pop("1.bias"), state.pop("1.weight"), state.update({"more": t.ones(1), "less": t.ones(1)})
        with pytest.raises(RuntimeError) as caught:
            net.load_state_dict(state)
        lines = str(caught.value).split("\n\t")
        said[-1] += [lines[0], *[line.strip() for line in lines[1:3]], lines[3].partition(":")[0]]
        result = net.load_state_dict({"0.bias": t.ones(3), "z": t.ones(1)}, strict=False)
        said[-1] += [result.missing_keys, result.unexpected_keys]
    assert said[0] == said[1]
