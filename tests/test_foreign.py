# SPDX-License-Identifier: BSD-3-Clause
"""A judge that we did not write: the samples that PyTorch tests its own operators with, for every name we have too.

Every sample is compared, value, gradient and gradient of the gradient, or falls under a kind below that is not supported, with the reason. Needs
torch and expecttest; elsewhere tests/golden.json stands in.
"""
import inspect
import itertools
import re
import warnings
from collections import Counter

import numpy as np
import pytest
from cases import BACKENDS, NATIVES

import pyneuro as pn
import pyneuro.nn.functional as F

pytestmark = pytest.mark.slow

DRAWN = "rand|randn|randint|rand_like|randn_like|empty|empty_like|new_empty|randint_like|normal|multinomial|bernoulli|"
DRAWN += "nn.functional.(dropout|alpha_dropout|feature_alpha_dropout)"
TURNED = {  # names whose samples begin with another argument than the function
    "where": pn.Tensor.where,
    "einsum": lambda tensors, equation: pn.einsum(equation, tensors),
    "polygamma": lambda x, n: pn.polygamma(n, x),
    "nn.functional.embedding": lambda weight, index, **options: F.embedding(index, weight, **options),
}
CHOOSERS = ("kthvalue", "mode", "topk")  # of equal numbers they may choose any
UNSUPPORTED = [  # operator, the error (of the arguments behind the input) that says so, reason
    (DRAWN,              "value differs",                       "random or uninitialised numbers are other ones"),
    ("to|clone|.*_like", "memory_format",                       "there is one memory format"),
    ("addbmm",           "cannot change shape",                 "torch lets addbmm_ grow its target"),
    ("polygamma",        r"(?s): value differs.* of \(1,\)$",     "torch's trigamma is 5e-10 off"),
    ("digamma",          ": gradient differs",                  "torch's trigamma is 5e-10 off"),
    ("lgamma",           "second gradient differs",             "torch's trigamma is 5e-10 off"),
    ("linalg.*norm|norm", "second gradient differs",            "second derivatives at 0 are 0, not NaN"),
    ("logcumsumexp",     "gradient differs",                    "e^(x - y) of x = 10000 is rounded at 1e-12"),
    ("linalg.(svd|eigh)", "value differs",                      "singular vectors and eigenvectors have a sign of their own"),
    ("norm",             "singular values",                     "linalg.norm has the nuclear one"),
    ("linalg.(eigh|pinv)", "gradient differs",                  "gradients of symmetric matrices are symmetric"),
    ("linalg.pinv",      "takes a tensor of one element",       "torch's samples are factors of the matrix"),
    ("(scatter|index)_reduce", "second gradient differs",       "second derivatives of products at 0 are left out"),
    ("normal",           "layout|std >= 0",                     "layouts, and negative deviations"),
    ("arange|linspace|logspace",  "value differs|value of shape",        "bounds that the dtype does not hold, or 0-d tensors"),
    ("__rpow__|pow",     "negative integer powers",             "negative powers of integers are refused"),
    ("gather",           "int64 index, not uint8",              "an index is int64, or int32"),
    ("gather|index_select", "of shape \\[1\\]|0-dimensional",    "indexing a number by a line"),
    ("nn.functional.(linear|relu|hardtanh|relu6|threshold|poisson_nll_loss)", "int64", "layers, activations and losses are of floats"),
    ("zero_|fill_",      "a leaf tensor",                       "torch's sample clones first"),
    ("nn.functional.rrelu|RReLU", "(value|gradient) differs",   "random or uninitialised numbers are other ones"),
    ("nn.functional.scaled_dot_product_attention", "value differs", "random or uninitialised numbers are other ones"),
    ("nn.functional.hardsigmoid|Hardsigmoid", "gradient differs", "torch's float64 hardsigmoid has the float32 nearest to 1/6"),
    ("nn.functional.binary_cross_entropy|BCELoss", "second gradient differs", "torch adds 1e-12 to second derivatives of this"),
    ("nn.functional.linear_cross_entropy|LinearCrossEntropyLoss", "second gradient differs",
                                                                "torch has none where options cut the batch"),
    (".*",               "derivative for aten.* is not implemented", "torch has no second derivative"),
    ("nn.functional.(batch_norm|feature_alpha_dropout)", "at least 2 axes", "channels are the second of two axes or more"),
    ("nn.functional.normalize", "second gradient differs",      "torch's second derivative of a constant is 4e-12"),
    ("CTCLoss",          ": gradient differs",                  "sums of 50 logarithms, some 600, are rounded 1e-13 apart"),
    ("nn.functional.scaled_dot_product_attention", "second gradient differs",
                                                                "torch's float32 second derivative is 8e-5 off, ours 1e-5"),
    ("cumprod",          "second gradient differs",             "torch's float32 second derivative is 4e-5 off, ours 2e-7"),
    ("nn.functional.ctc_loss", ": gradient differs",            "torch's float32 gradient is 8e-5 off"),
    ("nn.functional.layer_norm", ": gradient differs",          "torch's float32 gradient of one element is 1e-5, not 0"),
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
    if isinstance(value, torch.nn.Module):
        return getattr(pn.nn, type(value).__name__)()
    if callable(value) and value.__module__.startswith("torch"):
        return getattr(F if hasattr(F, value.__name__) else pn.nn, value.__name__)
    return value


def flat(value):
    return [v for part in value for v in flat(part)] if isinstance(value, (list, tuple)) else [value]


def inputs(value):
    values = list(value.values()) if isinstance(value, dict) else value
    return [v for v in flat(values) if getattr(v, "requires_grad", False)]


def ramp(y):
    return np.linspace(0.5, 1, max(y.numel(), 1))[:y.numel()].reshape(tuple(y.shape))


def derivatives(t, y, given, second):
    """The gradients of a weighted sum of y along what is given, and if `second` those of a weighted sum of them."""
    weigh = lambda v: (v * t.tensor(ramp(v), dtype=v.dtype)).sum()
    options = {"allow_unused": True, "materialize_grads": True}
    outputs = [v for v in flat(y) if getattr(v, "requires_grad", False)]
    if not outputs or not given:
        return []
    first = t.autograd.grad(sum(weigh(v) for v in outputs), given, create_graph=second, **options)
    if not second:
        return [first]
    total = sum(weigh(g) for g in first)
    return [first, t.autograd.grad(total, given, **options) if total.requires_grad else [t.zeros_like(x) for x in given]]


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


def pointed_at(name, result, args, kwargs):
    """(values, indices) of a function that chooses, the indices as the elements that they point at."""
    given = inspect.signature(ours(name)).bind(*args, **kwargs)
    given.apply_defaults()
    x, dim = args[0].detach().numpy(), given.arguments["dim"]
    values, index = (v.detach().numpy() for v in result)
    if not x.ndim:
        return values, np.broadcast_to(x, values.shape)
    whole = index if given.arguments.get("keepdim", True) else np.expand_dims(index, dim)
    return values, np.take_along_axis(x, whole, dim).reshape(values.shape)


def agree(torch, theirs, mine, given, second, name=""):
    """theirs, mine: functions of their library's arguments."""
    args, kwargs = given
    my_args, my_kwargs = translated(given, torch, {})
    y, my_y = theirs(*args, **kwargs), mine(*my_args, **my_kwargs)
    if name in CHOOSERS:
        compare([v.dtype for v in my_y], [np.dtype(str(v.dtype).removeprefix("torch.")) for v in y], "dtype")
        compare(pointed_at(name, my_y, my_args, my_kwargs), [y[0], y[0]], "value")
    else:
        compare(my_y, y, "value")
    wanted, my_wanted = inputs(args) + inputs(kwargs), inputs(my_args) + inputs(my_kwargs)
    try:
        expected = derivatives(torch, y, wanted, second)
    except RuntimeError as error:                          # torch's own second derivative is missing
        assert second and "is not implemented" in str(error)
        expected = derivatives(torch, theirs(*args, **kwargs), wanted, False)
    for what, a, b in zip(("gradient", "second gradient"), derivatives(pn, my_y, my_wanted, len(expected) == 2), expected):
        compare(a, b, what)


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


def reason_for(name, error, args=()):
    words = f"{type(error).__name__}: {error} of {args}"
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
            for written, sample in itertools.product([False, True] if op.inplace_variant else [False], samples):
                name = f"{op.name}_" if written else op.name
                try:
                    if not written:
                        agree(torch, op.op, ours(op.name), ([sample.input, *sample.args], sample.kwargs), op.supports_gradgrad, op.name)
                    elif not in_place(op, sample, torch):
                        continue
                    passed[family(name)] += 1
                except Exception as error:
                    reason = reason_for(op.name, error, sample.args)
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


# ---------------------------------------------------------------------------------- modules of activations and losses

MODULES = {
    "activations": [
        "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid",
        "LogSoftmax", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softmax", "Softmax2d",
        "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold",
    ],
    "losses": [
        "BCELoss", "BCEWithLogitsLoss", "CTCLoss", "CosineEmbeddingLoss", "CrossEntropyLoss", "GaussianNLLLoss",
        "HingeEmbeddingLoss", "HuberLoss", "KLDivLoss", "L1Loss", "LinearCrossEntropyLoss", "MSELoss", "MarginRankingLoss",
        "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "MultiMarginLoss", "NLLLoss", "PoissonNLLLoss", "SmoothL1Loss",
        "SoftMarginLoss", "TripletMarginLoss", "TripletMarginWithDistanceLoss",
    ],
}


def report(family, where, compared, unsupported, failures, capsys):
    total = sum(compared.values()) + sum(unsupported.values()) + len(failures)
    with capsys.disabled():
        print(f"\n{family}, {where}: {sum(compared.values())} of {total} samples of {len(compared)} names agree; not supported: "
              + (", ".join(f"{n} {reason}" for reason, n in unsupported.most_common()) or "none"))
    assert not failures, "\n".join([f"{len(failures)} unexplained:", *failures])


@pytest.mark.parametrize("on", [BACKENDS[0], BACKENDS[-1] if len(BACKENDS) == 1 else BACKENDS[1]], indirect=True)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("family", MODULES)
def test_modules_of_families(family, dtype, on, torch, capsys):
    """Each module over the constructors and inputs that PyTorch tests it with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        db = pytest.importorskip("torch.testing._internal.common_modules", reason="needs expecttest").module_db
    compared, unsupported, failures = Counter(), Counter(), []
    known = {info.module_cls.__name__ for info in db}
    for info in (info for info in db if info.module_cls.__name__ in MODULES[family]):
        name, kind = info.module_cls.__name__, getattr(torch, dtype)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for sample in info.module_inputs_func(info, device="cpu", dtype=kind, requires_grad=True, training=False):
                made, given = sample.constructor_input, sample.forward_input
                try:
                    theirs = info.module_cls(*made.args, **made.kwargs).to(kind).eval()
                    args, kwargs = translated((made.args, made.kwargs), torch, {})
                    mine = getattr(pn.nn, name)(*args, **kwargs).to(dtype).eval()
                    mine.load_state_dict({k: pn.from_numpy(v.numpy()) for k, v in theirs.state_dict().items()})
                    agree(torch, theirs, mine, (given.args, given.kwargs), info.supports_gradgrad)
                    compared[name] += 1
                except Exception as error:
                    if reason := reason_for(name, error):
                        unsupported[reason] += 1
                    else:
                        failures.append(f"{name}: {type(error).__name__}: {str(error)[:150]} for {made} {str(given)[:300]}")
    report(f"modules of {family}", f"{dtype}, {on.name}; without samples there: {sorted(set(MODULES[family]) - known)}",
           compared, unsupported, failures, capsys)
