# SPDX-License-Identifier: BSD-3-Clause
# cython: annotation_typing=False
"""compile: what a function of tensors ran, recorded once and replayed without Python.

A Recorder is a backend: the kernel calls that pass through the waist are the program, backward and optimizer included. A
Plan is such a program with its temporaries placed in one piece of memory, and all that must still hold for it to be the
right one. A Compiled function looks for the plan that fits its arguments, or records one.
"""

import copy
import os
import pickle
import random
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from timeit import timeit
from typing import Any, NamedTuple

import numpy as np

from . import graph
from .graph import is_grad_enabled
from .kernels import (
    Effects,
    Looks,
    Native,
    Program,
    Runnable,
    alias,
    alias_at,
    backend,
    current_backend,
    empty,
    recorder_of,
    recording,
    watcher,
    watchers,
)
from .kernels.reference import Reference
from .nn.module import HOOKS, Module
from .passes import PASSES, STRIDED, Call, Memory, Span, root_of, shortened, start_of, together
from .replay import (
    MISSING,
    PLAIN,
    Argument,
    Contents,
    Entry,
    Latest,
    Lease,
    Output,
    Quick,
    Replay,
    look_at,
    nested,
    rebuilt,
)
from .surroundings import Surroundings, assigned
from .tensor import Tensor, as_tensor, get_default_dtype, wrap

__all__ = ["Compiled", "NotRecordable", "Plan", "Recorder", "compile"]

ARENA = -1
MANY = 64                                # recordings of one function, after which it runs as it is
# Generators that everybody draws from.
SHARED = random.random.__self__, np.random.random.__self__         # type: ignore[attr-defined]


class NotRecordable(RuntimeError):
    """The function does something that a replay would not do, or not do again."""


# ----------------------------------------------------------------------------------------------------------- recording


def _here() -> str:
    """The innermost line that is neither pyneuro's own nor Python's."""
    package, python = (os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, os.__file__))
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        theirs = file.startswith(python) and "site-packages" not in file
        if not (file.startswith((package, "<frozen")) or file.endswith(".pyx") or theirs):
            break
        frame = frame.f_back
    if frame is None:
        return "an unknown line"
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}, in {frame.f_code.co_name}"


class _Numbers:
    """What Python's or NumPy's generator is about to draw."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.bits = getattr(generator, "bit_generator", generator)
        self.state = self.now()

    def now(self) -> Any:
        g = self.generator
        if isinstance(g, random.Random):
            return g.getstate()
        return g.get_state(legacy=False) if isinstance(g, np.random.RandomState) else self.bits.state

    def drawn(self) -> bool:
        return pickle.dumps(self.now()) != pickle.dumps(self.state)

    def put_back(self) -> None:
        g = self.generator
        if isinstance(g, (random.Random, np.random.RandomState)):
            (g.setstate if isinstance(g, random.Random) else g.set_state)(self.state)
        else:
            self.bits.state = self.state


class Recorder:
    """A backend that runs each call on another one and keeps it. `with Recorder(inner) as r:` records this thread."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.name = inner, inner.name
        self.forget()

    def forget(self) -> None:
        """Let go of everything: by way of arrays, which Python's collector does not look through, it leads back here."""
        self.surroundings = Surroundings()
        self.refused: NotRecordable | None = None              # the first reason, which the function may not have let out
        self.versions: dict[int, tuple[Any, int]] = {}         # storages that were there before, and their versions
        self.optimizers: dict[int, tuple] = {}
        self.calls: list[Call] = []
        self.made: list[Any] = []                              # weak references to the tensors made meanwhile
        self.before: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.modules: dict[int, _Snapshot] = {}
        self.steps: list[_Step] = []
        self.grads: dict[int, tuple[Tensor, Any, bool]] = {}   # leaf, its gradient before, whether that was used
        self.numbers: dict[int, _Numbers] = {}                 # generators that may be drawn from

    @contextmanager
    def at_work(self) -> Iterator["Recorder"]:
        recording(1)
        watchers.append(self)
        try:
            with backend(self):
                yield self
        finally:
            watchers.remove(self)
            recording(-1)

    def run(self, kernel: str, bufs: tuple[np.ndarray, ...], attrs: tuple[float, ...] = ()) -> None:
        call = Call(kernel, bufs, attrs)
        for slot, b in zip(call.spec.slots, bufs):
            if slot.written and isinstance(b, np.ndarray):
                root = root_of(b)
                if recorder_of(root) is not self and root.flags.writeable and id(root) not in self.before:
                    self.before[id(root)] = root, root.copy(order="K")
        self.inner.run(kernel, bufs, attrs)
        self.calls.append(call)

    def restore(self) -> None:
        """Undo what was written to memory and gradients that were there before."""
        for root, saved in reversed(self.before.values()):
            np.copyto(root, saved)
        for leaf, grad, _ in self.grads.values():
            leaf._grad = grad

    def noted(self) -> list:
        """All that Python read, as it was."""
        return [*self.surroundings.entries, *[e for s in self.modules.values() for e in s.entries]]

    def written(self) -> list:
        """Of the arrays that Python may have read, those that calls write: a replay writes them again."""
        found, memory = [e for e in self.noted() if type(e) is Contents], Memory()
        if found:
            for b in [b for call in self.calls for b in call.operands(True) if b.size]:
                memory.add(Span.of(b))
        return [e for e in found if any(memory.meets(Span.of(a)) for a in e.arrays())]

    def put_back(self) -> None:
        """After a recording that failed: let stand what stood where, and take away what optimizers' state began in it."""
        for e in self.noted():
            if not e.holds():
                e.put_back()
        for module in self.modules.values():
            module.remove_others()
        for numbers in self.numbers.values():
            numbers.put_back()
        for optimizer, state, cohorts, sizes in self.optimizers.values():
            optimizer.state.clear()
            for p, (own, values) in state.items():
                own.clear()
                own.update(values)
                optimizer.state[p] = own
            optimizer._cohorts = cohorts
            for cohort, size in sizes:
                cohort.size = size

    def surround(self, *values: Any) -> None:
        """Note what there is to be read by these."""
        found = self.surroundings
        tensors, modules = len(found.tensors), len(found.modules)
        found.add(*values)
        self.may_draw(*found.generators)
        for t in found.tensors[tensors:]:
            self.versions.setdefault(id(t.storage), (t.storage, t.storage.version))
        for m in found.modules[modules:]:
            self.calls_module(m)
        for i in found.iterators:
            self.refuse(f"a {type(i).__name__} is named, which goes on wherever something is taken from it",
                        "take the next: give that as an argument")

    def may_draw(self, *generators: Any) -> None:
        for g in generators:
            if id(g) not in self.numbers:
                self.numbers[id(g)] = _Numbers(g)

    # What it is told

    def is_read(self, tensor: Any) -> None:
        self.refuse(f"the values of a tensor of shape {list(tensor.shape)} are read while a function is recorded",
                    "read them again: return the tensor, or use where() and other tensor functions")

    def refuse(self, what: str, again: str = "do so again: do it outside") -> None:
        error = NotRecordable(f"{what} ({_here()}); a replay would not {again}")
        self.refused = self.refused or error
        raise error

    def touches_optimizer(self, optimizer: Any) -> None:
        if id(optimizer) not in self.optimizers:
            cohorts = dict(optimizer._cohorts)
            self.optimizers[id(optimizer)] = (optimizer, {p: (s, dict(s)) for p, s in optimizer.state.items()}, cohorts,
                                              [(c, c.size) for c in cohorts.values()])

    def touches_grad(self, leaf: Any, used: bool) -> None:
        self.grads.setdefault(id(leaf), (leaf, leaf._grad, used))

    def calls_module(self, module: Any) -> None:
        if id(module) not in self.modules:
            self.modules[id(module)] = _Snapshot(module)
            self.surround(module)

    def steps_optimizer(self, optimizer: Any, group: dict, cohort: Any, active: list) -> None:
        self.steps.append(_Step(optimizer, group, cohort, active))


