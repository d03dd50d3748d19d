# SPDX-License-Identifier: BSD-3-Clause
"""What kernels.def says of every kernel, read once; the sentences for what does not fit; the errors they come in.

The native binding reads the same `Spec`s, checks in C, and comes back here only to say what was wrong.
"""
import os
import re
from functools import cached_property
from typing import NamedTuple

import numpy as np


class ShapeError(ValueError, RuntimeError):
    """Shapes do not fit. NumPy's users catch ValueError, PyTorch's RuntimeError: it is both."""


class DtypeError(TypeError, ValueError, RuntimeError):
    """An element type does not fit."""


class LinAlgError(np.linalg.LinAlgError, RuntimeError):
    """A matrix for which there is no such thing, as both libraries name it."""


class DeviceError(ValueError, RuntimeError):
    """A device other than the CPU was asked for."""


FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
SLOT_DTYPE = {"i": np.dtype(np.int64), "b": np.dtype(bool), "u": np.dtype(np.uint64), "d": np.dtype(np.float64)}
CASTABLE = (*FLOATS, np.dtype(np.int64), np.dtype(bool), np.dtype(np.uint8))       # what a slot of type /t may hold


class Slot(NamedTuple):
    name: str
    type: str                      # "" element type of the call, or a letter of kernels.def
    within: str                    # the axis that an index is checked against, or ""
    axes: tuple[str | int, ...]    # letters and fixed extents, or ("...",)
    read: bool
    written: bool


class Spec:
    """One row: its slots in order, its attrs with their defaults, and the axes along which it may be computed in parts."""

    def __init__(self, name: str, text: str, host: bool) -> None:
        self.name, self.text, self.host = name, text, host

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        """The text of the slots, of the axes and of the attrs."""
        slots, _, attrs = self.text.partition(";")
        slots, _, axes = slots.partition("|")
        return slots, axes, attrs

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        return _slots(self._parts[0])

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(self._parts[1].strip())

    @cached_property
    def attrs(self) -> tuple[tuple[str, float | None], ...]:
        return tuple([(attr, float(default) if default else None)
                      for attr, _, default in (word.partition("=") for word in self._parts[2].split())])

    @cached_property
    def inputs(self) -> int:
        """The slots before the arrow."""
        return len(self._parts[0].partition("->")[0].split())

    @cached_property
    def map(self) -> bool:
        return any(s.axes == ("...",) for s in self.slots)

    @cached_property
    def letters(self) -> tuple[str, ...]:
        """Axes in order of first appearance: the order of pn_call.dim."""
        return tuple(dict.fromkeys(a for s in self.slots for a in s.axes if isinstance(a, str) and a != "..."))

    @cached_property
    def ignore(self) -> int | None:
        """Position of the attr ignore_index."""
        names = [name for name, _ in self.attrs]
        return names.index("ignore_index") if "ignore_index" in names else None

    @cached_property
    def walked(self) -> tuple[str, ...]:
        """The letters whose extents multiply to the work: not those that an index chooses from."""
        chosen = {s.within for s in self.slots}
        return tuple(a for a in self.letters if a not in chosen)

    @cached_property
    def sums(self) -> bool:
        """Whether that is work on pairs of numbers, as in products, rather than on the numbers of a slot."""
        return not any(set(self.walked) <= set(s.axes) for s in self.slots)

    def __str__(self) -> str:
        return f"{self.name}({re.sub(' [|] [a-z]+', '', self.text)})"


def _slots(text: str) -> tuple[Slot, ...]:
    slots, arrow = [], False
    for word in text.split():
        if word == "->":
            arrow = True
            continue
        label, _, axes = word.partition(":")
        label, _, kind = label.partition("/")
        kind, _, within = kind.partition("<")
        slots.append(Slot(label.rstrip("!"), kind, within,
                          ("...",) if axes == "..." else
                          tuple(int(a) if a.isdigit() else a for a in re.findall(r"\d+|[a-z]", axes)),
                          read=not arrow, written=arrow or label.endswith("!")))
    return tuple(slots)


CALL = re.compile(r'(\w+)\(((?:"[^"]*"|[^()"]++)*)\)')                  # NAME(arguments without parentheses)
ARGUMENT = re.compile(r'(?:"[^"]*"|[^",]++)+')                           # of these; a comma in quotes is part of one
ROW = re.compile(r'^(\w+)\((\w+),\s*(?:(\w),\s*)?("[^"]*"),', re.M)     # the columns of a row that signatures use
TOKEN = re.compile(r'"[^"]*"|#?\w+|[^\w"#]+')


