# Types for the hot paths of graph.py, which is the code, and runs without this as well.
cimport cython
from pyneuro.kernels._native cimport TensorBase as Fields, exchange, value_of

cdef class Node:
    cdef public object op, attrs, extras, kept, hooks, retained, dtype
    cdef public tuple parents, needs, shapes, versions
    cdef public long long serial
    cdef public bint fast
    cdef object __weakref__

cpdef bint is_grad_enabled()

cpdef _switch(mode)

@cython.locals(t=Fields)
cpdef _edge(t)

@cython.locals(t=Fields, node=Node, parents=list, needs=list, shapes=list)
cpdef record(op, tuple inputs, tuple attrs, out, tuple extras=*)

@cython.locals(t=Fields, kept=list, versions=list)
cpdef _keep(Node node, op, tuple inputs, out)
