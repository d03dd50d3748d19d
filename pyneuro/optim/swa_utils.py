# SPDX-License-Identifier: BSD-3-Clause
"""Models whose parameters are means of another's on its way: of all equally (stochastic weight averaging, Izmailov et al. 2018),
or of the last most (exponential moving average, Polyak and Juditsky 1992); torch.optim.swa_utils' names."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

from ..functions import lerp
from ..graph import no_grad
from ..nn.module import Module
from ..nn.norm import BatchNorm1d
from ..tensor import Tensor, tensor
from .lr_scheduler import LRScheduler, _checked, _each_group
from .optimizers import Optimizer

__all__ = ["SWALR", "AveragedModel", "get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_avg_fn", "get_swa_multi_avg_fn",
           "update_bn"]


def _share(decay: float) -> float:
    if not 0 <= decay <= 1:
        raise ValueError(f"the decay of a moving average must be between 0 and 1, got {decay}")
    return 1 - decay


def get_ema_multi_avg_fn(decay: float = 0.999) -> Callable[[list[Tensor], list[Tensor], Any], None]:
    """For multi_avg_fn: averaged = decay averaged + (1 - decay) current, in place. Raises ValueError outside of [0, 1]."""
    share = _share(decay)

    @no_grad
    def ema_update(ema_param_list: list[Tensor], current_param_list: list[Tensor], _: Any) -> None:
        for mean, p in zip(ema_param_list, current_param_list, strict=True):
            mean.copy_(lerp(mean, p, share) if mean.is_floating_point() else mean * decay + p * share)

    return ema_update


def get_swa_multi_avg_fn() -> Callable[[list[Tensor], list[Tensor], Any], None]:
    """For multi_avg_fn: averaged += (current - averaged) / (num_averaged + 1), in place."""
    @no_grad
    def swa_update(averaged_param_list: list[Tensor], current_param_list: list[Tensor], num_averaged: Any) -> None:
        count = int(num_averaged) + 1
        for mean, p in zip(averaged_param_list, current_param_list, strict=True):
            mean.copy_(lerp(mean, p, 1 / count) if mean.is_floating_point() else mean + (p - mean) / count)

    return swa_update


def get_ema_avg_fn(decay: float = 0.999) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """For avg_fn: decay averaged + (1 - decay) current. Raises ValueError outside of [0, 1]."""
    share = _share(decay)

    @no_grad
    def ema_update(ema_param: Tensor, current_param: Tensor, num_averaged: Any) -> Tensor:
        return ema_param * decay + current_param * share

    return ema_update


def get_swa_avg_fn() -> Callable[[Tensor, Tensor, Any], Tensor]:
    """For avg_fn: averaged + (current - averaged) / (num_averaged + 1)."""
    @no_grad
    def swa_update(averaged_param: Tensor, current_param: Tensor, num_averaged: Any) -> Tensor:
        return averaged_param + (current_param - averaged_param) / (num_averaged + 1)

    return swa_update


class AveragedModel(Module):
    """A copy of a model, `module`, whose parameters become averages of it by update_parameters(model).

    avg_fn: (averaged, current, number averaged) -> the new average, of one tensor; multi_avg_fn: the same in place for lists of
    tensors of one dtype; by default all count equally. use_buffers: buffers are averaged too, else they are those of the
    model last seen. state_dict has "n_averaged" and "module.…", and no function. Raises ValueError for both functions, or for
    an update from a model of other parts. What it does depends on n_averaged: pn.compile refuses to record an update.
    """

    n_averaged: Tensor

    def __init__(self, model: Module, device: Any = None, avg_fn: Callable | None = None, multi_avg_fn: Callable | None = None,
                 use_buffers: bool = False) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise ValueError("AveragedModel takes avg_fn or multi_avg_fn, not both")
        self.module = copy.deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", tensor(0, dtype="int64"))
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @no_grad
    def update_parameters(self, model: Module) -> None:
        """Take the model into the average; the first time, copy it."""
        mine, theirs = (([p.detach() for p in m.parameters()], [b.detach() for b in m.buffers()]) for m in (self.module, model))
        shapes = [[[list(t.shape) for t in tensors] for tensors in parts] for parts in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the averaged model has parameters and buffers of shapes {shapes[0]}, the model given {shapes[1]}")
        averaged, current = (parts[0] + parts[1] if self.use_buffers else parts[0] for parts in (mine, theirs))
        if int(self.n_averaged) == 0:
            for mean, p in zip(averaged, current):
                mean.copy_(p)
        elif self.avg_fn is not None:
            for mean, p in zip(averaged, current):
                mean.copy_(self.avg_fn(mean, p, self.n_averaged))
        else:
            update = self.multi_avg_fn or get_swa_multi_avg_fn()
            for dtype in dict.fromkeys(p.dtype for p in averaged):
                alike = [(mean, p) for mean, p in zip(averaged, current) if mean.dtype == dtype]
                update([mean for mean, _ in alike], [p for _, p in alike], self.n_averaged)
        if not self.use_buffers:
            for mean, p in zip(mine[1], theirs[1]):
                mean.copy_(p)
        self.n_averaged.add_(1)


@no_grad
def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Set the running averages of every BatchNorm to those over a loader's batches: tensors, or tuples that begin with one."""
    norms = [m for m in model.modules() if isinstance(m, BatchNorm1d)]
    if not norms:
        return
    before, training = [m.momentum for m in norms], model.training
    model.train()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for batch in loader:
            given = batch[0] if isinstance(batch, (list, tuple)) else batch
            model(given if device is None else given.to(device))
    finally:
        for norm, momentum in zip(norms, before):
            norm.momentum = momentum
        model.train(training)


class SWALR(LRScheduler):
    """From the present rates to swa_lr within anneal_epochs, by a half cosine or a line, and then constant.

    swa_lr: a rate, or one for each group. Raises ValueError for another anneal_strategy than "cos" and "linear", or negative
    anneal_epochs.
    """

    def __init__(self, optimizer: Optimizer, swa_lr: Any, anneal_epochs: int = 10, anneal_strategy: str = "cos",
                 last_epoch: int = -1) -> None:
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"SWALR: anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"SWALR: anneal_epochs must be an integer from 0 on, got {anneal_epochs!r}")
        for rate, group in zip(_each_group("swa_lr", _checked(optimizer), swa_lr), optimizer.param_groups, strict=True):
            group["swa_lr"] = rate
        self.anneal_epochs, self._anneal_strategy = anneal_epochs, anneal_strategy
        super().__init__(optimizer, last_epoch)

    def anneal_func(self, share: float) -> float:
        return share if self._anneal_strategy == "linear" else (1 - math.cos(math.pi * share)) / 2

    def get_lr(self) -> list[Any]:
        self._within_step()
        epochs, step = max(1, self.anneal_epochs), self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = (self.anneal_func(max(0, min(1, s / epochs))) for s in (step - 1, step))
        rates = []
        for group in self.optimizer.param_groups:
            lr, end = group["lr"], group["swa_lr"]
            start = end if before == 1 else (lr - before * end) / (1 - before)
            rates.append(end * now + start * (1 - now))
        return rates
