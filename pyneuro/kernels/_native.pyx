# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The binding: from a kernel's name and NumPy arrays to a checked pn_call. O(1) in the number of kernels: what it knows
of them it reads from the `Spec`s of signature.py, which also finds the words when something does not fit.
"""
import os
import weakref
from time import perf_counter
from types import FunctionType

cimport cython
cimport numpy as cnp
from cpython.contextvars cimport PyContextVar_Get, PyContextVar_Set
from cpython.dict cimport PyDict_GetItem
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_Occurred
from cpython.float cimport PyFloat_AsDouble, PyFloat_CheckExact
from cpython.long cimport PyLong_AsDouble, PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport INT64_MAX, int8_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

import numpy as np

from . import signature, threads

cnp.import_array()

cdef extern from "pyneuro.h":
    enum: PN_MAX_BUF, PN_MAX_RANK, PN_MAX_ATTR, PN_KERNEL_COUNT
    enum: PN_F32, PN_F64, PN_I64, PN_BOOL, PN_U64, PN_U8, PN_TYPES
    enum: PN_OK, PN_INDEX, PN_NO_MEMORY, PN_NO_KERNEL
    ctypedef struct pn_buf:
        void *data
        int64_t stride[PN_MAX_RANK]
    ctypedef struct pn_call
    ctypedef int (*pn_kernel)(const pn_call *) noexcept
    ctypedef struct pn_call:
        pn_kernel run
        uint8_t type, type2, rank, buffers, map, attrs, cut, then_slot, span
        uint16_t parts
        const pn_call *then
        const pn_call *whole
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
    pn_kernel pn_kernel_of(const pn_table *, int, int)
    int pn_get_num_threads()
    void pn_set_num_threads(int)
    void pn_set_cpu_quota(int)
    int pn_run(const pn_call *, int64_t, int, int64_t *) nogil
    void *pn_take(size_t)
    void pn_give(void *, size_t)
    void pn_keep_at_most(size_t)

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

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        object (*tp_new)(PyTypeObject *, object, void *)
    PyObject *PyList_GET_ITEM(PyObject *, Py_ssize_t)
    Py_ssize_t Py_REFCNT(PyObject *)
    PyTypeObject *Py_TYPE(PyObject *)

cdef extern from *:
    """
    /* Whether nobody else has an array, not even weakly, and it is as NumPy makes one of a builtin type. */
    static int pn_as_new(PyObject *o)
    {
    #if defined(Py_GIL_DISABLED) || defined(PYPY_VERSION)
        (void)o;
        return 0;
    #else
        const int made = NPY_ARRAY_CARRAY | NPY_ARRAY_C_CONTIGUOUS, own = PyArray_CHKFLAGS((PyArrayObject *)o, NPY_ARRAY_OWNDATA);
        PyArray_Descr *type;
        if (Py_REFCNT(o) != 1 || *(PyObject **)((char *)o + Py_TYPE(o)->tp_weaklistoffset) != NULL) return 0;
        type = PyArray_DescrFromType(PyArray_TYPE((PyArrayObject *)o));
        Py_XDECREF(type);                    /* NumPy has it */
        return PyArray_DESCR((PyArrayObject *)o) == type && PyArray_CHKFLAGS((PyArrayObject *)o, made) &&
            own == (PyArray_BASE((PyArrayObject *)o) == NULL);
    #endif
    }
    static PyObject *pn_base(PyObject *array) { return PyArray_BASE((PyArrayObject *)array); }
    """
    bint as_new "pn_as_new"(PyObject *)
    PyObject *base_of "pn_base"(PyObject *array)


# ------------------------------------------------------------------------------------------------- what a kernel takes

cdef enum:
    ELEMENT = PN_TYPES           # a slot of the call's element type
    SECOND                       # a slot /t
    UNKNOWN                      # an array type that no kernel takes
    NUMPY_TYPES = 24             # type numbers below this are NumPy's own
    QUICK = 16384                # elements that are a few microseconds' work

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
    known = {("f", 4): PN_F32, ("f", 8): PN_F64, ("i", 8): PN_I64, ("b", 1): PN_BOOL, ("u", 8): PN_U64,
             ("u", 1): PN_U8}
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
    cdef int operands            # of a kernel from one or two operands to one result, all "..." of one type; else 0
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
    if [(s.type, s.written, s.axes) for s in spec.slots] in ([*[("", r, ("...",)) for r in reads], ("", True, ("...",))]
                                                             for reads in ([False], [False, False])):
        row.operands = row.slots - 1
    rows[kernel] = row
    return row


cdef Row row_named(str kernel):
    """None if there is no such kernel."""
    cdef PyObject *known = PyDict_GetItem(rows, kernel)
    if known is not NULL:
        return <Row>known
    return new_row(kernel) if kernel in ids else None


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
    """Whether they are the very same elements in the same order: see signature.same_steps."""
    cdef int i
    if a is b:
        return True
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b) or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b) or not same_shape(a, b):
        return False
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[i] != 1 and cnp.PyArray_STRIDES(a)[i] != cnp.PyArray_STRIDES(b)[i]:
            return False
    return True


cdef int fill(pn_call *c, Native backend, Row row, tuple bufs, tuple attrs) except -1:
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
    c.buffers, c.attrs, c.map = row.slots, row.attrs, row.lead >= 0
    c.type = c.type2 = UNKNOWN
    c.parts, c.span, c.then, c.whole = 1, 1, NULL, NULL
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
    c.run = pn_kernel_of(backend.table, c.type, row.kernel)

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
    PRODUCTS = 64                # so that products of 64 rows are cut where the step of their weights is
    TILE = 16                    # columns that a product is worth
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
    """Into parts that are worth it, along the axis that allows the most; a product along its columns if they keep all threads
    busy, unless it has more than twice as many rows. So a thread reads always the same part of a layer's weights, which it is
    also the one to step: moving lines from core to core takes longer than working on them."""
    cdef int axis
    cdef int64_t most = 1, parts, enough = INT64_MAX
    if work < 2 * PART:
        return
    if row.sums:
        enough = <int64_t>min(work / PART, max(pn_get_num_threads(), 2))     # there may be more when it is run than now
    for axis in range(c.rank):
        if c.map or row.parts[axis]:
            parts = cut(c, row, axis)
            if parts > most if most < enough else parts >= enough and 2 * c.dim[axis] >= c.dim[c.cut]:
                c.cut, most = axis, parts
    if most > 1:
        cut(c, row, c.cut)
        c.parts = <uint16_t>min(work / PART, most, 0xffff)


cdef int64_t cut(pn_call *c, Row row, int axis) noexcept:
    """Into how many parts the call may be cut along an axis; where it lies in each slot."""
    cdef int i, j, at
    cdef int64_t numbers, multiple = 1
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
            if row.sums and numbers >= FEW:              # every part reads all of this one
                multiple = max(multiple, TILE)
        elif 0 < abs(c.buf[i].stride[c.along[i]]) < APART and numbers >= FEW:
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
        self.go(kernel, bufs, attrs)

    cdef object go(self, str kernel, tuple bufs, tuple attrs):
        cdef pn_call c
        cdef int status
        cdef int64_t failed = 0
        cdef Row row = row_named(kernel)
        if row is None:
            return unfit(self, kernel, bufs, attrs, UNFIT)

        status = fill(&c, self, row, bufs, attrs)
        if status != FITS and not (status == NEAR and apart(row, bufs)):
            return unfit(self, kernel, bufs, attrs, status)
        if heavy(&c, row):
            with nogil:
                status = pn_run(&c, 1, flush_denormals, &failed)
        else:
            status = pn_run(&c, 1, flush_denormals, &failed)
        if status != PN_OK:
            complain(self, kernel, bufs, attrs, status)


    def run_all(self, str kernel not None, list calls not None):
        """`run` for each of the calls, which share the kernel and have no attrs, in one go."""
        cdef Row row = row_named(kernel)
        cdef size_t size
        cdef char *memory
        cdef pn_call *c
        cdef int64_t i, count = len(calls), failed = 0
        cdef int status = PN_OK
        cdef bint long_work = False, fits = row is not None
        if fits:
            size = sizeof(pn_call) - (PN_MAX_BUF - row.slots) * sizeof(pn_buf)
            memory = <char *>malloc(max(count, 1) * size)
            if memory is NULL:
                raise MemoryError(f"{kernel}: no memory for {count} calls")
            try:
                for i in range(count):
                    c = <pn_call *>(memory + i * size)
                    status = fill(c, self, row, <tuple?>calls[i], ())
                    fits = fits and (status == FITS or (status == NEAR and apart(row, calls[i])))
                    if not fits:
                        break
                    long_work = heavy(c, row) or long_work
                if fits and long_work:
                    with nogil:
                        status = pn_run(<pn_call *>memory, count, flush_denormals, &failed)
                elif fits:
                    status = pn_run(<pn_call *>memory, count, flush_denormals, &failed)
            finally:
                free(memory)
        if not fits:                         # `run` knows what to do, or to say
            for bufs in calls:
                self.go(kernel, bufs, ())
        elif status != PN_OK:
            complain(self, kernel, calls[failed], (), status)

    def parts(self, str kernel not None, tuple bufs not None, tuple attrs not None=()):
        """How many parts of a call are worth a thread's while. 1: it runs on one."""
        cdef pn_call c
        cdef Row row = row_named(kernel)
        c.parts = 1
        if fill(&c, self, row, bufs, attrs) == FITS:
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

