# SPDX-License-Identifier: BSD-3-Clause
# cython: annotation_typing=False, auto_pickle=False
"""What happens at every call of a plan: see that it is still the right one, bind arguments and results, run, hand out.

This is what a replayed step costs beside its arithmetic.
"""

from collections import defaultdict
from collections.abc import Iterator
from copy import copy
from functools import update_wrapper
from types import CellType, MethodType
from typing import Any, NamedTuple

import numpy as np

from .graph import is_grad_enabled
from .kernels import (
    Effects,
    Looks,
    Native,
    TensorBase,
    alias_at,
    current_backend,
    empty,
    fresh,
    renew,
    same_layout,
    watchers,
)
from .kernels.reference import Reference
from .tensor import Tensor, _Defaults

PLAIN = (type(None), bool, int, float, str, bytes)
MISSING = object()
SMALL = 64 * 1024                        # bytes of results that are kept to be used again


def same(a: Any, b: Any) -> bool:
    """Whether b can stand for a: the very same object, or an equal number or text."""
    return a is b or (type(a) is type(b) and isinstance(a, PLAIN) and (repr(a) == repr(b) if isinstance(a, float) else a == b))


class Entry(NamedTuple):
    """What stood somewhere when it was recorded: in a dict or a class, or in a cell."""

    where: Any
    name: Any
    value: Any
    owner: str                           # as messages call it

    def now(self) -> Any:
        if type(self.where) is not CellType:
            return self.where.get(self.name, MISSING)
        try:
            return self.where.cell_contents
        except ValueError:                                      # empty
            return MISSING

    def holds(self) -> bool:
        return same(self.now(), self.value)

    def put_back(self) -> None:
        """Let it stand there again, but in a class."""
        if type(self.where) is CellType:
            if self.value is MISSING:
                del self.where.cell_contents
            else:
                self.where.cell_contents = self.value
        elif isinstance(self.where, dict):
            if self.value is MISSING:
                self.where.pop(self.name, None)
            else:
                self.where[self.name] = self.value


class Items(NamedTuple):
    """What was in a list, dict or set when it was recorded, or of a long one only how much."""

    where: Any
    name: str
    value: tuple | int
    owner: str

    @classmethod
    def of(cls, where: Any, most: int) -> "Items":
        elements = cls.elements(where) if len(where) <= most else len(where)
        return cls(where, f"a {type(where).__name__}", elements, "what it names")

    @staticmethod
    def elements(where: Any) -> tuple:
        return (*where, *where.values()) if isinstance(where, dict) else tuple(where)

    def holds(self) -> bool:
        if isinstance(self.value, int):
            return len(self.where) == self.value
        now = self.elements(self.where)
        return len(now) == len(self.value) and all(map(same, now, self.value))

    def put_back(self) -> None:
        """Let them be in it again, but in a long one."""
        if isinstance(self.value, int):
            return
        elements, half = self.value, len(self.value) // 2
        self.where.clear()
        if isinstance(self.where, dict):
            self.where.update(zip(elements[:half], elements[half:]))
        else:
            (self.where.update if isinstance(self.where, set) else self.where.extend)(elements)


class Body(NamedTuple):
    """What a function did when it was recorded: those who edit while they run give it other code."""

    where: Any
    name: str
    value: tuple
    owner: str

    @classmethod
    def of(cls, fn: Any) -> "Body":
        return cls(fn, "its code", cls.parts(fn), fn.__qualname__)

    @staticmethod
    def parts(fn: Any) -> tuple:
        return fn.__code__, fn.__defaults__, fn.__kwdefaults__

    def holds(self) -> bool:
        return all(a is b for a, b in zip(self.parts(self.where), self.value))

    def put_back(self) -> None:
        self.where.__code__, self.where.__defaults__, self.where.__kwdefaults__ = self.value


class Contents(NamedTuple):
    """What was in an array of numbers when it was recorded, or in whatever else shows its memory."""

    where: Any
    name: str
    value: tuple
    owner: str

    @classmethod
    def of(cls, where: Any) -> "Contents":
        kept = where.copy() if isinstance(where, np.ndarray) else None
        return cls(where, f"a {type(where).__name__}", (*cls.seen(where), kept), "what it names")

    @staticmethod
    def seen(where: Any) -> tuple:
        if isinstance(where, np.ndarray):
            return where.tobytes(), where.shape, where.dtype
        memory = memoryview(where)
        return memory.tobytes(), memory.shape, memory.format

    def holds(self) -> bool:
        try:
            return self.seen(self.where) == self.value[:3]
        except ValueError:                                      # released, closed
            return False

    def put_back(self) -> None:
        """Let it be there again, but where there is more or less of it now."""
        if isinstance(self.where, np.ndarray):
            if self.where.shape == self.value[1] and self.where.flags.writeable:
                self.where[...] = self.value[3]
            return
        memory = memoryview(self.where)
        if memory.c_contiguous and not memory.readonly and memory.nbytes == len(self.value[0]):
            memory.cast("B")[:] = self.value[0]

    def arrays(self) -> list[np.ndarray]:
        """Its memory; none where there is nothing in it."""
        if isinstance(self.where, np.ndarray):
            return [self.where] if self.where.size else []
        memory = memoryview(self.where)
        return [np.frombuffer(memory, np.uint8) if memory.c_contiguous else np.asarray(memory)] if memory.nbytes else []


