# SPDX-License-Identifier: BSD-3-Clause
"""What a function may read beside its arguments, found by the names in its code: globals, closures, attributes, and the
lists and dicts among them. All of it must stand as it was for what was recorded to be right.
"""

import gc
import io
import random
import sys
import types
import weakref
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Iterator
from dis import get_instructions
from functools import cached_property, lru_cache, partial, partialmethod
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np

from .nn.module import HOOKS, Module
from .replay import MISSING, PLAIN, Body, Contents, Entry, Items
from .tensor import Tensor

MOST = 256                               # elements of a list or dict that are looked through; of longer ones only the number
MOST_BYTES = 65536                       # of an array that is looked through; a longer one counts as one that does not change
# Methods that code calls without their names are looked at, but for those by which objects are made (where their class is not
# named), shown, compared and kept.
_MAKING = "__new__", "__init__", "__post_init__"
_ASIDE = frozenset(f"__{name}__" for name in (
    "init_subclass", "class_getitem", "set_name", "del", "repr", "str", "format", "dir", "eq", "hash",
    "reduce", "reduce_ex", "getstate", "setstate", "sizeof", "copy", "deepcopy", "replace")).union(_MAKING)
_OURS = frozenset(sys.stdlib_module_names) | {"pyneuro", "numpy"}
# What generators of random numbers are but for pyneuro's.
GENERATORS = random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator
# Containers that are written in Python: what is in them is in their attributes. And what shows what is in a dict.
_WRITTEN = UserDict, UserList, ChainMap, weakref.WeakValueDictionary, weakref.WeakKeyDictionary, weakref.WeakSet
_SHOWN: tuple[type, ...] = types.MappingProxyType, type({}.keys()), type({}.values()), type({}.items())
# By these names code asks for attributes that it does not name, or that there need not be.
_ASKING = frozenset(("getattr", "hasattr", "vars", "__dict__", "AttributeError", "asdict", "astuple"))


def installed(name: Any) -> bool:
    """Whether a module belongs to Python, NumPy or pyneuro, which do not change."""
    return isinstance(name, str) and name.partition(".")[0] in _OURS


def _of_python(fn: Any) -> bool:
    return fn.__globals__["__name__"].partition(".")[0] in sys.stdlib_module_names


def _packaged(fn: Any) -> bool:
    """Whether a function belongs to an installed package, all of which would be looked at if it were looked at as closely as the
    user's own code."""
    return "-packages" in getattr(getattr(fn, "__code__", None), "co_filename", "")


def _imported(fn: Any) -> Iterator[Any]:
    """Modules that a function imports when it is called, where they are there already."""
    package = fn.__globals__.get("__package__") or ""
    for name in _named(fn, "IMPORT_NAME"):
        for found in (name, name.partition(".")[0], f"{package}.{name}".strip(".")):
            if found in sys.modules:
                yield sys.modules[found]


def _codes(code: Any) -> Iterator[Any]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@lru_cache(1000)
def _instructions(code: Any) -> dict[str, set]:
    """What instructions of each kind name."""
    found: dict[str, set] = {}
    for i in get_instructions(code):
        if isinstance(i.argval, (str, int)):
            found.setdefault(i.opname, set()).add(i.argval)
    return found


def _named(fn: Any, *prefixes: str) -> set[str]:
    """Names that instructions of these kinds have in a function and in those within it."""
    found = [_instructions(code) for code in _codes(fn.__code__)]
    return {name for names in found for kind in names if kind.startswith(prefixes) for name in names[kind]}


def assigned(fn: Any) -> set[str]:
    """Names outside the function that it assigns to."""
    return _named(fn, "STORE_GLOBAL", "DELETE_GLOBAL") | (_named(fn, "STORE_DEREF") & set(fn.__code__.co_freevars))


def nbytes(value: Any) -> int | None:
    """Of an array of numbers, or of whatever else shows its memory; None if it does not."""
    if isinstance(value, np.ndarray):
        return None if value.dtype.hasobject else value.nbytes
    if isinstance(value, (Tensor, np.generic)):
        return None
    try:
        with memoryview(value) as memory:
            return memory.nbytes
    except (TypeError, ValueError, BufferError):
        return None


def _goes_on(value: Any) -> bool:
    """Whether it is something of Python's or NumPy's that is another thing after each time that something is taken from it."""
    if not installed(type(value).__module__):
        return False
    if isinstance(value, io.IOBase):
        return not value.closed and value.readable() and not value.writable()
    return isinstance(value, (Iterator, random.SystemRandom)) or any(hasattr(type(value), m) for m in ("get_nowait", "recv"))


