# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers: what each keeps for a parameter, and the order of its numbers; the arithmetic is a kernel.

A group's numbers live in a buffer that kernels read, so that a recorded step sees every change of them. Parameters that
have taken the same steps share one buffer: a cohort.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import ops
from ..graph import enable_grad, tell_grad
from ..kernels import ShapeError, run_all, unrecorded, watcher, watchers
from ..tensor import Tensor, wrap

# What a number must satisfy; checked for every group.
_NOT_NEGATIVE = ("lr", "eps", "weight_decay", "momentum", "alpha", "lr_decay", "initial_accumulator_value")
_RANGES = {**dict.fromkeys(_NOT_NEGATIVE, (0.0, math.inf)), "rho": (0.0, 1.0)}


def _numbers(arguments: dict[str, Any]) -> dict[str, Any]:
    """The defaults of a group: what an optimizer's constructor was given, less what is not about steps."""
    return {name: value for name, value in arguments.items() if name not in ("self", "params", "__class__")}


class _Cohort:
    """The hyper buffer of parameters that have taken the same steps; its last number counts them."""

    def __init__(self, hyper: np.ndarray) -> None:
        self.hyper = hyper
        self.given: tuple[float, ...] = ()
        self.size = 0


class Optimizer:
    """Base of optimizers: param_groups, state, step.

    params: tensors, (name, tensor) pairs, or dicts with "params" and the group's own numbers. Raises ValueError for a number
    out of range or a parameter given twice, TypeError for what is no leaf tensor.
    """

    hyper: tuple[str, ...] = ()  # the kernel's numbers, in order; those a group does not have are its own
    tick = "tick"
    _opt_called = False  # for schedules, which want to come after a step

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._cohorts: dict[Tensor, _Cohort] = {}
        if isinstance(params, Tensor):
            raise TypeError("params must be an iterable of tensors or dicts, not one tensor")
        groups = list(params)
        if not groups:
            raise ValueError("the optimizer got an empty list of parameters")
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add {"params": tensors, ...}: what it leaves out takes the defaults."""
        self._check_not_recorded("gets its parameters")
        if not isinstance(param_group, dict):
            raise TypeError(f"a param group must be a dict, not {type(param_group).__name__}")
        given = param_group["params"]
        members = [given] if isinstance(given, Tensor) else list(given)
        if members and isinstance(members[0], tuple):
            param_group = {**param_group, "param_names": [name for name, _ in members]}
            members = [p for _, p in members]
        group = {**param_group, "params": members}
        for name, value in self.defaults.items():
            group.setdefault(name, value)
        for p in members:
            if not isinstance(p, Tensor):
                raise TypeError(f"optimizers take tensors, not {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError("can't optimize a tensor that is not a leaf: it is the result of an operation")
        taken = [p for other in self.param_groups for p in other["params"]] + members
        if len(set(map(id, taken))) != len(taken):
            raise ValueError("a parameter appears twice in the param groups")
        self._check(group)
        self.param_groups.append(group)

    def _check_not_recorded(self, what: str) -> None:
        if watchers and (found := watcher()):
            found.refuse(f"{type(self).__name__} {what} while a function is recorded")

    def _check(self, group: dict[str, Any]) -> None:
        for name, (low, high) in _RANGES.items():
            if name in group and not low <= float(group[name]) <= high:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be between {low:g} and {high:g}, got {group[name]}"
                )
        for i, beta in enumerate(group.get("betas", ())):
            if not 0 <= beta < 1:
                raise ValueError(f"{type(self).__name__}: betas[{i}] must be in [0, 1), got {beta}")

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """The kernel for a group, and the names of the state it reads, in its order."""
        raise NotImplementedError

    def first_state(self, p: Tensor, name: str, group: dict[str, Any]) -> Tensor:
        return wrap(ops.filled(p.shape, p.dtype, 0.0))

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """The group's part of the hyper buffer, as it stands now."""
        out = []
        for name in self.hyper:
            if name in ("beta1", "beta2"):
                out.append(float(group["betas"][name == "beta2"]))
            elif name in group:
                out.append(float(group[name]))
        return tuple(out)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient. closure: evaluates the loss again, and is what step returns."""
        if watchers and (found := watcher()):
            found.touches_optimizer(self)
        loss = None
        self._opt_called = True
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group in self.param_groups:
            members: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    members.setdefault(id(self._cohorts.get(p)), []).append(p)
            for active in members.values():
                self._step(group, active)
        return loss

    def _step(self, group: dict[str, Any], active: list[Tensor]) -> None:
        """One step of parameters of one cohort."""
        kernel, names = self.kernel(group)
        cohort = self._cohort(group, active)
        numbers = self.numbers(group)
        if numbers != cohort.given:
            cohort.hyper[: len(numbers)] = cohort.given = numbers
        if watchers and (found := watcher()):
            found.steps_optimizer(self, group, cohort, active)
        ops.run(self.tick, (cohort.hyper,))
        calls = []
        for p in active:
            state = self.state[p]
            for name in names:
                if name not in state:
                    with unrecorded():
                        state[name] = self.first_state(p, name, group)
            calls.append((p.array, *[state[name].array for name in names], p._grad.array, cohort.hyper))
            p.storage.version += 1
        run_all(kernel, calls)

    def _cohort(self, group: dict[str, Any], active: list[Tensor]) -> _Cohort:
        """The cohort of these; parameters that begin, or that go on without the others, found one of their own."""
        cohort = self._cohorts.get(active[0])
        if cohort is None:
            cohort = _Cohort(np.zeros(len(self.hyper)))
        elif cohort.size == len(active):
            return cohort
        else:
            cohort.size -= len(active)
            cohort = _Cohort(cohort.hyper.copy())
        self._join(cohort, active)
        return cohort

    def _join(self, cohort: _Cohort, members: list[Tensor]) -> None:
        steps = wrap(cohort.hyper[-1:].reshape(()))
        cohort.size += len(members)
        for p in members:
            self._cohorts[p] = cohort
            self.state[p]["step"] = steps

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop every gradient, or zero it in place."""
        for group in self.param_groups:
            for p in group["params"]:
                if watchers:
                    tell_grad(p, not set_to_none)
                if set_to_none:
                    p._grad = None
                elif p._grad is not None:
                    p._grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """{"state": by number of the parameter, "param_groups": with numbers for parameters}, as torch lays it out."""
        order = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        state = {
            order[p]: {k: (v.clone() if k == "step" else v) for k, v in s.items()} for p, s in self.state.items() if s
        }
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "params": [order[p] for p in group["params"]]}
            for group in self.param_groups
        ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state_dict of the same optimizer over parameters of the same shapes, in the same order.

        Raises ValueError where groups or shapes differ; nothing is changed then.
        """
        self._check_not_recorded("loads its state")
        groups = state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError(
                f"the state is of groups of {[len(g['params']) for g in groups]} parameters, "
                f"this optimizer has {[len(g['params']) for g in self.param_groups]}"
            )
        members = {
            number: p
            for saved, group in zip(groups, self.param_groups)
            for number, p in zip(saved["params"], group["params"])
        }
        loaded: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        for number, saved in state_dict["state"].items():
            p = members[number]
            for name, value in saved.items():
                if name == "step" or value is None:
                    continue
                array = (
                    np.asarray(value, p.dtype) if not isinstance(value, Tensor) else value.detach().to(p.dtype).array
                )
                if array.shape != p.shape:
                    raise ShapeError(
                        f"{name} of parameter {number} is {list(array.shape)}, the parameter {list(p.shape)}"
                    )
                loaded[p][name] = wrap(np.array(array))
        self.param_groups = [
            {**saved, "params": group["params"]}
            for saved, group in zip(groups, self.param_groups)
        ]
        self.state, self._cohorts = loaded, {}
        for group in self.param_groups:
            alike: dict[float, list[Tensor]] = {}
            for number, p in members.items():
                if any(p is q for q in group["params"]) and number in state_dict["state"]:
                    alike.setdefault(float(state_dict["state"][number].get("step", 1)), []).append(p)
            for steps, together in alike.items():
                cohort = _Cohort(np.zeros(len(self.hyper)))
                cohort.hyper[-1] = steps
                self._join(cohort, together)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines += [f"Parameter Group {i}"] + [f"    {k}: {v}" for k, v in sorted(group.items()) if k != "params"]
        return "\n".join(lines) + "\n)"


class SGD(Optimizer):
    """Gradient descent: v = momentum v + (1 - dampening) g, p -= lr v; Nesterov: p -= lr (g + momentum v)."""

    hyper = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "step")

    def __init__(self, params: Any, lr: float = 0.001, momentum: float = 0, dampening: float = 0,
                 weight_decay: float = 0, nesterov: bool = False, *, maximize: bool = False,
                 foreach: bool | None = None, differentiable: bool = False, fused: bool | None = None) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return ("momentum", ("momentum_buffer",)) if group["momentum"] else ("sgd", ())


class Adagrad(Optimizer):
    """s += g^2, p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps) (Duchi et al. 2011)."""

    hyper = ("lr", "lr_decay", "weight_decay", "eps", "maximize", "rate", "step")
    tick = "adagrad_tick"

    def __init__(self, params: Any, lr: float = 0.01, lr_decay: float = 0, weight_decay: float = 0,
                 initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
                 maximize: bool = False, differentiable: bool = False, fused: bool | None = None) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adagrad", ("sum",)

    def first_state(self, p: Tensor, name: str, group: dict[str, Any]) -> Tensor:
        return wrap(ops.filled(p.shape, p.dtype, float(group["initial_accumulator_value"])))


class RMSprop(Optimizer):
    """s = alpha s + (1 - alpha) g^2, p -= lr g / (sqrt(s) + eps); centered: s less the squared mean of g (Hinton 2012)."""

    hyper = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize", "step")

    def __init__(self, params: Any, lr: float = 0.01, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
                 momentum: float = 0, centered: bool = False, capturable: bool = False, foreach: bool | None = None,
                 maximize: bool = False, differentiable: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        if group["momentum"] or group["centered"]:
            return "rmsprop_full", ("square_avg", "grad_avg", "momentum_buffer")
        return "rmsprop", ("square_avg",)


class Adadelta(Optimizer):
    """s = rho s + (1 - rho) g^2, d = sqrt(u + eps) / sqrt(s + eps) g, u = rho u + (1 - rho) d^2, p -= lr d (Zeiler 2012)."""

    hyper = ("lr", "rho", "eps", "weight_decay", "maximize", "step")

    def __init__(self, params: Any, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0,
                 foreach: bool | None = None, *, capturable: bool = False, maximize: bool = False,
                 differentiable: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adadelta", ("square_avg", "acc_delta")


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= lr m^ / (sqrt(v^) + eps), m^ and v^ without the bias towards 0
    (Kingma and Ba 2015); amsgrad: the largest v so far (Reddi et al. 2018)."""

    hyper = (
        "lr",
        "beta1",
        "beta2",
        "eps",
        "weight_decay",
        "decoupled_weight_decay",
        "maximize",
        "rate",
        "root",
        "step",
    )
    tick = "adam_tick"

    def __init__(self, params: Any, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False,
                 capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
                 decoupled_weight_decay: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        if group["amsgrad"]:
            return "amsgrad", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return "adam", ("exp_avg", "exp_avg_sq")


class AdamW(Adam):
    """Adam with weight decay applied to the parameter, not to the gradient (Loshchilov and Hutter 2019)."""

    def __init__(self, params: Any, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01, amsgrad: bool = False, *, maximize: bool = False,
                 foreach: bool | None = None, capturable: bool = False, differentiable: bool = False,
                 fused: bool | None = None) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )


OPTIMIZERS = {c.__name__.lower(): c for c in (SGD, Adagrad, RMSprop, Adadelta, Adam, AdamW)}
