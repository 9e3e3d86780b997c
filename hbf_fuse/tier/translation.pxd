cimport cython

cdef long long _NONE

@cython.final
cdef class Translation:
    cdef readonly long long host_pages, medium_pages, erases
    cdef long long _pages, _blocks, _first_free, _free_count, _open, _used
    cdef long long[::1] _where, _holds, _valid, _worn, _first, _last, _next, _before, _free
    @cython.locals(before=cython.longlong)
    cpdef long long write(self, long long page) noexcept nogil
    @cython.locals(at=cython.longlong, block=cython.longlong, is_listed=cython.bint)
    cpdef void trim(self, long long page) noexcept nogil
    cpdef long long place(self, long long page) noexcept nogil
    cpdef long long worn(self, long long block) noexcept nogil
    cdef void _open_next(self) noexcept nogil
    @cython.locals(at=cython.longlong)
    cdef void _program(self, long long page) noexcept nogil
    @cython.locals(valid=cython.longlong, victim=cython.longlong, at=cython.longlong, page=cython.longlong)
    cdef void _collect(self) noexcept nogil
    @cython.locals(valid=cython.longlong, before=cython.longlong)
    cdef void _list(self, long long block) noexcept nogil
    @cython.locals(valid=cython.longlong, before=cython.longlong, following=cython.longlong)
    cdef void _unlist(self, long long block) noexcept nogil