def look_at(entries: list) -> list:
    """The entries of dicts, cells, functions and arrays as what Looks takes; others are no quick look."""
    return [("body", e.where) if type(e) is Body else ("array", e.where, e.value[3]) if type(e) is Contents else
            ("cell", e.where, e.value) if type(e.where) is CellType else ("item", e.where, e.name, e.value)
            for e in entries if type(e) is Body or (type(e) is Entry and type(e.where) in (dict, defaultdict, CellType)) or
            (type(e) is Contents and type(e.where) is np.ndarray and e.where.flags.c_contiguous)]


class Argument:
    """A tensor that was given."""

    def __init__(self, like: Any, needs: bool, first: int) -> None:
        self.like = like                 # an array of its layout
        self.needs = needs               # a gradient
        self.first = first               # the first argument that was the same tensor


class Output(NamedTuple):
    """A tensor that was returned."""

    kind: str                            # "argument", "part" (a view of one), "kept" (it was there before), "made",
                                         # "view" (of what was there), "again" (the same tensor as another one)
    number: int                          # of the argument, the result, the other output
    tensor: Any                          # kept, or of the view
    array: Any                           # of a view: as it was recorded
    offset: int                          # in bytes, where it begins
    differentiable: int                  # position among those that have gradients, or -1


class Lease:
    """A program in use: it is free again when nobody needs what it left in its memory."""

    def __init__(self, free: list, program: Any) -> None:
        self.free, self.program = free, program

    def __del__(self) -> None:
        self.free.append(self.program)


