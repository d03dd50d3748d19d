# SPDX-License-Identifier: BSD-3-Clause
# Part of _native.pyx: calls that were filled in once, to be run again and again.

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *d, PyObject *key) except? NULL
    Py_ssize_t PyDict_GET_SIZE(PyObject *d)
    Py_ssize_t PyList_GET_SIZE(PyObject *l)
    bint PyDict_Next(PyObject *d, Py_ssize_t *at, PyObject **key, PyObject **value)
    PyObject *PyCell_GET(PyObject *cell)
    PyObject *PyFunction_GET_CODE(PyObject *fn)
    PyObject *PyFunction_GET_DEFAULTS(PyObject *fn)
    PyObject *PyFunction_GET_KW_DEFAULTS(PyObject *fn)

cdef extern from *:
    """
    #include <time.h>
    static double pn_seconds(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec + 1e-9 * t.tv_nsec;
    }
    """
    double seconds_now "pn_seconds"() nogil

# A dict's version changes with whatever is in it. Python 3.13 has none, and does not tell who watches a dict of attributes
# that these were set: there every version is another one, and what is in the dict must be looked at.
cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030D0000
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    static uint64_t pn_version(PyObject *dict) { return ((PyDictObject *)dict)->ma_version_tag; }
    #pragma GCC diagnostic pop
    #else
    static uint64_t pn_version(PyObject *dict) { static uint64_t looks; (void)dict; return ++looks; }
    #endif
    """
    uint64_t version_of "pn_version"(PyObject *dict)

cdef struct Patch:
    size_t at                    # where in the program's memory a pointer stands
    int64_t offset               # what it points to, in bytes from the start of its root


@cython.final
cdef class Alias:
    """What keeps the memory of an alias: its `base`."""
    cdef object array


def alias(cnp.ndarray array not None):
    """The same elements as an array that does not show where they come from."""
    cdef Alias keeper = Alias.__new__(Alias)
    cdef cnp.ndarray view
    keeper.array = array
    view = cnp.PyArray_New(cnp.ndarray, cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_TYPE(array),
                           cnp.PyArray_STRIDES(array), cnp.PyArray_DATA(array), 0,
                           cnp.PyArray_FLAGS(array) & cnp.NPY_ARRAY_WRITEABLE, <object>NULL)
    cnp.set_array_base(view, keeper)
    return view


def alias_at(cnp.ndarray root not None, cnp.ndarray like not None, int64_t offset):
    """The elements of root's memory from `offset` bytes on, laid out as `like`."""
    cdef cnp.ndarray view = cnp.PyArray_New(
        cnp.ndarray, cnp.PyArray_NDIM(like), cnp.PyArray_DIMS(like), cnp.PyArray_TYPE(like), cnp.PyArray_STRIDES(like),
        <char *>cnp.PyArray_DATA(root) + offset, 0, cnp.PyArray_FLAGS(root) & cnp.NPY_ARRAY_WRITEABLE, <object>NULL)
    cnp.set_array_base(view, root)
    return view


cpdef bint same_layout(array, like):
    """Whether two arrays have the same shape, strides and element type, and both may be written or neither."""
    cdef cnp.ndarray a = <cnp.ndarray?>array, b = <cnp.ndarray?>like
    return cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(b) and same_shape(a, b) and \
        cnp.PyArray_ISWRITEABLE(a) == cnp.PyArray_ISWRITEABLE(b) and \
        same(cnp.PyArray_STRIDES(a), cnp.PyArray_STRIDES(b), cnp.PyArray_NDIM(a))


cdef enum:
    ITEM, KEYS, LENGTH, CELL, TENSOR, GRAD, VERSION, BODY, ARRAY

cdef dict LOOKS = {"item": ITEM, "keys": KEYS, "length": LENGTH, "cell": CELL, "tensor": TENSOR, "grad": GRAD, "version": VERSION,
                   "body": BODY, "array": ARRAY}

cdef struct Look:
    int kind
    PyObject *where
    PyObject *name
    PyObject *value              # NULL: nothing
    PyObject *more
    Py_ssize_t count
    Py_ssize_t place             # that it is at, of those with a version
    bint last                    # there

# All looks at one dict that follow each other. What stands in a dict need not be looked at where its version is the same, and
# versions are read from a table of their own: in a walk from look to look, each would wait for the one before it to say where
# to go on.
cdef struct Place:
    PyObject *dict
    uint64_t version             # when all looks found what had been there

