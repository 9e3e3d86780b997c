cimport cython

from hbf_fuse.pacing.mutex cimport Mutex

@cython.final
cdef class Room:
    cdef readonly long long size, unit, used
    cdef Mutex _mutex
    @cython.locals(more=cython.longlong, fits=cython.bint)
    cpdef bint grow(self, long long before, long long after) noexcept nogil
    cdef long long _units(self, long long nbytes) noexcept nogil
