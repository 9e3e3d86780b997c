cimport cython

cdef long long _NONE, NOWHERE
cdef unsigned long long _MASK, _GOLDEN

@cython.final
cdef class Translation:
    cdef readonly long long host_pages, medium_pages, erases, plane, moved, erased, logical_pages, physical_pages
    cdef long long _pages, _blocks, _planes, _turn, _room_bits
    cdef long long[::1] _names, _places, _holds, _valid, _worn, _first, _last, _next, _before, _free
    cdef long long[::1] _first_free, _used, _valid_in, _free_count, _open
    @cython.locals(plane=cython.longlong)
    cpdef long long write(self, long long page) noexcept nogil
    @cython.locals(slot=cython.longlong, at=cython.longlong, block=cython.longlong, plane=cython.longlong, is_listed=cython.bint)
    cpdef void trim(self, long long page) noexcept nogil
    @cython.locals(page=cython.longlong)
    cpdef void trim_range(self, long long first, long long end) noexcept nogil
    @cython.locals(slot=cython.longlong)
    cpdef long long place(self, long long page) noexcept nogil
    @cython.locals(at=cython.longlong)
    cpdef long long plane_of(self, long long page) noexcept nogil
    cpdef long long worn(self, long long block) noexcept nogil
    @cython.locals(most=cython.longlong, plane=cython.longlong, _tried=cython.longlong)
    cdef long long _next_plane(self) noexcept nogil
    @cython.locals(first=cython.longlong)
    cdef void _open_next(self, long long plane) noexcept nogil
    @cython.locals(block=cython.longlong, at=cython.longlong)
    cdef long long _program(self, long long plane, long long page) noexcept nogil
    @cython.locals(lists=cython.longlong, valid=cython.longlong, victim=cython.longlong, at=cython.longlong, name=cython.longlong, last=cython.longlong)
    cdef void _collect(self, long long plane) noexcept nogil
    @cython.locals(slot=cython.longlong, room=cython.longlong)
    cdef long long _slot(self, long long page) noexcept nogil
    @cython.locals(mixed=cython.ulonglong)
    cdef long long _home(self, long long page) noexcept nogil
    @cython.locals(slot=cython.longlong)
    cdef void _put(self, long long page, long long at) noexcept nogil
    @cython.locals(room=cython.longlong, at=cython.longlong, home=cython.longlong, stays=cython.bint)
    cdef void _remove(self, long long slot) noexcept nogil
    @cython.locals(place=cython.longlong, before=cython.longlong)
    cdef void _list(self, long long block) noexcept nogil
    @cython.locals(place=cython.longlong, before=cython.longlong, following=cython.longlong)
    cdef void _unlist(self, long long block) noexcept nogil