# --------------------------------------------------------------------------------------------- what must hold of a plan


class _Snapshot:
    """What a module was when it was called."""

    def __init__(self, module: Any) -> None:
        label = type(module).__name__
        self.module = module
        self.entries = [
            Entry(table, name, value, label)
            for table in (module._parameters, module._buffers, module._modules)
            for name, value in table.items()
        ] + [
            Entry(module.__dict__, name, value, label)
            for name, value in module.__dict__.items()
            if isinstance(value, (*PLAIN, tuple))
        ] + [Entry(module.__dict__, "forward", module.__dict__.get("forward", MISSING), label)]
        self.tensors = [t for table in (module._parameters, module._buffers) for t in table.values() if t is not None]
        self.versions = [(t.storage, t.storage.version) for t in self.tensors]
        self.hooks = [(h, tuple(h)) for h in (*[module.__dict__[name] for name in HOOKS], module._parameters,
                                              module._buffers, module._modules)]

    def hooks_hold(self) -> bool:
        return all(tuple(h) == keys for h, keys in self.hooks)

    def remove_others(self) -> None:
        """Hooks, parameters and parts that are new."""
        for table, keys in self.hooks:
            for key in set(table).difference(keys):
                del table[key]


class _Step:
    """An optimizer's step of one cohort: its numbers are brought up to date before a replay."""

    def __init__(self, optimizer: Any, group: dict, cohort: Any, active: list) -> None:
        self.optimizer, self.group, self.cohort, self.active = optimizer, group, cohort, active
        self.kernel = optimizer.kernel(group)
        self.lists = optimizer.param_groups, group["params"]
        self.state, self.size = optimizer.state, cohort.size
        self.lengths = tuple(map(len, self.lists))
        self.versions = [(p.storage, p.storage.version) for p in active]
        self.recorded = Looks(self.looks(), MISSING)

    def looks(self) -> list:
        """Where to look, to see that nothing has changed."""
        entries = [
            *[Entry(self.group, k, v, "") for k, v in self.group.items()],
            *[Entry(vars(self.optimizer), k, getattr(self.optimizer, k), "") for k in ("param_groups", "state")],
            *[Entry(vars(self.cohort), k, getattr(self.cohort, k), "") for k in ("size", "given")],
        ]
        return look_at(entries) + [("length", found) for found in self.lists]

    def restless(self) -> list:
        """Where to look in a replay besides: what always counts as another, where a group holds what may change in itself."""
        fixed = (*PLAIN, tuple, np.generic)
        return [("item", {}, "", self)] if any(k != "params" and not isinstance(v, fixed) for k, v in self.group.items()) else []

    @property
    def entries(self) -> list[Entry]:
        """The state of each parameter; what cohorts share stands in their numbers."""
        found = [(p, self.state[p]) for p in self.active]
        return [Entry(self.state, p, own, "") for p, own in found] + [
            Entry(own, name, value, "") for _, own in found for name, value in own.items() if name not in self.optimizer.shared]

    def changed_meanwhile(self) -> bool:
        return self.recorded.changed(0) >= 0

    def holds(self) -> bool:
        """Whether the plan is right for what now stands there; the kernel's numbers are what the group says."""
        optimizer, group, cohort = self.optimizer, self.group, self.cohort
        if (
            optimizer.param_groups is not self.lists[0]
            or group["params"] is not self.lists[1]
            or tuple(map(len, self.lists)) != self.lengths
            or optimizer.state is not self.state
            or cohort.size != self.size
            or optimizer.kernel(group) != self.kernel
        ):
            return False
        numbers = optimizer.numbers(group)
        if numbers != cohort.given:
            cohort.hyper[: len(numbers)] = cohort.given = numbers
        return True


# ----------------------------------------------------------------------------------------------------------- programs


