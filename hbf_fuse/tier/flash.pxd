cimport cython

from hbf_fuse.tier.draws cimport Draws

cdef long long FOREVER_NS, _NO_PAGE
cdef unsigned long long _MASK, _GOLDEN

@cython.final
cdef class Planes:
    cdef readonly long long bytes_sensed, bytes_asked
    cdef long long _page, _sense_ns, _planes, _retries, _rows_looked_at
    cdef bint _hashed
    cdef Draws _draws
    cdef long long[::1] _free, _held, _more_ns
    cdef double[::1] _chances
    @cython.locals(first=cython.longlong, last=cython.longlong, row=cython.longlong, place=cython.longlong, last_row=cython.longlong, turn=cython.longlong, page=cython.longlong, begin_ns=cython.longlong, plane=cython.longlong, ready_ns=cython.longlong, before_ns=cython.longlong, rows=cython.longlong)
    cpdef long long sense(self, long long start_ns, long long offset, long long nbytes, long long rate) noexcept nogil
    @cython.locals(ready_ns=cython.longlong, retry=cython.longlong)
    cdef long long _ready(self, long long plane, long long page, long long start_ns) noexcept nogil
    @cython.locals(each_ns=cython.double, more_ns=cython.longlong, retry=cython.longlong, plane=cython.longlong)
    cdef void _skip(self, long long rows) noexcept nogil
    @cython.locals(mixed=cython.ulonglong)
    cdef long long _turn(self, long long row) noexcept nogil
    cpdef void count_on_from(self, Planes before)
