# Types for the hot path of tensor.py, which is the code, and runs without this as well.
cimport cython
from pyneuro.graph cimport _edge, is_grad_enabled, record
from pyneuro.kernels._native cimport Storage as SharedFields, TensorBase as Fields
from pyneuro.ops cimport Op

@cython.locals(first=Fields, second=Fields, count=cython.int)
cpdef apply(Op op, tuple inputs, tuple attrs=*)

@cython.locals(t=Fields, y=Fields, first=Fields, storage=SharedFields, recorded=cython.bint)
cdef _made(Op op, tuple inputs, tuple attrs, out, tuple extras, bint is_view)

@cython.locals(t=Fields)
cpdef wrap(array, storage=*, node=*)

@cython.locals(t=Fields, u=Fields)
cpdef _operate(str name, x, y)
