# SPDX-License-Identifier: BSD-3-Clause
# For the .pxd files beside the hot Python files: the fields of a tensor, in C. _fallback.py has the same ones for a build
# without a compiler.


from libc.stdint cimport int64_t

cpdef int renew(list arrays, list layouts) except -1
cpdef current_backend()
cpdef exchange(variable, value)
cpdef fresh(array)
cpdef bint same_layout(array, like)
cpdef value_of(variable)


cdef class Storage:
    cdef public Py_ssize_t version, rewrites


cdef class TensorBase:
    cdef public object array, node, _grad, _hooks, _base
    cdef public Storage storage
    cdef public Py_ssize_t _seen
    cdef public bint needs_grad
    cdef dict __dict__
    cdef object __weakref__


cdef class Runnable:
    cdef public bint silent

    cpdef bind(self, int root, array)
    cpdef bint moved(self, tensors)
    cpdef bint clashes(self, tensors) except -1
    cpdef run(self, int64_t first, int64_t last)


cdef class Looks:
    cdef list looks
    cdef void *look
    cdef void *place
    cdef void *seen              # by place: its version when a look at it began
    cdef Py_ssize_t count, places, versioned

    cpdef Py_ssize_t changed(self, Py_ssize_t start) except -2


cdef class Effects:
    cdef list held
    cdef void *effect
    cdef Py_ssize_t gradients, count

    cpdef happen(self)