cdef struct Effect:
    PyObject *where
    PyObject *gradient
    int64_t more


cdef bint same_bytes(cnp.ndarray a, cnp.ndarray b):
    """Of arrays of the very same type; other objects for it cost a slow look."""
    return cnp.PyArray_DESCR(a) is cnp.PyArray_DESCR(b) and same_shape(a, b) and cnp.PyArray_IS_C_CONTIGUOUS(a) and \
        memcmp(cnp.PyArray_DATA(a), cnp.PyArray_DATA(b), cnp.PyArray_NBYTES(b)) == 0


cdef bint same_keys(Look *look):
    """By identity: other strings that are equal count as others, which costs a slow look."""
    cdef Py_ssize_t at = 0, n = 0
    cdef PyObject *key
    while PyDict_Next(look.where, &at, &key, NULL):
        if key != PyTuple_GET_ITEM(<object>look.value, n):
            return False
        n += 1
    return True


cdef bint stands(Look *look) except -1:
    """Whether what a look found stands there still."""
    cdef PyObject *g
    if look.kind == ITEM:
        return PyDict_GetItemWithError(look.where, look.name) == look.value
    if look.kind == KEYS:
        return PyDict_GET_SIZE(look.where) == look.count and (look.count == 0 or same_keys(look))
    if look.kind == TENSOR:
        return <PyObject *>(<TensorBase>look.where).array == look.value and \
            <PyObject *>(<TensorBase>look.where)._hooks == look.name and (<TensorBase>look.where).needs_grad == look.count
    if look.kind == LENGTH:
        return PyList_GET_SIZE(look.where) == look.count
    if look.kind == CELL:
        return PyCell_GET(look.where) == look.value
    if look.kind == VERSION:
        return (<Storage>look.where).version == look.count
    if look.kind == BODY:
        return PyFunction_GET_CODE(look.where) == look.value and PyFunction_GET_DEFAULTS(look.where) == look.name and \
            PyFunction_GET_KW_DEFAULTS(look.where) == look.more
    if look.kind == ARRAY:
        return same_bytes(<cnp.ndarray>look.where, <cnp.ndarray>look.value)
    g = <PyObject *>(<TensorBase>look.where)._grad
    if <object>g is None:
        return look.value == <PyObject *>None
    return <PyObject *>(<TensorBase>g).array == look.value


