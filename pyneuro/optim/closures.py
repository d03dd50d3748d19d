# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers that evaluate the loss as often as they like: step(closure). All parameters are one vector x to them.

They decide by values, so that a step is not recorded by pn.compile; the closure may be a compiled function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..autograd.functional import jacobian_of
from ..graph import enable_grad, no_grad
from ..graph import whole as has_graph
from ..kernels import ShapeError, watcher, watchers
from ..tensor import Tensor, cat, wrap
from .optimizers import Optimizer, _numbers

__all__ = ["LBFGS", "GradientDescent", "LevenbergMarquardt"]


class _Vector(Optimizer):
    """Base: one group, whose parameters are one vector; the state is the first parameter's, as torch keeps it."""

    shared = ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:
            raise ValueError(f"{type(self).__name__} has one param group: it takes all parameters as one vector")
        super().add_param_group(param_group)

    @property
    def _params(self) -> list[Tensor]:
        return self.param_groups[0]["params"]

    def _begin(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The group and the state, at the beginning of a step."""
        if watchers and (found := watcher()):
            found.refuse(f"{type(self).__name__}.step() decides by values", "decide anew: compile its closure alone")
        self._opt_called = True
        state = self.state[self._params[0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        return self.param_groups[0], state

    def _evaluated(self, closure: Callable[[], Any]) -> tuple[Any, float, Tensor]:
        """What the closure returns, that as a number, and the gradient that it left, in memory of its own."""
        with enable_grad():
            loss = closure()
        parts = [p._full((p.numel(),), 0.0) if p.grad is None else p.grad.detach().reshape(-1) for p in self._params]
        return loss, float(loss), cat(parts) if len(parts) > 1 else parts[0].clone()

    def _move(self, t: float, d: Tensor) -> None:
        """x += t d"""
        at = 0
        for p in self._params:
            p.add_(d[at : at + p.numel()].reshape(p.shape), alpha=t)
            at += p.numel()

    def _restore(self, x: list[Tensor]) -> None:
        for p, before in zip(self._params, x):
            p.copy_(before)

    def _along(self, closure: Callable[[], Any], d: Tensor) -> Callable[[float], "_Point"]:
        """The loss as a function of t at x + t d; x stays, also where the closure fails."""
        x = [p.clone() for p in self._params]

        def at(t: float) -> _Point:
            try:
                self._move(t, d)
                _, f, g = self._evaluated(closure)
            finally:
                self._restore(x)
            return _Point(t, f, g, _dot(g, d))

        return at

    def state_dict(self) -> dict[str, Any]:
        found = super().state_dict()
        found["state"] = {i: {k: list(v) if isinstance(v, list) else v for k, v in s.items()}
                          for i, s in found["state"].items()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state_dict over parameters of as many numbers. Raises ValueError where that is not so; nothing is
        changed then."""
        groups = self._loadable(state_dict)
        first = self._params[0]
        size = sum(p.numel() for p in self._params)

        def loaded(name: str, value: Any) -> Any:
            if value is None or isinstance(value, (int, float)):
                return value
            if isinstance(value, list):
                return [loaded(name, v) for v in value]
            array = value.detach().to(first.dtype).array if isinstance(value, Tensor) else np.asarray(value, first.dtype)
            if array.ndim == 0:
                return float(array)
            if array.shape != (size,):
                raise ShapeError(f"{name} is {list(array.shape)}, the parameters together [{size}]")
            return wrap(np.array(array))

        saved = {name: loaded(name, value) for s in state_dict["state"].values() for name, value in s.items()}
        self.param_groups = [{**groups[0], "params": self._params}]
        self.state.clear()
        if saved:
            self.state[first] = saved


def _check_max_eval(optimizer: Optimizer, group: dict[str, Any]) -> None:
    if not isinstance(group["max_eval"], int) or group["max_eval"] < 1:
        raise ValueError(f"{type(optimizer).__name__}: max_eval must be a positive integer, got {group['max_eval']!r}")


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a @ b)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


