# SPDX-License-Identifier: BSD-3-Clause
"""The learning rate range test: a short training whose rate grows from step to step tells which rates suit (Smith 2017)."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..graph import no_grad
from ..nn.module import Module
from .lr_scheduler import _checked, _set, _values
from .optimizers import Optimizer

__all__ = ["RangeTest", "lr_finder"]


class RangeTest(NamedTuple):
    """Of each step its rate, its loss and the running mean of losses, float64 of shape [steps]; and a rate to train with."""

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float


def lr_finder(model: Module, loss: Callable[..., Any], optimizer: Optimizer, data: Iterable[Any], *, start_lr: float = 1e-7,
              end_lr: float = 10.0, num_iter: int = 100, smoothing: float = 0.9, diverge: float = 4.0) -> RangeTest:
    """Train for up to num_iter steps at rates that grow geometrically from start_lr to end_lr, the same for all groups, and
    put everything back: parameters, buffers, gradients, the optimizer's state and rates, train or eval mode.

    loss: of (model(inputs), target). data: pairs (inputs, target), such as a DataLoader, gone through as often as it takes.
    smoothing: share of the past in the running mean m = smoothing m + (1 - smoothing) loss, without its bias towards 0. Ends
    early where the mean is above diverge times its least, or the loss is not finite. suggestion: the rate at which the mean
    falls fastest with ln rate, nan after less than three steps.

    Raises ValueError for rates that do not grow from above 0, fewer than two steps, or no data.
    """
    for name, value, kind in (("model", model, Module), ("optimizer", _checked(optimizer), Optimizer)):
        if not isinstance(value, kind):
            raise TypeError(f"lr_finder takes a {kind.__name__} as {name}, not {type(value).__name__}")
    if not 0 < start_lr < end_lr < math.inf:
        raise ValueError(f"lr_finder: it must be 0 < start_lr < end_lr, got {start_lr} and {end_lr}")
    if not isinstance(num_iter, int) or num_iter < 2:
        raise ValueError(f"lr_finder: num_iter must be an integer from 2 on, got {num_iter!r}")
    if not 0 <= smoothing < 1 or not diverge > 1:
        raise ValueError(f"lr_finder: smoothing must be in [0, 1) and diverge above 1, got {smoothing} and {diverge}")
    optimizer._check_not_recorded("is tried at many rates")
    rates, losses, smoothed = np.geomspace(start_lr, end_lr, num_iter), [], []
    mean, put_back = 0.0, _kept(model, optimizer)
    try:
        model.train()
        for step, (rate, (inputs, target)) in enumerate(zip(rates, _endless(data)), 1):
            for group in optimizer.param_groups:
                _set(group, "lr", float(rate))

            def closure(inputs: Any = inputs, target: Any = target) -> Any:
                optimizer.zero_grad()
                value = loss(model(inputs), target)
                value.backward()
                return value

            losses.append(float(optimizer.step(closure).detach()))
            mean = smoothing * mean + (1 - smoothing) * losses[-1]
            smoothed.append(mean / (1 - smoothing**step))
            if not math.isfinite(losses[-1]) or smoothed[-1] > diverge * min(smoothed):
                break
    finally:
        put_back()
    if not losses:
        raise ValueError("lr_finder: there is no batch in data")
    rates = rates[: len(losses)]
    return RangeTest(rates, np.array(losses), np.array(smoothed), _steepest(rates, np.array(smoothed)))


def _steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    finite = np.isfinite(losses)
    if finite.sum() < 3:
        return math.nan
    return float(rates[finite][np.gradient(losses[finite], np.log(rates[finite])).argmin()])


def _endless(data: Iterable[Any]) -> Iterator[Any]:
    """The pairs of data again and again, an iterator's once."""
    found = True
    while found:
        found = False
        for pair in data:
            found = True
            yield pair


def _kept(model: Module, optimizer: Optimizer) -> Callable[[], None]:
    """A function that puts back what they are now."""
    tensors = [*model.parameters(), *model.buffers(), *(p for group in optimizer.param_groups for p in group["params"])]
    unique = list({id(t): t for t in tensors}.values())
    saved = [(t, t.detach().clone(), t.grad, None if t.grad is None else t.grad.detach().clone()) for t in unique]
    modes = [(m, m.training) for m in model.modules()]
    state, rates, called = optimizer.state_dict(), _values(optimizer, "lr"), optimizer._opt_called
    state["state"] = copy.deepcopy(state["state"])

    @no_grad
    def put_back() -> None:
        for t, before, grad, values in saved:
            t.copy_(before)
            t.grad = grad
            if grad is not None:
                grad.copy_(values)
        for m, training in modes:
            m.training = training
        for group, rate in zip(optimizer.param_groups, rates):
            _set(group, "lr", rate)
        optimizer.load_state_dict(state)
        optimizer._opt_called = called

    return put_back
