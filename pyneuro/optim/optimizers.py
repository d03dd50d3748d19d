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
from ..graph import enable_grad, no_grad, tell_grad
from ..kernels import ShapeError, run_all, unrecorded, watcher, watchers
from ..tensor import Tensor, wrap

# What a number must satisfy; checked for every group.
_NOT_NEGATIVE = ("lr", "eps", "weight_decay", "momentum", "alpha", "lr_decay", "initial_accumulator_value", "momentum_decay")
_RANGES = {**dict.fromkeys(_NOT_NEGATIVE, (0.0, math.inf)), "rho": (0.0, 1.0), "beta2_decay": (-math.inf, 0.0),
           "d": (1.0, math.inf)}

# Names of the hyper buffer that are parts of a group's tuples.
_PARTS = {"beta1": ("betas", 0), "beta2": ("betas", 1), "eta_minus": ("etas", 0), "eta_plus": ("etas", 1),
          "step_min": ("step_sizes", 0), "step_max": ("step_sizes", 1), "eps2": ("eps", 1)}


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
    shared: tuple[str, ...] = ("step",)  # of these, what is a parameter's state
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
        named = {isinstance(p, tuple) for p in members}
        if len(named) > 1:
            raise ValueError("either all parameters of an optimizer have names or none")
        if True in named:
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
        if any(("param_names" in other) != ("param_names" in group) for other in self.param_groups):
            raise ValueError("either all param groups of an optimizer have names or none")
        self._check(group)
        self.param_groups.append(group)

    def _check_not_recorded(self, what: str) -> None:
        if watchers and (found := watcher()):
            found.refuse(f"{type(self).__name__} {what} while a function is recorded")

    def _check(self, group: dict[str, Any]) -> None:
        for name, (low, high) in _RANGES.items():
            if isinstance(group.get(name), Tensor) and group[name].numel() != 1:
                raise ValueError(f"{type(self).__name__}: {name} as a tensor must have one element")
            if name in group and isinstance(group[name], (int, float, Tensor)) and not low <= float(group[name]) <= high:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be between {low:g} and {high:g}, got {group[name]}"
                )
        if len({isinstance(beta, Tensor) for beta in group.get("betas", ())}) > 1:
            raise ValueError(f"{type(self).__name__}: betas must be two numbers or two tensors")
        for i, beta in enumerate(group.get("betas", ())):
            if not 0 <= beta < 1:
                raise ValueError(f"{type(self).__name__}: betas[{i}] must be in [0, 1), got {beta}")

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """The kernel for a group, and the names of the state it reads, in its order."""
        raise NotImplementedError

    def state_shape(self, p: Tensor, name: str) -> tuple[int, ...]:
        return p.shape

    def first_state(self, p: Tensor, name: str, group: dict[str, Any]) -> Tensor:
        return wrap(ops.filled(self.state_shape(p, name), p.dtype, 0.0))

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """The group's part of the hyper buffer, as it stands now."""
        out = []
        for name in self.hyper:
            if name in _PARTS:
                key, i = _PARTS[name]
                out.append(float(group[key][i]))
            elif name in group:
                out.append(float(group[name]))
        return tuple(out)

    def beginning(self, group: dict[str, Any]) -> dict[str, float]:
        """What the buffer's own numbers are before the first step, if not 0."""
        return {}

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
                    cohort = self._cohorts.get(p)
                    if cohort is not None and p not in self.state:         # whose state was taken away begins anew
                        cohort.size -= 1
                        del self._cohorts[p]
                        cohort = None
                    members.setdefault(id(cohort), []).append(p)
            for active in members.values():
                self._step(group, active)
        return loss

    def _step(self, group: dict[str, Any], active: list[Tensor]) -> None:
        """One step of parameters of one cohort."""
        kernel, names = self.kernel(group)
        cohort = self._counted(group, active)
        calls = []
        for p in active:
            state = self._state_of(p, names, group)
            calls.append((p.array, *[state[name].array for name in names], p._grad.array, cohort.hyper))
            p.storage.version += 1
        run_all(kernel, calls)

    def _counted(self, group: dict[str, Any], active: list[Tensor]) -> _Cohort:
        """The cohort of these, with the group's numbers as they are now, one step further."""
        cohort = self._cohort(group, active)
        numbers = self.numbers(group)
        if numbers != cohort.given:
            cohort.hyper[: len(numbers)] = cohort.given = numbers
        if watchers and (found := watcher()):
            found.steps_optimizer(self, group, cohort, active)
        ops.run(self.tick, (cohort.hyper,))
        return cohort

    def _state_of(self, p: Tensor, names: tuple[str, ...], group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[p]
        for name in names:
            if name not in state:
                with unrecorded():
                    state[name] = self.first_state(p, name, group)
        return state

    def _cohort(self, group: dict[str, Any], active: list[Tensor]) -> _Cohort:
        """The cohort of these; parameters that begin, or that go on without the others, found one of their own."""
        cohort = self._cohorts.get(active[0])
        if cohort is None:
            begin = self.beginning(group)
            cohort = _Cohort(np.array([begin.get(name, 0.0) for name in self.hyper]))
        elif cohort.size == len(active):
            return cohort
        else:
            cohort.size -= len(active)
            cohort = _Cohort(cohort.hyper.copy())
        self._join(cohort, active)
        return cohort

    def _join(self, cohort: _Cohort, members: list[Tensor]) -> None:
        at = {name: self.hyper.index(name) for name in self.shared}
        shared = {name: wrap(cohort.hyper[i : i + 1].reshape(())) for name, i in at.items()}
        cohort.size += len(members)
        for p in members:
            self._cohorts[p] = cohort
            self.state[p].update(shared)

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
            order[p]: {k: (v.clone() if k in self.shared else v) for k, v in s.items()}
            for p, s in self.state.items()
            if s
        }
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "params": [order[p] for p in group["params"]]}
            for group in self.param_groups
        ]
        return {"state": state, "param_groups": groups}

    def _loadable(self, state_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """The groups of a state_dict, which are as many and as large as this optimizer's."""
        self._check_not_recorded("loads its state")
        groups = state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError(
                f"the state is of groups of {[len(g['params']) for g in groups]} parameters, "
                f"this optimizer has {[len(g['params']) for g in self.param_groups]}"
            )
        return groups

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state_dict of the same optimizer over parameters of the same shapes, in the same order.

        Raises ValueError where groups or shapes differ; nothing is changed then.
        """
        groups = self._loadable(state_dict)
        members = {
            number: p
            for saved, group in zip(groups, self.param_groups)
            for number, p in zip(saved["params"], group["params"])
        }
        loaded: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        for number, saved in state_dict["state"].items():
            p = members[number]
            for name, value in saved.items():
                if name in self.shared or name == "step" or value is None:
                    continue
                array = (
                    np.asarray(value, p.dtype) if not isinstance(value, Tensor) else value.detach().to(p.dtype).array
                )
                if array.shape != self.state_shape(p, name):
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
            own = set(group["params"])
            begin = {**self.beginning(group), "step": 1.0}
            alike: dict[tuple[float, ...], list[Tensor]] = {}
            for number, p in members.items():
                if p in own and number in state_dict["state"]:
                    saved = state_dict["state"][number]
                    key = tuple(float(saved.get(name, begin.get(name, 0.0))) for name in self.shared)
                    alike.setdefault(key, []).append(p)
            for values, together in alike.items():
                known = begin | dict(zip(self.shared, values))
                self._join(_Cohort(np.array([known.get(name, 0.0) for name in self.hyper])), together)

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


class Adamax(Optimizer):
    """m = b1 m + (1 - b1) g, u = max(b2 u, |g| + eps), p -= lr / (1 - b1^t) m / u (Kingma and Ba 2015)."""

    hyper = ("lr", "beta1", "beta2", "eps", "weight_decay", "maximize", "step")

    def __init__(self, params: Any, lr: float = 0.002, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0, foreach: bool | None = None, *, maximize: bool = False,
                 differentiable: bool = False, capturable: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adamax", ("exp_avg", "exp_inf")


class NAdam(Optimizer):
    """Adam with Nesterov's momentum, on a schedule of its own that momentum_decay gives (Dozat 2016)."""

    hyper = ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay", "maximize", "mu",
             "mu_next", "mu_product", "step")
    shared = ("mu_product", "step")
    tick = "nadam_tick"

    def __init__(self, params: Any, lr: float = 0.002, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0, momentum_decay: float = 0.004, decoupled_weight_decay: bool = False, *,
                 foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
                 differentiable: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "nadam", ("exp_avg", "exp_avg_sq")

    def beginning(self, group: dict[str, Any]) -> dict[str, float]:
        return {"mu_product": 1.0}


class RAdam(Optimizer):
    """Adam with its first steps, whose variance cannot be told yet, made shorter (Liu et al. 2020)."""

    hyper = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled_weight_decay", "maximize", "step")

    def __init__(self, params: Any, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0, decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
                 maximize: bool = False, capturable: bool = False, differentiable: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "radam", ("exp_avg", "exp_avg_sq")


class Rprop(Optimizer):
    """Steps by the sign of g alone, of a size for each number that grows while the sign stays (Riedmiller and Braun 1993).

    lr is where the sizes begin; a change of it later changes nothing.
    """

    hyper = ("lr", "eta_minus", "eta_plus", "step_min", "step_max", "maximize", "step")

    def __init__(self, params: Any, lr: float = 0.01, etas: tuple[float, float] = (0.5, 1.2),
                 step_sizes: tuple[float, float] = (1e-6, 50), *, capturable: bool = False, foreach: bool | None = None,
                 maximize: bool = False, differentiable: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        minus, plus = group["etas"]
        if not 0 < minus < 1 < plus:
            raise ValueError(f"Rprop: etas must be a number in (0, 1) and one above 1, got {group['etas']}")

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "rprop", ("prev", "step_size")

    def first_state(self, p: Tensor, name: str, group: dict[str, Any]) -> Tensor:
        return wrap(ops.filled(p.shape, p.dtype, float(group["lr"]) if name == "step_size" else 0.0))


class ASGD(Optimizer):
    """p = (1 - lambd eta) p - eta g, eta = lr / (1 + lambd lr t)^alpha; state "ax" is the mean of p from step t0 on
    (Polyak and Juditsky 1992). eta is made from lr at the step before, so a change of it is felt a step later."""

    hyper = ("lr", "lambd", "alpha", "t0", "weight_decay", "maximize", "now", "share", "eta", "mu", "step")
    shared = ("eta", "mu", "step")
    tick = "asgd_tick"

    def __init__(self, params: Any, lr: float = 0.01, lambd: float = 0.0001, alpha: float = 0.75, t0: float = 1000000.0,
                 weight_decay: float = 0, foreach: bool | None = None, maximize: bool = False,
                 differentiable: bool = False, capturable: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "asgd", ("ax",)

    def beginning(self, group: dict[str, Any]) -> dict[str, float]:
        return {"eta": float(group["lr"]), "mu": 1.0}


class Lion(Optimizer):
    """p -= lr sign(b1 m + (1 - b1) g), m = b2 m + (1 - b2) g, with decoupled weight decay (Chen et al. 2023)."""

    hyper = ("lr", "beta1", "beta2", "weight_decay", "maximize", "step")

    def __init__(self, params: Any, lr: float = 0.0001, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0,
                 *, maximize: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "lion", ("exp_avg",)


class AdaBelief(Optimizer):
    """Adam whose second moment is of g - m, what the mean did not foresee (Zhuang et al. 2020)."""

    hyper = Adam.hyper
    tick = "adam_tick"

    def __init__(self, params: Any, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16,
                 weight_decay: float = 0, decoupled_weight_decay: bool = True, *, maximize: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adabelief", ("exp_avg", "exp_avg_var")


class Yogi(Optimizer):
    """Adam whose second moment grows by (1 - b2) g^2 at most, and shrinks no faster (Zaheer et al. 2018)."""

    hyper = Adam.hyper
    tick = "adam_tick"

    def __init__(self, params: Any, lr: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), eps: float = 0.001,
                 weight_decay: float = 0, initial_accumulator_value: float = 1e-6, decoupled_weight_decay: bool = False,
                 *, maximize: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "yogi", ("exp_avg", "exp_avg_sq")

    def first_state(self, p: Tensor, name: str, group: dict[str, Any]) -> Tensor:
        begin = group["initial_accumulator_value"] if name == "exp_avg_sq" else 0.0
        return wrap(ops.filled(p.shape, p.dtype, float(begin)))


class AdamWScheduleFree(Optimizer):
    """AdamW without a schedule: gradients are taken between z, which steps, and x, the mean of all z (Defazio et al. 2024).

    train() before training and eval() before evaluating put parameters where gradients are taken and at x; step() outside
    of train() raises RuntimeError. It begins in train().
    """

    hyper = ("lr", "beta1", "beta2", "eps", "weight_decay", "r", "weight_lr_power", "warmup_steps", "maximize", "rate", "pull",
             "lr_max", "weight_sum", "step")
    shared = ("lr_max", "weight_sum", "step")
    tick = "schedulefree_tick"

    def __init__(self, params: Any, lr: float = 0.0025, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0, warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0, *,
                 maximize: bool = False) -> None:
        super().__init__(params, {**_numbers(locals()), "train_mode": True})

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "schedulefree", ("z", "exp_avg_sq")

    def first_state(self, p: Tensor, name: str, group: dict[str, Any]) -> Tensor:
        return p.detach().clone() if name == "z" else super().first_state(p, name, group)

    def _step(self, group: dict[str, Any], active: list[Tensor]) -> None:
        if not group["train_mode"]:
            raise RuntimeError("AdamWScheduleFree steps in train mode: call its train() after eval()")
        super()._step(group, active)

    @no_grad
    def train(self) -> None:
        """Parameters at the point where gradients are taken."""
        self._move(True, lambda beta1: 1 - beta1)

    @no_grad
    def eval(self) -> None:
        """Parameters at the mean, which is the result."""
        self._move(False, lambda beta1: 1 - 1 / beta1)

    def _move(self, train: bool, share: Callable[[float], float]) -> None:
        for group in self.param_groups:
            if group["train_mode"] is train:
                continue
            group["train_mode"] = train
            for p in group["params"]:
                if "z" in self.state.get(p, {}):
                    p.add_((self.state[p]["z"] - p) * share(float(group["betas"][0])))


class _Composed(Optimizer):
    """An optimizer that looks at a parameter as a whole: made of tensor operations, on numbers that stay in the buffer."""

    def move(self, p: Any, g: Any, state: dict[str, Any], h: dict[str, Any], group: dict[str, Any], hyper: Any) -> None:
        """Change p and state in place. g: the gradient to descend; h: the buffer's numbers as tensors."""
        raise NotImplementedError

    def _step(self, group: dict[str, Any], active: list[Tensor]) -> None:
        cohort = self._counted(group, active)
        names = self.kernel(group)[1]
        with no_grad():
            h = {name: wrap(cohort.hyper[i : i + 1].reshape(())) for i, name in enumerate(self.hyper)}
            for p in active:
                state = self._state_of(p, self.state_names(p, names), group)
                self.move(p.detach(), p._grad.detach(), state, h, group, cohort.hyper)

    def state_names(self, p: Tensor, names: tuple[str, ...]) -> tuple[str, ...]:
        return names


def _norm(x: Any) -> Any:
    return (x * x).sum().sqrt()


class LAMB(_Composed):
    """Adam's direction u with weight decay, as long as lr |p|, or lr |u| where p or u is 0 (You et al. 2020)."""

    hyper = ("lr", "beta1", "beta2", "eps", "weight_decay", "maximize", "step")

    def __init__(self, params: Any, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
                 weight_decay: float = 0, *, maximize: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "lamb", ("exp_avg", "exp_avg_sq")

    def move(self, p: Any, g: Any, state: dict[str, Any], h: dict[str, Any], group: dict[str, Any], hyper: Any) -> None:
        u = wrap(ops.empty(p.shape, p.dtype))
        ops.run("lamb", (u.array, state["exp_avg"].array, state["exp_avg_sq"].array, p.array, g.array, hyper))
        long, wide = _norm(p), _norm(u)
        moves = (long > 0) & (wide > 0)
        p.sub_(u * (h["lr"].to(p.dtype) * (long / wide).where(moves, long.new_constant(1.0))))


class Adafactor(_Composed):
    """Adam whose second moment of a matrix is held as the means of its rows and columns, whose steps are relative to the size
    of p, and whose updates of a root mean square above d are scaled down to it (Shazeer and Stern 2018)."""

    hyper = ("lr", "beta2_decay", "eps2", "d", "weight_decay", "maximize", "share", "rate", "step")
    tick = "adafactor_tick"

    def __init__(self, params: Any, lr: float = 0.01, beta2_decay: float = -0.8, eps: tuple[float | None, float] = (None, 0.001),
                 d: float = 1.0, weight_decay: float = 0.0, *, foreach: bool | None = None, maximize: bool = False) -> None:
        super().__init__(params, _numbers(locals()))

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        for i, eps in enumerate(group["eps"]):
            if eps is not None and eps < 0:
                raise ValueError(f"Adafactor: eps[{i}] must not be negative, got {eps}")

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "", ()

    def state_names(self, p: Tensor, names: tuple[str, ...]) -> tuple[str, ...]:
        return ("row_var", "col_var") if p.ndim > 1 else ("variance",)

    def state_shape(self, p: Tensor, name: str) -> tuple[int, ...]:
        if name == "row_var":
            return (*p.shape[:-1], 1)
        return (*p.shape[:-2], 1, p.shape[-1]) if name == "col_var" else p.shape

    def move(self, p: Any, g: Any, state: dict[str, Any], h: dict[str, Any], group: dict[str, Any], hyper: Any) -> None:
        eps = group["eps"][0]
        eps = float(np.finfo(p.dtype).eps) if eps is None else float(eps)
        g = g * (1 - 2 * h["maximize"])
        size = p.numel() ** 0.5
        alpha = (_norm(p) / size).maximum(h["eps2"].to(p.dtype)) * h["rate"].to(p.dtype)
        p.mul_(1 - h["lr"] * h["weight_decay"])
        squared = g * g
        if p.ndim > 1:
            row, column = state["row_var"], state["col_var"]
            row.add_((squared.mean(-1, keepdim=True) - row) * h["share"])
            column.add_((squared.mean(-2, keepdim=True) - column) * h["share"])
            estimate = row @ column / row.mean(-2, keepdim=True).clamp(min=eps)
        else:
            estimate = state["variance"]
            estimate.add_((squared - estimate) * h["share"])
        update = g / estimate.clamp(min=eps * eps).sqrt()
        p.sub_(update * (alpha / (_norm(update) / (size * h["d"].to(p.dtype))).clamp(min=1.0)))


class Muon(_Composed):
    """Momentum whose matrix is made nearly orthogonal by Newton and Schulz's iteration (Jordan 2024), for matrices only.

    The iteration runs in the parameter's own type, torch's in bfloat16. adjust_lr_fn: "original" (None) scales lr by
    sqrt(max(1, rows / columns)), "match_rms_adamw" by 0.2 sqrt(max(rows, columns)).
    """

    hyper = ("lr", "weight_decay", "momentum", "step")
    shared = ()

    def __init__(self, params: Any, lr: float = 0.001, weight_decay: float = 0.1, momentum: float = 0.95,
                 nesterov: bool = True, ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
                 eps: float = 1e-7, ns_steps: int = 5, adjust_lr_fn: str | None = None) -> None:
        super().__init__(params, _numbers(locals()))

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"Muon: adjust_lr_fn must be 'original' or 'match_rms_adamw', got {group['adjust_lr_fn']!r}")
        if len(group["ns_coefficients"]) != 3:
            raise ValueError(f"Muon: ns_coefficients must be 3 numbers, got {group['ns_coefficients']}")
        if group["ns_steps"] >= 100:
            raise ValueError(f"Muon: ns_steps must be less than 100, got {group['ns_steps']}")
        for p in group["params"]:
            if p.ndim != 2:
                raise ValueError(f"Muon takes matrices, got a parameter of shape {list(p.shape)}")

    def kernel(self, group: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "", ("momentum_buffer",)

    def move(self, p: Any, g: Any, state: dict[str, Any], h: dict[str, Any], group: dict[str, Any], hyper: Any) -> None:
        mean = state["momentum_buffer"]
        mean.add_((g - mean) * (1 - h["momentum"]))
        x = g + (mean - g) * h["momentum"] if group["nesterov"] else mean
        rows, columns = p.shape
        high = rows > columns
        x = x.t() if high else x
        x = x / _norm(x).clamp(min=float(group["eps"]))
        a, b, c = map(float, group["ns_coefficients"])
        for _ in range(group["ns_steps"]):
            gram = x @ x.t()
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        x = x.t() if high else x
        scale = 0.2 * max(rows, columns) ** 0.5 if group["adjust_lr_fn"] == "match_rms_adamw" else max(1, rows / columns) ** 0.5
        p.mul_(1 - h["lr"] * h["weight_decay"])
        p.sub_(x * (h["lr"] * scale))


# For parameters of any shape, by the names that commands know them by.
OPTIMIZERS = {c.__name__.lower(): c for c in (
    SGD, Adagrad, RMSprop, Adadelta, Adam, AdamW, Adamax, NAdam, RAdam, Rprop, ASGD, Adafactor, Lion, LAMB, AdaBelief, Yogi,
    AdamWScheduleFree)}
