# SPDX-License-Identifier: BSD-3-Clause
"""The training loop: epochs of shuffled batches, and what happens between them.

A step is a function of tensors alone, and one function goes through the batches: what a plan replays is no more than these.
"""
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from inspect import Parameter, signature
from typing import Any

import numpy as np

from . import metrics as known_metrics
from . import ops
from .autograd import no_grad
from .kernels import DtypeError, Native, ShapeError, current_backend
from .kernels.signature import CASTABLE
from .nn import Module
from .nn.utils import clip_grad_norm_
from .optim import Optimizer
from .optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from .plan import Compiled, NotRecordable
from .random import Generator, draw
from .tensor import DTYPES, Tensor, _array_of, _laid_out, wrap

__all__ = ["CSVLogger", "Callback", "EarlyStopping", "History", "TerminateOnNaN", "fit"]

WORTH_A_PLAN = 20                        # steps: recording takes as long as a few

Step = Callable[[Tensor, Tensor, "Tensor | None"], tuple[Tensor, Tensor]]


class History:
    """What a training was like: `epoch`, numbers from 0, and for each the values of `history`, by name."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    @property
    def best(self) -> dict[str, float] | None:
        """Number and values of the epoch with the least val_loss, or loss if nothing was validated; None if there is none."""
        losses = self.history.get("val_loss", self.history.get("loss", []))
        finite = [i for i, loss in enumerate(losses) if not math.isnan(loss)]
        if not finite:
            return None
        i = min(finite, key=losses.__getitem__)
        return {"epoch": self.epoch[i], **{name: values[i] for name, values in self.history.items()}}

    def _add(self, epoch: int, logs: dict[str, float]) -> None:
        self.epoch.append(epoch)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def __repr__(self) -> str:
        return f"History(epochs={len(self.epoch)}, best={self.best})"


# ------------------------------------------------------------------------------------------------------------ callbacks


class Callback:
    """Called between epochs: a subclass with some of these methods, or functions given to the constructor.

    Epochs are counted from 0; logs has the epoch's values by name. If on_epoch_end returns True, that epoch was the last.
    fit sets `model`, `optimizer` and `names`, the names that logs will have.
    """

    model: Any = None
    optimizer: Any = None
    names: tuple[str, ...] = ()

    def __init__(self, on_epoch_begin: Callable[[int], Any] | None = None,
                 on_epoch_end: Callable[[int, dict[str, float]], Any] | None = None,
                 on_train_begin: Callable[[], Any] | None = None, on_train_end: Callable[[], Any] | None = None) -> None:
        for name, function in list(locals().items()):
            if name.startswith("on_") and function is not None:
                setattr(self, name, function)

    def on_train_begin(self) -> Any:
        pass

    def on_epoch_begin(self, epoch: int) -> Any:
        pass

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> Any:
        pass

    def on_train_end(self) -> Any:
        """Not called when an exception ends the training."""


# What grows as a model gets better, for mode="auto": a name that has one of these in it.
_GROWING = ("acc", "auc", "f1", "fbeta", "precision", "recall", "r2", "score")


class EarlyStopping(Callback):
    """Ends the training when a value has not improved, by more than min_delta, for `patience` epochs (at least one).

    mode: "min", "max", or "auto", which tells from the name. restore_best_weights: in the end, those of the best epoch.
    Afterwards best and best_epoch tell when that was, and stopped_epoch, if not None, that it ended the training.
    """

    def __init__(self, monitor: str = "val_loss", min_delta: float = 0, patience: int = 0, mode: str = "auto",
                 restore_best_weights: bool = False) -> None:
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"EarlyStopping takes mode 'auto', 'min' or 'max', got {mode!r}")
        if patience < 0:
            raise ValueError(f"EarlyStopping takes patience >= 0, got {patience}")
        self.monitor, self.min_delta, self.patience = monitor, abs(min_delta), patience
        self.restore_best_weights = restore_best_weights
        self.sign = -1 if mode == "max" or (mode == "auto" and any(part in monitor for part in _GROWING)) else 1
        self._forget()

    def _forget(self) -> None:
        self.best, self.best_epoch, self.stopped_epoch, self.wait = self.sign * math.inf, None, None, 0
        self._weights: dict[str, Tensor] | None = None

    best_epoch: int | None
    stopped_epoch: int | None

    def on_train_begin(self) -> None:
        if self.monitor not in self.names:
            raise ValueError(f"EarlyStopping watches {self.monitor!r}, which this training does not have; "
                             f"choose from {', '.join(self.names)}")
        self._forget()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> bool:
        value = logs[self.monitor]
        better = self.sign * value < self.sign * self.best - self.min_delta
        if better:
            self.best, self.best_epoch, self.wait = value, epoch, 0
        else:
            self.wait += 1
        if self.restore_best_weights and (better or self._weights is None):
            self._weights = {name: t.clone() for name, t in self.model.state_dict().items()}
        if not better and self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
        return self.stopped_epoch is not None

    def on_train_end(self) -> None:
        if self._weights is not None:
            self.model.load_state_dict(self._weights)
            self._weights = None


class TerminateOnNaN(Callback):
    """Ends the training after an epoch whose loss is NaN or infinite."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> bool:
        return not math.isfinite(logs["loss"])


