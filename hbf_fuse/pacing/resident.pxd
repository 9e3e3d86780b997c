cimport cython

from hbf_fuse.pacing.tiers cimport Regions
from hbf_fuse.pacing.words cimport Words

cdef long long PAGE, _PINNED, _FIELDS, _COUNTED, _EXEMPT

@cython.final
cdef class Resident:
    cdef readonly object policy
    cdef readonly long long budget, resident_bytes, most_resident_bytes, evicted_bytes, pinned_bytes
    cdef readonly long long drop_file, drop_first, drop_end
    cdef long long _limit, _most, _pin_limit, _room, _head, _coming_bytes, _dropping, _at, _end
    cdef readonly long long _count
    cdef public long long _number
    cdef long long[::1] _first_page
    cdef Words _brought, _queue
    cdef Regions _exempt
    cdef bint _unmarked
    cpdef void coming(self, long long file, long long offset, long long nbytes) noexcept nogil
    @cython.locals(base=cython.longlong, held=cython.longlong, mark=cython.longlong)
    cpdef void came(self, long long file, long long offset, long long nbytes) noexcept nogil
    cpdef void abandoned(self, long long nbytes) noexcept nogil
    cpdef bint is_overfull(self) noexcept nogil
    cpdef bint must_drop(self) noexcept nogil
    @cython.locals(first=cython.longlong, base=cython.longlong)
    cpdef bint next_drop(self) noexcept nogil
    @cython.locals(base=cython.longlong, end=cython.longlong, pages=cython.longlong, piece_end=cython.longlong,
                   first=cython.longlong, last=cython.longlong, page=cython.longlong)
    cdef long long _pages(self, long long file, long long offset, long long nbytes, long long mark) noexcept nogil
    @cython.locals(base=cython.longlong, page=cython.longlong, mark=cython.longlong)
    cdef void _forget(self, long long file, long long offset, long long nbytes) noexcept nogil
    @cython.locals(at=cython.longlong)
    cdef void _enqueue(self, long long file, long long first, long long end) noexcept nogil
    @cython.locals(at=cython.longlong, field=cython.longlong)
    cdef void _next_reply(self) noexcept nogil
    @cython.locals(kept=cython.longlong, place=cython.longlong, here=cython.longlong, there=cython.longlong,
                   field=cython.longlong)
    cdef void _sort_out(self) noexcept nogil
    @cython.locals(number=cython.longlong, page=cython.longlong, end=cython.longlong)
    cdef bint _is_left(self, long long at) noexcept nogil
    @cython.locals(mark=cython.longlong)
    cdef bint _is_of(self, long long page, long long number) noexcept nogil