class Replay:
    """Of a plan, what its calls need; made by plan.py, which says what the fields are."""

    def __init__(self, backend: Any, arguments: list, entries: list, tensors: list, before: list, tables: list, steps: list,
                 outputs: list, results: list, effects: Effects, shared: list, packs: list, argument_versions: list, stop: int,
                 gradients: Any, make: Any) -> None:
        self.backend, self.grad_mode = backend, is_grad_enabled()
        self.arguments = arguments
        self.count = len(arguments)
        self.entries, self.tensors, self.before, self.tables, self.optimizers = entries, tensors, before, tables, steps
        self.outputs, self.results, self.effects, self.shared, self.packs = outputs, results, effects, shared, packs
        self.argument_versions = argument_versions
        self.stop, self.gradients, self.make = stop, gradients, make
        # Whether results can be handed out as they are: each a tensor of its own, without gradients.
        numbers = [o.number for o in outputs if o.kind == "made" and o.array is None]
        self.plain = gradients is None and numbers == list(range(self.count, self.count + len(outputs)))
        self.free = [make()]
        self.busy = False
        # Small arrays of results are used again where nobody has them any more, as to make them takes as long as much of a
        # small plan: those of the run before the last, since what the last one returned is often still there.
        self.again = sum(layout.nbytes for layout in results) <= SMALL
        self.older, self.newer = list(results), list(results)
        quick = [(look, e) for e in entries for look in look_at([e])]
        self.others = [e for e in entries if not look_at([e])]
        looks = [("item", vars(_Defaults), "dtype", _Defaults.dtype), *[("tensor", t) for t in tensors],
                 *[("grad", t, array) for t, array in before], *[("keys", t) for t in tables]]
        found = [*((look, None) for look in looks), *quick]
        found.sort(key=lambda pair: (pair[0][0] not in ("item", "keys"), id(pair[0][1])))     # first those at dicts, one by one
        self.looks = Looks([look for look, _ in found], MISSING)
        self.slow = [e for _, e in found]                     # what decides where a look finds something else
        # Whether, where no look finds anything else, nothing is run that may ask for the grad mode.
        self.silent = self.free[0].silent and not self.others and not steps
        self._look_at_steps()
        self._look_at_weights()

    def clone(self, make: Any) -> "Replay":
        """The same with memory of its own, by way of `make`."""
        other = Replay(self.backend, self.arguments, self.entries, self.tensors, self.before, self.tables, self.optimizers,
                       self.outputs, self.results, self.effects, self.shared, self.packs, self.argument_versions, self.stop,
                       self.gradients, make)
        other.grad_mode = self.grad_mode
        other.looks, other.sources, other.steps = self.looks, self.sources, list(self.steps)     # what stood there then
        return other

    def _look_at_weights(self) -> None:
        self.sources = Looks([("version", storage) for storage, _, _ in self.packs], MISSING)

    def _look_at_steps(self) -> None:
        self.steps = [(Looks(step.looks() + step.restless(), MISSING), step) for step in self.optimizers]

    def suits(self, args: tuple, mode: Any) -> bool:
        """Whether these are tensors laid out as the arguments were, in the same mode and on the same backend. mode: of
        gradients; None: the current one."""
        recorded = is_grad_enabled() if mode is None else mode
        if len(args) != self.count or recorded != self.grad_mode:
            return False
        for i in range(self.count):
            if type(args[i]) is not Tensor and not isinstance(args[i], TensorBase):
                return False
            t = args[i]
            argument = self.arguments[i]
            if not same_layout(t.array, argument.like) or t.needs_grad != argument.needs or t.storage.rewrites:
                return False
            for j in range(i):
                if args[j] is t:
                    break
            else:
                j = i
            if j != argument.first:
                return False
        current = current_backend()
        return current is self.backend or (type(current) in (Native, Reference) and current.name == self.backend.name)

    def fits(self) -> bool:
        """Whether all that Python read while it was recorded is as it was; optimizers' numbers are brought up to date."""
        if not self.stands():
            return False
        for looks, step in self.steps:
            if looks.changed(0) >= 0:
                if not step.holds():
                    return False
                self._look_at_steps()
        while self.sources.changed(0) >= 0:
            self._look_at_weights()                            # first: they may change again meanwhile
            for _, weight, copied in self.packs:
                np.copyto(copied, weight)
        return True

    def stands(self) -> bool:
        """The same, but for what optimizers read."""
        for slow in self.others:
            if not slow.holds():
                return False
        i = self.looks.changed(0)
        while i >= 0:
            if self.slow[i] is None or not self.slow[i].holds():
                return False
            i = self.looks.changed(i + 1)
        return True

    def untouched(self) -> bool:
        """Whether it fits, and can tell and run without anything that may ask for the grad mode."""
        return self.silent and self.looks.changed(0) < 0 and self.sources.changed(0) < 0

    def moved(self, args: Any) -> bool:
        """Whether an argument may lie elsewhere than when the plan last ran."""
        if not self.free:
            return True
        program = self.free[-1]
        return program.moved(args)

    def clashes(self, args: Any) -> bool:
        """Whether an argument lies in memory that the plan writes otherwise than when it was recorded."""
        if not self.free:
            self.free.append(self.make())
        program = self.free[-1]
        return program.clashes(args)

    def attempt(self, args: tuple, mode: Any) -> Any:
        """What the function returned, if the plan is the right one for these arguments; else None. mode: of gradients, where
        it has not been set for this call; None: the current one."""
        if self.suits(args, mode) and (self.fits() if mode is None else self.untouched()):
            return None if self.moved(args) and self.clashes(args) else self.run(args)
        return None

    def run(self, args: Any) -> list:
        """Run it; the tensors that the function returned, in order. Raises RuntimeError if another thread is at it."""
        if self.busy:
            raise RuntimeError("the plan is busy in another thread; give each thread a clone()")
        self.busy = True
        try:
            program = self.free.pop() if self.free else self.make()
            lease = Lease(self.free, program) if self.gradients is not None else None
            try:
                i = 0
                for t in args:
                    program.bind(i, t.array)
                    i += 1
                made = []                # tensors of whole results; what is returned shares their storage
                arrays = self.older if self.again else list(self.results)
                renew(arrays, self.results)
                if self.again:
                    self.older, self.newer = self.newer, arrays
                for array in arrays:
                    t = fresh(array)
                    program.bind(i, array)
                    made.append(t)
                    i += 1
                program.run(0, self.stop)
            finally:
                if lease is None:
                    self.free.append(program)
            self.effects.happen()
            for t, o in self.shared:
                t._grad = self._output(o, args, made, lease)
            for i, more in self.argument_versions:
                args[i].storage.version += more
            if self.plain:
                return made
            out: list[Any] = []
            for o in self.outputs:
                out.append(out[o[1]] if o[0] == "again" else self._output(o, args, made, lease))
            return out
        finally:
            self.busy = False

    def loop(self, args: Any, moving: int, rows: np.ndarray, after: Any) -> list:
        """Run it once for each of `rows`, which takes the place of argument `moving`: arrays of the results, stacked.

        Other arguments are as given. after: None, or a function that is called each time, and may change an optimizer's
        numbers; where this is not the right plan after that, the rows end. Only for plans whose outputs are whole tensors of
        their own.
        """
        if self.busy:
            raise RuntimeError("the plan is busy in another thread; give each thread a clone()")
        self.busy = True
        program = self.free.pop() if self.free else self.make()

        def adjust() -> bool:
            after()
            return all(step.holds() for step in self.optimizers) and self.stands()

        try:
            for i, t in enumerate(args):
                program.bind(i, rows[0] if i == moving else t.array)
            stacked = [empty((len(rows), *layout.shape), layout.dtype) for layout in self.results]
            moves = [(moving, rows.strides[0])]
            for i, array in enumerate(stacked):
                program.bind(self.count + i, array[0, ...])
                moves.append((self.count + i, array.strides[0]))
            done = program.loop(self.stop, len(rows), moves, None if after is None else adjust)
            return [array[:done] for array in stacked]
        finally:
            self.effects.happen()
            self.free.append(program)
            self.busy = False

    def _output(self, o: Any, args: Any, made: list, lease: Any) -> Any:
        kind, number, tensor, array, offset, differentiable = o
        if kind == "argument":
            return args[number]
        if kind == "kept":
            return tensor
        if kind == "view":
            root, t = tensor, fresh(tensor.array)
        else:
            root = made[number - self.count] if kind == "made" else args[number]
            t = fresh(root.array if array is None else alias_at(root.array, array, offset))
        t.storage = root.storage
        if differentiable >= 0:
            t.node = self.gradients.node(self, lease, differentiable, t, args, made)
            t.needs_grad = True
        return t