class Interpreted(Runnable):
    """Recorded calls on any other backend: what Program is to a native one, call by call."""

    def __init__(self, inner: Any, calls: list, places: list, layouts: list[np.ndarray], arena_bytes: int, arguments: int) -> None:
        self.inner, self.arguments, self.silent = inner, arguments, False
        self.arena = np.empty(arena_bytes + 8, np.uint8)
        self.buffers = [np.empty(max(s.high - s.low, 1) + 8, np.uint8) for s in map(Span.of, layouts)]
        self.origins = [start_of(a) - Span.of(a).low for a in layouts]
        self.own = [self._placed(a, (i, 0)) for i, a in enumerate(layouts)]
        self.bound: list[Any] = [None] * len(layouts)
        self.calls = [Call(c.kernel, tuple([b if p is None else self._placed(b, p) for b, p in zip(c.bufs, row)]), c.attrs)
                      for c, row in zip(calls, places)]
        written = [(b, p) for c, row in zip(calls, places) for s, b, p in zip(c.spec.slots, c.bufs, row) if s.written]
        self.written = {p[0] for _, p in written if p is not None and p[0] >= 0}
        others = [b for b, p in written if p is None]
        if any(root < arguments for root in self.written):
            others = [b for c, row in zip(calls, places) for b, p in zip(c.bufs, row) if p is None]
        self.spans = list(map(Span.of, others))

    def _placed(self, like: np.ndarray, place: tuple[int, int]) -> np.ndarray:
        root, offset = place
        buffer, origin = (self.arena, 0) if root < 0 else (self.buffers[root], self.origins[root])
        return np.ndarray(like.shape, like.dtype, buffer, origin + offset, like.strides)

    def bind(self, root: int, array: np.ndarray) -> None:
        self.bound[root] = array
        np.copyto(self.own[root], array)

    def run(self, first: int, last: int) -> None:
        for kernel, bufs, attrs, *_ in self.calls[first:last]:
            self.inner.run(kernel, bufs, attrs)
        for root in self.written:
            if self.bound[root] is not None:
                np.copyto(self.bound[root], self.own[root])

    def loop(self, last: int, times: int, moving: list[tuple[int, int]], after: Callable[[], bool] | None = None) -> int:
        """Run calls 0 .. last so many times, with roots that move on in memory from time to time; and `after`, until it is
        not true. How often they were run."""
        first = {root: self.bound[root] for root, _ in moving}
        for k in range(times):
            for root, step in moving:
                self.bind(root, alias_at(first[root], first[root], k * step))
            self.run(0, last)
            if after is not None and not after():
                return k + 1
        return times

    def seconds(self, i: int, repeats: int) -> float:
        """Time of call i, run on its own."""
        return timeit(lambda: self.run(i, i + 1), number=repeats) / repeats

    def clashes(self, tensors: Any) -> bool:
        """Whether an argument lies in other memory that the calls write, or is written and lies in what they read."""
        arrays = [t.array for t in tensors]
        spans = list(map(Span.of, arrays))
        return any(mine.meets(theirs) for mine in spans for theirs in self.spans) or (
            any(root < self.arguments for root in self.written)
            and any(a is not b and one.meets(other)
                    for i, (a, one) in enumerate(zip(arrays, spans)) for b, other in zip(arrays[:i], spans)))