@cython.final
cdef class Looks:
    """Where to look, and what stood there; each a tuple that begins with its kind:

    ("item", dict, key, value)  ("keys", dict)  ("length", list)  ("cell", cell, value)  ("tensor", tensor): its array, its
    hooks, and whether it needs a gradient  ("grad", tensor, array)  ("version", storage)  ("body", function): its code and
    defaults  ("array", array, copy): its numbers, one after the other in both. A value is that very object; `missing` stands
    for none. Items and keys that come first are quickly looked at.
    """
    def __init__(self, list looks not None, missing):
        cdef Look *look
        cdef Place *place
        cdef TensorBase t
        self.looks, self.count = [(*given, tuple(given[1])) if given[0] == "keys" else given for given in looks], len(looks)
        self.look, self.place = malloc(max(self.count, 1) * sizeof(Look)), malloc(max(self.count, 1) * sizeof(Place))
        self.seen = malloc(max(self.count, 1) * sizeof(uint64_t))
        if self.look is NULL or self.place is NULL or self.seen is NULL:
            raise MemoryError(f"no memory to look at {self.count} things")
        place = <Place *>self.place
        for i, given in enumerate(self.looks):
            look = &(<Look *>self.look)[i]
            look.kind, look.where, look.name, look.value, look.count = LOOKS[given[0]], <PyObject *>given[1], NULL, NULL, 0
            if look.kind == TENSOR:
                t = <TensorBase?>given[1]
                self.looks[i] = given = (*given, t.array, t._hooks)
                look.value, look.name, look.count = <PyObject *>given[2], <PyObject *>given[3], t.needs_grad
            elif look.kind == ITEM:
                if not isinstance(given[1], dict):
                    raise TypeError(f"an item is looked for in a dict, not in a {type(given[1]).__name__}")
                look.name, look.value = <PyObject *>given[2], <PyObject *>given[3]
            elif look.kind == KEYS:
                look.where, look.value, look.count = <PyObject *><dict?>given[1], <PyObject *>given[2], len(given[2])
            elif look.kind == LENGTH:
                look.count = len(<list?>given[1])
            elif look.kind == VERSION:
                look.count = (<Storage?>given[1]).version
            elif look.kind == BODY:
                if not isinstance(given[1], FunctionType):
                    raise TypeError(f"a body is a function's, not that of a {type(given[1]).__name__}")
                self.looks[i] = given = (*given, given[1].__code__, given[1].__defaults__, given[1].__kwdefaults__)
                look.value, look.name = PyFunction_GET_CODE(look.where), PyFunction_GET_DEFAULTS(look.where)
                look.more = PyFunction_GET_KW_DEFAULTS(look.where)
            elif look.kind == ARRAY:
                look.where, look.value = <PyObject *><cnp.ndarray?>given[1], <PyObject *><cnp.ndarray?>given[2]
            else:
                look.value = <PyObject *>given[2]
            if look.value == <PyObject *>missing:
                look.value = NULL
            look.place, look.last = self.places, False
            if self.versioned == i and (look.kind == ITEM or look.kind == KEYS):
                if i > 0 and look.where == (look - 1).where:
                    look.place, (look - 1).last = self.places - 1, False
                else:
                    place[self.places].dict, place[self.places].version, self.places = look.where, 0, self.places + 1
                look.last, self.versioned = True, i + 1

    def __dealloc__(self):
        free(self.look)
        free(self.place)
        free(self.seen)

    cpdef Py_ssize_t changed(self, Py_ssize_t start) except -2:
        """The first from `start` on where something else stands now; -1 if there is none. Who then starts at the next one
        takes what stands there for the same."""
        cdef Py_ssize_t i = start, at
        cdef Look *look = <Look *>self.look
        cdef Place *place = <Place *>self.place
        cdef uint64_t *seen = <uint64_t *>self.seen
        cdef uint64_t different = start
        if 0 < start <= self.versioned and look[start - 1].last:
            place[look[start - 1].place].version = seen[look[start - 1].place]
        for at in range(self.places):
            different |= version_of(place[at].dict) ^ place[at].version
        if different == 0:
            i = self.versioned
        while i < self.versioned:
            at = look[i].place
            if i == 0 or look[i - 1].last:
                seen[at] = version_of(place[at].dict)
                if seen[at] == place[at].version:
                    while not look[i].last:
                        i += 1
                    i += 1
                    continue
            if not stands(&look[i]):
                return i
            if look[i].last:
                place[at].version = seen[at]
            i += 1
        while i < self.count:
            if not stands(&look[i]):
                return i
            i += 1
        return -1


@cython.final
cdef class Effects:
    """What else a run does to tensors. gradients: (tensor, gradient) of each that has it from then on; versions: (storage,
    how often it is written)."""
    def __init__(self, list gradients not None, list versions not None):
        cdef Effect *effect
        self.held, self.gradients, self.count = gradients + versions, len(gradients), len(gradients) + len(versions)
        self.effect = malloc(max(self.count, 1) * sizeof(Effect))
        if self.effect is NULL:
            raise MemoryError(f"no memory for what happens to {self.count} tensors")
        for i, (where, what) in enumerate(self.held):
            effect = &(<Effect *>self.effect)[i]
            if i < self.gradients:
                effect.where, effect.gradient = <PyObject *><TensorBase?>where, <PyObject *>what
            else:
                effect.where, effect.more = <PyObject *><Storage?>where, what

    def __dealloc__(self):
        free(self.effect)

    cpdef happen(self):
        cdef Py_ssize_t i
        cdef Effect *all = <Effect *>self.effect
        for i in range(self.gradients):
            if <PyObject *>(<TensorBase>all[i].where)._grad != all[i].gradient:
                (<TensorBase>all[i].where)._grad = <object>all[i].gradient
        for i in range(self.gradients, self.count):
            (<Storage>all[i].where).version += all[i].more


cdef bint by_rows(pn_call *head, Row head_row, pn_call *c, Row row) noexcept:
    """Cut both along the rows of what they write, if that is where one of them is worth it."""
    cdef int axis = row_axis(head_row), own = row_axis(row)
    if head.parts == 1 and head.span <= 2 and c.cut == own and c.parts > 1:
        cut(head, head_row, axis)
        head.cut, head.parts = axis, c.parts
    if head.parts == 1 or head.cut != axis or head.span >= 254:
        return False
    cut(c, row, own)
    c.cut, c.parts = own, head.parts
    return True


