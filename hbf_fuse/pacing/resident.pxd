cimport cython

cdef long long PAGE, _FREE, _PINNED, _FIELDS

@cython.final
cdef class Resident:
    cdef readonly object policy
    cdef readonly long long budget, resident_bytes, most_resident_bytes, evicted_bytes, pinned_bytes
    cdef readonly long long drop_file, drop_first, drop_end
    cdef long long _limit, _most, _pin_limit, _room, _head, _coming_bytes, _dropping, _at, _end
    cdef readonly long long _count
    cdef public long long _number
    cdef long long[::1] _first_page, _brought, _queue
    cpdef void coming(self, long long file, long long offset, long long nbytes) noexcept nogil
    @cython.locals(base=cython.longlong, first=cython.longlong, end=cython.longlong, held=cython.longlong,
                   mark=cython.longlong, page=cython.longlong)
    cpdef void came(self, long long file, long long offset, long long nbytes) noexcept nogil
    cpdef void abandoned(self, long long nbytes) noexcept nogil
    cpdef bint is_overfull(self) noexcept nogil
    cpdef bint must_drop(self) noexcept nogil
    @cython.locals(first=cython.longlong, base=cython.longlong)
    cpdef bint next_drop(self) noexcept nogil
    @cython.locals(base=cython.longlong, page=cython.longlong, mark=cython.longlong)
    cdef void _forget(self, long long file, long long offset, long long nbytes) noexcept nogil
    @cython.locals(at=cython.longlong)
    cdef void _enqueue(self, long long file, long long first, long long end) noexcept nogil
    @cython.locals(at=cython.longlong)
    cdef void _next_reply(self) noexcept nogil
    @cython.locals(kept=cython.longlong, place=cython.longlong, here=cython.longlong, there=cython.longlong,
                   field=cython.longlong)
    cdef void _sort_out(self) noexcept nogil
    @cython.locals(page=cython.longlong)
    cdef bint _is_left(self, long long at) noexcept nogil