def _read(folder: str) -> tuple[dict[str, Spec], dict[str, Spec]]:
    """The rows of kernels.def in order, with its macros over the other tables spelled out as a C compiler would."""
    def without_comments(name: str) -> str:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return re.sub(r"/\*.*?\*/", "", file.read(), flags=re.S).replace("\\\n", " ")

    templates: dict[str, str] = {}                                      # of macros: a place for each argument
    native: dict[str, Spec] = {}
    host: dict[str, Spec] = {}

    def expand(text: str) -> None:
        for name, arguments in CALL.findall(text):
            given = [word.strip() for word in ARGUMENT.findall(arguments)]
            if name in templates:
                expand(templates[name].format(*given, "", "", ""))          # formulas, which no signature has
            else:
                table = {"KERNEL": native, "HOST": host}[name]
                text = " ".join("".join(given[1].split('"')[1::2]).split()).removesuffix(" ;")
                table[given[0]] = Spec(given[0], text, name == "HOST")

    for line in without_comments("kernels.def").splitlines():
        if define := re.match(r"#define (\w+)\(([^)]*)\)(.*)", line):
            place = {param: f"{{{i}}}" for i, param in enumerate(define[2].replace(" ", "").split(","))}
            place |= {f"#{param}": f'"{where}"' for param, where in place.items()}
            body = define[3].replace("##", "\0")                        # what it joins are tokens next to each other
            templates[define[1]] = "".join([place.get(t, t) for t in TOKEN.findall(body)]).replace("\0", "")
        elif line.startswith("#include"):
            for macro, *columns in ROW.findall(without_comments(line.split('"')[1])):
                expand(f"{macro}({', '.join(filter(None, columns))})")
        elif not line.startswith("#"):
            expand(line)
    return native, host


def _tables() -> str:
    """csrc/ of a checkout, else where the build put the tables."""
    here = os.path.dirname(os.path.abspath(__file__))
    csrc = os.path.join(os.path.dirname(os.path.dirname(here)), "csrc")
    return csrc if os.path.exists(os.path.join(csrc, "kernels.def")) else here


KERNELS, HOST = _read(_tables())


def spec_for(kernel: str, dtype: np.dtype) -> Spec:
    """The row that serves this element type: the C kernel's for float32 and float64, else the host's."""
    if kernel not in KERNELS:
        if kernel in HOST:
            return HOST[kernel]
        raise ValueError(f"{kernel!r} is not a kernel; pyneuro.kernels.signature.KERNELS lists them")
    if dtype in FLOATS or kernel not in HOST:
        return KERNELS[kernel]
    return HOST[kernel]


def element_dtype(kernel: str, bufs: tuple[np.ndarray, ...]) -> np.dtype:
    """The dtype of the first buffer in a slot that has no type of its own."""
    spec = KERNELS.get(kernel) or HOST.get(kernel)
    if spec is None:
        return FLOATS[0]
    for slot, b in zip(spec.slots, bufs):
        if slot.type in ("", "a") and isinstance(b, np.ndarray):
            return b.dtype
    return FLOATS[0]


def describe(b: object) -> str:
    """An operand as an error shows it: float32[3, 4]."""
    return f"{b.dtype}{list(b.shape)}" if isinstance(b, np.ndarray) else repr(type(b).__name__)


