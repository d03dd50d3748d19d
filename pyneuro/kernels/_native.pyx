# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The binding: from a kernel's name and NumPy arrays to a checked pn_call. O(1) in the number of kernels: what it knows
of them it reads from the `Spec`s of signature.py, which also finds the words when something does not fit.
"""
import os

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_GetItem
from cpython.float cimport PyFloat_AsDouble
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t, uintptr_t
from libc.string cimport memcmp

import numpy as np

from . import signature, threads

cnp.import_array()

cdef extern from "pyneuro.h":
    enum: PN_MAX_BUF, PN_MAX_RANK, PN_MAX_ATTR, PN_KERNEL_COUNT
    enum: PN_F32, PN_F64, PN_I64, PN_BOOL, PN_U64, PN_TYPES
    enum: PN_OK, PN_INDEX, PN_NO_MEMORY, PN_NO_KERNEL
    ctypedef struct pn_buf:
        void *data
        int64_t stride[PN_MAX_RANK]
    ctypedef struct pn_call:
        int32_t kernel
        uint8_t type, type2, rank, buffers, map, attrs, cut
        uint16_t parts
        int8_t along[PN_MAX_BUF]
        int64_t dim[PN_MAX_RANK]
        double attr[PN_MAX_ATTR]
        uint8_t size[PN_MAX_BUF]
        uint8_t written[PN_MAX_BUF]
        pn_buf buf[PN_MAX_BUF]
    ctypedef struct pn_isa:
        int rank
    ctypedef struct pn_table:
        const char *name
        const pn_isa *of_type[2]
    const pn_table *const pn_tables[]
    const char *const pn_kernel_name[]
    const char *const pn_kernel_signature[]
    int pn_supported(const pn_table *)
    int pn_get_num_threads()
    void pn_set_num_threads(int)
    void pn_set_cpu_quota(int)
    int pn_run(const pn_table *, const pn_call *, int64_t, int, int64_t *) nogil

cdef extern from *:
    """
    #ifdef __clang__
    #define PN_COMPILER "clang " __clang_version__
    #else
    #define PN_COMPILER "gcc " __VERSION__
    #endif

    /* Hands out the array's own buffer: the view belongs to the array, which must not go before it, while the tensor
       may. Cython has put None into the view by now. */
    static int pn_reexport(PyObject *array, Py_buffer *view, int flags)
    {
        Py_CLEAR(view->obj);
        return PyObject_GetBuffer(array, view, flags);
    }
    """
    const char *PN_COMPILER
    const char *PN_FLAGS                     # these three from setup.py
    const char *PN_SANITIZE
    const char *PN_NUMPY
    int pn_reexport(object, Py_buffer *, int) except -1


# ------------------------------------------------------------------------------------------------- what a kernel takes

cdef enum:
    ELEMENT = PN_TYPES           # a slot of the call's element type
    SECOND                       # a slot /t
    UNKNOWN                      # an array type that no kernel takes
    NUMPY_TYPES = 24             # type numbers below this are NumPy's own

cdef enum:                       # what fill() finds
    FITS
    UNFIT                        # signature.check knows what to say, or it is a host call
    SPREAD                       # an operand without "..." is not contiguous, in a signature of "..."
    TANGLED                      # more than PN_MAX_RANK axes
    NEAR                         # a written operand may overlap another

cdef struct Slot:
    uint8_t type                 # PN_F32..., ELEMENT, SECOND
    uint8_t written              # as in pn_call
    int8_t axes                  # -1: "..."
    int8_t axis[PN_MAX_RANK]     # position in pn_call.dim, or -1: exactly fixed[]
    int64_t fixed[PN_MAX_RANK]

cdef uint8_t type_of[NUMPY_TYPES]            # by NumPy's type number
cdef int shift_of[PN_TYPES]                  # log2 of the bytes of an element
cdef dict ids = {pn_kernel_name[i].decode(): i for i in range(PN_KERNEL_COUNT)}
cdef dict rows = {}                          # the kernels used so far


cdef int learn_types() except -1:
    cdef object dtype
    # By kind and size: int64 has two type numbers on some systems.
    known = {("f", 4): PN_F32, ("f", 8): PN_F64, ("i", 8): PN_I64, ("b", 1): PN_BOOL, ("u", 8): PN_U64}
    for (_, size), code in known.items():
        shift_of[<int>code] = size.bit_length() - 1
    for num in range(NUMPY_TYPES):
        dtype = cnp.PyArray_DescrFromType(num)
        type_of[<int>num] = known.get((dtype.kind, dtype.itemsize), UNKNOWN)
    return 0

learn_types()


@cython.final
cdef class Row:
    """One row of kernels.def in C."""
    cdef int kernel, slots, attrs, letters
    cdef int lead                # first written slot of "...": its shape is the loop; -1: a signature of letters
    cdef Slot slot[PN_MAX_BUF]
    cdef bint walked[PN_MAX_RANK]            # by letter: its extent is a factor of the work
    cdef bint parts[PN_MAX_RANK]             # by letter: the call may be cut along it
    cdef bint sums                           # the work is on products, not on the numbers of a slot


cdef str compiled_text(int kernel):
    """The signature in C, as `Spec.text` has it."""
    return " ".join(pn_kernel_signature[kernel].decode().split()).removesuffix(" ;")


cdef Row new_row(str kernel):
    cdef Row row = Row()
    cdef Slot *slot
    spec = signature.KERNELS[kernel]
    if spec.text != compiled_text(ids[kernel]):
        raise RuntimeError(f"the compiled {kernel!r} has the signature '{compiled_text(ids[kernel])}', "
                           f"kernels.def says '{spec.text}'; build pyneuro again")
    letters = {letter: position for position, letter in enumerate(spec.letters)}
    row.kernel, row.lead = ids[kernel], -1
    row.slots, row.attrs, row.letters = len(spec.slots), len(spec.attrs), len(letters)
    rank = max(row.letters, *[len(s.axes) for s in spec.slots])
    if row.slots > PN_MAX_BUF or row.attrs > PN_MAX_ATTR or rank > PN_MAX_RANK:
        raise RuntimeError(f"{spec} is larger than a pn_call")
    row.sums = spec.sums
    for letter, position in letters.items():
        row.walked[<int>position], row.parts[<int>position] = letter in spec.walked, letter in spec.parts
    for i, s in enumerate(spec.slots):
        slot = &row.slot[<int>i]
        slot.type = {"": ELEMENT, "t": SECOND, "i": PN_I64, "b": PN_BOOL, "u": PN_U64, "d": PN_F64}[s.type]
        slot.written = s.written + (s.written and s.read)
        slot.axes = -1 if s.axes == ("...",) else len(s.axes)
        if slot.axes < 0:
            if s.written and row.lead < 0:
                row.lead = i
            continue
        for j, axis in enumerate(s.axes):
            slot.axis[<int>j] = letters.get(axis, -1)
            slot.fixed[<int>j] = 0 if axis in letters else axis
    if spec.map and (row.lead < 0 or letters or any(s.written and s.axes != ("...",) for s in spec.slots)):
        raise RuntimeError(f"{spec} mixes '...' with letters, or writes a slot that is neither")
    rows[kernel] = row
    return row


# ------------------------------------------------------------------------------------------------------- filling a call

cdef inline cnp.ndarray array(tuple bufs, int i):
    return <cnp.ndarray>PyTuple_GET_ITEM(bufs, i)


cdef inline int64_t size_of(cnp.ndarray a):
    """Number of elements. NumPy has made sure that it does not overflow."""
    cdef int64_t n = 1
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(a)):
        n *= cnp.PyArray_DIMS(a)[axis]
    return n


cdef inline bint repeats(cnp.ndarray a, int axis):
    """Whether the array has one element in several places: nothing to write to."""
    return cnp.PyArray_STRIDES(a)[axis] == 0 and cnp.PyArray_DIMS(a)[axis] > 1 and size_of(a) != 0


cdef inline bint same(cnp.npy_intp *a, cnp.npy_intp *b, int ndim):
    return ndim == 0 or memcmp(a, b, ndim * sizeof(cnp.npy_intp)) == 0


cdef inline bint same_shape(cnp.ndarray a, cnp.ndarray b):
    return a is b or (cnp.PyArray_NDIM(a) == cnp.PyArray_NDIM(b) and
                      same(cnp.PyArray_DIMS(a), cnp.PyArray_DIMS(b), cnp.PyArray_NDIM(a)))


cdef inline bint same_view(cnp.ndarray a, cnp.ndarray b):
    """Whether they are the very same elements in the same order."""
    return a is b or (
        cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b) and cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(b) and
        same_shape(a, b) and same(cnp.PyArray_STRIDES(a), cnp.PyArray_STRIDES(b), cnp.PyArray_NDIM(a)))


cdef int fill(pn_call *c, Row row, tuple bufs, tuple attrs) except -1:
    """Check everything that a kernel relies on, and write it down. Raises only for an attr that is not a number."""
    cdef Slot *slot
    cdef cnp.ndarray a
    cdef cnp.npy_intp *shape
    cdef cnp.npy_intp *strides
    cdef int i, j, at, num, code, verdict
    cdef int64_t n, step
    cdef bint contiguous = True              # every operand of "..."
    if PyTuple_GET_SIZE(bufs) != row.slots or PyTuple_GET_SIZE(attrs) != row.attrs:
        return UNFIT
    c.kernel, c.buffers, c.attrs, c.map = row.kernel, row.slots, row.attrs, row.lead >= 0
    c.type = c.type2 = UNKNOWN
    c.parts = 1
    c.rank = row.letters
    for i in range(row.letters):
        c.dim[i] = -1
    for i in range(row.attrs):
        c.attr[i] = PyFloat_AsDouble(<object>PyTuple_GET_ITEM(attrs, i))

    for i in range(row.slots):
        slot = &row.slot[i]
        if not cnp.PyArray_CheckExact(<object>PyTuple_GET_ITEM(bufs, i)):
            return UNFIT
        a = array(bufs, i)
        if not (cnp.PyArray_ISBEHAVED(a) if slot.written else cnp.PyArray_ISBEHAVED_RO(a)):
            return UNFIT                     # not aligned, in foreign byte order, or to be written and read-only
        num = cnp.PyArray_TYPE(a)
        code = type_of[num] if 0 <= num < NUMPY_TYPES else UNKNOWN
        if slot.type == ELEMENT:
            if c.type == UNKNOWN and code <= PN_F64:
                c.type = code
            if code != c.type or code == UNKNOWN:
                return UNFIT
        elif slot.type == SECOND:
            if c.type2 == UNKNOWN and code != PN_U64:
                c.type2 = code
            if code != c.type2 or code == UNKNOWN:
                return UNFIT
        elif code != slot.type:
            return UNFIT
        c.size[i] = 1 << shift_of[code]
        c.written[i] = slot.written
        c.buf[i].data = cnp.PyArray_DATA(a)

        if slot.axes < 0:
            contiguous = contiguous and cnp.PyArray_IS_C_CONTIGUOUS(a)
            continue
        c.buf[i].stride[0] = 0
        if slot.axes == 0:
            if size_of(a) != 1:
                return UNFIT
            continue
        if cnp.PyArray_NDIM(a) != slot.axes:
            return UNFIT
        shape, strides = cnp.PyArray_DIMS(a), cnp.PyArray_STRIDES(a)
        for j in range(slot.axes):
            n, step, at = shape[j], strides[j], slot.axis[j]
            if at < 0:
                if n != slot.fixed[j]:
                    return UNFIT
            elif c.dim[at] < 0:
                c.dim[at] = n
            elif n != c.dim[at]:
                return UNFIT
            if step & (c.size[i] - 1) or (slot.written and repeats(a, j)):
                return UNFIT
            if row.lead >= 0:
                if n > 1 and step != c.size[i]:
                    return SPREAD            # a kernel of "..." sees no strides of hyper
            else:
                c.buf[i].stride[j] = step >> shift_of[code]
    if c.type == UNKNOWN:
        c.type = PN_F32                      # counters and hyperparameters only: either will do

    if row.lead >= 0 and not (contiguous and one_loop(c, row, bufs)):
        verdict = loops(c, row, bufs)
        if verdict != FITS:
            return verdict
    return NEAR if near(c, row, bufs) else FITS


cdef bint one_loop(pn_call *c, Row row, tuple bufs):
    """Contiguous operands of one shape, or of one element: the common case. False if it is another."""
    cdef cnp.ndarray lead = array(bufs, row.lead)
    cdef cnp.ndarray a
    cdef int i
    for i in range(row.slots):
        if row.slot[i].axes < 0:
            a = array(bufs, i)
            if same_shape(a, lead):
                c.buf[i].stride[0] = 1
            elif not row.slot[i].written and cnp.PyArray_NDIM(a) <= cnp.PyArray_NDIM(lead) and size_of(a) == 1:
                c.buf[i].stride[0] = 0
            else:
                return False
    c.rank, c.dim[0] = 1, size_of(lead)
    return True


cdef int loops(pn_call *c, Row row, tuple bufs):
    """Broadcast the operands of "..." to the written shape, in as few loops as their strides allow."""
    cdef cnp.ndarray lead = array(bufs, row.lead)
    cdef cnp.ndarray a
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(lead)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(lead)
    cdef int ndim = cnp.PyArray_NDIM(lead), count = 0, i, j, k, missing
    cdef int order[64]                       # NumPy has no more axes
    cdef int64_t step[PN_MAX_BUF]
    cdef bint merges
    if ndim > 64:
        return UNFIT
    for i in range(row.slots):
        if row.slot[i].axes < 0:
            a = array(bufs, i)
            missing = ndim - cnp.PyArray_NDIM(a)
            if missing < 0 or (row.slot[i].written and missing):
                return UNFIT
            for j in range(missing, ndim):
                n, s = cnp.PyArray_DIMS(a)[j - missing], cnp.PyArray_STRIDES(a)[j - missing]
                if n != shape[j] and (n != 1 or row.slot[i].written):
                    return UNFIT
                if s & (c.size[i] - 1) or (row.slot[i].written and repeats(a, j - missing)):
                    return UNFIT

    # Long strides outside, so that transposed operands are walked as they lie in memory.
    for j in range(ndim):
        if shape[j] == 1:
            continue
        k = count
        while k > 0 and abs(strides[order[k - 1]]) < abs(strides[j]):
            order[k] = order[k - 1]
            k -= 1
        order[k] = j
        count += 1

    c.rank = 0
    for k in range(count):
        j = order[k]
        merges = c.rank > 0
        for i in range(row.slots):
            step[i] = 0
            if row.slot[i].axes < 0:
                a = array(bufs, i)
                missing = ndim - cnp.PyArray_NDIM(a)
                if j >= missing and cnp.PyArray_DIMS(a)[j - missing] != 1:
                    step[i] = cnp.PyArray_STRIDES(a)[j - missing] // c.size[i]
            # Modulo 2^64: of an array without elements the product may be anything.
            merges = merges and <uint64_t>c.buf[i].stride[c.rank - 1] == <uint64_t>step[i] * <uint64_t>shape[j]
        if not merges:
            if c.rank == PN_MAX_RANK:
                return TANGLED
            c.dim[c.rank] = 1
            c.rank += 1
        c.dim[c.rank - 1] *= shape[j]
        for i in range(row.slots):
            c.buf[i].stride[c.rank - 1] = step[i]
    return FITS


cdef inline bint may_be_one(Row row, int written, int other):
    """As in signature.py."""
    return row.slot[written].axes < 0 and row.slot[other].axes < 0 and not row.slot[other].written


cdef bint near(const pn_call *c, Row row, tuple bufs):
    """Whether a written operand's memory, first byte to last, meets another's. Kernels of "..." run in place."""
    cdef uintptr_t low[PN_MAX_BUF]
    cdef uintptr_t high[PN_MAX_BUF]
    cdef cnp.ndarray a
    cdef int i, j, axis
    cdef int64_t reach
    for i in range(row.slots):
        a = array(bufs, i)
        low[i] = high[i] = <uintptr_t>cnp.PyArray_DATA(a)
        for axis in range(cnp.PyArray_NDIM(a)):
            if cnp.PyArray_DIMS(a)[axis] == 0:
                low[i] = high[i] = 0
                break
            reach = (cnp.PyArray_DIMS(a)[axis] - 1) * cnp.PyArray_STRIDES(a)[axis]
            if reach < 0:
                low[i] += reach
            else:
                high[i] += reach
        else:
            high[i] += c.size[i]
    for i in range(row.slots):
        if row.slot[i].written:
            for j in range(row.slots):
                if i != j and low[i] < high[j] and low[j] < high[i]:
                    if may_be_one(row, i, j) and same_view(array(bufs, i), array(bufs, j)):
                        continue
                    return True
    return False


cdef enum:
    PART = 32 * 1024             # numbers that are worth a thread's while, or products and sums, PRODUCTS times as many
    PRODUCTS = 16
    APART = 64                   # numbers of one cache line, of a tile, of a row of lanes: rather not for two threads
    FEW = 1024                   # numbers that are too few to care


cdef bint heavy(pn_call *c, Row row):
    """Whether releasing the GIL, some 30 ns, is nothing beside the work. If so, say where it may be cut for threads."""
    cdef double work = 1
    cdef int i
    for i in range(c.rank):
        if c.map or row.walked[i]:
            work *= c.dim[i]
    if work <= (20_000 if c.map else 50_000):
        return False
    divide(c, row, work / PRODUCTS if row.sums else work)
    return True


cdef void divide(pn_call *c, Row row, double work) noexcept:
    """Into parts that are worth it, along the axis that allows the most."""
    cdef int axis
    cdef int64_t most = 1, parts
    if work < 2 * PART:
        return
    for axis in range(c.rank):
        if c.map or row.parts[axis]:
            parts = cut(c, row, axis)
            if parts > most:
                c.cut, most = axis, parts
    if most > 1:
        cut(c, row, c.cut)
        c.parts = <uint16_t>min(work / PART, most, 0xffff)


cdef int64_t cut(pn_call *c, Row row, int axis) noexcept:
    """Into how many parts the call may be cut along an axis; where it lies in each slot."""
    cdef int i, j, at
    cdef int64_t numbers, multiple = 1
    cdef bint whole
    for i in range(row.slots):
        c.along[i] = -1
        numbers = 1
        for j in range(c.rank if row.slot[i].axes < 0 else row.slot[i].axes):
            at = j if c.map else row.slot[i].axis[j]
            if at == axis:
                c.along[i] = j
            if at >= 0 and c.buf[i].stride[j] != 0:
                numbers *= c.dim[at]
        if c.along[i] < 0:
            whole = row.sums                             # every part reads all of this one
        else:
            whole = 0 < abs(c.buf[i].stride[c.along[i]]) < APART
        if whole and numbers >= FEW:
            multiple = APART
    return c.dim[axis] // multiple


# --------------------------------------------------------------------------------------------------------- the backend

def _tables():
    """Position in pn_tables by name, best first, of those compiled."""
    cdef int i = 0
    found = []
    while pn_tables[i] != NULL:
        found.append((-pn_tables[i].of_type[0].rank, pn_tables[i].name.decode(), i))
        i += 1
    return {name: position for _, name, position in sorted(found)}


cdef dict compiled = _tables()
cdef list supported = [name for name, position in compiled.items() if pn_supported(pn_tables[<int>position])]


def _capped():
    """The best ISA that is not above PYNEURO_ISA."""
    cap = os.environ.get("PYNEURO_ISA", "").lower()
    if not cap:
        return supported[0]
    if cap not in compiled:
        raise ValueError(f"PYNEURO_ISA={os.environ['PYNEURO_ISA']!r} is not an ISA of this build; "
                         f"choose from {', '.join(compiled)}")
    allowed = list(compiled)[list(compiled).index(cap):]
    return next(name for name in supported if name in allowed)           # baseline always is


cdef str default_isa = _capped()
cdef bint flush_denormals = os.environ.get("PYNEURO_FTZ", "") != "0"
cdef object reference = None                 # the backend of host calls, once there was one


def get_num_threads():
    """How many threads a call may use."""
    return pn_get_num_threads()


def set_num_threads(n):
    """Let calls use n threads. The results are the same, bit for bit."""
    pn_set_num_threads(threads.checked(n))


def _begin():
    """What is known of threads before the first of them."""
    n = threads.asked(os.environ)
    if n is not None:
        pn_set_num_threads(n)
    pn_set_cpu_quota(threads.quota())
    threads.Introduction(__file__, pn_get_num_threads, pn_set_num_threads).make()

_begin()


def isas():
    """The ISAs of this build that this CPU has, best first."""
    return list(supported)


def signatures():
    """What kernels.def said of each kernel when this was compiled."""
    return {name: compiled_text(kernel) for name, kernel in ids.items()}


def build_info():
    """How this was compiled."""
    return {"compiler": PN_COMPILER.decode(), "flags": PN_FLAGS.decode(), "isas": list(compiled),
            "debug": b"-O0" in PN_FLAGS, "sanitize": PN_SANITIZE.decode(),
            "numpy": PN_NUMPY.decode(), "cython": cython.__version__}


@cython.final
cdef class Native:
    """The C kernels of one ISA: 'avx512', ..., or None for the best one that PYNEURO_ISA allows."""
    cdef const pn_table *table
    cdef readonly str name, isa

    def __init__(self, isa=None):
        self.isa = default_isa if isa is None else isa
        if self.isa not in supported:
            raise ValueError(f"{isa!r} is not an ISA of this CPU and build; choose from {', '.join(supported)}")
        self.name = f"native:{self.isa}"
        self.table = pn_tables[<int>compiled[self.isa]]

    def run(self, str kernel not None, tuple bufs not None, tuple attrs not None=()):
        """Check the operands against the kernel's signature and run it. Raises what `signature.check` raises."""
        cdef pn_call c
        cdef Row row
        cdef int status
        cdef int64_t failed = 0
        cdef PyObject *known = PyDict_GetItem(rows, kernel)
        if known is not NULL:
            row = <Row>known
        elif kernel in ids:
            row = new_row(kernel)
        else:
            return unfit(self, kernel, bufs, attrs, UNFIT)

        status = fill(&c, row, bufs, attrs)
        if status != FITS and not (status == NEAR and apart(row, bufs)):
            return unfit(self, kernel, bufs, attrs, status)
        if heavy(&c, row):
            with nogil:
                status = pn_run(self.table, &c, 1, flush_denormals, &failed)
        else:
            status = pn_run(self.table, &c, 1, flush_denormals, &failed)
        if status != PN_OK:
            complain(self, kernel, bufs, attrs, status)


    def parts(self, str kernel not None, tuple bufs not None, tuple attrs not None=()):
        """How many parts of a call are worth a thread's while. 1: it runs on one."""
        cdef pn_call c
        cdef Row row = new_row(kernel)
        c.parts = 1
        if fill(&c, row, bufs, attrs) == FITS:
            heavy(&c, row)
        return c.parts


