# SPDX-License-Identifier: BSD-3-Clause
"""A module for every loss function of `functional`: the same arguments without input and target."""

import math
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any

from ..kernels import ShapeError
from ..tensor import Tensor
from . import functional as F
from .layers import Linear
from .module import Module, keeping


def _module(name: str, function: Callable, buffers: tuple[str, ...] = (), inputs: tuple[str, ...] = ("input", "target"),
            named: bool = False, **defaults: float) -> type[Module]:
    """buffers: tensor arguments, kept in the state as torch does; `weight` otherwise belongs to the function alone.
    inputs: what it is called with; named: the rest by name only; defaults: those that are the module's own."""
    def arguments() -> Signature:
        return Signature([
            p.replace(default=defaults.get(p.name, p.default), kind=Parameter.KEYWORD_ONLY if named else p.kind)
            for p in signature(function).parameters.values()
            if p.name not in inputs and (p.name != "weight" or "weight" in buffers)
        ])

    def keep(self: Module, words: dict[str, Any]) -> None:
        flags = words.pop("size_average", None), words.pop("reduce", None)
        if function is not F.kl_div or words["reduction"] != "batchmean":
            words["reduction"] = F._reduction(words["reduction"], *flags)
        for key, value in words.items():
            if key in buffers:
                self.register_buffer(key, value)
            else:
                setattr(self, key, value)
        self.arguments = list(words)

    def forward(self: Module, *given: Tensor) -> Tensor:
        return function(*given, **{key: getattr(self, key) for key in self.arguments})

    return keeping(arguments, name, __name__, f"{function.__doc__}\n\n    See functional.{function.__name__}.",
                   keep=keep, forward=forward)


_TRIPLET = ("anchor", "positive", "negative")
_TWO = ("input1", "input2", "target")

MSELoss = _module("MSELoss", F.mse_loss)
L1Loss = _module("L1Loss", F.l1_loss)
SmoothL1Loss = _module("SmoothL1Loss", F.smooth_l1_loss)
HuberLoss = _module("HuberLoss", F.huber_loss)
BCELoss = _module("BCELoss", F.binary_cross_entropy, ("weight",))
BCEWithLogitsLoss = _module("BCEWithLogitsLoss", F.binary_cross_entropy_with_logits, ("weight", "pos_weight"))
CrossEntropyLoss = _module("CrossEntropyLoss", F.cross_entropy, ("weight",))
NLLLoss = _module("NLLLoss", F.nll_loss, ("weight",))
KLDivLoss = _module("KLDivLoss", F.kl_div)
PoissonNLLLoss = _module("PoissonNLLLoss", F.poisson_nll_loss)
GaussianNLLLoss = _module("GaussianNLLLoss", F.gaussian_nll_loss, inputs=("input", "target", "var"), named=True)
HingeEmbeddingLoss = _module("HingeEmbeddingLoss", F.hinge_embedding_loss)
MarginRankingLoss = _module("MarginRankingLoss", F.margin_ranking_loss, inputs=_TWO, margin=0.0)
MultiMarginLoss = _module("MultiMarginLoss", F.multi_margin_loss, ("weight",))
MultiLabelMarginLoss = _module("MultiLabelMarginLoss", F.multilabel_margin_loss)
MultiLabelSoftMarginLoss = _module("MultiLabelSoftMarginLoss", F.multilabel_soft_margin_loss, ("weight",))
SoftMarginLoss = _module("SoftMarginLoss", F.soft_margin_loss)
CosineEmbeddingLoss = _module("CosineEmbeddingLoss", F.cosine_embedding_loss, inputs=_TWO, margin=0.0)
TripletMarginLoss = _module("TripletMarginLoss", F.triplet_margin_loss, inputs=_TRIPLET, p=2.0)
TripletMarginWithDistanceLoss = _module("TripletMarginWithDistanceLoss", F.triplet_margin_with_distance_loss, inputs=_TRIPLET)
CTCLoss = _module("CTCLoss", F.ctc_loss, inputs=("log_probs", "targets", "input_lengths", "target_lengths"))
LogCoshLoss = _module("LogCoshLoss", F.log_cosh_loss)
QuantileLoss = _module("QuantileLoss", F.quantile_loss)
MSLELoss = _module("MSLELoss", F.msle_loss)
MAPELoss = _module("MAPELoss", F.mape_loss)
TweedieLoss = _module("TweedieLoss", F.tweedie_loss)
HingeLoss = _module("HingeLoss", F.hinge_loss)
SquaredHingeLoss = _module("SquaredHingeLoss", F.squared_hinge_loss)
BinaryFocalLoss = _module("BinaryFocalLoss", F.sigmoid_focal_loss)
FocalLoss = _module("FocalLoss", F.focal_loss, ("weight",))
PolyLoss = _module("PolyLoss", F.poly_loss, ("weight",))
DiceLoss = _module("DiceLoss", F.dice_loss)
TverskyLoss = _module("TverskyLoss", F.tversky_loss)


class LinearCrossEntropyLoss(Module):
    """Cross-entropy of a linear layer's outputs, the layer included. options, of torch's memory, are ignored."""

    def __init__(self, in_features: int, num_classes: int, *, out_features: tuple[int, ...] = (), bias: bool = False,
                 device: Any = None, dtype: Any = None, reduction: str = "mean", weight: Tensor | None = None,
                 ignore_index: int | None = None, label_smoothing: float = 0.0, options: Any = None) -> None:
        super().__init__()
        if weight is not None and weight.shape != (num_classes,):
            raise ShapeError(f"LinearCrossEntropyLoss: weight must be {num_classes} numbers, one a class; got {list(weight.shape)}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
        self.num_classes, self.out_features, self.options = num_classes, tuple(out_features), options
        self.reduction = F._reduction(reduction)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.register_buffer("weight", weight)
        self.linear = Linear(in_features, math.prod(out_features, start=num_classes), bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        outputs = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return F.linear_cross_entropy(
            input, self.linear.weight.reshape((*outputs, -1)), target, linear_bias=None if bias is None else bias.reshape(outputs),
            weight=self.weight, reduction=self.reduction, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing)


__all__ = ["LinearCrossEntropyLoss", *[name for name in vars() if name.endswith("Loss") and name != "LinearCrossEntropyLoss"]]
