# The fields of a node in C; autograd.py is the code, and runs without this as well.
cdef class Storage:
    cdef public Py_ssize_t version, rewrites

cdef class Node:
    cdef public object op, attrs, extras, kept, hooks, retained
    cdef public tuple parents, needs, shapes, dtypes, versions
    cdef public long long serial
    cdef public bint fast
    cdef object __weakref__