cdef bint apart(Row row, tuple bufs) except -1:
    """The slow and exact answer to `near`."""
    for i in range(row.slots):
        if row.slot[<int>i].written:
            for j in range(row.slots):
                if i != j and signature.overlap(bufs[i], bufs[j], allow_same=may_be_one(row, i, j)):
                    return False
    return True


cdef object unfit(Native self, str kernel, tuple bufs, tuple attrs, int verdict):
    """What does not fit a kernel in C: NumPy's part of kernels.def, operands to copy first, and errors."""
    global reference
    if verdict == SPREAD:
        slots = signature.KERNELS[kernel].slots
        return self.run(kernel, tuple([b if s.axes == ("...",) else b.copy() for s, b in zip(slots, bufs)]), attrs)
    spec = signature.spec_for(kernel, signature.element_dtype(kernel, bufs))
    if spec.host:
        if reference is None:
            from .reference import Reference
            reference = Reference()
        reference.run(kernel, bufs, attrs)
        return None
    signature.check(kernel, bufs, attrs)
    given = ", ".join(map(signature.describe, bufs))
    if verdict == TANGLED:
        raise signature.ShapeError(f"{spec}: the operands' strides need more than {PN_MAX_RANK} nested loops; "
                                   f"pass contiguous copies; given {given}")
    raise signature.ShapeError(f"{spec} does not take {given}")