class CSVLogger(Callback):
    """Writes a line for each epoch, and before them one of names. The file is whole at any time.

    append: go on in a file that is there, without a line of names if it has any text.
    """

    def __init__(self, filename: str | os.PathLike, separator: str = ",", append: bool = False) -> None:
        super().__init__()
        self.filename, self.separator, self.append = filename, separator, append

    def on_train_begin(self) -> None:
        with open(self.filename, "a" if self.append else "w", newline="") as f:
            if f.tell() == 0:
                self._write(f, ["epoch", *self.names])

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        with open(self.filename, "a", newline="") as f:
            self._write(f, [epoch, *logs.values()])

    def _write(self, f: Any, line: list) -> None:
        import csv

        csv.writer(f, delimiter=self.separator, lineterminator="\n").writerow(line)


# --------------------------------------------------------------------------------------------------------------- data


class _Table:
    """Rows by number, as tensors. The array stays where it is, also on disk: only rows that are asked for are read.

    Floats come in the model's dtype, integers and booleans in their own (int64 if no tensor has it); with `normalize`, a mean
    and a standard deviation, all come in the model's, less the mean and divided by the deviation. table: the array as
    [rows, width] without a copy, or None if there is no such view that kernels can read.
    """

    def __init__(self, data: Any, name: str, dtype: np.dtype, normalize: Any = None) -> None:
        given = data.detach().array if isinstance(data, Tensor) else data
        array = np.asarray(given) if isinstance(given, np.ndarray) else _array_of(given, None, name)
        if array.dtype.kind not in "fiub":
            raise DtypeError(f"{name} must hold real numbers, not {array.dtype}")
        if array.ndim == 0:
            raise ShapeError(f"{name} must have an axis of samples, got a single number")
        self.array, self.shape = array, array.shape[1:]
        self.dtype = dtype if array.dtype.kind == "f" else array.dtype if array.dtype in DTYPES else np.dtype(np.int64)
        self.scale: tuple[np.ndarray, ...] = ()
        if normalize is not None:
            self.dtype, self.scale = dtype, _scale(normalize, self.shape, dtype)
        plain = array.dtype in (DTYPES if normalize is None else CASTABLE) and array.dtype.isnative and _laid_out(array)
        viewed = plain and (array.ndim < 3 or array.flags.c_contiguous)
        self.table = array.reshape(len(array), math.prod(self.shape)) if viewed else None

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, index: np.ndarray) -> Any:
        """By kernels alone, where there is a table: a plan does it again for other numbers."""
        if self.table is None:
            t = wrap(self.array[index].astype(self.dtype))
            if self.scale:
                mean, std = [wrap(row.reshape(self.shape)) for row in self.scale]
                t = (t - mean) / std
            return t
        if self.scale:
            found = ops.empty((len(index), self.table.shape[1]), self.dtype)
            ops.run("take_scaled", (self.table, index, *self.scale, found))
        else:
            found = ops.OPS["take"].forward(self.table, index)
        t = wrap(found.reshape(len(index), *self.shape))
        return t if t.dtype == self.dtype else t.to(self.dtype)


