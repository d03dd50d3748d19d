# SPDX-License-Identifier: BSD-3-Clause
"""Modules and parameters in a row or under keys, found by the module that holds the container."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import index as as_integer
from typing import Any

from ..tensor import Tensor
from .module import Module, Parameter


def _at(keys: Iterable[str], index: Any, name: str) -> str:
    """The key at a position, counted from the end where it is negative."""
    known, position = list(keys), as_integer(index)
    if not -len(known) <= position < len(known):
        raise IndexError(f"index {position} is out of range for a {name} of {len(known)}")
    return known[position]


def _elements(given: Any, name: str) -> Iterable[Any]:
    if not isinstance(given, Iterable) or isinstance(given, Tensor):
        raise TypeError(f"{name} takes an iterable, got {type(given).__name__}")
    return given


def _pairs(given: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The (key, value) pairs of a mapping, of a container with keys, or of an iterable of pairs."""
    if isinstance(given, (Mapping, ModuleDict, ParameterDict)):
        yield from given.items()
        return
    for at, pair in enumerate(_elements(given, name)):
        both = tuple(_elements(pair, f"{name}, of element {at},"))
        if len(both) != 2:
            raise ValueError(f"{name} takes pairs of key and value; element {at} has {len(both)} parts")
        yield both


class _Row(Module):
    """What Sequential and ModuleList have in common: modules by position, their keys numbered."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def _part(self, items: list[tuple[str, Module]]) -> Any:
        raise NotImplementedError

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._part(list(self._modules.items())[index])
        return self._modules[_at(self._modules, index, type(self).__name__)]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, _at(self._modules, index, type(self).__name__), module)

    def __delitem__(self, index: int | slice) -> None:
        keys = list(self._modules)[index] if isinstance(index, slice) else [_at(self._modules, index, type(self).__name__)]
        self._renumber([m for key, m in self._modules.items() if key not in keys])

    def _renumber(self, modules: list[Any]) -> None:
        self._modules.clear()
        self._modules.update((str(i), m) for i, m in enumerate(modules))

    def append(self, module: Module) -> Any:
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        for module in list(_elements(modules, f"{type(self).__name__}.extend")):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """module before the one at index; those behind it move up."""
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__} takes modules, got {type(module).__name__}")
        position, rest = as_integer(index), list(self._modules.values())
        if not -len(rest) <= position <= len(rest):
            raise IndexError(f"index {position} is out of range for an insertion into {len(rest)} modules")
        rest.insert(position, module)
        self._renumber(rest)
        return self

    def pop(self, key: int | slice) -> Any:
        removed = self[key]
        del self[key]
        return removed

    def __iadd__(self, other: Any) -> Any:
        return self.extend(other)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.isdigit()]


class Sequential(_Row):
    """Modules one after another: Sequential(a, b, ...) or Sequential(OrderedDict(name=a, ...))."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        named = (
            args[0].items()
            if len(args) == 1 and isinstance(args[0], dict)
            else ((str(i), m) for i, m in enumerate(args))
        )
        for name, module in named:
            if not isinstance(module, Module):
                raise TypeError(f"Sequential takes modules, got {type(module).__name__} at {name}")
            self.add_module(name, module)

    def forward(self, input: Any) -> Any:
        for module in self._modules.values():
            input = module(input)
        return input

    def _part(self, items: list[tuple[str, Module]]) -> Any:
        return type(self)(OrderedDict(items))

    def __add__(self, other: "Sequential") -> "Sequential":
        if not isinstance(other, Sequential):
            raise ValueError(f"a Sequential is added to another one, not to {type(other).__name__}")
        return Sequential(*self, *other)

    def __iadd__(self, other: "Sequential") -> Any:
        if not isinstance(other, Sequential):
            raise ValueError(f"a Sequential is added to another one, not to {type(other).__name__}")
        return self.extend(other)

    def __mul__(self, times: int) -> "Sequential":
        return Sequential(*_repeated(self, times))

    __rmul__ = __mul__

    def __imul__(self, times: int) -> Any:
        modules = _repeated(self, times)
        self._renumber(modules)
        return self


def _repeated(modules: Iterable[Module], times: int) -> list[Module]:
    """The same modules over and over: they share their parameters."""
    if not isinstance(times, int):
        raise TypeError(f"a Sequential is multiplied by an integer, not by {type(times).__name__}")
    if times <= 0:
        raise ValueError(f"a Sequential is multiplied by a positive integer, not by {times}")
    return list(modules) * times


