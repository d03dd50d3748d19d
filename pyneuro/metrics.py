# SPDX-License-Identifier: BSD-3-Clause
"""How good predictions are. Arguments come as in torchmetrics, (preds, target); scikit-learn has them the other way."""
from typing import Any

import numpy as np

from .kernels import DtypeError, ShapeError

__all__ = ["accuracy", "confusion_matrix"]


def accuracy(preds: Any, target: Any) -> float:
    """The share of preds that equal target; nan if there are none.

    target: integer labels of any shape. preds: labels of that shape, or scores with an axis of classes after the first,
    of which the largest is the prediction. Raises ShapeError, DtypeError, and ValueError for scores that are NaN.
    """
    preds, target = _labels(preds, target)
    return float(np.mean(preds == target)) if target.size else float("nan")


def confusion_matrix(preds: Any, target: Any, num_classes: int) -> np.ndarray:
    """Counts [num_classes, num_classes] int64: how many of class i (row, the target) were taken for class j (column).

    preds and target as in accuracy. Raises what it raises, and IndexError for labels outside 0 to num_classes - 1.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    preds, target = _labels(preds, target)
    for name, labels in (("preds", preds), ("target", target)):
        outside = labels[(labels < 0) | (labels >= num_classes)]
        if outside.size:
            raise IndexError(f"{name} has the label {outside.flat[0]}; with num_classes={num_classes} "
                             f"labels are 0 to {num_classes - 1}")
    cells = target.reshape(-1).astype(np.int64) * num_classes + preds.reshape(-1).astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _labels(preds: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of labels of one shape."""
    preds, target = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (preds, target))
    if preds.ndim == target.ndim + 1 and preds.dtype.kind == "f" and preds.shape[:1] + preds.shape[2:] == target.shape:
        if np.isnan(preds).any():
            raise ValueError("preds has scores that are NaN")
        if preds.shape[1] == 0:
            raise ShapeError(f"preds {list(preds.shape)} has scores for no class")
        preds = preds.argmax(axis=1)
    if preds.shape != target.shape:
        raise ShapeError(f"preds {list(preds.shape)} must have the shape of target {list(target.shape)}, "
                         "or be scores with an axis of classes after the first")
    for name, labels in (("preds", preds), ("target", target)):
        if labels.dtype.kind not in "iub" and labels.size:
            raise DtypeError(f"{name} must hold integer labels, not {labels.dtype}")
    return preds, target
