# SPDX-License-Identifier: BSD-3-Clause
"""A judge that we did not write: the samples that PyTorch tests its own operators with, for every name we have too.

Every sample is compared, value, gradient and gradient of the gradient, or falls under a kind below that is not supported, with the reason. Needs
torch and expecttest; elsewhere tests/golden.json stands in.
"""
import itertools
import re
import warnings
from collections import Counter

import numpy as np
import pytest
from cases import NATIVES

import pyneuro as pn
import pyneuro.nn.functional as F

pytestmark = pytest.mark.slow

DRAWN = "rand|randn|randint|rand_like|randn_like|empty|empty_like|new_empty|randint_like|normal|multinomial|bernoulli|"
DRAWN += "nn.functional.dropout"
TURNED = {  # names whose samples begin with another argument than the function
    "where": pn.Tensor.where,
    "einsum": lambda tensors, equation: pn.einsum(equation, tensors),
    "polygamma": lambda x, n: pn.polygamma(n, x),
}
UNSUPPORTED = [  # operator, the error that says so, reason
    (DRAWN,              "value differs",                       "random or uninitialised numbers are other ones"),
    ("to|clone|.*_like", "memory_format",                       "there is one memory format"),
    ("addbmm",           "cannot change shape",                 "torch lets addbmm_ grow its target"),
    ("polygamma|digamma|lgamma", "differs",                     "left of 0 torch's trigamma is 4e-10 off"),
    ("linalg.*norm|norm", "second gradient differs",            "second derivatives at 0 are 0, not NaN"),
    ("kthvalue|topk|mode", "value differs",                     "of equal numbers another one is chosen"),
    ("logcumsumexp",     "gradient differs",                    "e^(x - y) of x = 10000 is rounded at 1e-12"),
    ("linalg.*norm|norm", "singular values",                    "singular values"),
    ("linalg.matrix_power", "no inverse",                       "inverses"),
    ("normal",           "layout|std >= 0",                     "layouts, and negative deviations"),
    ("arange|linspace|logspace",  "value differs|value of shape",        "bounds that the dtype does not hold, or 0-d tensors"),
    ("__rpow__|pow",     "negative integer powers",             "negative powers of integers are refused"),
    ("gather",           "int64 index, not uint8",              "an index is int64, or int32"),
    ("gather|index_select", "of shape \\[1\\]|0-dimensional",    "indexing a number by a line"),
    ("nn.functional.(linear|relu)", "int64",                    "layers and activations are of floats"),
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
    if name in TURNED:
        return TURNED[name]
    space, _, last = name.rpartition(".")
    home = {"": pn, "nn.functional": F, "linalg": pn.linalg}.get(space)
    found = getattr(home, last, None)
    found = found or (getattr(pn.Tensor, last, None) if not space else None)
    return found if callable(found) and not isinstance(found, type) else None


def family(name):
    return name.rpartition(".")[0] or ("in place" if name.endswith("_") and not name.startswith("_") else "tensor")


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


def gradients(grad, outputs, given, weigh, twice):
    """d(weighted sum of the outputs)/d(inputs); and of a weighted sum of these, once more. None where there is none."""
    outputs = [y for y in flat(outputs) if getattr(y, "requires_grad", False)]
    if not outputs:
        return [None] * len(given), [None] * len(given)
    z = sum((y * weigh(y)).sum() for y in outputs)
    first = list(grad(z, given, create_graph=twice, allow_unused=True))
    if not twice:
        return first, [None] * len(given)
    recorded = [g for g in first if g is not None and g.requires_grad]
    if not recorded:
        return first, [None] * len(given)
    z = sum((g * weigh(g)).sum() for g in recorded)
    return first, list(grad(z, given, allow_unused=True))


def compare(mine, theirs, what):
    for a, b in zip(flat(mine), flat(theirs), strict=True):
        if hasattr(b, "detach"):
            b = b.detach().numpy(force=True)
            a = a.detach().numpy() if hasattr(a, "detach") else np.asarray(np.nan if a is None else a)
            assert a.shape == b.shape, f"{what} of shape {a.shape}, not {b.shape}"
            assert a.dtype == b.dtype, f"{what} of {a.dtype}, not {b.dtype}"
            scale = np.max(np.abs(b), where=np.isfinite(b), initial=1) if b.dtype.kind == "f" else 0
            tolerance = 100 * np.finfo(b.dtype).eps if b.dtype.kind == "f" else 0
            assert np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True), f"{what} differs"
        else:
            assert a == b, f"{what} differs"


