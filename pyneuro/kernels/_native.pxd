# SPDX-License-Identifier: BSD-3-Clause
# For pyneuro/tensor.pxd: the fields of a tensor, in C. _fallback.py has the same ones for a build without a compiler.


cdef class TensorBase:
    cdef public object array, storage, node, _grad, _hooks
    cdef public bint needs_grad
    cdef object __weakref__