cdef int complain(Native self, str kernel, tuple bufs, tuple attrs, int status) except -1:
    if status & 0xff == PN_INDEX:
        signature.check(kernel, bufs, attrs)             # finds the place and the value
        raise IndexError(f"{signature.KERNELS[kernel]}: an index in slot {status >> 8} is out of bounds")
    if status == PN_NO_MEMORY:
        raise MemoryError(f"{kernel}: no memory for scratch; given {', '.join(map(signature.describe, bufs))}")
    raise NotImplementedError(f"{self.name} has no kernel {kernel!r}" if status == PN_NO_KERNEL else
                              f"{kernel} failed on {self.name} with status {status}")


# ---------------------------------------------------------------------------------------------------------- the tensor

def empty(tuple shape, dtype):
    """np.empty, at half the price."""
    cdef cnp.npy_intp extents[PN_MAX_RANK]
    cdef int axes = len(shape)
    if axes > PN_MAX_RANK:
        return np.empty(shape, dtype)
    for i in range(axes):
        extents[i] = shape[i]
    return cnp.PyArray_EMPTY(axes, extents, (<cnp.dtype?>dtype).type_num, 0)


cdef class TensorBase:
    """The fields of a tensor, and its array's buffer protocol."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.needs_grad:                  # np.asarray then tries __array__, which says the same
            raise BufferError("a tensor that requires grad gives no buffer, since changes to it would go unrecorded; "
                              "use tensor.detach()")
        pn_reexport(self.array, view, flags)
