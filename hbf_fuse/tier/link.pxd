cimport cython

cdef long long FOREVER_NS, REMEMBERED_NS
cdef long long _SECOND_NS, _PIECE_BYTES
cdef Py_ssize_t MAX_GAPS, _ROOM

@cython.final
cdef class Link:
    cdef long long _free_ns
    cdef long long[::1] _starts, _ends
    cdef Py_ssize_t _first, _end
    cpdef long long carry(self, long long arrival_ns, long long duration_ns, long long now_ns) noexcept nogil
    cdef void _remember(self, long long start_ns, long long end_ns, long long now_ns) noexcept nogil
    cdef Py_ssize_t _use(self, Py_ssize_t at, long long begin_ns, long long end_ns) noexcept nogil
    cdef Py_ssize_t _first_after(self, long long moment_ns) noexcept nogil
    cdef void _insert(self, Py_ssize_t at, long long start_ns, long long end_ns) noexcept nogil
    cdef void _remove(self, Py_ssize_t at) noexcept nogil
    cdef void _to_the_front(self) noexcept nogil

@cython.final
cdef class Pipe:
    cdef long long _rate, _remainder
    cdef Link _link
    @cython.locals(transfer_ns=cython.longlong, piece=cython.longlong, units=cython.longlong, piece_ns=cython.longlong)
    cpdef long long carry(self, long long start_ns, long long nbytes, long long now_ns) noexcept nogil
    cpdef void succeed(self, Pipe before) noexcept