# --------------------------------------------------------------------------------------------------------- line search


class _Point(NamedTuple):
    """On a line: how far along it, the loss, its gradient, and its slope along the line."""

    t: float
    f: float
    g: Tensor
    slope: float


def _cubic_minimum(a: _Point, b: _Point, low: float, high: float) -> float:
    """Where the cubic through two values and slopes is least, within bounds; their middle where it has no minimum."""
    with np.errstate(all="ignore"):
        d1 = a.slope + b.slope - 3 * np.divide(a.f - b.f, a.t - b.t)
        square = d1 * d1 - a.slope * b.slope
        if not square >= 0:
            return (low + high) / 2
        if a.t > b.t:
            a, b = b, a
        d2 = np.sqrt(square)
        t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    return float(min(max(t, low), high))


def _strong_wolfe(at: Callable[[float], _Point], start: _Point, t: float, longest: float, c1: float, c2: float,
                  tolerance_change: float, max_eval: int) -> tuple[_Point, int]:
    """A point with f <= f0 + c1 t slope0 and |slope| <= c2 |slope0|, and how often f was evaluated; the best point found if
    there is none within max_eval evaluations, or the interval times `longest`, the largest |d|, falls below tolerance_change.

    Bracketing and zoom of Nocedal and Wright 2006, algorithms 3.5 and 3.6, with the safeguards of minFunc (Schmidt 2005).
    """
    def rises(p: _Point) -> bool:
        return p.f > start.f + c1 * p.t * start.slope

    def flat(p: _Point) -> bool:
        return abs(p.slope) <= -c2 * start.slope

    before, new, done = start, at(t), 0
    while done < max_eval:
        if rises(new) or (done > 1 and new.f >= before.f):
            break
        if flat(new):
            return new, done + 1
        if new.slope >= 0:
            break
        t = _cubic_minimum(before, new, new.t + 0.01 * (new.t - before.t), new.t * 10)
        before, new, done = new, at(t), done + 1
    ends = [start if done >= max_eval else before, new]

    low = 0 if ends[0].f <= ends[1].f else 1
    stuck = False
    while done < max_eval:
        left, right = sorted(p.t for p in ends)
        if (right - left) * longest < tolerance_change:
            break
        t = _cubic_minimum(ends[0], ends[1], left, right)
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:            # near an end twice, or on it: a tenth away from it
            if stuck or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                stuck = False
            else:
                stuck = True
        else:
            stuck = False
        new, done = at(t), done + 1
        if rises(new) or new.f >= ends[low].f:
            ends[1 - low] = new
            low = 0 if ends[0].f <= ends[1].f else 1
            continue
        if flat(new):
            return new, done + 1
        if new.slope * (ends[1 - low].t - ends[low].t) >= 0:
            ends[1 - low] = ends[low]
        ends[low] = new
    return ends[low], done + 1


# ---------------------------------------------------------------------------------------------------------- optimizers


