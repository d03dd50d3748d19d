# SPDX-License-Identifier: BSD-3-Clause
"""A judge that we did not write: the samples that PyTorch tests its own operators with, for every name we have too.

Every sample is compared, value and gradient, or falls under a kind below that is not supported, with the reason. Needs
torch and expecttest; elsewhere tests/golden.json stands in.
"""
import re
import warnings
from collections import Counter

import numpy as np
import pytest

import pyneuro as pn
import pyneuro.nn.functional as F

pytestmark = pytest.mark.slow

DRAWN = "rand|randn|randint|rand_like|randn_like|empty|empty_like|nn.functional.dropout"
UNSUPPORTED = [  # operator, the error that says so, reason
    (DRAWN,              "value differs",                       "random or uninitialised numbers are other ones"),
    ("to|clone|.*_like", "memory_format",                       "there is one memory format"),
    ("div",              "rounding_mode",                       "rounding_mode: use // and trunc"),
    ("arange|linspace",  "value differs|value of shape",        "bounds that the dtype does not hold, or 0-d tensors"),
    ("norm",             "real number, not str",                 "matrix norms"),
    ("__rpow__|pow",     "negative integer powers",             "negative powers of integers are refused"),
    ("gather",           "int64 index",                         "an index is int64"),
    ("gather|index_select", "of shape \\[1\\]|0-dimensional",    "indexing a number by a line"),
    ("nn.functional.(linear|relu)", "int64",                    "layers and activations are of floats"),
    ("__rmod__|remainder", "gradient (differs|of shape)",       "the remainder has no gradient"),
    ("var|std",          "NoneType",                            "correction=None"),
    ("zero_|fill_",      "a leaf tensor",                       "torch's sample clones first"),
    ("cat",              r"gradient of shape \(\), not \(0,\)", "an empty line that is left out has no gradient"),
]


@pytest.fixture(scope="module")
def op_db(torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason="needs expecttest")
    return [op for op in module.op_db if ours(op.name) and op.supported_dtypes("cpu")]


def ours(name):
    """pyneuro's function of a torch operator's name; a method where torch's samples begin with the tensor."""
    if name == "where":
        return pn.Tensor.where
    space, _, last = name.rpartition(".")
    found = getattr(F, last, None) if space == "nn.functional" else getattr(pn, name, None) if not space else None
    found = found or (getattr(pn.Tensor, last, None) if not space else None)
    return found if callable(found) and not isinstance(found, type) else None


def translated(value, torch, known):
    """torch's arguments as pyneuro's; one tensor given twice stays one (known: by id)."""
    if isinstance(value, torch.Tensor):
        mine = pn.from_numpy(value.detach().numpy().copy()).requires_grad_(value.requires_grad)
        return known.setdefault(id(value), mine)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        return (list if type(value) is list else tuple)(translated(v, torch, known) for v in value)
    if isinstance(value, dict):
        return {k: translated(v, torch, known) for k, v in value.items()}
    return value


def flat(value):
    return [v for part in value for v in flat(part)] if isinstance(value, (list, tuple)) else [value]


def inputs(value):
    values = list(value.values()) if isinstance(value, dict) else value
    return [v for v in flat(values) if getattr(v, "requires_grad", False)]


def gradients(outputs, given, weigh):
    """d(weighted sum of the outputs)/d(inputs)."""
    outputs = [y for y in flat(outputs) if getattr(y, "requires_grad", False)]
    for y in outputs:
        y.backward(weigh(y), retain_graph=True)
    return [x.grad for x in given]


def compare(mine, theirs, what):
    for a, b in zip(flat(mine), flat(theirs), strict=True):
        if hasattr(b, "detach"):
            b = b.detach().numpy()
            a = a.detach().numpy() if hasattr(a, "detach") else np.float64(np.nan if a is None else a)
            assert a.shape == b.shape, f"{what} of shape {a.shape}, not {b.shape}"
            assert a.dtype == b.dtype, f"{what} of {a.dtype}, not {b.dtype}"
            scale = np.max(np.abs(b), where=np.isfinite(b), initial=1) if b.dtype.kind == "f" else 0
            tolerance = 100 * np.finfo(b.dtype).eps if b.dtype.kind == "f" else 0
            assert np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True), f"{what} differs"
        else:
            assert a == b, f"{what} differs"


def judged(op, sample, torch):
    given = [sample.input, *sample.args]
    theirs = op.op(sample.input, *sample.args, **sample.kwargs)
    args, kwargs = translated((given, sample.kwargs), torch, {})
    mine = ours(op.name)(*args, **kwargs)
    compare(mine, theirs, "value")
    wanted = inputs(given) + inputs(sample.kwargs)
    for x in wanted:
        x.grad = None                                      # torch's samples share tensors
    if not wanted or not any(y.requires_grad for y in flat(theirs) if hasattr(y, "requires_grad")):
        return
    ramp = lambda y: np.linspace(0.5, 1, max(y.numel(), 1))[:y.numel()].reshape(tuple(y.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                    # torch warns of .grad on what is no leaf
        expected = gradients(theirs, wanted, lambda y: torch.tensor(ramp(y), dtype=y.dtype))
        got = gradients(mine, inputs(args) + inputs(kwargs), lambda y: pn.tensor(ramp(y), dtype=y.dtype))
    for a, b in zip(got, expected, strict=True):
        if b is not None:
            compare(a, b, "gradient")


def reason_for(op, sample, error):
    words = f"{type(error).__name__}: {error}"
    for name, pattern, reason in UNSUPPORTED:
        if re.fullmatch(name, op.name) and re.search(pattern, words):
            return reason
    return None


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_torchs_own_samples(dtype, op_db, torch, capsys):
    compared, unsupported, failures = Counter(), Counter(), []
    for op in op_db:
        kind = getattr(torch, dtype)
        if kind not in op.supported_dtypes("cpu"):
            continue
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for sample in op.sample_inputs("cpu", kind, requires_grad=dtype == "float64" and op.supports_autograd):
                try:
                    judged(op, sample, torch)
                    compared[op.name] += 1
                except Exception as error:
                    reason = reason_for(op, sample, error)
                    if reason:
                        unsupported[reason] += 1
                    else:
                        said = f"{type(error).__name__}: {str(error)[:150]}"
                        failures.append(f"{op.name}: {said} for {str(sample)[:200]}")
    with capsys.disabled():
        print(f"\n{dtype}: {sum(compared.values())} samples of {len(compared)} operators agree; not supported: "
              + ", ".join(f"{n} {reason}" for reason, n in unsupported.most_common()))
    assert not failures, "\n".join([f"{len(failures)} unexplained:", *failures])
