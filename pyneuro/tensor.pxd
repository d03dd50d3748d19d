# Types for the hot path of tensor.py, which is the code, and runs without this as well.
cimport cython
from pyneuro.autograd cimport Node, Storage
from pyneuro.kernels._native cimport TensorBase as Fields

@cython.locals(t=Fields, y=Fields, first=Fields, storage=Storage, recorded=cython.bint, is_view=cython.bint)
cpdef apply(op, tuple inputs, tuple attrs=*)

@cython.locals(t=Fields)
cpdef wrap(array, storage=*, node=*)