def _unnamed(cls: type) -> Iterator[Any]:
    """Methods of the user's that are called without their names: by Python, or by a class of pyneuro's or Python's over theirs."""
    for i, c in enumerate(cls.__mro__):
        if installed(c.__module__):
            continue
        above = [base for base in cls.__mro__[i + 1:] if installed(base.__module__) and base not in (object, Module)]
        for name, member in c.__dict__.items():
            if isinstance(member, (types.FunctionType, staticmethod, classmethod)) and name not in _ASIDE and (
                    name.startswith("__") or any(name in base.__dict__ for base in above)):
                yield member


def _own(value: Any) -> dict | None:
    """Its dict of attributes, if it has one."""
    try:
        found = getattr(value, "__dict__", None)
    except Exception:                                              # whatever a __getattr__ of the user's raises
        return None
    return found if isinstance(found, dict) else None


def _behind(proxy: Any) -> Any:
    try:
        return proxy.__repr__.__self__
    except (AttributeError, ReferenceError):                       # nothing any more
        return None


class Slots:
    """Those of an object, to be asked as its dict would be."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def get(self, name: str, default: Any) -> Any:
        return getattr(self.owner, name, default)


class Surroundings:
    """entries: what stands where. tensors, modules, generators and iterators: those that were met on the way."""

    def __init__(self, *values: Any) -> None:
        self.entries: list[Any] = []
        self.tensors: list[Any] = []
        self.modules: list[Module] = []
        self.generators: list[Any] = []                             # of random numbers
        self.iterators: list[Any] = []                              # that go on where they are read
        self._met: dict[int, Any] = {}
        self._names: set[str] = set()
        self._asked: set[str] = set()                               # names of attributes that there need not be
        self._above: set[str] = set()                               # that are looked for in other classes too, by super()
        self._texts: set[str] = set()                               # that may be names, where one is made out
        self._dynamic = False
        self._objects: list[Any] = []
        self._looked_up: set[tuple[int, str, bool]] = set()         # object and name, and whether above
        self._of_classes: set[tuple[type, str]] = set()             # what was noted of them, for whichever of their objects
        self._todo = list(values)
        self.look()

    def add(self, *values: Any) -> None:
        self._todo += values
        self.look()

    def look(self) -> None:
        """Until there is nothing new: every name that any function has may be an attribute of every object."""
        while self._todo:
            while self._todo:
                self._meet(self._todo.pop())
            if self._dynamic:
                self._names |= self._texts
            for owner in self._objects:
                for name in self._names:
                    if (key := (id(owner), name, name in self._above)) not in self._looked_up:
                        self._looked_up.add(key)
                        self._attribute(owner, name)

    def _meet(self, value: Any) -> None:
        if type(value) in weakref.ProxyTypes:
            value = _behind(value)
        if isinstance(value, str) and value.isidentifier():
            self._texts.add(value)
        if isinstance(value, PLAIN) or id(value) in self._met:
            return
        self._met[id(value)] = value
        if isinstance(value, GENERATORS) and not isinstance(value, random.SystemRandom):
            self.generators.append(value)
        if isinstance(value, Tensor):
            self.tensors.append(value)
            self._objects.append(value)
            self._todo += [getattr(hook, "hook", hook) for hook in (value._hooks or {}).values()]
        elif isinstance(value, types.FunctionType):
            if not installed(value.__globals__.get("__name__")):
                self._function(value)
            elif _of_python(value):                                 # what a decorator made of a function of the user's
                around = [Entry(c, None, MISSING, "").now() for c in value.__closure__ or ()]
                self._todo += [v for v in around if callable(v) or isinstance(v, dict)]
        elif isinstance(value, (types.MethodType, staticmethod, classmethod)):
            self._todo += [value.__func__, getattr(value, "__self__", None)]
        elif isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
            self._todo.append(value.__self__)
        elif isinstance(value, property):
            self._todo += [value.fget]
        elif isinstance(value, (partial, partialmethod, cached_property)):
            self._todo += [value.func, *getattr(value, "args", ())]
            keywords = getattr(value, "keywords", {})
            for name, given in keywords.items():
                self._note(keywords, name, given, "a partial")
        elif isinstance(value, (attrgetter, methodcaller)):
            self._names |= {part for text in value.__reduce__()[1] if isinstance(text, str) for part in text.split(".")}
        elif isinstance(value, weakref.ref):
            self._todo.append(value())
        elif isinstance(value, (list, tuple, dict, set, frozenset, deque)):
            self._items(value)
            if not installed(type(value).__module__):
                self._object(value)
        elif isinstance(value, _SHOWN):
            self._todo += gc.get_referents(value)
        elif (size := nbytes(value)) is not None:
            if size <= MOST_BYTES:
                self.entries.append(Contents.of(value))
            if _own(value) is not None:
                self._object(value)
        elif _goes_on(value):
            self.iterators.append(value)
        elif isinstance(value, type):
            if not installed(value.__module__):
                self._objects.append(value)
                self._todo += _unnamed(value)
                self._todo += [member for cls in value.__mro__ if not installed(cls.__module__)
                               for name, member in cls.__dict__.items() if name in _MAKING and not _packaged(member)]
        elif isinstance(value, types.ModuleType):
            if not installed(value.__name__):
                self._objects.append(value)
        elif "__wrapped__" in (_own(value) or ()) and not isinstance(value, Module):
            self._todo.append(value.__wrapped__)
        elif _own(value) is not None or not installed(type(value).__module__):
            self._object(value)

    def _object(self, value: Any) -> None:
        own = _own(value) or {}
        self._objects.append(value)
        self._todo += _unnamed(type(value))
        if isinstance(value, _WRITTEN):
            self._todo += own.values()
        if type(value).__module__.startswith("multiprocessing."):
            self._todo += [memory for memory in own.values() if nbytes(memory) is not None]
        if "_last_lr" in own:                                       # what get_last_lr() of a scheduler reads
            self._note(own, "_last_lr", value._last_lr, type(value).__name__)
        if isinstance(value, Module):
            self.modules.append(value)
            self._todo += [*value._parameters.values(), *value._buffers.values(), *value._modules.values()]
            self._todo += [hook for name in HOOKS for hook in own[name].values()]
            self._attribute(value, "forward")

    def _function(self, fn: Any) -> None:
        scope, label = fn.__globals__, fn.__qualname__
        self.entries.append(Body.of(fn))
        names, attributes = _named(fn, "LOAD_GLOBAL", "LOAD_NAME"), _named(fn, "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
        constants = [c for code in _codes(fn.__code__) for c in code.co_consts]
        constants += [part for c in constants if isinstance(c, tuple) for part in c]
        texts = {c for c in constants if isinstance(c, str) and c.isidentifier()}
        for name in sorted(names | (texts & scope.keys() if "globals" in names else set())):
            if name in scope or name not in fn.__builtins__:
                self._note(scope, name, scope.get(name, MISSING), label)
        for cell in fn.__closure__ or ():
            entry = Entry(cell, None, MISSING, label)               # where it is not bound yet
            self._note(cell, None, entry.now(), label)
        for name, given in (fn.__kwdefaults__ or {}).items():
            self._note(fn.__kwdefaults__, name, given, label)
        self._todo += fn.__defaults__ or ()
        self._todo += () if _packaged(fn) else _imported(fn)
        if fn.__dict__ or not _packaged(fn):
            self._objects.append(fn)
        self._names |= attributes | _named(fn, "IMPORT_FROM")
        if "super" in names or _named(fn, "LOAD_SUPER_ATTR"):
            self._above |= attributes
        self._dynamic |= "getattr" in names and not _packaged(fn)
        if (names | attributes) & _ASKING or _named(fn, "MATCH_CLASS"):
            self._asked |= texts | (attributes if "AttributeError" in names else set())
            self._names |= self._asked

    def _items(self, value: Any) -> None:
        if not isinstance(value, (tuple, frozenset)):
            self.entries.append(Items.of(value, MOST))
        if len(value) <= MOST:
            self._todo += value.values() if isinstance(value, dict) else value
            self._todo += [key for key in value if isinstance(key, str)] if isinstance(value, dict) else ()

    def _attribute(self, owner: Any, name: str) -> None:
        """An attribute as it would be found: in the object, or else in a class of the user's."""
        named = isinstance(owner, (type, types.FunctionType, types.ModuleType))
        label = owner.__name__ if named else type(owner).__name__
        classes = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
        own = None if isinstance(owner, type) else _own(owner)
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
                last = len(classes) if name in self._above else classes.index(cls) + 1
                for c in classes[:last]:                              # those before it have none, yet
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
