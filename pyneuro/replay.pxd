# Types for the hot path of replay.py, which is the code, and runs without this as well.
cimport cython
from pyneuro.graph cimport is_grad_enabled
from pyneuro.kernels._native cimport Effects as Happening, Looks as Seen, Runnable, TensorBase as Fields, current_backend, fresh, renew, same_layout

@cython.final
cdef class Lease:
    cdef list free
    cdef readonly object program

@cython.final
cdef class Argument:
    cdef object like
    cdef bint needs
    cdef Py_ssize_t first

@cython.final
cdef class Replay:
    cdef public object backend, gradients, make
    cdef public Seen looks, sources
    cdef public Happening effects
    cdef public list arguments, entries, slow, others, tensors, before, tables, steps, optimizers, outputs, results, shared, packs
    cdef public list argument_versions, free, older, newer
    cdef public Py_ssize_t count, stop
    cdef public bint grad_mode, busy, plain, silent, again

    @cython.locals(t=Fields, argument=Argument, i=Py_ssize_t, j=Py_ssize_t, recorded=bint)
    cpdef bint suits(self, tuple args, mode)

    @cython.locals(looks=Seen)
    cpdef bint fits(self)

    @cython.locals(i=Py_ssize_t)
    cdef bint stands(self)

    cdef bint untouched(self)

    cpdef attempt(self, tuple args, mode)

    @cython.locals(t=Fields, more=Py_ssize_t, i=Py_ssize_t, program=Runnable, made=list, out=list, arrays=list)
    cpdef list run(self, args)

    @cython.locals(program=Runnable)
    cdef bint moved(self, args)

    @cython.locals(program=Runnable)
    cpdef bint clashes(self, args)

    @cython.locals(t=Fields, root=Fields)
    cdef _output(self, o, args, list made, lease)

@cython.final
cdef class Latest:
    cdef Replay replay
    cdef object result
    cpdef set(self, replay, result)

cdef class Quick:
    cdef public Latest latest
    cdef public tuple hooks
    cdef public object _grad_mode

    cpdef anew(self, tuple args, dict kwargs)