def judged(op, sample, torch, twice):
    given = [sample.input, *sample.args]
    theirs = op.op(sample.input, *sample.args, **sample.kwargs)
    args, kwargs = translated((given, sample.kwargs), torch, {})
    mine = ours(op.name)(*args, **kwargs)
    compare(mine, theirs, "value")
    wanted, same = inputs(given) + inputs(sample.kwargs), inputs(args) + inputs(kwargs)
    if not wanted or not any(y.requires_grad for y in flat(theirs) if hasattr(y, "requires_grad")):
        return True
    ramp = lambda y: np.linspace(0.5, 1, max(y.numel(), 1))[:y.numel()].reshape(tuple(y.shape))
    expected = gradients(torch.autograd.grad, theirs, wanted, lambda y: torch.tensor(ramp(y), dtype=y.dtype), twice)
    got = gradients(pn.autograd.grad, mine, same, lambda y: pn.tensor(ramp(y), dtype=y.dtype), twice)
    for order, mine, theirs in zip(("gradient", "second gradient"), got, expected, strict=True):
        for x, a, b in zip(wanted, mine, theirs, strict=True):
            zero = torch.zeros_like(x)
            compare(zero.numpy() if a is None else a, zero if b is None else b, order)
    return True


def in_place(op, sample, torch):
    """The form that ends in an underscore, where both have it: the same value in the same memory."""
    name = getattr(op.inplace_variant, "__name__", "")
    mine = getattr(pn.Tensor, name, None)
    if not name or mine is None or not isinstance(sample.input, torch.Tensor):
        return False
    args, kwargs = translated(([sample.input.detach(), *sample.args], sample.kwargs), torch, {})
    with torch.no_grad(), pn.no_grad():
        target = sample.input.detach().clone()
        try:
            theirs = op.inplace_variant(target, *sample.args, **sample.kwargs)
        except (RuntimeError, IndexError):
            return False
        compare(mine(*args, **kwargs), theirs, "value")
        compare(args[0], target, "target")
    return True


def reason_for(name, error):
    words = f"{type(error).__name__}: {error}"
    for pattern, says, reason in UNSUPPORTED:
        if re.fullmatch(pattern, name) and re.search(says, words):
            return reason
    return None


@pytest.mark.parametrize("on", ["reference", *NATIVES[:1]], indirect=True)
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_torchs_own_samples(dtype, on, op_db, torch, capsys):
    passed, total, unsupported, failures = Counter(), Counter(), Counter(), []
    for op in op_db:
        kind = getattr(torch, dtype)
        if kind not in op.supported_dtypes("cpu"):
            continue
        torch.manual_seed(0)
        differentiable = dtype != "int64" and op.supports_autograd
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = list(op.sample_inputs("cpu", kind, requires_grad=differentiable))
            twice = dtype == "float64" and op.supports_gradgrad
            for written, sample in itertools.product([False, True] if op.inplace_variant else [False], samples):
                name = f"{op.name}_" if written else op.name
                try:
                    if not (in_place(op, sample, torch) if written else judged(op, sample, torch, twice)):
                        continue
                    passed[family(name)] += 1
                except Exception as error:
                    reason = reason_for(op.name, error)
                    if reason:
                        unsupported[reason] += 1
                    else:
                        said = f"{type(error).__name__}: {str(error)[:150]}"
                        failures.append(f"{name}: {said} for {str(sample)[:200]}")
                total[family(name)] += 1
    with capsys.disabled():
        print(f"\n{dtype}, {pn.current_backend().name}: samples of {len(op_db)} operators that agree: "
              + ", ".join(f"{passed[k]}/{total[k]} {k}" for k in total) + "; not supported: "
              + ", ".join(f"{n} {reason}" for reason, n in unsupported.most_common()))
    assert not failures, "\n".join([f"{len(failures)} unexplained:", *failures])
