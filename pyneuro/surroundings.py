# SPDX-License-Identifier: BSD-3-Clause
"""What a function may read beside its arguments, found by the names in its code: globals, closures, attributes, and the
lists and dicts among them. All of it must stand as it was for what was recorded to be right.
"""

import io
import sys
import types
from array import array
from collections import deque
from collections.abc import Iterator
from dis import get_instructions
from functools import partial
from typing import Any

import numpy as np

from .nn.module import Module
from .replay import MISSING, PLAIN, Body, Contents, Entry, Items
from .tensor import Tensor

MOST = 256                               # elements of a list or dict that are looked through; of longer ones only the number
MOST_BYTES = 65536                       # of an array that is looked through; a longer one counts as one that does not change
# Methods that code calls without their names are looked at, but for those by which objects are made, shown, compared and kept.
_ASIDE = frozenset(f"__{name}__" for name in (
    "init", "new", "post_init", "init_subclass", "class_getitem", "set_name", "del", "repr", "str", "format", "dir", "eq", "hash",
    "reduce", "reduce_ex", "getstate", "setstate", "sizeof", "copy", "deepcopy", "replace"))
_OURS = frozenset(sys.stdlib_module_names) | {"pyneuro", "numpy"}


def installed(name: Any) -> bool:
    """Whether a module belongs to Python, NumPy or pyneuro, which do not change."""
    return isinstance(name, str) and name.partition(".")[0] in _OURS


def _codes(code: Any) -> Iterator[Any]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _named(fn: Any, *prefixes: str) -> set[str]:
    """Names that instructions of these kinds have in a function and in those within it."""
    return {i.argval for code in _codes(fn.__code__) for i in get_instructions(code) if i.opname.startswith(prefixes)}


def assigned(fn: Any) -> set[str]:
    """Names outside the function that it assigns to."""
    return _named(fn, "STORE_GLOBAL", "DELETE_GLOBAL") | (_named(fn, "STORE_DEREF") & set(fn.__code__.co_freevars))