class LBFGS(_Vector):
    """Newton's method with an inverse Hessian told from the last history_size changes of x and of the gradient (Nocedal 1980).

    step(closure): closure clears the gradients, computes the loss, calls backward() and returns the loss; called up to
    max_eval times (None: 1.25 max_iter) in max_iter iterations. A step ends early where no |gradient| is above
    tolerance_grad, or x or the loss change by less than tolerance_change. line_search_fn: None moves by lr, 'strong_wolfe'
    begins there. Returns the loss before the step. Under pn.compile the closure is compiled, not the step.
    """

    def __init__(self, params: Any, lr: float = 1, max_iter: int = 20, max_eval: int | None = None,
                 tolerance_grad: float = 1e-07, tolerance_change: float = 1e-09, history_size: int = 100,
                 line_search_fn: str | None = None) -> None:
        if max_eval is None:
            max_eval = max_iter * 5 // 4
        super().__init__(params, _numbers(locals()))

    @no_grad
    def step(self, closure: Callable[[], Any]) -> Any:
        group, state = self._begin()
        lr, max_iter, max_eval = float(group["lr"]), group["max_iter"], group["max_eval"]
        tolerance_grad, tolerance_change, search = group["tolerance_grad"], group["tolerance_change"], group["line_search_fn"]
        if search not in (None, "strong_wolfe"):
            raise RuntimeError(f"LBFGS: line_search_fn must be None or 'strong_wolfe', got {search!r}")
        first, f, g = self._evaluated(closure)
        evals = 1
        state["func_evals"] += 1
        if _largest(g) <= tolerance_grad:
            return first
        for i in range(max_iter):
            state["n_iter"] += 1
            d = self._direction(state, g, group["history_size"])
            fresh = state["n_iter"] == 1
            t = min(1.0, 1.0 / float(g.abs().sum())) * lr if fresh else lr
            before = f
            state.update(d=d, t=t, prev_flat_grad=g, prev_loss=f)
            slope = _dot(g, d)
            if slope > -tolerance_change:
                break
            if search is not None:
                point, asked = _strong_wolfe(self._along(closure, d), _Point(0.0, f, g, slope), t, _largest(d), 1e-4, 0.9,
                                             tolerance_change=1e-9, max_eval=max_eval - evals)
                t, f, g = point.t, point.f, point.g
                state["t"] = t
            self._move(t, d)
            if search is None:
                if i + 1 == max_iter:            # with batches that change there is no use for the loss now
                    break
                _, f, g = self._evaluated(closure)
                asked = 1
            evals += asked
            state["func_evals"] += asked
            if (evals >= max_eval or _largest(g) <= tolerance_grad or _largest(d) * abs(t) <= tolerance_change
                    or abs(f - before) < tolerance_change):
                break
        return first

    def _direction(self, state: dict[str, Any], g: Tensor, history_size: int) -> Tensor:
        """-H g by the two loops over the history."""
        if state["n_iter"] == 1:
            state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1)
            return -g
        ys, ss, ro = state["old_dirs"], state["old_stps"], state["ro"]      # torch's names of changes of g, changes of x
        y, s = g - state["prev_flat_grad"], state["d"] * state["t"]
        curvature = _dot(y, s)
        if curvature > 1e-10:
            if len(ys) == history_size:
                del ys[0], ss[0], ro[0]
            ys.append(y)
            ss.append(s)
            ro.append(1.0 / curvature)
            state["H_diag"] = curvature / _dot(y, y)
        q, alpha = -g, [0.0] * len(ys)
        for i in reversed(range(len(ys))):
            alpha[i] = _dot(ss[i], q) * ro[i]
            q.add_(ys[i], alpha=-alpha[i])
        d = q * state["H_diag"]
        for i in range(len(ys)):
            d.add_(ss[i], alpha=alpha[i] - _dot(ys[i], d) * ro[i])
        return d