cdef inline int row_axis(Row row) noexcept:
    """Of a product: which of its axes is the first one of what it writes."""
    cdef int i
    for i in range(row.slots):
        if row.slot[i].written:
            return row.slot[i].axis[0]
    return 0


cdef struct Span:
    uintptr_t low, high


cdef Span span(cnp.ndarray a) noexcept:
    """First byte of an array, and the one after its last."""
    cdef Span s
    cdef int axis
    cdef int64_t reach
    s.low = s.high = <uintptr_t>cnp.PyArray_DATA(a)
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[axis] == 0:
            s.low = s.high = 0
            return s
        reach = (cnp.PyArray_DIMS(a)[axis] - 1) * cnp.PyArray_STRIDES(a)[axis]
        if reach < 0:
            s.low += reach
        else:
            s.high += reach
    s.high += cnp.PyArray_ITEMSIZE(a)
    return s


cdef class Runnable:
    """Recorded calls, whose arguments and results are bound before each run. silent: whether a run is C's alone, so that nothing
    of Python's can ask for anything meanwhile."""

    cpdef bind(self, int root, array):
        """Let a root be this array's memory: laid out as the recorded one was."""
        raise NotImplementedError

    cpdef bint moved(self, tensors):
        """Whether any of these arguments, laid out as ever, lies elsewhere than in the last run; or that cannot be told."""
        return True

    cpdef bint clashes(self, tensors) except -1:
        """Whether an argument lies in other memory that the calls write, or is written and lies in what they read."""
        raise NotImplementedError

    cpdef run(self, int64_t first, int64_t last):
        """Run calls first .. last."""
        raise NotImplementedError


