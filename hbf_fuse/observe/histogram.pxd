cimport cython

cdef long long _SUB_BITS, _SUB, _BUCKETS

@cython.final
cdef class Histogram:
    cdef long long[::1] _counts
    cdef public long long count, total, largest
    @cython.locals(shift=cython.int)
    cpdef void add(self, long long value) noexcept nogil
    @cython.locals(index=cython.longlong)
    cpdef void copy_to(self, Histogram other) noexcept nogil