def check(kernel: str, bufs: tuple[np.ndarray, ...], attrs: tuple[float, ...]) -> tuple[Spec, dict[str | int, int]]:
    """Refuse what the signature does not allow, before any byte is touched; return the row and the extents.

    Raises TypeError (counts), DtypeError, ShapeError, ValueError (read-only, misaligned or overlapping), IndexError.
    """
    spec = spec_for(kernel, element_dtype(kernel, bufs))
    if len(bufs) != len(spec.slots) or len(attrs) != len(spec.attrs):
        raise TypeError(f"{spec} takes {len(spec.slots)} buffers and {len(spec.attrs)} attrs, "
                        f"got {len(bufs)} and {len(attrs)}")

    def refuse(error: type[Exception], slot: Slot, why: str) -> Exception:
        return error(f"{spec}: {slot.name} {why}; given {', '.join(map(describe, bufs))}")

    element: np.dtype | None = None
    second: np.dtype | None = None
    for slot, b in zip(spec.slots, bufs):
        if type(b) is not np.ndarray:
            raise refuse(DtypeError, slot, f"must be a plain NumPy array, got {type(b).__name__}")
        if slot.type == "":
            if b.dtype not in FLOATS:
                raise refuse(DtypeError, slot, f"must be float32 or float64, not {b.dtype}")
            element = element or b.dtype
            if b.dtype != element:
                raise refuse(DtypeError, slot, f"must be {element} like the others, not {b.dtype}")
        elif slot.type == "t":
            second = second or b.dtype
            if b.dtype not in CASTABLE or b.dtype != second:
                raise refuse(DtypeError, slot, f"must be one of {', '.join(map(str, CASTABLE))}, not {b.dtype}")
        elif slot.type == "a":
            if b.dtype.kind not in "fiub" or not b.dtype.isnative:
                raise refuse(DtypeError, slot, f"must hold real numbers in this machine's byte order, not {b.dtype}")
        elif b.dtype != SLOT_DTYPE[slot.type]:
            raise refuse(DtypeError, slot, f"must be {SLOT_DTYPE[slot.type]}, not {b.dtype}")
        if slot.written and not b.flags.writeable:
            raise refuse(ValueError, slot, "is written, but this array is read-only")
        if not b.flags.aligned:
            raise refuse(ValueError, slot, "is not aligned to its element size; pass a copy")
        if any(s % b.itemsize for s in b.strides):
            raise refuse(ValueError, slot, "has strides that are not whole elements; pass a copy")
        if slot.written and b.size and any(n > 1 and s == 0 for n, s in zip(b.shape, b.strides)):
            raise refuse(ValueError, slot, "is written, but this array repeats its elements; pass a copy")

    extents: dict[str | int, int] = {}
    loop = next((b.shape for s, b in zip(spec.slots, bufs) if s.written and s.axes == ("...",)), None)
    for slot, b in zip(spec.slots, bufs):
        if slot.axes == ("...",):
            fits = b.shape == loop if slot.written else _broadcasts(b.shape, loop or ())
            if not fits:
                raise refuse(ShapeError, slot, f"of shape {list(b.shape)} does not fit {list(loop or ())}")
            continue
        if not slot.axes:
            if b.size != 1:
                raise refuse(ShapeError, slot, "must hold one element")
            continue
        if b.ndim != len(slot.axes):
            raise refuse(ShapeError, slot, f"must have {len(slot.axes)} axes, not {b.ndim}")
        for axis, n in zip(slot.axes, b.shape):
            want = axis if isinstance(axis, int) else extents.setdefault(axis, n)
            if n != want:
                raise refuse(ShapeError, slot, f"has {n} where {want} fits" +
                             (f" (axis {axis})" if isinstance(axis, str) else ""))
    check_data(spec, bufs, attrs, extents)
    return spec, extents


def check_data(spec: Spec, bufs: tuple[np.ndarray, ...], attrs: tuple[float, ...], extents: dict[str | int, int]) -> None:
    """The part of `check` that looks at memory and values: overlaps, indices."""
    for i, slot in enumerate(spec.slots):
        if slot.written:
            for j, b in enumerate(bufs):
                if i != j and overlap(bufs[i], b, allow_same=may_be_one(slot, spec.slots[j])):
                    raise ValueError(f"{spec}: {slot.name} is written and overlaps {spec.slots[j].name} in memory; "
                                     "pass a copy of one")
        if slot.within:
            index, n = bufs[i], extents[slot.within]
            wrong = (index < 0) | (index >= n)
            ignored = None if spec.ignore is None else attrs[spec.ignore]
            if ignored is not None:
                wrong &= index != ignored
            if wrong.any():
                at = tuple(int(k) for k in np.argwhere(wrong)[0])
                place = f"{slot.name}[{', '.join(map(str, at))}]"
                raise IndexError(f"{spec.name}: {place} is {int(index[at])}, out of bounds for {n} " +
                                 ("rows" if slot.name == "index" else "classes") + f" (0 to {n - 1}" +
                                 (f", or ignore_index {int(ignored)})" if ignored is not None else ")"))


def may_be_one(written: Slot, other: Slot) -> bool:
    """Whether a written slot and another may be the very same array: only where the one is computed from the other."""
    return written.axes == other.axes == ("...",) and not other.written


def overlap(a: np.ndarray, b: np.ndarray, allow_same: bool) -> bool:
    """Whether they share bytes, other than being the very same elements in the same order."""
    if a is b:
        return not allow_same
    if not np.may_share_memory(a, b):
        return False
    if allow_same and a.__array_interface__["data"] == b.__array_interface__["data"] and same_steps(a, b):
        return False
    return np.shares_memory(a, b)


def same_steps(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether from one address on they are the same elements in the same order: where an axis has one, its stride says nothing."""
    return a.dtype == b.dtype and a.shape == b.shape and (
        a.strides == b.strides or all(n == 1 or s == t for n, s, t in zip(a.shape, a.strides, b.strides)))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(shape[::-1], to[::-1]))