@cython.final
cdef class Program(Runnable):
    """Calls on a `Native` backend.

    calls   (kernel, operands, attrs, follows, rows) of each. follows: -1, or the slot of what the call before it writes, on
            which it is run part by part (pn_call.then); rows: whether it goes on with the rows of the call before it
    places  of each a tuple by slot: AS_RECORDED, or (root, offset in bytes); root ARENA is memory of the program's own,
            0 and more are bound before a run
    """
    cdef Native backend
    cdef readonly list calls
    cdef list places
    cdef char *memory
    cdef size_t *start           # of each call in memory
    cdef int64_t *host           # by call: the next one, or itself, that is Python's to run
    cdef Patch *patches          # ordered by root
    cdef int *first              # by root: its first patch
    cdef void **now              # by root: where it is
    cdef int roots
    cdef Block arena
    cdef readonly size_t arena_bytes
    cdef list bound              # by root: the array
    cdef dict python             # operands of the calls that Python runs
    cdef bint long_work
    cdef Span *written           # memory that is nobody's argument; where arguments are written, also what is read
    cdef int64_t spans
    cdef int arguments           # so many of the roots
    cdef bint writes_argument

    def __init__(self, Native backend not None, list calls not None, list places not None, int roots, size_t arena_bytes, int arguments):
        cdef int64_t count = len(calls), i, patch_count = 0
        cdef size_t size = 0, call_size = 0
        cdef pn_call *c = NULL
        cdef pn_call *leader
        cdef pn_call *head = NULL            # of the calls that a thread takes its part of rows through
        cdef int64_t head_at = 0
        cdef Row row, head_row = None
        cdef int status, slot, root
        cdef tuple bufs
        self.arguments = arguments
        self.backend, self.calls, self.places, self.roots, self.arena_bytes = backend, calls, places, roots, arena_bytes
        self.bound, self.python = [None] * roots, {}
        self.arena = Block.__new__(Block)
        self.arena.size = arena_bytes if arena_bytes > 64 else 64
        self.arena.data = pn_take(self.arena.size)
        patch_count = sum(len(p) for p in places)
        self.memory = <char *>malloc(max(count, 1) * sizeof(pn_call))
        self.start = <size_t *>malloc((count + 1) * sizeof(size_t))
        self.host = <int64_t *>malloc((count + 1) * sizeof(int64_t))
        self.patches = <Patch *>malloc(max(patch_count, 1) * sizeof(Patch))
        self.first = <int *>malloc((roots + 1) * sizeof(int))
        self.now = <void **>malloc(max(roots, 1) * sizeof(void *))
        self.written = <Span *>malloc(max(sum(len(p) for p in places), 1) * sizeof(Span))
        if self.arena.data is NULL or self.memory is NULL or self.start is NULL or self.host is NULL or \
                self.patches is NULL or self.first is NULL or self.now is NULL or self.written is NULL:
            raise MemoryError(f"no memory for a plan of {count} calls and {arena_bytes} bytes of temporaries")

        by_root, others = [[] for _ in range(roots)], []
        for i in range(count):
            kernel, bufs, attrs, follows, rows = calls[i]
            leader, c = c, <pn_call *>(self.memory + size)
            row = row_named(kernel)
            status = UNFIT if row is None else fill(c, backend, row, bufs, attrs)
            self.start[i], self.host[i] = size, -1
            if status == FITS or (status == NEAR and apart(row, bufs)):
                self.long_work = heavy(c, row) or self.long_work
                for slot, place in enumerate(places[i]):
                    if place is not None:
                        root = place[0]
                        if root < 0:
                            c.buf[slot].data = <char *>self.arena.data + <int64_t>place[1]
                        else:
                            by_root[root].append((size + (<char *>&c.buf[slot].data - <char *>c), place[1]))
                if follows >= 0 and self.host[i - 1] < 0:
                    leader.then, leader.then_slot = c, follows
                    head.span += 1
                    if c.parts > leader.parts and head is leader:
                        divide(leader, head_row, c.dim[0])
                elif rows and head is not NULL and head_at + head.span == i and by_rows(head, head_row, c, row):
                    head.span += 1
                else:
                    head, head_row, head_at = c, row, i
                size += sizeof(pn_call) - (PN_MAX_BUF - row.slots) * sizeof(pn_buf)
            else:
                self.host[i] = i
                self.python[i] = None
                head = NULL
            written = [s.written for s in signature.spec_for(kernel, signature.element_dtype(kernel, bufs)).slots]
            others += [(w, b) for w, b, place in zip(written, bufs, places[i]) if place is None]
            self.writes_argument |= any(w and place is not None and 0 <= place[0] < arguments
                                        for w, place in zip(written, places[i]))
        for w, b in others:
            if w or self.writes_argument:
                self.written[self.spans] = span(b)
                self.spans += 1
        self.start[count], self.host[count], self.silent = size, count, not self.python
        for i in range(count - 1, -1, -1):
            if self.host[i] < 0:
                self.host[i] = self.host[i + 1]
        patch_count = 0
        for root in range(roots):
            self.first[root], self.now[root] = patch_count, NULL
            for at, offset in by_root[root]:
                self.patches[patch_count].at, self.patches[patch_count].offset = at, offset
                patch_count += 1
        self.first[roots] = patch_count

    def __dealloc__(self):
        free(self.memory)
        free(self.start)
        free(self.host)
        free(self.patches)
        free(self.first)
        free(self.now)
        free(self.written)

    cpdef bind(self, int root, array):
        cdef void *data = cnp.PyArray_DATA(<cnp.ndarray?>array)
        if not 0 <= root < self.roots:
            raise IndexError(f"root {root} of a program with {self.roots}")
        self.bound[root] = array
        if self.now[root] != data:
            self.move(root, data)
            if self.python:
                self.python = dict.fromkeys(self.python)

    cpdef bint moved(self, tensors):
        cdef int i
        cdef TensorBase t
        if self.writes_argument:
            return True
        for i in range(self.arguments):
            t = tensors[i]
            if cnp.PyArray_DATA(<cnp.ndarray>t.array) != self.now[i]:
                return True
        return False

    cpdef bint clashes(self, tensors) except -1:
        cdef Span s, t
        cdef int i, j
        cdef TensorBase a, b
        if self.spans == 0 and not self.writes_argument:
            return False
        for i in range(len(tensors)):
            a = tensors[i]
            s = span(a.array)
            for j in range(self.spans):
                if s.low < self.written[j].high and self.written[j].low < s.high:
                    return True
            if self.writes_argument:
                for j in range(i):
                    b = tensors[j]
                    t = span(b.array)
                    if s.low < t.high and t.low < s.high and a.array is not b.array:
                        return True
        return False

    cdef void move(self, int root, void *data) noexcept nogil:
        cdef int i
        self.now[root] = data
        for i in range(self.first[root], self.first[root + 1]):
            (<void **>(self.memory + self.patches[i].at))[0] = <char *>data + self.patches[i].offset

    cdef tuple operands(self, int64_t i):
        """Arrays on what call i works on now."""
        cdef cnp.ndarray a, view
        cdef char *data
        out = []
        bufs = self.calls[i][1]
        for a, place in zip(bufs, self.places[i]):
            if place is None:
                out.append(a)
                continue
            base = self.arena if place[0] < 0 else self.bound[<int>place[0]]
            data = <char *>(self.arena.data if place[0] < 0 else self.now[<int>place[0]]) + <int64_t>place[1]
            view = cnp.PyArray_New(cnp.ndarray, cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.PyArray_TYPE(a),
                                   cnp.PyArray_STRIDES(a), data, 0, cnp.PyArray_FLAGS(a) & cnp.NPY_ARRAY_WRITEABLE, <object>NULL)
            cnp.set_array_base(view, base)
            out.append(view)
        return tuple(out)

    cdef int by_python(self, int64_t i) except -1:
        """A call that C does not run: of NumPy, or of operands that must be copied first."""
        operands = self.python[i]
        if operands is None:
            operands = self.python[i] = self.operands(i)
        self.backend.go(self.calls[i][0], operands, self.calls[i][2])
        return 0

    cpdef run(self, int64_t first, int64_t last):
        cdef int64_t failed = 0, i = first
        cdef int status
        if self.long_work:
            with nogil:
                status = self.go(first, last, &failed)
        else:
            status = self.go(first, last, &failed)
        if status != PN_OK:
            kernel, _, attrs, *_ = self.calls[failed]
            complain(self.backend, kernel, self.operands(failed), attrs, status)

    cdef int go(self, int64_t first, int64_t last, int64_t *failed) except -1 nogil:
        cdef int64_t i = first, stop
        cdef int status
        while i < last:
            stop = min(self.host[i], last)
            if stop > i:
                status = pn_run(<pn_call *>(self.memory + self.start[i]), stop - i, flush_denormals, failed)
                if status != PN_OK:
                    failed[0] += i
                    return status
            i = stop
            if i < last:
                with gil:
                    self.by_python(i)
                i += 1
        return PN_OK

    def loop(self, int64_t last, int64_t times, list moving not None, after=None):
        """Run calls 0 .. last so many times. moving: roots that are bound, each with the bytes it moves on from time to time.

        after: called each time; what is not true ends it. Returns how often they were run. Looks for signals every 50 ms:
        what a handler raises ends it between two times.
        """
        cdef int64_t done = 0, failed = 0, k
        cdef int status = PN_OK, count = len(moving)
        cdef bint asks = after is not None, goes_on = True
        cdef int root[PN_MAX_BUF]
        cdef int64_t step[PN_MAX_BUF]
        cdef char *at[PN_MAX_BUF]
        cdef double look
        if count > PN_MAX_BUF:
            raise ValueError(f"at most {PN_MAX_BUF} roots can move, given {count}")
        for k in range(count):
            root[k], step[k] = moving[k]
            at[k] = <char *>self.now[root[k]]
        if self.python:
            for k in range(times):
                for i in range(count):
                    self.move(root[i], at[i] + k * step[i])
                self.python = dict.fromkeys(self.python)
                self.run(0, last)
                if asks and not after():
                    return k + 1
            return times
        with nogil:
            look = seconds_now() + 0.05
            while done < times and goes_on:
                for k in range(count):
                    self.move(root[k], at[k] + done * step[k])
                status = self.go(0, last, &failed)
                if status != PN_OK:
                    break
                done += 1
                if asks:
                    with gil:
                        goes_on = after()
                if seconds_now() > look:
                    with gil:
                        PyErr_CheckSignals()
                    look = seconds_now() + 0.05
        if status != PN_OK:
            kernel, _, attrs, *_ = self.calls[failed]
            complain(self.backend, kernel, self.operands(failed), attrs, status)
        return done

    def seconds(self, int64_t i, int repeats):
        """Time of call i, run on its own."""
        cdef pn_call *c = <pn_call *>(self.memory + self.start[i])
        cdef const pn_call *then = NULL
        if self.host[i] != i:
            then, c.then = c.then, NULL
        start = perf_counter()
        try:
            for _ in range(repeats):
                self.run(i, i + 1)
        finally:
            if then is not NULL:
                c.then = then
        return (perf_counter() - start) / repeats