@cython.final
@cython.freelist(64)
cdef class Block:
    """Memory of an array: its `base`."""
    cdef void *data
    cdef size_t size
    cdef readonly object recorder            # what was the backend when it was made, if anything was being recorded

    def __dealloc__(self):
        if self.data is not NULL:
            pn_give(self.data, self.size)


def _cache_limit():
    """PYNEURO_CACHE_MB in bytes."""
    given = os.environ.get("PYNEURO_CACHE_MB", "128")
    try:
        megabytes = float(given)
    except ValueError:
        megabytes = -1
    if not 0 <= megabytes <= 1 << 40:
        raise ValueError(f"PYNEURO_CACHE_MB={given!r} is not a number of megabytes")
    return 0 if PN_SANITIZE[0] else int(megabytes * (1 << 20))       # a sanitizer shall see memory that is freed

pn_keep_at_most(_cache_limit())


cdef object chosen, process                  # where the waist keeps its backends, see `follow`
cdef int recorders = 0                       # Recorders at work, in any thread


def recording(int change):
    """Count a Recorder in or out. Meanwhile every array made here is a Block, which knows who had it made."""
    global recorders
    recorders += change


cpdef value_of(variable):
    """What a ContextVar is in this thread, or None."""
    cdef PyObject *found = NULL
    PyContextVar_Get(variable, NULL, &found)
    value = None if found is NULL else <object>found
    Py_XDECREF(found)
    return value