class Slots:
    """Those of an object, to be asked as its dict would be."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def get(self, name: str, default: Any) -> Any:
        return getattr(self.owner, name, default)


class Surroundings:
    """entries: what stands where. tensors, modules and iterators: those that were met on the way."""

    def __init__(self, *values: Any) -> None:
        self.entries: list[Any] = []
        self.tensors: list[Any] = []
        self.modules: list[Module] = []
        self.iterators: list[Any] = []                              # that go on where they are read
        self._met: dict[int, Any] = {}
        self._names: set[str] = set()
        self._asked: set[str] = set()                               # names of attributes that there need not be
        self._objects: list[Any] = []
        self._of_classes: set[tuple[type, str]] = set()             # what was noted of them, for whichever of their objects
        self._todo = list(values)
        self.look()

    def add(self, *values: Any) -> None:
        self._todo += values
        self.look()

    def look(self) -> None:
        """Until there is nothing new: every name that any function has may be an attribute of every object."""
        looked_up: set[tuple[int, str]] = set()
        while self._todo:
            while self._todo:
                self._meet(self._todo.pop())
            for owner in self._objects:
                for name in self._names:
                    if (id(owner), name) not in looked_up:
                        looked_up.add((id(owner), name))
                        self._attribute(owner, name)

    def _meet(self, value: Any) -> None:
        if isinstance(value, PLAIN) or id(value) in self._met:
            return
        self._met[id(value)] = value
        if isinstance(value, Tensor):
            self.tensors.append(value)
            self._objects.append(value)
        elif isinstance(value, types.FunctionType):
            if not installed(value.__globals__.get("__name__")):
                self._function(value)
        elif isinstance(value, (types.MethodType, staticmethod, classmethod)):
            self._todo += [value.__func__, getattr(value, "__self__", None)]
        elif isinstance(value, property):
            self._todo += [value.fget]
        elif isinstance(value, partial):
            self._todo += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, (list, tuple, dict, set, deque)):
            self._items(value)
        elif isinstance(value, memoryview):
            self._todo.append(value.obj)
        elif isinstance(value, (np.ndarray, bytearray, array)):
            numbers = Contents.array(value)
            if numbers.nbytes <= MOST_BYTES and not numbers.dtype.hasobject:
                self.entries.append(Contents.of(value))
        elif isinstance(value, Iterator) and installed(type(value).__module__) and not isinstance(value, io.IOBase):
            self.iterators.append(value)
        elif isinstance(value, type):
            if not installed(value.__module__):
                self._objects.append(value)
        elif isinstance(value, types.ModuleType):
            if not installed(value.__name__):
                self._objects.append(value)
        elif hasattr(value, "__wrapped__") and not isinstance(value, Module):
            self._todo.append(value.__wrapped__)
        elif isinstance(getattr(value, "__dict__", None), dict) or not installed(type(value).__module__):
            self._objects.append(value)
            self._todo += [member for cls in type(value).__mro__ if not installed(cls.__module__)
                           for name, member in cls.__dict__.items()
                           if name.startswith("__") and name not in _ASIDE and isinstance(member, types.FunctionType)]
            if "_last_lr" in getattr(value, "__dict__", ()):       # what get_last_lr() of a scheduler reads
                self._note(value.__dict__, "_last_lr", value._last_lr, type(value).__name__)
            if isinstance(value, Module):
                self.modules.append(value)
                self._todo += [*value._parameters.values(), *value._buffers.values(), *value._modules.values()]
                self._attribute(value, "forward")

    def _function(self, fn: Any) -> None:
        scope, label = fn.__globals__, fn.__qualname__
        self.entries.append(Body.of(fn))
        for name in sorted(_named(fn, "LOAD_GLOBAL", "LOAD_NAME")):
            if name in scope:
                self._note(scope, name, scope[name], label)
        for cell in fn.__closure__ or ():
            try:
                self._note(cell, None, cell.cell_contents, label)
            except ValueError:                                     # not bound yet
                continue
        self._todo += [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
        self._objects.append(fn)
        self._names |= _named(fn, "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
        if _named(fn, "LOAD_GLOBAL", "LOAD_ATTR") & {"getattr", "hasattr", "vars", "__dict__"} or _named(fn, "MATCH_CLASS"):
            constants = [c for code in _codes(fn.__code__) for c in code.co_consts]
            constants += [part for c in constants if isinstance(c, tuple) for part in c]
            self._asked |= {c for c in constants if isinstance(c, str) and c.isidentifier()}
            self._names |= self._asked

    def _items(self, value: Any) -> None:
        if not isinstance(value, tuple):
            self.entries.append(Items.of(value, MOST))
        if len(value) <= MOST:
            self._todo += value.values() if isinstance(value, dict) else value

    def _attribute(self, owner: Any, name: str) -> None:
        """An attribute as it would be found: in the object, or else in a class of the user's."""
        label = getattr(owner, "__name__", type(owner).__name__)
        classes = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
        own = None if isinstance(owner, type) else getattr(owner, "__dict__", None)
        if not isinstance(owner, type):
            if own is not None and name in own:
                self._note(own, name, own[name], label)
                return
            if isinstance(owner, types.ModuleType):
                return
        for cls in classes:
            if name in cls.__dict__:
                if installed(cls.__module__):
                    return
                for c in classes[:classes.index(cls) + 1]:            # those before it have none, yet
                    if (c, name) not in self._of_classes and not installed(c.__module__):
                        self._of_classes.add((c, name))
                        self._note(c.__dict__, name, c.__dict__.get(name, MISSING), label)
                if isinstance(cls.__dict__[name], types.MemberDescriptorType) and not isinstance(owner, type):
                    slots = Slots(owner)
                    self._note(slots, name, slots.get(name, MISSING), label)
                elif own is not None:
                    self.entries.append(Entry(own, name, MISSING, label))
                return
        if name in self._asked and own is not None:
            self.entries.append(Entry(own, name, MISSING, label))

    def _note(self, where: Any, name: Any, value: Any, label: str) -> None:
        self.entries.append(Entry(where, name, value, label))
        self._todo.append(value)
