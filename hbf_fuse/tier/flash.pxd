cimport cython

cdef long long FOREVER_NS

@cython.final
cdef class Planes:
    cdef readonly long long bytes_sensed, bytes_asked, first_ready_ns, all_ready_ns
    cdef long long _page, _read_ns, _most_turns, _planes
    cdef long long[::1] _free
    cdef long long sense(self, long long start_ns, long long offset, long long nbytes) noexcept nogil
    cpdef void count_on_from(self, Planes before)
