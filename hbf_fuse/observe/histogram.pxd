cimport cython

cdef long long _SUB_BITS, _SUB, _BUCKETS

@cython.final
cdef class Histogram:
    cdef long long[::1] _counts
    cdef public long long count, largest
    @cython.locals(shift=cython.int)
    cpdef void add(self, long long value) noexcept nogil