class Latest:
    """The plan that was right for the last call of a function of tensors, and what that returned."""

    def __init__(self) -> None:
        self.replay: Any = None
        self.result: Any = None

    def set(self, replay: Any, result: Any) -> None:
        self.replay, self.result = replay, result


class Quick:
    """Base of what is compiled: a call is its latest plan's, where that is right for it, and otherwise goes to `anew`.

    hooks: dicts; what they hold is called by `anew` alone. _grad_mode: what a call is in; None: what there is.
    """

    def __init__(self, latest: Any, hooks: tuple = (), grad_mode: Any = None) -> None:
        self.latest, self.hooks, self._grad_mode = latest, hooks, grad_mode

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        replay = self.latest.replay
        if replay is None or kwargs or watchers:
            return self.anew(args, kwargs)
        for table in self.hooks:
            if table:
                return self.anew(args, kwargs)
        result = self.latest.result
        found = replay.attempt(args, self._grad_mode)
        if found is None:
            return self.anew(args, kwargs)
        return found[0] if type(result) is Tensor else rebuilt(result, iter(found))

    def anew(self, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError

    def __in_grad_mode__(self, mode: Any, switched: Any) -> Any:
        """`switched`, which is this called in a mode, or what does the same."""
        if type(self).__call__ is not Quick.__call__:          # a subclass of the user's does more
            return switched
        return Switched(self, mode if self._grad_mode is None else self._grad_mode, switched)


class Switched(Quick):
    """What is compiled, as no_grad and the like call it: to set the mode costs as much as half of all else in a replay that
    is not its arithmetic, so that is done by `anew` alone. It behaves as the function would that it stands for."""

    def __init__(self, compiled: Any, mode: Any, switched: Any) -> None:
        update_wrapper(self, switched)                         # first: it brings what another one has of its own
        super().__init__(compiled.latest, compiled.hooks, mode)
        self.switched, self.__wrapped__ = switched, compiled

    def anew(self, args: tuple, kwargs: dict) -> Any:
        return self.switched(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> str:
        return self.switched.__qualname__                      # copies are itself


def rebuilt(value: Any, tensors: Iterator) -> Any:
    """value with the next of the tensors for each of its own."""
    if isinstance(value, (Tensor, np.ndarray)):
        return next(tensors)
    if not nested(value):
        return value
    if isinstance(value, dict):
        items = {k: rebuilt(v, tensors) for k, v in value.items()}
        if type(value) is dict:
            return items
        other = copy(value)
        other.update(items)
        return other
    parts = [rebuilt(v, tensors) for v in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def nested(value: Any) -> bool:
    """Whether it is a tuple, list or dict, and no more than its elements."""
    return type(value) in (tuple, list, dict) or (isinstance(value, (tuple, list, dict)) and not getattr(value, "__dict__", None))
