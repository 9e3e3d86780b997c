cimport cython

from hbf_fuse.pacing.pacer cimport Pacer
from hbf_fuse.tier.heap cimport Heap

cdef long long _EARLY_NS, _SLOW_NS, _LOW
cdef Py_ssize_t WORDS

@cython.final
cdef class Follower:
    cdef readonly long long altered, lost
    cdef Pacer _pacer
    cdef long long[::1] _words, _sizes, _waiting, _kept
    cdef unsigned char[::1] _under_way
    cdef Heap _done
    cdef Py_ssize_t _room, _files, _count
    cdef long long _next, _looked_ns
    @cython.locals(fresh=cython.longlong, place=cython.longlong, waited=cython.Py_ssize_t)
    cpdef bint follow(self, long long end, long long now_ns) except -1
    cpdef Py_ssize_t in_flight(self)
    @cython.locals(at=cython.Py_ssize_t, left=cython.Py_ssize_t, place=cython.Py_ssize_t, base=cython.Py_ssize_t)
    cpdef void abandon(self, long long process) except *
    @cython.locals(base=cython.Py_ssize_t, word=cython.Py_ssize_t, arrival_ns=cython.longlong, offset=cython.longlong,
                   nbytes=cython.longlong, reader=cython.longlong, file=cython.longlong, due_ns=cython.longlong)
    cdef void _take(self, Py_ssize_t place, long long now_ns) except *
    @cython.locals(at=cython.Py_ssize_t, left=cython.Py_ssize_t, place=cython.Py_ssize_t)
    cdef void _settle(self, long long now_ns) except *
    @cython.locals(base=cython.Py_ssize_t, done_ns=cython.longlong)
    cdef bint _has_come(self, Py_ssize_t place, long long now_ns) except -1
    @cython.locals(base=cython.Py_ssize_t, done_ns=cython.longlong, nbytes=cython.longlong)
    cdef void _complete(self, long long until_ns) except *