cpdef exchange(variable, value):
    """Let a ContextVar be that in this thread. What it was."""
    before = value_of(variable)
    if before is not value:
        PyContextVar_Set(variable, value)
    return before


cdef object current():
    """The innermost `with backend(...)` of this thread, or None."""
    return value_of(chosen)


def recorder_of(cnp.ndarray array not None):
    """Who had the memory of this array made while recording, or None."""
    base = cnp.get_array_base(array)
    return (<Block>base).recorder if type(base) is Block else None


cdef cnp.ndarray new_array(int axes, cnp.npy_intp *extents, int num, size_t itemsize):
    """Uninitialised. Small ones have their memory from NumPy, which is the quicker there."""
    cdef double size = itemsize
    cdef Block block
    cdef cnp.ndarray a
    cdef int i
    for i in range(axes):
        size *= extents[i]
    if (size >= 1024 or recorders) and size <= 1e15:
        block = Block.__new__(Block)
        if recorders:
            block.recorder = current()
        block.size = <size_t>size
        block.data = pn_take(block.size)
        if block.data is not NULL:
            a = cnp.PyArray_New(cnp.ndarray, axes, extents, num, NULL, block.data, 0, cnp.NPY_ARRAY_CARRAY, <object>NULL)
            cnp.set_array_base(a, block)
            return a
    return cnp.PyArray_EMPTY(axes, extents, num, 0)      # or what NumPy says when there is no memory


def empty(tuple shape, dtype):
    """np.empty, of memory that is 64-byte aligned unless it is small, and reused."""
    cdef cnp.npy_intp extents[PN_MAX_RANK]
    cdef int axes = len(shape), num = (<cnp.dtype?>dtype).type_num
    if axes > PN_MAX_RANK:
        return np.empty(shape, dtype)
    for i in range(axes):
        extents[i] = shape[i]
    return new_array(axes, extents, num, (<cnp.dtype>dtype).itemsize)


cdef alike(array):
    """`empty` of an array's shape and type."""
    cdef cnp.ndarray a = <cnp.ndarray?>array
    return new_array(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.PyArray_TYPE(a), cnp.PyArray_ITEMSIZE(a))


cdef bint ours(PyObject *base):
    """Whether memory is NumPy's or that of a Block of an array's own."""
    return base is NULL or (Py_TYPE(base) == <PyTypeObject *>Block and Py_REFCNT(base) == 1)


