cimport cython

cdef long long _WAYS, _BUCKETS, _NONE, _RENEWED_NS, _UNNAMED, MAX_READER_NAMES

@cython.final
cdef class Readers:
    cdef readonly long long fresh
    cdef long long[::1] _threads, _slots, _seen_ns, _reads, _bytes, _past_reads, _past_bytes
    cdef object _lock
    cdef list _names, _pids
    @cython.locals(place=cython.longlong)
    cpdef void count(self, long long thread, long long nbytes, long long arrival_ns) noexcept nogil
    @cython.locals(place=cython.longlong)
    cpdef void give(self, long long thread, long long slot) noexcept nogil
    @cython.locals(place=cython.longlong)
    cpdef list unnamed(self)
    @cython.locals(slot=cython.longlong, place=cython.longlong)
    cpdef void sum_into(self, long long[::1] reads, long long[::1] nbytes) noexcept nogil
    cdef void _settle(self, long long place) noexcept nogil
    cdef long long _find(self, long long thread) noexcept nogil
    cdef long long _oldest(self, long long thread) noexcept nogil