class GradientDescent(_Vector):
    """x -= t g, with a length t for each step that line_search_fn finds; None: t = lr.

    'armijo': the last t lengthened by 1 / backtrack, then times backtrack until f <= f0 - c1 t |g|^2 (Armijo 1966).
    'strong_wolfe': beside that |slope| <= c2 |slope0|, beginning at the last t (Nocedal and Wright 2006).
    'barzilai_borwein': t = s^T s / s^T y of the last changes s of x and y of g, without a search: the loss may rise in
    between, and falls to the minimum of a convex quadratic (Barzilai and Borwein 1988, Raydan 1993).

    lr is the first t; 'barzilai_borwein' takes lr min(1, 1 / |g|_1) where there is no curvature to go by. step(closure) as for
    LBFGS: one step, up to max_eval evaluations beside that at x; x stays where they find nothing, or no |gradient| is above
    tolerance_grad. Under pn.compile the closure is compiled, not the step.
    """

    SEARCHES = (None, "armijo", "strong_wolfe", "barzilai_borwein")

    def __init__(self, params: Any, lr: float = 1.0, line_search_fn: str | None = "armijo", *, c1: float = 1e-4, c2: float = 0.9,
                 backtrack: float = 0.5, max_eval: int = 25, tolerance_grad: float = 1e-07) -> None:
        super().__init__(params, _numbers(locals()))

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["line_search_fn"] not in self.SEARCHES:
            raise ValueError(f"GradientDescent: line_search_fn must be one of {self.SEARCHES}, got {group['line_search_fn']!r}")
        if not 0 < group["c1"] < group["c2"] < 1:
            raise ValueError(f"GradientDescent: it must be 0 < c1 < c2 < 1, got c1={group['c1']}, c2={group['c2']}")
        if not 0 < group["backtrack"] < 1:
            raise ValueError(f"GradientDescent: backtrack must be between 0 and 1, got {group['backtrack']}")
        _check_max_eval(self, group)

    @no_grad
    def step(self, closure: Callable[[], Any]) -> Any:
        group, state = self._begin()
        search, last = group["line_search_fn"], state.get("t", float(group["lr"]))
        loss, f, g = self._evaluated(closure)
        state["func_evals"] += 1
        if _largest(g) <= group["tolerance_grad"]:
            return loss
        state["n_iter"] += 1
        t, asked, d = float(group["lr"]), 0, -g
        start = _Point(0.0, f, g, -_dot(g, g))
        if search == "armijo":
            t, asked = self._armijo(self._along(closure, d), start, last / group["backtrack"] if "t" in state else last, group)
        elif search == "strong_wolfe":
            point, asked = _strong_wolfe(self._along(closure, d), start, last, _largest(d), group["c1"], group["c2"], 0.0,
                                         group["max_eval"] - 1)
            t = point.t
        elif search == "barzilai_borwein":
            t = self._curvature_step(state, g, last) or t * min(1.0, 1.0 / float(g.abs().sum()))
            state["prev_flat_grad"] = g
        state["func_evals"] += asked
        if t:
            self._move(t, d)
            state["t"] = t
        return loss

    @staticmethod
    def _armijo(at: Callable[[float], _Point], start: _Point, t: float, group: dict[str, Any]) -> tuple[float, int]:
        for i in range(group["max_eval"]):
            if at(t).f <= start.f + group["c1"] * t * start.slope:
                return t, i + 1
            t *= group["backtrack"]
        return 0.0, group["max_eval"]

    @staticmethod
    def _curvature_step(state: dict[str, Any], g: Tensor, last: float) -> float | None:
        before = state.get("prev_flat_grad")
        if before is None:
            return None
        curvature = _dot(before, before - g)            # s = -t before, y = g - before
        return last * _dot(before, before) / curvature if curvature > 0 else None