cpdef int renew(list arrays, list layouts) except -1:
    """Let there be an array like each layout, uninitialised: the one that is there, if nobody but the list has it."""
    cdef PyObject *a
    cdef Py_ssize_t i
    for i in range(len(arrays)):
        a = PyList_GET_ITEM(<PyObject *>arrays, i)
        if recorders or not as_new(a) or not same_layout(<object>a, layouts[i]) or not ours(base_of(a)):
            arrays[i] = alike(layouts[i])
    return 0


def broadcast(cnp.ndarray array not None, tuple shape not None):
    """np.broadcast_to, at a tenth of the price."""
    cdef cnp.npy_intp[PN_MAX_RANK] extents
    cdef cnp.npy_intp[PN_MAX_RANK] strides
    cdef int axes = len(shape), missing = axes - cnp.PyArray_NDIM(array), i
    cdef cnp.npy_intp n
    cdef cnp.ndarray view
    if not 0 <= missing <= axes <= PN_MAX_RANK or not cnp.PyArray_ISNOTSWAPPED(array):
        return np.broadcast_to(array, shape)
    for i in range(axes):
        extents[i], strides[i] = shape[i], 0
        if i >= missing:
            n = cnp.PyArray_DIMS(array)[i - missing]
            if n == extents[i]:
                strides[i] = cnp.PyArray_STRIDES(array)[i - missing]
            elif n != 1:
                return np.broadcast_to(array, shape)             # it has the words
        if extents[i] < 0:
            return np.broadcast_to(array, shape)
    view = cnp.PyArray_New(cnp.ndarray, axes, extents, cnp.PyArray_TYPE(array), strides, cnp.PyArray_DATA(array), 0, 0,
                           <object>NULL)
    cnp.set_array_base(view, array)
    return view


def owned(cnp.ndarray array not None):
    """Whether no other array can share its memory."""
    base = cnp.get_array_base(array)
    return base is None or type(base) is Block


def follow(variable, backend):
    """Tell `quick` the context variable of `with backend(...)`, and the backend of the process."""
    global chosen, process
    chosen, process = variable, backend


cdef int number(object value, double *to) except -1:
    """Whether value is a Python number that a double holds exactly."""
    if PyFloat_CheckExact(value):
        to[0] = PyFloat_AsDouble(value)
        return 1
    if PyLong_CheckExact(value):
        to[0] = PyLong_AsDouble(value)
        if to[0] == -1 and PyErr_Occurred():
            PyErr_Clear()
            return 0
        return -9007199254740992 <= to[0] <= 9007199254740992
    return 0


cpdef current_backend():
    """The backend of this thread: the innermost `with backend(...)`, else the process's."""
    backend = current()
    return process if backend is None else backend


cdef Native current_native():
    """The current backend, or None if it is another kind."""
    backend = current_backend()
    return <Native>backend if type(backend) is Native else None


cdef cnp.ndarray small(str kernel, x, y, tuple attrs):
    """See `quick`."""
    cdef Native backend = current_native()
    cdef cnp.ndarray a, b, z
    cdef Row row = row_named(kernel)
    cdef pn_call c
    cdef int num, i
    cdef double scalar = 0
    cdef float narrow = 0
    cdef int64_t n, failed = 0
    if row is None or backend is None:
        return None
    if row.operands != 1 + (y is not None) or PyTuple_GET_SIZE(attrs) != row.attrs or not cnp.PyArray_CheckExact(x):
        return None
    a = <cnp.ndarray>x
    num = cnp.PyArray_TYPE(a)
    n = size_of(a)
    if not cnp.PyArray_ISCARRAY_RO(a) or n > QUICK or not 0 <= num < NUMPY_TYPES or type_of[num] > PN_F64:
        return None
    c.type = type_of[num]
    c.buf[0].data, c.buf[0].stride[0] = cnp.PyArray_DATA(a), 1
    if row.operands == 2:
        c.buf[1].stride[0] = 1
        if cnp.PyArray_CheckExact(y):
            b = <cnp.ndarray>y
            if cnp.PyArray_TYPE(b) != num or not cnp.PyArray_ISCARRAY_RO(b):
                return None
            c.buf[1].data = cnp.PyArray_DATA(b)
            if cnp.PyArray_NDIM(b) == 0:
                c.buf[1].stride[0] = 0
            elif not same_shape(a, b):
                return None
        elif number(y, &scalar):
            narrow = <float>scalar
            c.buf[1].data, c.buf[1].stride[0] = &narrow if c.type == PN_F32 else <void *>&scalar, 0
        else:
            return None
    for i in range(row.attrs):
        c.attr[i] = PyFloat_AsDouble(<object>PyTuple_GET_ITEM(attrs, i))
    z = new_array(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), num, 1 << shift_of[c.type])
    c.run = pn_kernel_of(backend.table, c.type, row.kernel)
    c.buffers, c.attrs, c.map, c.rank, c.dim[0], c.parts = row.slots, row.attrs, 1, 1, n, 1
    c.then, c.whole, c.span = NULL, NULL, 1
    c.buf[row.operands].data, c.buf[row.operands].stride[0] = cnp.PyArray_DATA(z), 1
    for i in range(row.slots):
        c.size[i], c.written[i] = 1 << shift_of[c.type], row.slot[i].written
    if pn_run(&c, 1, flush_denormals, &failed) != PN_OK:
        return None
    return z


