# The fields of a row in C; ops.py is the code, and runs without this as well.
cdef class Op:
    cdef public object name, formula, forward, backward, inputs, kind, sums, work, params, module, reads, kernel, range, requires
    cdef dict kept
    cdef public tuple saves
    cdef public bint view, monotone