class ModuleList(_Row):
    """A list of modules; what is done with them is up to the module that holds it."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def _part(self, items: list[tuple[str, Module]]) -> Any:
        return type(self)([m for _, m in items])

    def insert(self, index: int, module: Module) -> None:
        super().insert(index, module)

    def __add__(self, other: Iterable[Module]) -> "ModuleList":
        return ModuleList([*self, *other])

    def __repr__(self) -> str:
        """Neighbours that print alike are shown once."""
        lines, first = [], 0
        for text, same in groupby(map(repr, self)):
            count = len(list(same))
            place = f"({first})" if count == 1 else f"({first}-{first + count - 1})"
            lines.append((f"{place}: " if count == 1 else f"{place}: {count} x ") + text.replace("\n", "\n  "))
            first += count
        return f"{type(self).__name__}(" + ("\n  " + "\n  ".join(lines) + "\n" if lines else "") + ")"


class ModuleDict(Module):
    """Modules under keys, in the order in which they came."""

    def __init__(self, modules: Any = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __getitem__(self, key: str) -> Any:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def clear(self) -> None:
        self._modules.clear()

    def pop(self, key: str) -> Any:
        return self._modules.pop(key)

    def keys(self) -> Any:
        return self._modules.keys()

    def items(self) -> Any:
        return self._modules.items()

    def values(self) -> Any:
        return self._modules.values()

    def update(self, modules: Any) -> None:
        """modules: a mapping, or an iterable of pairs."""
        for key, module in list(_pairs(modules, "ModuleDict.update")):
            self[key] = module


def _trained(value: Any) -> Any:
    """Tensors as parameters, anything else as it is."""
    return Parameter(value) if isinstance(value, Tensor) and not isinstance(value, Parameter) else value


def _described(key: Any, value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"  ({key}): Object of type: {type(value).__name__}"
    kind = "Parameter" if isinstance(value, Parameter) else "Tensor"
    return f"  ({key}): {kind} containing: [{value.dtype} of size {'x'.join(map(str, value.shape))}]"


class ParameterList(Module):
    """A list of parameters; tensors that are put in become parameters, other things stay what they are."""

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self._size = 0
        if values is not None:
            self.extend(values)

    def _keys_in_order(self) -> list[str]:
        return [str(i) for i in range(self._size)]

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)([getattr(self, key) for key in self._keys_in_order()[index]])
        return getattr(self, _at(self._keys_in_order(), index, "ParameterList"))

    def __setitem__(self, index: int, value: Any) -> None:
        setattr(self, _at(self._keys_in_order(), index, "ParameterList"), _trained(value))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return iter([getattr(self, key) for key in self._keys_in_order()])

    def append(self, value: Any) -> Any:
        self._size += 1
        self[-1] = value
        return self

    def extend(self, values: Iterable[Any]) -> Any:
        for value in list(_elements(values, "ParameterList.extend")):
            self.append(value)
        return self

    def __iadd__(self, values: Iterable[Any]) -> Any:
        return self.extend(values)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.isdigit()]

    def extra_repr(self) -> str:
        return "\n".join(_described(i, value) for i, value in enumerate(self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a ParameterList is not called: it only holds parameters")


class ParameterDict(Module):
    """Parameters under keys; tensors that are put in become parameters, other things stay what they are."""

    def __init__(self, parameters: Any = None) -> None:
        super().__init__()
        self._keys: dict[str, None] = {}
        if parameters is not None:
            self.update(parameters)

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"a ParameterDict takes strings as keys, not {type(key).__name__}")
        setattr(self, key, _trained(value))
        self._keys[key] = None

    def __delitem__(self, key: str) -> None:
        del self._keys[key]
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def keys(self) -> Any:
        return self._keys.keys()

    def items(self) -> Any:
        return [(key, self[key]) for key in self._keys]

    def values(self) -> Any:
        return [self[key] for key in self._keys]

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._keys else default

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self._keys:
            self[key] = default
        return self[key]

    def pop(self, key: str) -> Any:
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        if not self._keys:
            raise KeyError("popitem(): the ParameterDict is empty")
        key = next(reversed(self._keys))
        return key, self.pop(key)

    def clear(self) -> None:
        for key in list(self._keys):
            del self[key]

    def copy(self) -> "ParameterDict":
        """Another dictionary of the same parameters."""
        return ParameterDict(OrderedDict(self.items()))

    def fromkeys(self, keys: Iterable[str], default: Any = None) -> "ParameterDict":
        return ParameterDict([(key, default) for key in keys])

    def update(self, parameters: Any) -> None:
        """parameters: a mapping, or an iterable of pairs. A plain dict comes in the order of its keys, as in torch."""
        pairs = list(_pairs(parameters, "ParameterDict.update"))
        ordered = isinstance(parameters, (OrderedDict, ParameterDict)) or not isinstance(parameters, Mapping)
        for key, value in pairs if ordered else sorted(pairs, key=lambda pair: pair[0]):
            self[key] = value

    def __or__(self, other: Any) -> "ParameterDict":
        joined = self.copy()
        joined.update(other)
        return joined

    def __ror__(self, other: Any) -> "ParameterDict":
        return ParameterDict(OrderedDict(_pairs(other, "ParameterDict"))) | self

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def extra_repr(self) -> str:
        return "\n".join(_described(key, value) for key, value in self.items())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a ParameterDict is not called: it only holds parameters")


__all__ = ["ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"]