@cython.final
@cython.freelist(256)
cdef class Storage:
    """What tensors that share memory share: how often it was written, and how often in-place ops rewrote its graph."""


cdef type tensor_class                       # these three from tensor.py
cdef object operate, product


def serve(kind, arithmetic, matmul):
    """What tensor.py has for the functions here: its class, arithmetic(name, x, y) for x + y and its like, matmul(x, y)."""
    global tensor_class, operate, product
    tensor_class, operate, product = kind, arithmetic, matmul


cpdef fresh(array):
    """A tensor around an array that is nobody else's."""
    cdef TensorBase t = (<PyTypeObject *>tensor_class).tp_new(<PyTypeObject *>tensor_class, (), NULL)
    t.array = array
    t.storage = Storage.__new__(Storage)
    if recorders:
        tell(t)
    return t


cdef int tell(TensorBase t) except -1:
    """A recorder wants to know what tensors it made."""
    made = getattr(current(), "made", None)
    if made is not None:
        made.append(weakref.ref(t))
    return 0


def quick(str kernel not None, x, y, tuple attrs not None):
    """kernel(x) or, where y is not None, kernel(x, y) in a new array: what `run` does, for the small operands whose cost is
    all in getting there. They are contiguous arrays of one shape and type; y may be 0-d, or a Python number.

    None if they are anything else, or the current backend is no `Native`.
    """
    return small(kernel, x, y, attrs)


cdef inline object plain(x):
    """The array of a tensor that needs no gradient, else None."""
    if not isinstance(x, TensorBase) or (<TensorBase>x).needs_grad or (<TensorBase>x).storage.rewrites:
        return None
    return (<TensorBase>x).array


cpdef quick_tensor(str kernel, x, y, tuple attrs=()):
    """The same of tensors, as a tensor; None if one of them needs a gradient, too."""
    x = plain(x)
    if x is not None and isinstance(y, TensorBase):
        y = plain(y)
        if y is None:
            return None
    array = None if x is None else small(kernel, x, y, attrs)
    return None if array is None else fresh(array)


cdef cnp.ndarray grouped(cnp.ndarray a, int first, int middle):
    """A contiguous array as (axes before `first`, so many in the middle, the others), without the middle one if middle is 0."""
    cdef cnp.npy_intp[3] shape = [1, 1, 1]
    cdef int axis, place, count = 3 if middle else 2
    cdef cnp.ndarray view
    for axis in range(cnp.PyArray_NDIM(a)):
        place = 0 if axis < first else 1 if axis < first + middle else count - 1
        shape[place] *= cnp.PyArray_DIMS(a)[axis]
    view = cnp.PyArray_New(cnp.ndarray, count, shape, cnp.PyArray_TYPE(a), NULL, cnp.PyArray_DATA(a), 0,
                           cnp.NPY_ARRAY_CARRAY_RO | cnp.PyArray_FLAGS(a) & cnp.NPY_ARRAY_WRITEABLE, <object>NULL)
    cnp.set_array_base(view, a)
    return view