def _scale(given: Any, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """Mean and standard deviation, each a number or what broadcasts to a row, as rows of the table."""
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise ValueError("normalize must be (mean, std)")
    mean, std = (_array_of(values, dtype, name).astype(dtype) for values, name in zip(given, ("mean", "std")))
    for a, name in ((mean, "mean"), (std, "std")):
        try:
            np.broadcast_to(a, shape)
        except ValueError:
            raise ShapeError(f"{name} has shape {list(a.shape)}, which does not broadcast to a row of X, {list(shape)}") from None
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError("normalize must be a finite mean and a finite, positive std")
    return tuple([np.broadcast_to(a, shape).flatten() for a in (mean, std)])


def _weights(data: Any, name: str, dtype: np.dtype) -> _Table:
    w = _Table(data, name, dtype)
    if w.shape:
        raise ShapeError(f"{name} must be one number for each sample, got {list(w.array.shape)}")
    if not (np.isfinite(w.array).all() and (w.array >= 0).all()):
        raise ValueError(f"{name} must be finite and not negative")
    w.dtype = dtype                                        # also of integers
    return w


def _tables(given: tuple, names: tuple[str, ...], dtype: np.dtype, normalize: Any) -> tuple[_Table, _Table, _Table | None]:
    """X, y and weights, as many rows of each."""
    X, y = _Table(given[0], names[0], dtype, normalize), _Table(given[1], names[1], dtype)
    w = None if len(given) < 3 or given[2] is None else _weights(given[2], names[2], dtype)
    for table, name in ((y, names[1]), (w, names[2])):
        if table is not None and len(table) != len(X):
            raise ShapeError(f"{names[0]} has {len(X)} rows and {name} has {len(table)}; they must have as many")
    if not len(X):
        raise ValueError(f"{names[0]} has no rows")
    return X, y, w


# --------------------------------------------------------------------------------------------------- losses and metrics


def _criterion(loss: Any, weighted: bool) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The loss of a batch: the mean that it gives itself, or that of each sample's losses by weight."""
    if not weighted:
        return lambda output, target, w: loss(output, target)
    each: Any
    if isinstance(getattr(loss, "reduction", None), str):
        each = copy(loss)
        each.reduction = "none"
    elif "reduction" in _arguments(loss):
        def each(output: Tensor, target: Tensor) -> Any:
            return loss(output, target, reduction="none")
    else:
        raise ValueError("sample_weight needs the loss of each sample: a loss with an attribute `reduction`, such as "
                         "nn.CrossEntropyLoss(), or a function with an argument of that name")

    def weighted_mean(output: Tensor, target: Tensor, w: Any) -> Any:
        losses = each(output, target)
        if losses.ndim == 0 or len(losses) != len(w):
            raise ShapeError(f"with reduction='none' the loss must have a number for each of {len(w)} samples, "
                             f"got shape {list(losses.shape)}")
        if losses.ndim > 1:
            losses = losses.reshape(len(w), -1).mean(1)
        # A batch of which no sample counts has loss and gradients 0.
        return (losses * w).sum() / w.sum().clamp(min=float(np.finfo(w.dtype).tiny))

    return weighted_mean


def _arguments(function: Callable) -> Any:
    try:
        return signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _metrics(given: Any) -> dict[str, Callable[[Tensor, Tensor], Any]]:
    """By name: functions of all outputs of an epoch and their targets."""
    found: dict[str, Callable] = {}
    for metric in [given] if isinstance(given, str) or callable(given) else given:
        if isinstance(metric, str) and metric not in known_metrics.__all__:
            raise ValueError(f"{metric!r} is not a metric; choose from {', '.join(known_metrics.__all__)}, or give a function")
        if not (isinstance(metric, str) or callable(metric)):
            raise TypeError(f"a metric is a name or a function (output, target), not {type(metric).__name__}")
        function = getattr(known_metrics, metric) if isinstance(metric, str) else metric
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
        if sum(p.default is Parameter.empty and p.kind <= Parameter.POSITIONAL_OR_KEYWORD
               for p in _arguments(function).values()) > 2:
            raise ValueError(f"the metric {name!r} needs more than (output, target): give a function of these two")
        if name in found or name == "loss":
            raise ValueError(f"two values would be named {name!r}: give the function another __name__")
        found[name] = function
    return found


def _measured(metrics: dict[str, Callable], outputs: list[np.ndarray], y: _Table, order: np.ndarray) -> dict[str, float]:
    """Every metric over a whole epoch, which the mean over its batches is not for most of them."""
    if not metrics:
        return {}
    output, target = wrap(np.concatenate(outputs)), y.rows(order)
    with no_grad():
        return {name: float(metric(output, target)) for name, metric in metrics.items()}


# ------------------------------------------------------------------------------------------------------------ the loop


class _Whole:
    """Within it, Ctrl-C waits until the end: a step is taken or it is not. Everywhere else it acts as ever."""

    came: tuple | None
    handler: Any

    def __init__(self) -> None:
        self.within, self.came, self.handler = False, None, None

    def begin(self) -> None:
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self.handler = signal.signal(signal.SIGINT, self._take)

    def end(self) -> None:
        if self.handler is not None and signal.getsignal(signal.SIGINT) == self._take:
            signal.signal(signal.SIGINT, self.handler)

    def _take(self, *signal_and_frame: Any) -> None:
        if self.within:
            self.came = signal_and_frame
        else:
            self.handler(*signal_and_frame)

    def __enter__(self) -> None:
        self.within = True

    def __exit__(self, *_: object) -> None:
        self.within = False
        if self.came is not None:
            came, self.came = self.came, None
            self.handler(*came)


def _training_step(model: Module, criterion: Callable, optimizer: Optimizer, clip: float | None, whole: _Whole) -> Step:
    """One step on a batch: its loss, and what the model said before the step."""
    given = signature(optimizer.step).parameters.get("closure")
    by_closure = given is not None and given.default is Parameter.empty        # LBFGS evaluates as often as it likes
    members = [p for group in optimizer.param_groups for p in group["params"]]

    def step(x: Tensor, target: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
        output: Any = None

        def evaluate() -> Tensor:
            nonlocal output
            optimizer.zero_grad()
            output = model(x)
            loss = criterion(output, target, w)
            loss.backward()
            if clip is not None:
                clip_grad_norm_(members, clip)
            return loss

        if by_closure:
            with whole:
                loss = optimizer.step(evaluate)
        else:
            loss = evaluate()
            with whole:
                optimizer.step()
        return loss, output

    return step


def _replayable(step: Step, X: _Table, y: _Table, w: _Table | None, with_outputs: bool, steps: int,
                loss: Any) -> Compiled | None:
    """The step as a compiled function of row numbers, which takes the rows itself; None if that does not repay: calls that
    Python replays one by one are no quicker, and Ctrl-C may come between two of them."""
    tables = [t for t in (X, y, w) if t is not None]
    if steps < WORTH_A_PLAN or not isinstance(current_backend(), Native) or any(t.table is None for t in tables):
        return None

    def by_number(index: Tensor) -> Any:
        rows = [t.rows(index.array) for t in tables]
        lost, said = step(rows[0], rows[1], rows[2] if w is not None else None)
        return (lost, said.detach()) if with_outputs else lost

    return Compiled(by_number, also=(loss,))


def _replayed(plan: Compiled | None, order: np.ndarray, batch_size: int, after: Callable[[], Any] | None,
              show: Callable[[int], Any] | None) -> Iterator[list[np.ndarray]]:
    """Whole batches as far as a plan takes them: losses, and outputs where they are wanted, of some steps at a time."""
    done, steps = 0, len(order) // batch_size
    many = steps if show is None else 1
    while plan is not None and done < steps:
        rows = order[done * batch_size:min(done + many, steps) * batch_size].reshape(-1, batch_size)
        begin = time.perf_counter()
        try:
            found = plan.loop((None,), 0, wrap(rows), after)
        except NotRecordable:
            return
        if found is None:
            return
        if show is not None:                                   # as often as a bar moves
            many = max(1, int(many * min(0.1 / max(time.perf_counter() - begin, 1e-6), 4)))
        done += len(found[0])
        yield found
        if show is not None:
            show(len(found[0]))


def _epoch(step: Step, X: _Table, y: _Table, w: _Table | None, order: np.ndarray, batch_size: int,
           outputs: list[np.ndarray] | None = None, after: Callable[[], Any] | None = None,
           show: Callable[[int], Any] | None = None, plan: Compiled | None = None) -> float:
    """Go once through the rows in this order, batch by batch, the last one maybe shorter: the mean loss.

    A batch counts in it by its rows, or their weights. outputs: a list that takes what the model says, in order;
    after: called after each step; show: now and then, with a number of steps taken. plan: the step by row numbers.
    """
    total = weight = 0.0
    start = 0

    def count(loss: float) -> None:
        nonlocal total, weight, start
        index = order[start:start + batch_size]
        share = len(index) if w is None else float(w.rows(index).array.sum(dtype=np.float64))
        total, weight, start = total + loss * share, weight + share, start + len(index)

    for losses, *output in _replayed(plan, order, batch_size, after, show):
        for loss in losses.tolist():
            count(loss)
        if outputs is not None:
            outputs.append(output[0].reshape(-1, *output[0].shape[2:]))
    while start < len(order):
        index = order[start:start + batch_size]
        lost, said = step(X.rows(index), y.rows(index), None if w is None else w.rows(index))
        count(lost.item())
        if outputs is not None:
            outputs.append(said.detach().array)
        if after is not None:
            after()
        if show is not None:
            show(1)
    return total / weight if weight else 0.0


def _evaluated(model: Module, criterion: Callable, tables: tuple, batch_size: int,
               metrics: dict[str, Callable]) -> dict[str, float]:
    """Loss and metrics of a model that is not being trained, named val_*."""
    X, y, w = tables
    outputs: list[np.ndarray] | None = [] if metrics else None
    order = np.arange(len(X))

    def step(x: Tensor, target: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
        output = model(x)
        return criterion(output, target, w), output

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with no_grad():
            loss = _epoch(step, X, y, w, order, batch_size, outputs)
    finally:
        _restore(modes)
    return {f"val_{name}": value for name, value in
            {"loss": loss, **_measured(metrics, outputs or [], y, order)}.items()}


def _restore(modes: dict[Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _progress(wanted: bool | None, steps: int) -> Any:
    """A bar that shows after two seconds, or None."""
    if wanted is False or (wanted is None and not (sys.stderr is not None and sys.stderr.isatty())):
        return None
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        if wanted:
            raise ImportError("progress=True needs tqdm: pip install tqdm") from None
        return None
    return tqdm(total=steps, unit="step", delay=2)


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value.__index__() < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value.__index__()


def _of_type(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, not {type(value).__name__}")


def fit(model: Module, loss: Callable[..., Any], optimizer: Optimizer, X: Any, y: Any, *, epochs: int = 1, batch_size: int = 32,
        shuffle: bool = True, validation_data: tuple | None = None, sample_weight: Any = None, metrics: Any = (),
        scheduler: Any = None, clip_grad_norm: float | None = None, callbacks: Iterable[Callback] = (),
        progress: bool | None = None, seed: int | None = None, normalize: tuple[Any, Any] | None = None) -> History:
    """Train a model on rows of X and their targets y: tensors, arrays, also memory-mapped, or what becomes one.

    loss: a module or function (output, target), which gives the mean over a batch. An epoch's loss is the mean over its rows,
    each seen before the step that it takes part in; the batch that remains is trained on too. Floats are converted to the
    dtype of the parameters, integers are left as they are.

    normalize: (mean, std), numbers or arrays that broadcast to a row: the model sees (X - mean) / std, here and in validation.
    X stays as it is, bytes of a memory-mapped file for example; each batch is converted when it is read.

    shuffle: in a new order each epoch, by `seed` or else the default generator. validation_data: (X, y) or (X, y, weights),
    evaluated after each epoch in eval mode. sample_weight: one number for each row, the loss of a batch is then
    sum(w l) / sum(w); the loss must have a `reduction`. metrics: names from pyneuro.metrics, or functions (output, target),
    of a whole epoch. scheduler: stepped after each epoch, ReduceLROnPlateau with val_loss (or loss); OneCycleLR and CyclicLR
    after each step. clip_grad_norm: of all gradients together. progress: a bar by tqdm; None: if that is installed and
    standard error is a terminal.

    Ctrl-C leaves the parameters as a whole number of steps made them. Raises ValueError, TypeError, ShapeError or DtypeError
    before any training.
    """
    _of_type("model", model, Module)
    _of_type("optimizer", optimizer, Optimizer)
    if not callable(loss):
        raise TypeError(f"loss must be a module or function (output, target), not {type(loss).__name__}")
    epochs, batch_size = _count("epochs", epochs, 0), _count("batch_size", batch_size, 1)
    if clip_grad_norm is not None and not clip_grad_norm > 0:
        raise ValueError(f"clip_grad_norm must be positive, got {clip_grad_norm}")
    dtype = optimizer.param_groups[0]["params"][0].dtype
    tables = _tables((X, y, sample_weight), ("X", "y", "sample_weight"), dtype, normalize)
    held_out = None
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise ValueError("validation_data must be (X, y) or (X, y, weights)")
        held_out = _tables(tuple(validation_data), ("X to validate", "y to validate", "weights to validate"), dtype,
                           normalize)
    measures, callbacks = _metrics(metrics), list(callbacks)
    names = ["loss", *measures]
    names += [f"val_{name}" for name in names] if held_out else []
    for callback in callbacks:
        _of_type("a callback", callback, Callback)
        callback.model, callback.optimizer, callback.names = model, optimizer, tuple(names)

    whole, history, rows = _Whole(), History(), len(tables[0])
    step = _training_step(model, _criterion(loss, tables[2] is not None), optimizer, clip_grad_norm, whole)
    judge = _criterion(loss, held_out is not None and held_out[2] is not None)
    generator = None if seed is None else Generator().manual_seed(seed)
    by_step, by_epoch = _schedule(scheduler)
    bar = _progress(progress, epochs * -(-rows // batch_size))

    plan = _replayable(step, *tables, bool(measures), epochs * (rows // batch_size), loss)

    modes = {module: module.training for module in model.modules()}
    whole.begin()
    try:
        if not model.training:
            model.train()
        for callback in callbacks:
            callback.on_train_begin()
        for epoch in range(epochs):
            for callback in callbacks:
                callback.on_epoch_begin(epoch)
            order = np.arange(rows)
            if shuffle:
                draw(order, "permutation", generator)
            outputs: list[np.ndarray] | None = [] if measures else None
            mean = _epoch(step, *tables, order, batch_size, outputs, by_step,
                          None if bar is None else bar.update, plan)
            logs = {"loss": mean, **_measured(measures, outputs or [], tables[1], order)}
            if held_out is not None:
                logs |= _evaluated(model, judge, held_out, batch_size, measures)
            if by_epoch is not None:
                by_epoch(logs.get("val_loss", mean))
            history._add(epoch, logs)
            if bar is not None:
                bar.set_postfix(logs)
            verdicts = [callback.on_epoch_end(epoch, dict(logs)) for callback in callbacks]
            if any(verdict is True for verdict in verdicts):
                break
        for callback in callbacks:
            callback.on_train_end()
    finally:
        whole.end()
        _restore(modes)
        if bar is not None:
            bar.close()
    return history


def _schedule(scheduler: Any) -> tuple[Callable[[], Any] | None, Callable[[float], Any] | None]:
    """What is to be called after each step, and after each epoch with its loss."""
    if scheduler is None:
        return None, None
    _of_type("scheduler", scheduler, LRScheduler)
    if isinstance(scheduler, (OneCycleLR, CyclicLR)):
        return scheduler.step, None
    if isinstance(scheduler, ReduceLROnPlateau):
        return None, scheduler.step
    return None, lambda loss: scheduler.step()
