# SPDX-License-Identifier: BSD-3-Clause
"""What is compared with torch: cases that run on either library, live or against golden.json (.ci/golden.py makes it).

Names come from the tables and from what both libraries export; here are only the arguments that show a layer's options.
"""
import inspect
import itertools
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from pyneuro import nn
from pyneuro.optim.optimizers import OPTIMIZERS as OPTIMIZERS_OF

DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def random(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def numbers(t):
    """A tensor as nested lists, with words for what JSON does not have."""
    x = t.detach().to("cpu") if hasattr(t, "detach") else t
    return np.asarray(x.tolist(), np.float64).tolist()


# ---------------------------------------------------------------------------------------------------- layers and losses

SHAPES = {"rows": (3, 4), "image": (2, 3, 2), "line": (5,), "number": ()}
SHAPES_OF = {"GLU": [(2, 4), (2, 3, 2)], "Softmax2d": [(2, 3, 2), (2, 3, 2, 2)], "Linear": [(3, 4)], "Flatten": [(2, 3, 2)]}
ACTIVATION_OPTIONS = {"LeakyReLU": [{"negative_slope": 0.2}], "ELU": [{"alpha": 0.5}], "Softmax": [{"dim": 0}],
                      "Softplus": [{"beta": 2.0}, {"threshold": 1.0}], "LogSoftmax": [{"dim": 0}],
                      "GELU": [{"approximate": "tanh"}], "Flatten": [{"start_dim": 0}], "HuberLoss": [{"delta": 0.3}],
                      "Threshold": [{"threshold": -0.5}], "Hardtanh": [{"min_val": -0.3, "max_val": 0.7}],
                      "Hardshrink": [{"lambd": 1.0}], "Softshrink": [{"lambd": 1.0}], "CELU": [{"alpha": 0.5}], "GLU": [{"dim": 0}],
                      "PReLU": [{"init": -0.5}], "Softmin": [{"dim": 0}], "SmoothL1Loss": [{"beta": 0.3}, {"beta": 0.0}],
                      "KLDivLoss": [{"log_target": True}], "PoissonNLLLoss": [{"full": True}], "GaussianNLLLoss": [{"full": True}],
                      "MultiMarginLoss": [{"p": 2, "margin": 0.5}], "CosineEmbeddingLoss": [{"margin": 0.2}],
                      "TripletMarginLoss": [{"swap": True, "p": 1}], "CTCLoss": [{"zero_infinity": True}],
                      "HingeEmbeddingLoss": [{"margin": 0.5}], "MarginRankingLoss": [{"margin": 0.5}]}
REQUIRED = {"Threshold": {"threshold": 0.1, "value": 20.0}, "Softmin": {"dim": -1},
            "LinearCrossEntropyLoss": {"in_features": 4, "num_classes": 3}, "Softmax": {"dim": -1}, "LogSoftmax": {"dim": -1}, "Linear": {"in_features": 4, "out_features": 3}}
CLASS_LOSSES = ("CrossEntropyLoss", "NLLLoss")
REDUCTIONS = ("none", "mean", "sum")


def _signs(rng, *shape):
    return rng.choice([-1.0, 1.0], shape)


def _log_probabilities(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


INPUTS = {  # of losses that take other things than values of one shape
    "BCELoss": lambda rng: (rng.uniform(0.05, 0.95, (3, 4)), rng.random((3, 4))),
    "CTCLoss": lambda rng: (_log_probabilities(rng.normal(size=(6, 3, 4))), np.array([[1, 2], [3, 3], [2, 0]]),
                            np.array([6, 5, 4]), np.array([2, 2, 1])),
    "CosineEmbeddingLoss": lambda rng: (rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), _signs(rng, 5)),
    "GaussianNLLLoss": lambda rng: (rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.uniform(0.5, 2, (3, 4))),
    "HingeEmbeddingLoss": lambda rng: (rng.normal(size=(3, 4)), _signs(rng, 3, 4)),
    "KLDivLoss": lambda rng: (_log_probabilities(rng.normal(size=(3, 4))), rng.random((3, 4))),
    "LinearCrossEntropyLoss": lambda rng: (rng.normal(size=(5, 4)), rng.integers(0, 3, 5)),
    "MarginRankingLoss": lambda rng: (rng.normal(size=5), rng.normal(size=5), _signs(rng, 5)),
    "MultiLabelMarginLoss": lambda rng: (rng.normal(size=(3, 4)), np.array([[3, 0, -1, 1], [-1, 1, 2, 3], [0, 1, 2, 3]])),
    "MultiLabelSoftMarginLoss": lambda rng: (rng.normal(size=(3, 4)), rng.random((3, 4))),
    "MultiMarginLoss": lambda rng: (rng.normal(size=(5, 4)), rng.integers(0, 4, 5)),
    "SoftMarginLoss": lambda rng: (rng.normal(size=(3, 4)), _signs(rng, 3, 4)),
    "TripletMarginLoss": lambda rng: tuple(rng.normal(size=(3, 5, 4))),
    "TripletMarginWithDistanceLoss": lambda rng: tuple(rng.normal(size=(3, 5, 4))),
}


@dataclass(frozen=True)
class Layer:
    """A module with its options on an input of a shape: its value, and the gradient of the input."""
    name: str
    module: str
    options: tuple
    shape: tuple
    target: str = ""           # "": no loss; values, labels, probabilities

    def arrays(self):
        rng = random(self.name)
        if self.module in INPUTS:
            return INPUTS[self.module](rng)
        x = np.where(abs(v := rng.normal(0, 2, self.shape)) < 0.05, 0.3, v)
        if self.module == "NLLLoss":
            x = x - np.log(np.exp(x).sum(1 if len(self.shape) > 1 else 0, keepdims=True))
        if self.target == "labels":
            classes = self.shape[1] if len(self.shape) > 1 else self.shape[0]
            rest = self.shape[:1] + self.shape[2:] if len(self.shape) > 1 else ()
            return x, np.asarray(rng.integers(0, classes, rest))
        if self.target == "probabilities":
            p = rng.random(self.shape)
            return x, p / p.sum(1 if len(self.shape) > 1 else 0, keepdims=True)
        return (x, rng.random(self.shape)) if self.target else (x,)

    def module_of(self, t):
        made = {k: t.tensor(v, dtype=t.float64) if isinstance(v, tuple) else v for k, v in self.options}
        module = getattr(t.nn, self.module)(**made).double()
        for p in module.parameters():
            p.data = t.tensor(random(self.name).normal(size=tuple(p.shape)))
        return module

    def run(self, t):
        x, *target = (t.tensor(a) for a in self.arrays())
        x.requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                # torch warns of KLDivLoss's "mean"
            y = self.module_of(t)(x, *target)
        weights = t.tensor(random("out").uniform(0.5, 1, tuple(y.shape)))
        (y * weights).sum().backward()
        return [numbers(y), numbers(x.grad)]


def _layer(module, options, shape, target=""):
    words = ",".join(f"{k}={v}" for k, v in options.items())
    return Layer(f"{module}({words}) {list(shape)} {target}".strip(), module, tuple(options.items()), shape, target)


def layers(modules):
    """Every case for module names: activations over shapes, losses over shapes, reductions and their options."""
    for name in modules:
        base = REQUIRED.get(name, {})
        for options in ({}, *ACTIVATION_OPTIONS.get(name, [])):
            options = base | options
            if name.endswith("Loss"):
                continue
            for shape in SHAPES_OF.get(name, SHAPES.values()):
                if shape or options.get("dim", -1) in (-1, 0):
                    yield _layer(name, options, shape)
    for name, reduction in itertools.product([m for m in modules if m.endswith("Loss")], REDUCTIONS):
        base = REQUIRED.get(name, {})
        for options in ({}, *ACTIVATION_OPTIONS.get(name, [])):
            options = base | {"reduction": reduction} | options
            if name in INPUTS:
                yield _layer(name, options, ())
                continue
            if name not in CLASS_LOSSES:
                yield from (_layer(name, options, shape, "values") for shape in SHAPES.values())
                continue
            weight = {"weight": (0.5, 1.0, 2.0, 1.5)}
            extra = [{}, weight, {"ignore_index": 1}, weight | {"ignore_index": 1}]
            if name == "CrossEntropyLoss":
                extra += [{"label_smoothing": 0.1}, weight | {"label_smoothing": 0.2, "ignore_index": 1}]
                yield from (_layer(name, options | more, (3, 4), "probabilities") for more in extra[:2] + extra[4:5])
            yield from (_layer(name, options | more, (5, 4), "labels") for more in extra)
            yield from (_layer(name, options, shape, "labels") for shape in ((4,), (2, 4, 3)))
        if name == "BCEWithLogitsLoss":
            for key in ("weight", "pos_weight"):
                yield _layer(name, {"reduction": reduction, key: (0.5, 1.0, 2.0, 1.5)}, (3, 4), "values")


# ----------------------------------------------------------------------------------------------------------- optimizers

STEPS = 20
OPTIONS = {"SGD": [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.3}],
           "Adagrad": [{"lr_decay": 0.1}, {"initial_accumulator_value": 0.5}],
           "RMSprop": [{"momentum": 0.9}, {"centered": True}, {"momentum": 0.5, "centered": True}, {"alpha": 0.5}],
           "Adadelta": [{"rho": 0.5}],
           "Adam": [{"amsgrad": True}, {"betas": (0.5, 0.9)}, {"amsgrad": True, "maximize": True}],
           "AdamW": [{"amsgrad": True}, {"weight_decay": 0.0}],
           "Adamax": [{"betas": (0.5, 0.9)}],
           "NAdam": [{"momentum_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
           "RAdam": [{"betas": (0.5, 0.9)}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
           "Rprop": [{"etas": (0.4, 1.5)}, {"step_sizes": (1e-3, 0.02)}],
           "ASGD": [{"lambd": 0.1}, {"t0": 5}, {"alpha": 0.5}],
           "Adafactor": [{"d": 1.5}, {"beta2_decay": -1.0}, {"eps": (1e-3, 0.1)}]}
COMMON = [{}, {"lr": 0.2}, {"weight_decay": 0.1}, {"maximize": True}]
NO_DECAY = ("Rprop",)


@contextmanager
def doubles(t):
    """float64 by default: in torch some optimizers keep numbers of the step in the default dtype."""
    before = t.get_default_dtype()
    t.set_default_dtype(t.float64)
    yield
    t.set_default_dtype(before)


@dataclass(frozen=True)
class Training:
    """An optimizer with options: two parameters after 20 steps, the second without a gradient in every third."""
    name: str
    optimizer: str
    options: tuple

    def start(self, t):
        rng = random("start")
        return [t.tensor(rng.normal(size=shape), requires_grad=True) for shape in ((3, 2), (4,))]

    def gradient(self, t, step, p, i):
        if i and step % 3 == 1:
            p.grad = None
        else:
            p.grad = t.tensor(random(f"{step} {i}").normal(size=tuple(p.shape)))

    def run(self, t):
        params = self.start(t)
        with doubles(t):
            optimizer = getattr(t.optim, self.optimizer)(params, **dict(self.options))
            for step in range(STEPS):
                for i, p in enumerate(params):
                    self.gradient(t, step, p, i)
                optimizer.step()
        return [numbers(p) for p in params]


def trainings(optimizers):
    for name in optimizers:
        for options in (*(o for o in COMMON if name not in NO_DECAY or "weight_decay" not in o), *OPTIONS.get(name, [])):
            words = ",".join(f"{k}={v}" for k, v in options.items())
            yield Training(f"{name}({words})", name, tuple(options.items()))


# ----------------------------------------------------------------------------------------------------------- signatures

NO_NUMBERS = {"Dense", "Dropout", "Hardsigmoid", "RReLU", "Module", "Parameter", "Sequential", "functional", "init",
              "utils"}  # not torch's, or drawn; Hardsigmoid: torch's float64 gradient is the float32 nearest to 1/6
ELSEWHERE = {"AlphaDropout", "BatchNorm1d", "Bilinear", "CosineSimilarity", "Dropout1d", "Embedding", "FeatureAlphaDropout",
             "GroupNorm", "LayerNorm", "ModuleDict", "ModuleList", "PairwiseDistance", "ParameterDict", "ParameterList",
             "RMSNorm", "Unflatten"}      # test_layers.py
MODULE_NAMES = sorted(set(nn.__all__) - NO_NUMBERS - ELSEWHERE)
OURS_ALONE = {"AdaBelief", "AdamWScheduleFree", "LAMB", "Lion", "Yogi"}
OPTIMIZER_NAMES = [cls.__name__ for cls in OPTIMIZERS_OF.values() if cls.__name__ not in OURS_ALONE]
LAYERS = list(layers(MODULE_NAMES))
OPTIMIZERS = list(trainings(OPTIMIZER_NAMES))


def namespaces(t):
    return {"nn": t.nn, "functional": t.nn.functional, "optim": t.optim, "init": t.nn.init, "utils": t.nn.utils,
            "lr_scheduler": t.optim.lr_scheduler, "swa_utils": import_module(f"{t.__name__}.optim.swa_utils"), "data": t.utils.data}


def parameters(f):
    """(name, default) of every parameter, as text that JSON keeps; None where Python cannot tell."""
    try:
        given = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return None
    def text(default):
        return "-" if default is inspect.Parameter.empty else "None" if type(default).__name__ == "Generator" else repr(default)

    return [[p.name, text(p.default)] for p in given if p.name != "self"]     # None is torch's default generator too


def defaults(t, names=None):
    """Parameters and defaults of every public function and class of the namespaces."""
    out = {}
    for space, module in namespaces(t).items():
        for name in (names[space] if names else ours(space)):
            if hasattr(module, name):
                out[f"{space}.{name}"] = parameters(getattr(module, name))
    return out


def ours(space):
    """pyneuro's public names of a namespace."""
    import pyneuro as pn

    module = namespaces(pn)[space]
    own = [n for n, v in vars(module).items() if callable(v) and v.__module__ == module.__name__]
    listed = getattr(module, "__all__", own)
    return sorted(n for n in listed if not n.startswith("_") and callable(getattr(module, n)))


# ------------------------------------------------------------------------------------------------------------ promotion

def promotion(t):
    """The dtype of sums: tensor with tensor, with 0-d tensor, with Python number, each dtype with each."""
    values = {d: (t.ones(2, dtype=getattr(t, d)), t.tensor(1, dtype=getattr(t, d))) for d in DTYPES}
    pairs = {}
    for a, b in itertools.product(DTYPES, DTYPES):
        pairs[f"{a} {b}"] = values[a][0] * values[b][0]
        pairs[f"{a} 0-d {b}"] = values[a][0] * values[b][1]
    for a, number in itertools.product(DTYPES, (True, 2, 2.5)):
        pairs[f"{a} {number}"] = values[a][0] * number
        pairs[f"0-d {a} {number}"] = values[a][1] * number
        pairs[f"{a} / {number}"] = values[a][0] / number
    for a in DTYPES:
        pairs[f"sum {a}"] = values[a][0].sum()
        pairs[f"{a} exp"] = t.exp(values[a][0])
    return {k: str(v.dtype).removeprefix("torch.") for k, v in pairs.items()}


# --------------------------------------------------------------------------------------------------------------- models

MODELS = {
    "linear": lambda nn: nn.Linear(4, 3),
    "no bias": lambda nn: nn.Linear(4, 3, bias=False),
    "sequential": lambda nn: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)),
    "nested": lambda nn: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 5), nn.Tanh()),
                                       nn.Linear(5, 2, bias=False)),
    "weighted loss": lambda nn: nn.CrossEntropyLoss(),
}