def quick_fold(str kernel not None, cnp.ndarray x not None, tuple dims not None, bint keepdim, tuple attrs not None):
    """A reduction over neighbouring axes of a contiguous array, on a `Native` backend; else None. dims as ops.folded has it."""
    cdef Native backend = current_native()
    cdef cnp.npy_intp[PN_MAX_RANK] shape
    cdef int i, kept = 0, ndim = cnp.PyArray_NDIM(x), num = cnp.PyArray_TYPE(x), count = len(dims), first, last
    cdef cnp.ndarray y
    if backend is None or count == 0 or ndim > PN_MAX_RANK or not cnp.PyArray_ISCARRAY_RO(x) or \
            not 0 <= num < NUMPY_TYPES or type_of[num] > PN_F64:
        return None
    first, last = dims[0], dims[count - 1]
    if first < 0 or last >= ndim or last - first != count - 1:
        return None
    for i in range(ndim):
        if i < first or i > last or keepdim:
            shape[kept] = 1 if first <= i <= last else cnp.PyArray_DIMS(x)[i]
            kept += 1
    y = new_array(kept, shape, num, 1 << shift_of[type_of[num]])
    backend.go(kernel, (grouped(x, first, count), grouped(y, first, 0)), attrs)
    return y


cdef cnp.ndarray as_matrix(cnp.ndarray a, int64_t rows, int64_t columns):
    """a vector, or one element, as a matrix of a single column or row on the same memory."""
    cdef cnp.npy_intp[2] shape = [rows, columns]
    cdef cnp.npy_intp[2] strides
    cdef cnp.ndarray view
    strides[0] = strides[1] = cnp.PyArray_STRIDES(a)[0] if cnp.PyArray_NDIM(a) else cnp.PyArray_ITEMSIZE(a)
    view = cnp.PyArray_New(cnp.ndarray, 2, shape, cnp.PyArray_TYPE(a), strides, cnp.PyArray_DATA(a), 0,
                           cnp.PyArray_FLAGS(a) & cnp.NPY_ARRAY_WRITEABLE, <object>NULL)
    cnp.set_array_base(view, a)
    return view


cpdef quick_matmul(x, y):
    """x @ y of matrices and vectors, float tensors of one type that need no gradient, on a `Native` backend; else None."""
    cdef Native backend = current_native()
    cdef cnp.ndarray a, b, c
    cdef cnp.npy_intp[2] shape
    cdef int num, rows, columns
    cdef int64_t k
    x, y = plain(x), plain(y)
    if backend is None or x is None or y is None:
        return None
    a, b = x, y
    num = cnp.PyArray_TYPE(a)
    rows, columns = cnp.PyArray_NDIM(a) - 1, cnp.PyArray_NDIM(b) - 1            # axes that the result has of each
    if not (0 <= rows <= 1 and 0 <= columns <= 1) or num != cnp.PyArray_TYPE(b) or not 0 <= num < NUMPY_TYPES or \
            type_of[num] > PN_F64 or not cnp.PyArray_ISNOTSWAPPED(a) or not cnp.PyArray_ISNOTSWAPPED(b):
        return None
    k = cnp.PyArray_DIMS(a)[rows]
    if k != cnp.PyArray_DIMS(b)[0]:
        return None
    if rows:
        shape[0] = cnp.PyArray_DIMS(a)[0]
    if columns:
        shape[rows] = cnp.PyArray_DIMS(b)[1]
    c = result = new_array(rows + columns, shape, num, 1 << shift_of[type_of[num]])
    if not (rows and columns):
        c = as_matrix(c, shape[0] if rows else 1, shape[0] if columns else 1)
    backend.go("matmul", (a if rows else as_matrix(a, 1, k), b if columns else as_matrix(b, k, 1), c), ())
    return fresh(result)


@cython.c_api_binop_methods(True)            # else classes in Python would look the operators up by name, at each use
cdef class TensorBase:
    """The fields of a tensor, its array's buffer protocol, and those operators whose cost is felt."""

    def __add__(x, y):                       # either is the tensor: there is no __radd__
        z = quick_tensor("add", x, y)
        return operate("add", x, y) if z is None else z

    def __sub__(x, y):
        z = quick_tensor("sub", x, y)
        return operate("sub", x, y) if z is None else z

    def __mul__(x, y):
        z = quick_tensor("mul", x, y)
        return operate("mul", x, y) if z is None else z

    def __truediv__(x, y):
        z = quick_tensor("div", x, y)
        return operate("div", x, y) if z is None else z

    def __matmul__(x, y):
        z = quick_matmul(x, y)
        return product(x, y) if z is None else z

    def __getbuffer__(self, Py_buffer *view, int flags):
        if recorders or self.storage.rewrites < 0:
            self._look()                     # raises where nobody may read
        if self.needs_grad:                  # np.asarray then tries __array__, which says the same
            raise BufferError("a tensor that requires grad gives no buffer, since changes to it would go unrecorded; "
                              "use tensor.detach()")
        pn_reexport(self.array, view, flags)


include "_replay.pxi"