def _arena(calls: list[Call], temporary: dict[int, np.ndarray], split: int) -> tuple[dict[int, int], int]:
    """Where each temporary lies, and how much memory they take together: as much as those that live at once.

    What is made before `split` and read after it stays: the calls after it may run more than once, and not in order.
    """
    life: dict[int, list[int]] = {}
    at = 0
    for unit in together(calls):
        first, at = at, at + len(unit)
        for root in [root_of(b) for call in unit for b in call.bufs]:
            if id(root) in temporary:
                life.setdefault(id(root), [first, at - 1])[1] = at - 1
    for line in life.values():
        if line[0] < split <= line[1]:
            line[1] = len(calls)
    placed = np.empty((4, len(life)), np.int64)                 # start, end, first, last; by the largest first
    offsets: dict[int, int] = {}
    for n, key in enumerate(sorted(life, key=lambda k: -temporary[k].nbytes)):
        first, last = life[key]
        size = max(-(-temporary[key].nbytes // 64) * 64, 64)
        starts, ends, born, gone = placed[:, :n]
        beside = np.flatnonzero((born <= last) & (first <= gone))
        beside = beside[starts[beside].argsort()]
        tops = np.maximum.accumulate([0, *ends[beside]])        # of those up to each: the first gap is above one of them
        gaps = np.flatnonzero(starts[beside] - tops[:-1] >= size)
        at = offsets[key] = int(tops[gaps[0] if len(gaps) else -1])
        placed[:, n] = at, at + size, first, last
    return offsets, int(placed[1].max(initial=0))


def _placed(calls: list[Call], recorder: Recorder, lasting: set[int], number: dict[int, int], split: int) -> tuple[list, int]:
    """By call and slot: (number of a bound root, offset), (ARENA, offset), or None for memory that stays where it is."""
    temporary = {}
    for call in calls:
        for root in map(root_of, call.bufs):
            if recorder_of(root) is recorder and id(root) not in lasting and id(root) not in number:
                temporary[id(root)] = root
    offsets, total = _arena(calls, temporary, split)

    def place(b: np.ndarray) -> Any:
        root = root_of(b)
        inside = start_of(b) - start_of(root)
        if id(root) in number:
            return number[id(root)], inside
        return (ARENA, offsets[id(root)] + inside) if id(root) in offsets else None

    return [tuple(map(place, call.bufs)) for call in calls], total


# ----------------------------------------------------------------------------------------------------------- the plan


def _first(tensors: list, t: Any) -> int:
    """Where t stands on the list first."""
    return next(i for i, u in enumerate(tensors) if u is t)


def _layout(t: Any) -> tuple:
    return t.array.shape, t.array.dtype, t.array.strides, bool(t.needs_grad), t.array.flags.writeable


def _backend_key(found: Any) -> Any:
    """Backends of pyneuro's are as good as others of the same name; one of the user's is itself."""
    return found.name if type(found) in (Native, Reference) else _Held(found)


class Options(NamedTuple):
    """Of `compile`."""

    without: tuple[str, ...]
    prepack: bool


class Plan:
    """The recorded calls of one function for one kind of arguments. `print(plan)` shows them, `plan.profile()` times them."""

    def __init__(self, recorder: Recorder, name: str, args: list, aliases: list, outputs: list, entries: list[Entry],
                 split: int, gradients: Any, versions: list[int], options: "Options") -> None:
        self.name, self.backend, self.calls, self.gradients = name, recorder.inner, recorder.calls, gradients
        modules, steps = list(recorder.modules.values()), recorder.steps
        outputs, results = self._roots(recorder, aliases, outputs)
        after = [(leaf, leaf._grad, self._as_output(leaf._grad)) for leaf, _, _ in recorder.grads.values()]
        self.kept = [g for _, g, o in after if g is not None and o is None]
        split = self._shorten(recorder, split, options.without)
        tensors = {id(t): t for s in modules for t in s.tensors} | {id(p): p for s in steps for p in s.active}
        tensors |= {id(t): t for s in steps for p in s.active for t in s.optimizer.state[p].values() if isinstance(t, Tensor)}
        tensors |= {id(t): t for t in recorder.surroundings.tensors}
        prepacks = options.prepack and gradients is None and type(self.backend) is Native
        packs = self._prepack(list(tensors.values())) if prepacks else []
        self.places, self.arena_bytes = _placed(self.calls, recorder, {id(a.array) for a in aliases} | {
            id(root_of(g.array)) for g in self.kept}, self.root_number, split)
        if gradients is not None:
            gradients.watch(self.calls[split:], [a.array for a in aliases] + results, tensors.values())
        self.replay = Replay(
            backend=self.backend,
            arguments=[Argument(a.array, bool(t.needs_grad), _first(args, t)) for t, a in zip(args, aliases)],
            entries=entries + [e for m in modules for e in m.entries] + [e for s in steps for e in s.entries],
            tensors=list(tensors.values()),
            before=[(leaf, None if grad is None else grad.array) for leaf, grad, used in recorder.grads.values() if used],
            tables=[table for s in modules for table, _ in s.hooks] + [t._hooks for t in tensors.values() if t._hooks],
            steps=steps,
            outputs=outputs,
            results=results,
            effects=Effects([(leaf, grad) for leaf, grad, o in after if o is None], _moved(recorder)),
            shared=[(leaf, o) for leaf, _, o in after if o is not None],
            packs=packs,
            argument_versions=[(i, t.storage.version - v) for i, (t, v) in enumerate(zip(args, versions))
                               if t.storage.version != v],
            stop=split,
            gradients=gradients,
            make=self._program,
        )

    def _roots(self, recorder: Recorder, aliases: list, outputs: list) -> tuple[list, list]:
        """Number the memory that is bound at each call: arguments, results, and then what gradients take and give."""
        number = {id(a.array): i for i, a in enumerate(aliases)}
        layouts = [a.array for a in aliases]

        def numbered(root: np.ndarray) -> int:
            if id(root) not in number:
                number[id(root)] = len(layouts)
                layouts.append(root)
            return number[id(root)]

        out = []
        for o in outputs:
            if o.kind == "made":
                root = root_of(o.array)
                o = o._replace(number=numbered(root), array=None if o.array is root else o.array)
            out.append(o)
        results = layouts[len(aliases):]
        if self.gradients is not None:
            for g in self.gradients.given:
                numbered(root_of(g))
            for found in self.gradients.results:
                for g in found:
                    if g is not None and recorder_of(root_of(g)) is recorder:
                        numbered(root_of(g))
        self.root_number, self.layouts, self.arguments = number, layouts, len(aliases)
        return out, results

    def _shorten(self, recorder: Recorder, split: int, without: Iterable[str]) -> int:
        """Apply the passes, to what runs together at a time; how many calls the first of these then has."""
        ranges = [(0, split), *(self.gradients.ranges if self.gradients else ())]
        without = without if isinstance(self.backend, Native) else {*without, *STRIDED}
        lasting = set(self.root_number) | {id(root_of(g.array)) for g in self.kept}
        calls: list[Call] = []
        now = []
        for first, last in ranges:
            elsewhere = {id(root_of(b)) for at, c in enumerate(self.calls) if not first <= at < last for b in c.bufs}

            def private(root: np.ndarray, apart: set[int] = elsewhere | lasting) -> bool:
                return recorder_of(root) is recorder and id(root) not in apart

            start = len(calls)
            calls += shortened(self.calls[first:last], private, without)
            now.append((start, len(calls)))
        self.calls = calls
        if self.gradients:
            self.gradients.ranges = now[1:]
        return now[0][1]

    def _as_output(self, g: Any) -> Any:
        """A gradient that lies in what is returned, which is new at each call."""
        if g is None:
            return None
        root = root_of(g.array)
        number = self.root_number.get(id(root), -1)
        if number < self.arguments:
            return None
        return Output("made", number, None, None if g.array is root else g.array, start_of(g.array) - start_of(root), -1)

    def _prepack(self, tensors: list) -> list:
        """Let dense layers read copies of their weights that lie as a few rows of x want them: transposed, and rows apart
        that do not meet in one set of a cache. (storage, the weight, its copy) of each."""
        weights = {id(t.array): t for t in tensors}
        written = [Span.of(b) for c in self.calls for b in c.operands(True)]
        packs: dict[int, tuple] = {}
        for i, call in enumerate(self.calls):
            if [s.name for s in call.spec.slots[:3]] != ["x", "w", "b"]:
                continue
            x, w, *others = call.bufs
            t = weights.get(id(w))
            if t is None or any(Span.of(w).meets(span) for span in written):
                continue
            if id(w) not in packs:
                n, k = w.shape
                apart = -(-n // 16) * 16 + (16 if n % 256 == 0 else 0)
                copied = empty((k, apart), w.dtype)[:, :n].T
                np.copyto(copied, w)
                packs[id(w)] = t.storage, w, copied
            self.calls[i] = call._replace(bufs=(x, packs[id(w)][2], *others))
        return list(packs.values())

    def _program(self) -> Any:
        if type(self.backend) is Native:
            return Program(self.backend, self.calls, self.places, len(self.layouts), self.arena_bytes, self.arguments)
        return Interpreted(self.backend, self.calls, self.places, self.layouts, self.arena_bytes, self.arguments)

    def run_gradient(self, program: Any, number: int, g: np.ndarray, needs: tuple) -> tuple:
        """The gradients of the leaves for one output's."""
        gradients = self.gradients
        layout = gradients.given[number]
        if g.strides != layout.strides:
            g = np.ascontiguousarray(g).reshape(layout.shape)
        bound = {self.root_number[id(layout)]: g}
        program.bind(self.root_number[id(layout)], g)
        out: list[Any] = []
        for result, need in zip(gradients.results[number], needs):
            if result is None or not need:
                out.append(None)
                continue
            root = root_of(result)
            index = self.root_number.get(id(root))
            if index is None:                                  # nothing that a replay would change
                out.append(wrap(result.copy()))
                continue
            if index not in bound:
                bound[index] = empty(root.shape, root.dtype)
                program.bind(index, bound[index])
            out.append(wrap(alias_at(bound[index], result, start_of(result) - start_of(root))))
        program.run(*gradients.ranges[number])
        return tuple(out)

    def clone(self) -> "Plan":
        """The same plan with memory of its own, for another thread: see `Compiled.clone`."""
        other = Plan.__new__(Plan)
        vars(other).update(vars(self))
        other.replay = self.replay.clone(other._program)
        return other

    def profile(self, repeats: int = 100) -> "Profile":
        """Time each call on what lies in its memory now. That moves parameters, counters and the like, so it works on what it
        then puts back."""
        program = self.replay.free[-1] if self.replay.free else self._program()
        for i, layout in enumerate(self.layouts):
            if i >= self.arguments:
                program.bind(i, np.zeros(layout.shape, layout.dtype))
        saved = {id(root_of(b)): (root_of(b), root_of(b).copy(order="K")) for c, row in zip(self.calls, self.places)
                 for s, b, p in zip(c.spec.slots, c.bufs, row) if s.written and p is None}
        try:
            program.run(0, len(self.calls))
            seconds = [min(program.seconds(i, max(1, repeats // 5)) for _ in range(5)) for i in range(len(self.calls))]
        finally:
            for root, values in saved.values():
                np.copyto(root, values)
        return Profile(self, seconds)

    def to_dot(self) -> str:
        """The calls as a graph in the language of Graphviz: an edge for each operand that a call has from another."""
        lines = ["digraph plan {", "  node [shape=box, fontname=monospace];"]
        writer: list[tuple[Span, int]] = []
        for i, call in enumerate(self.calls):
            shapes = ", ".join("x".join(map(str, b.shape)) or "1" for b in call.operands(True))
            lines.append(f'  c{i} [label="{i} {call.kernel}\\n{shapes}"];')
            for b in call.operands(False):
                made = next((at for seen, at in reversed(writer) if seen.meets(Span.of(b))), None)
                if made is not None:
                    lines.append(f"  c{made} -> c{i};")
            writer += [(Span.of(b), i) for b in call.operands(True)]
        return "\n".join([*lines, "}"])

    def __reduce__(self) -> Any:
        raise TypeError("a plan holds addresses of this process and cannot be pickled; compile the function again where it is used")

    def __len__(self) -> int:
        return len(self.calls)

    def __str__(self) -> str:
        def shown(b: np.ndarray, place: Any) -> str:
            where = "" if place is None else f"@{place[1]}" if place[0] == ARENA else f"#{place[0]}"
            return f"{'x'.join(map(str, b.shape)) or '1'}{where}"

        lines = [f"{self.name}: {len(self.calls)} calls on {self.backend.name}, {self.arena_bytes:,} bytes of temporaries (@), "
                 f"{self.arguments} arguments and {len(self.layouts) - self.arguments} results (#)"]
        for i, (call, row) in enumerate(zip(self.calls, self.places)):
            spec = call.spec
            operands = " ".join(f"{s.name}:{shown(b, p)}" for s, b, p in zip(spec.slots, call.bufs, row))
            attrs = f" ; {' '.join(f'{a:g}' for a in call.attrs)}" if call.attrs else ""
            led = "+ " if call.follows >= 0 else "= " if call.rows else ""        # with the call before it, or its rows
            lines.append(f"{i:4} {led}{call.kernel}{' (NumPy)' if spec.host else ''} {operands}{attrs}")
        return "\n".join(lines)


class Profile:
    """Seconds of each call of a plan. `print(profile)` shows time, share, and what that is in GFLOP/s and GB/s."""

    def __init__(self, plan: Plan, seconds: list[float]) -> None:
        self.plan, self.seconds, self.total = plan, seconds, sum(seconds)

    def rows(self) -> list[dict[str, Any]]:
        """By call: kernel, seconds, share of the total, flops and bytes."""
        return [{"kernel": call.kernel, "seconds": t, "share": t / self.total if self.total else 0.0,
                 "flops": call.flops, "bytes": call.nbytes} for call, t in zip(self.plan.calls, self.seconds)]

    def __str__(self) -> str:
        lines = [f"{'call':>4} {'kernel':<24}{'us':>10}{'share':>8}{'GFLOP/s':>10}{'GB/s':>8}   {self.plan.name}"]
        for i, row in enumerate(self.rows()):
            t = row["seconds"]
            flops = f"{row['flops'] / t / 1e9:10.1f}" if row["flops"] and t else " " * 10
            moved = row["bytes"] / t / 1e9 if t else 0.0
            lines.append(f"{i:>4} {row['kernel']:<24}{t * 1e6:>10.2f}{row['share']:>8.1%}{flops}{moved:>8.1f}")
        return "\n".join([*lines, f"     {'all':<24}{self.total * 1e6:>10.2f}"])


def _moved(recorder: Recorder) -> list[tuple[Any, int]]:
    """How far the versions of what lasts were moved on."""
    first = dict(recorder.versions)
    noted: Any
    for noted in (*recorder.modules.values(), *recorder.steps):
        for storage, version in noted.versions:
            first.setdefault(id(storage), (storage, version))
    return [(storage, storage.version - version) for storage, version in first.values() if storage.version != version]


class _Gradients:
    """What replays of the outputs' gradients take and give: by output, then by leaf."""

    name = "compiled"
    saves = ()

    def __init__(self, leaves: list[Any], given: list[np.ndarray], results: list[list[Any]], ranges: list[tuple[int, int]]) -> None:
        self.leaves, self.given, self.results, self.ranges = leaves, given, results, ranges
        self.read: list[Any] = []                              # storages, and numbers of arguments and results

    def watch(self, calls: list[Call], bound: list[np.ndarray], tensors: Any) -> None:
        """Find what others can write and is read on the way back, and so must not be written until then."""
        read = {id(root_of(b)) for call in calls for b in call.bufs}
        self.read = [i for i, a in enumerate(bound) if id(a) in read]
        self.read += [t.storage for t in tensors if id(root_of(t.array)) in read]

    def node(self, replay: Any, lease: Lease, number: int, out: Any, args: Any, made: list) -> Any:
        leaves = tuple([args[leaf] if type(leaf) is int else leaf for leaf in self.leaves])
        bound = [*args, *made]
        storages = [out.storage, *[bound[s].storage if type(s) is int else s for s in self.read]]
        return graph.record(self, leaves, (replay.make.__self__, number), out, (lease, storages, [s.version for s in storages]))

    def backward(self, node: Any, g: Any) -> tuple:
        if not node.extras:
            raise RuntimeError("backward through a compiled function a second time: what it saved was freed after the first; "
                               "call backward(retain_graph=True) the first time")
        if not node.fast:
            raise RuntimeError("the gradient of a compiled function cannot be differentiated again; "
                               "call the function itself where create_graph=True")
        plan, number = node.attrs
        lease, storages, versions = node.extras
        if [s.version for s in storages] != versions:
            raise RuntimeError("an output of a compiled function, or what its gradient reads, has been modified in place "
                               "before its backward; work on a copy")
        return plan.run_gradient(lease.program, number, g.array, node.needs)


def _flatten(value: Any, tensors: list) -> Any:
    """What value is but for its tensors, which are put on the list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor
    if isinstance(value, np.ndarray):
        tensors.append(as_tensor(value))
        return np.ndarray
    if isinstance(value, PLAIN):
        return type(value), repr(value) if type(value) is float else value
    if not nested(value):
        return _Held(value)
    if isinstance(value, dict):
        return type(value), tuple([(k, _flatten(v, tensors)) for k, v in value.items()])
    return type(value), tuple([_flatten(v, tensors) for v in value])


def _objects(value: Any) -> list:
    """Arguments whose attributes a function may read."""
    if nested(value):
        return [o for v in (value.values() if isinstance(value, dict) else value) for o in _objects(v)]
    return [] if isinstance(value, (Tensor, np.ndarray, *PLAIN)) else [value]


class _Held:
    """Any other argument: the same only as itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


ENABLED = os.environ.get("PYNEURO_COMPILE", "1") != "0"


class Compiled(Quick):
    """A function that is recorded for each kind of arguments that it meets, and replayed from then on."""

    def __init__(self, fn: Callable, without: Iterable[str] = (), prepack: bool = False, also: tuple = ()) -> None:
        """also: functions of the user's that fn calls, where fn is pyneuro's own."""
        super().__init__(Latest())
        self.fn, self.options, self.also = fn, Options(tuple(without), prepack), also
        if unknown := set(self.options.without) - set(PASSES):
            raise ValueError(f"{sorted(unknown)} are no passes; choose from {', '.join(PASSES)}")
        self.name = getattr(fn, "__qualname__", type(fn).__name__)
        self.plans: dict[Any, list[tuple[Plan, Any]]] = {}
        self.recordings = 0
        self.attribute: str | None = None                      # the method of a class that it is
        self.__name__, self.__doc__, self.__wrapped__ = getattr(fn, "__name__", self.name), fn.__doc__, fn
        if isinstance(fn, (types.FunctionType, types.MethodType)) and (names := assigned(fn)):
            raise NotRecordable(
                f"{self.name} assigns to {', '.join(sorted(names))}, which is not its own: a replay would not; return it instead"
            )

    def anew(self, args: tuple, kwargs: dict) -> Any:
        if not ENABLED or self.recordings > MANY or (watchers and watcher()):
            return self.fn(*args, **kwargs)
        plan, result, tensors = self._find(args, kwargs)
        if plan is None or plan.replay.clashes(tensors):
            return self.fn(*args, **kwargs)
        self._remember(plan, result, args)
        return rebuilt(result, iter(plan.replay.run(tensors)))

    def loop(self, args: tuple, moving: int, rows: Tensor, after: Callable[[], Any] | None = None) -> list[np.ndarray] | None:
        """Call it once for each of rows, in C, in place of argument `moving`: its results, each stacked along a new axis.

        rows: [calls, ...]. after: called after each; it may change numbers in param_groups, and what this plan is not right
        for ends the loop: the results are fewer than rows. None, and nothing is done, where this function has no plan for
        that. Raises what the function raises; after that, and on a native backend after Ctrl-C, a whole number of calls has
        been made.
        """
        if not ENABLED or len(rows) == 0:
            return None
        given = (*args[:moving], rows[0], *args[moving + 1:])
        plan, _, tensors = self._find(given, {})
        if plan is None or plan.gradients is not None or len(plan.replay.results) != len(plan.replay.outputs):
            return None
        if any(o.kind != "made" or o.array is not None for o in plan.replay.outputs) or plan.replay.shared:
            return None
        if plan.replay.clashes([*tensors[:moving], rows, *tensors[moving + 1:]]):
            return None
        return plan.replay.loop(tensors, moving, rows.array, after)

    def _find(self, args: tuple, kwargs: dict) -> tuple[Any, Any, list]:
        """The plan that is right for these arguments, recorded if need be, what the function returned, and the tensors."""
        tensors: list[Any] = []
        shape = _flatten((args, kwargs), tensors)
        key = (
            shape,
            tuple(map(_layout, tensors)),
            tuple([_first(tensors, t) for t in tensors]),
            is_grad_enabled(),
            get_default_dtype(),
            _backend_key(current_backend()),
        )
        for plan, result in self.plans.get(key, ()):
            if plan.replay.fits():
                return plan, result, tensors
        return *self._record(key, args, kwargs, tensors), tensors

    def _remember(self, plan: Plan, result: Any, args: tuple) -> None:
        """The next call may be like this one; where it was of tensors alone, that can be told quickly."""
        quick = all(isinstance(a, Tensor) for a in args) and plan.replay.suits(args, None)
        self.latest.set(plan.replay if quick else None, result)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        bound = Compiled(types.MethodType(self.fn, instance), *self.options)
        if self.attribute is not None and hasattr(instance, "__dict__"):
            vars(instance)[self.attribute] = bound             # found before this method is, from now on
        return bound

    def __set_name__(self, owner: Any, name: str) -> None:
        self.attribute = name

    def clone(self) -> "Compiled":
        """The same function, with the same plans in memory of their own: for another thread."""
        other = self._like(self.fn)
        other.plans = {key: [(plan.clone(), result) for plan, result in plans] for key, plans in self.plans.items()}
        other.recordings = self.recordings
        return other

    def __deepcopy__(self, memo: dict) -> "Compiled":
        return self._like(copy.deepcopy(self.fn, memo))

    def _like(self, fn: Callable) -> "Compiled":
        return Compiled(fn, self.options.without, self.options.prepack, self.also)

    def __reduce__(self) -> Any:
        raise TypeError(f"{self.name} is compiled and cannot be pickled; pickle the function or module itself, "
                        "and compile it again where it is used")

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The plan for these arguments; recorded, and run once, if there is none yet."""
        plan = self._find(args, kwargs)[0] if ENABLED else None
        if plan is None:
            raise NotRecordable(f"{self.name} runs as it is, and has no plan for these arguments")
        self(*args, **kwargs)
        return plan

    def _record(self, key: Any, args: tuple, kwargs: dict, tensors: list) -> tuple[Any, Any]:
        self.recordings += 1
        if self.recordings > MANY:
            changed = [e for plans in self.plans.values() for e in plans[-1][0].replay.entries if not e.holds()]
            last = f" (the last time: {changed[0].owner}: {changed[0].name or 'a variable'})" if changed else ""
            warnings.warn(f"{self.name} was recorded {MANY} times, each time for other arguments or surroundings{last}; "
                          "from now on it runs as it is", RuntimeWarning, stacklevel=4)
            return None, None
        recorder = Recorder(current_backend())
        try:
            return self._recorded(recorder, key, args, kwargs, tensors)
        finally:
            recorder.forget()

    def _recorded(self, recorder: Recorder, key: Any, args: tuple, kwargs: dict, tensors: list) -> tuple[Any, Any]:
        recorder.surround(self.fn, *self.also, *_objects((args, kwargs)))
        if threading.active_count() == 1:                       # or others may draw meanwhile
            recorder.may_draw(*SHARED)
        modes = is_grad_enabled(), get_default_dtype()
        aliases = [_stand_in(t) for t in tensors]
        aliases = [aliases[_first(tensors, t)] for t in tensors]
        versions = [t.storage.version for t in tensors]
        try:
            with recorder.at_work():
                given, named = rebuilt((args, kwargs), iter(aliases))
                seen = _flatten((given, named), [])
                result = self.fn(*given, **named)
            if recorder.refused is not None:
                raise recorder.refused
            if (is_grad_enabled(), get_default_dtype()) != modes:
                raise NotRecordable(f"{self.name} leaves another grad mode or default dtype behind; a replay would not: "
                                    "use `with no_grad():` and the like")
            left: list[Any] = []
            if _flatten((given, named), left) != seen or any(t is not a for t, a in zip(left, aliases)):
                raise NotRecordable(f"{self.name} changes a list or dict that it is given; a replay would not: return what it "
                                    "puts there")
            if any(numbers.drawn() for numbers in recorder.numbers.values()):
                raise NotRecordable(f"{self.name} draws random numbers with Python's or NumPy's generator; a replay would not draw "
                                    "again: draw with pyneuro's, or give the numbers as an argument")
            entries, written = recorder.surroundings.entries, recorder.written()
            later = set(map(id, written))
            self._unchanged([e for e in recorder.noted() if id(e) not in later])
            for module in recorder.modules.values():
                if not module.hooks_hold():
                    raise NotRecordable(f"{type(module.module).__name__}: its parameters, buffers, parts or hooks are others "
                                        f"when {self.name} is recorded; a replay would not change them")
            for t, a in zip(tensors, aliases):
                if a.node is not None or a.needs_grad != t.requires_grad or id(a) in recorder.grads:
                    raise NotRecordable(f"{self.name} changes how an argument is differentiated, or uses or adds to its .grad; "
                                        "a replay would not: detach() it, or return its gradient from grad()")
            if any(step.changed_meanwhile() for step in recorder.steps):
                raise NotRecordable(f"a param group changes after its step while {self.name} is recorded; a replay would not "
                                    "change it: step the scheduler outside")
            plan = _plan(self.name, recorder, tensors, aliases, result, entries, versions, self.options)
            recorder.restore()
            self._unchanged(written)
        except BaseException as error:
            recorder.restore()
            recorder.put_back()
            _forget(recorder, ())
            if recorder.refused is not None and error is not recorder.refused and isinstance(error, Exception):
                raise recorder.refused from error
            raise
        _forget(recorder, plan.kept)
        self.plans.setdefault(key, []).append((plan, result))
        return plan, result

    def _unchanged(self, entries: list) -> None:
        for e in entries:
            if not e.holds():
                raise NotRecordable(f"{e.owner}: {e.name or 'a variable'} changes while {self.name} is recorded; "
                                    "a replay would not change it")


def _stand_in(t: Any) -> Any:
    """The argument for a recording: the same memory, and no past."""
    stand_in = wrap(alias(t.array), t.storage)
    stand_in.needs_grad = bool(t.requires_grad)
    return stand_in


def _forget(recorder: Recorder, kept: Sequence[Any]) -> None:
    """No one is to read what was made while recording, but for what is kept up to date."""
    storages = {id(t.storage) for t in kept if t is not None}
    for ref in recorder.made:
        t = ref()
        if t is not None and recorder_of(root_of(t.array)) is recorder and id(t.storage) not in storages:
            t.storage.rewrites = -1


def _outputs(result: Any) -> Iterator[Any]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, np.ndarray):
        raise NotRecordable("a compiled function returns an array, which a replay would not fill again: return the tensor")
    elif nested(result):
        for r in result.values() if isinstance(result, dict) else result:
            yield from _outputs(r)
    elif not isinstance(result, PLAIN):
        raise NotRecordable(f"a compiled function returns tensors, numbers, and tuples, lists or dicts of them, "
                            f"not {type(result).__name__}")


def _plan(name: str, recorder: Recorder, args: list, aliases: list, result: Any, entries: list, versions: list,
          options: Options) -> Plan:
    by_alias = {id(a.array): i for i, a in enumerate(aliases)}
    outputs: list[Output] = []
    open_ends: list[Any] = []
    places: dict[int, int] = {}
    made = {id(ref()) for ref in recorder.made}
    for t in _outputs(result):
        if id(t) in places:
            outputs.append(Output("again", places[id(t)], None, None, 0, -1))
            continue
        places[id(t)] = len(outputs)
        root = root_of(t.array)
        offset = start_of(t.array) - start_of(root)
        whose = by_alias.get(id(root), -1)
        theirs = recorder_of(root) is recorder
        if any(t is a for a in aliases):
            outputs.append(Output("argument", whose, None, None, 0, -1))
            continue
        if id(t) not in made and not theirs:
            outputs.append(Output("kept", -1, t, None, 0, -1))
            continue
        alive = t.requires_grad and graph.whole(t) and bool(_leaves(recorder, [t]))
        kind = "part" if whose >= 0 else "made" if theirs else "view"
        outputs.append(Output(kind, whose, t if kind == "view" else None, t.array, offset, len(open_ends) if alive else -1))
        if alive:
            open_ends.append(t)
    split = len(recorder.calls)
    gradients = _record_gradients(recorder, aliases, open_ends) if open_ends else None
    return Plan(recorder, name, args, aliases, outputs, entries, split, gradients, versions, options)


def _leaves(recorder: Recorder, outputs: list) -> list:
    """What gradients of outputs can reach: not the leaves that were made within."""
    return [leaf for leaf in graph.leaves(outputs) if recorder_of(root_of(leaf.array)) is not recorder]


def _record_gradients(recorder: Recorder, aliases: list, outputs: list) -> _Gradients:
    """Record the way back from each output to the leaves."""
    leaves = _leaves(recorder, outputs)
    by_alias = {id(a): i for i, a in enumerate(aliases)}
    given, results, ranges = [], [], []
    with recorder.at_work():
        for y in outputs:
            g = y._full(y.shape, 1.0)
            first = len(recorder.calls)
            found = graph.grad([y], leaves, [g], retain_graph=True, allow_unused=True)
            given.append(g.array)
            results.append([None if f is None else f.array for f in found])
            ranges.append((first, len(recorder.calls)))
    return _Gradients([by_alias.get(id(leaf), leaf) for leaf in leaves], given, results, ranges)


class CompiledModule(Quick, Module):
    """A module whose forward is compiled. Parameters, buffers and submodules are the module's own, by the same names."""

    def __init__(self, module: Module, without: Iterable[str] = (), prepack: bool = False) -> None:
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "compiled", Compiled(module, without, prepack))
        for name in ("_parameters", "_buffers", "_modules", "_transient"):
            object.__setattr__(self, name, module.__dict__[name])
        for name in HOOKS:
            object.__setattr__(self, name, {})
        object.__setattr__(self, "latest", self.compiled.latest)
        object.__setattr__(self, "hooks", tuple([self.__dict__[name] for name in HOOKS]))
        object.__setattr__(self, "_grad_mode", None)

    @property
    def training(self) -> bool:                                  # type: ignore[override]
        return self.module.training

    def anew(self, args: tuple, kwargs: dict) -> Any:
        return Module.__call__(self, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.compiled(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        self.module.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.module, name, value)

    def extra_repr(self) -> str:
        return "compiled"

    def clone(self) -> "CompiledModule":
        """The same module, with the same plans in memory of their own: for another thread."""
        other = CompiledModule(self.module)
        object.__setattr__(other, "compiled", self.compiled.clone())
        object.__setattr__(other, "latest", other.compiled.latest)
        return other

    def __deepcopy__(self, memo: dict) -> "CompiledModule":
        return CompiledModule(copy.deepcopy(self.module, memo), *self.compiled.options)

    def __reduce__(self) -> Any:
        return self.compiled.__reduce__()

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        return self.compiled.plan(*args, **kwargs)


def compile(fn: Any = None, *, disable: bool = False, without: Iterable[str] = (), prepack: bool = False) -> Any:
    """A function of tensors, or a module, that is recorded when it is first called and replayed in C from then on.

    What is recorded is what ran: forward, loss, backward(), optimizer.step(), or any part of them. It is recorded again
    for other shapes, dtypes, layouts, values of arguments that are no tensors, train flags, grad mode and the like. Results
    have the bits that the function itself gives. Learning rates and all that optimizers read from their param groups
    may change between calls; schedulers step outside. Gradients stay in .grad, whose memory the next replay writes.

    What it names beside its arguments is looked at before each replay: variables, defaults, attributes, elements of
    containers, numbers in arrays and in other memory. Where something else is there it is recorded again, but only 64 times:
    what is new at each call had better be an argument. These are not looked at, and must not change: elements of containers
    that have more than 256, numbers in arrays of objects or of more than 64 KiB (where tensors share memory with them, what
    they are in tensors is followed), names that are made out by the program but for those that stand in a container, what is
    read by ==, hash() and repr() of an object, class attributes of numbers and strings, and what Python and NumPy keep for
    themselves: files, times, entropy, environment, contexts, flags of arrays, caches of functions.

    Raises NotRecordable where a function reads values, naming the line, changes what is not its own, names an iterator, a queue
    or a file to be read, or draws from generators of Python's or NumPy's that it did not make itself. With PYNEURO_COMPILE=0,
    or disable, functions run as they are. without: passes (pyneuro.passes.PASSES) to leave out. prepack: where no gradients are
    recorded, dense layers read private copies of their weights, which makes the most of few rows; they follow optimizers,
    load_state_dict and whatever else writes the parameters themselves, but nothing that is written by way of `.data` or NumPy.
    Usable as a decorator.
    """
    if fn is None:
        return lambda f: compile(f, disable=disable, without=without, prepack=prepack)
    if disable:
        return fn
    if isinstance(fn, Module):
        return CompiledModule(fn, without, prepack)
    if not callable(fn):
        raise TypeError(f"compile takes a function or a module, not {type(fn).__name__}")
    return Compiled(fn, without, prepack)