class LevenbergMarquardt(_Vector):
    """Least squares: of the residuals r(x) the least |r|^2 / 2, by steps d with (J^T J + mu D) d = -J^T r, J = dr/dx.

    step(closure): closure returns the residuals, a tensor of any shape with its graph, and neither squares them nor calls
    backward(): `lambda: model(x) - y`. A d that does not lower |r| is taken back and mu raised, up to max_eval times; after
    one that does mu is lowered, and the step is done. Returns |r|^2 / 2 before the step. x stays where no |J^T r| is above
    tolerance_grad, or |d| is below tolerance_change |x|.

    damping_fn 'nielsen': D = 1, mu begins at damping max(J^T J) and follows the gain, the decrease of |r|^2 over what the linear
    model promised: mu max(1/3, 1 - (2 gain - 1)^3), or mu nu, nu = 2, 4, 8... (Madsen, Nielsen and Tingleff 2004).
    'marquardt': D = diag(J^T J), mu begins at damping, and is divided or multiplied by 10 (Marquardt 1963).

    For small models: J has a row for each residual and J^T J for each parameter; it is solved in float64. Raises ValueError
    where residuals have no graph, TypeError where they are no tensor. A step is not recorded by pn.compile; its closure may be
    compiled, but J then takes a walk back for each residual, and without it often one for all.
    """

    def __init__(self, params: Any, damping: float = 0.001, damping_fn: str = "nielsen", *, max_eval: int = 20,
                 tolerance_grad: float = 1e-12, tolerance_change: float = 1e-14) -> None:
        super().__init__(params, _numbers(locals()))

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["damping_fn"] not in ("nielsen", "marquardt"):
            raise ValueError(f"LevenbergMarquardt: damping_fn must be 'nielsen' or 'marquardt', got {group['damping_fn']!r}")
        if not 0 < group["damping"] < np.inf:
            raise ValueError(f"LevenbergMarquardt: damping must be positive, got {group['damping']}")
        _check_max_eval(self, group)

    @no_grad
    def step(self, closure: Callable[[], Any]) -> Any:
        group, state = self._begin()
        residuals = self._residuals(closure)
        state["func_evals"] += 1
        r, x = residuals.detach().numpy().astype(np.float64).ravel(), self._values()
        loss = residuals.detach().square().sum() / 2
        J = self._jacobian(residuals)
        gradient, normal = J.T @ r, J.T @ J
        if not np.isfinite(gradient).all() or abs(gradient).max(initial=0.0) <= group["tolerance_grad"]:
            return loss
        state["n_iter"] += 1
        curvature = normal.diagonal()
        relative = group["damping_fn"] == "marquardt"
        scale = np.where(curvature > 0, curvature, 1.0) if relative else np.ones(len(x))
        mu = state.get("mu") or group["damping"] * (1.0 if relative else float(curvature.max()))
        nu = state.get("nu", 2.0)
        start = mu, nu
        kept = [p.clone() for p in self._params]
        for _ in range(group["max_eval"]):
            try:
                d = np.linalg.solve(normal + np.diag(mu * scale), -gradient)
            except np.linalg.LinAlgError:
                d = np.full(len(x), np.inf)
            if np.linalg.norm(d) <= group["tolerance_change"] * np.linalg.norm(x):
                mu, nu = start              # mu has grown because there is nowhere to go
                break
            try:
                self._move(1.0, wrap(d))
                after = closure().detach().numpy().astype(np.float64).ravel()
            except BaseException:
                self._restore(kept)
                raise
            state["func_evals"] += 1
            gain = (r - after) @ (r + after) / (d @ (mu * scale * d - gradient))
            if gain > 0:
                mu, nu = (mu / 10, 2.0) if relative else (mu * max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0)
                break
            self._restore(kept)
            mu, nu = (mu * 10, 2.0) if relative else (mu * nu, nu * 2)
        state.update(mu=float(mu), nu=float(nu))
        return loss

    def _values(self) -> np.ndarray:
        return np.concatenate([p.detach().numpy().astype(np.float64).ravel() for p in self._params])

    def _residuals(self, closure: Callable[[], Any]) -> Tensor:
        with enable_grad():
            found = closure()
        if not isinstance(found, Tensor):
            raise TypeError(f"the closure of LevenbergMarquardt returns the residuals as a tensor, not {type(found).__name__}")
        if not has_graph(found):
            raise ValueError("the closure of LevenbergMarquardt returns residuals with their graph: they must depend on a "
                             "parameter that requires grad, and the closure must not call backward()")
        return found

    def _jacobian(self, residuals: Tensor) -> np.ndarray:
        """A row for each residual, a column for each number of the parameters, 0 for those that need no gradient."""
        free = tuple(p for p in self._params if p.requires_grad)
        found = dict(zip(map(id, free), jacobian_of(residuals, free)))
        return np.concatenate([found[id(p)].numpy().reshape(residuals.numel(), -1) if id(p) in found
                               else np.zeros((residuals.numel(), p.numel())) for p in self._params], 1, dtype=np.float64)
