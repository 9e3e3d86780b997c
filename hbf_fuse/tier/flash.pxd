cimport cython

from hbf_fuse.tier.draws cimport Draws
from hbf_fuse.tier.translation cimport Translation

cdef long long FOREVER_NS, NOWHERE, _NO_PAGE, _NEVER
cdef unsigned long long _MASK, _GOLDEN

@cython.final
cdef class Planes:
    cdef readonly long long bytes_sensed, bytes_asked, bytes_programmed, reads_behind, behind_ns
    cdef readonly Translation translation
    cdef long long _waited_ns, _program_ns, _erase_ns, _suspend_ns
    cdef long long[::1] _programmed
    cdef long long _page, _sense_ns, _planes, _retries, _rows_looked_at
    cdef bint _hashed
    cdef Draws _draws
    cdef long long[::1] _free, _held, _more_ns
    cdef double[::1] _chances
    @cython.locals(first=cython.longlong, last=cython.longlong, row=cython.longlong, place=cython.longlong, last_row=cython.longlong, turn=cython.longlong, page=cython.longlong, begin_ns=cython.longlong, plane=cython.longlong, ready_ns=cython.longlong, before_ns=cython.longlong, rows=cython.longlong, written_in=cython.longlong)
    cpdef long long sense(self, long long start_ns, long long offset, long long nbytes, long long rate) noexcept nogil
    @cython.locals(first=cython.longlong, last=cython.longlong, end=cython.longlong, done_ns=cython.longlong, page=cython.longlong, there_ns=cython.longlong, page_end=cython.longlong, held_in=cython.longlong, programmed=cython.longlong, plane=cython.longlong, behind_ns=cython.longlong)
    cpdef long long program(self, long long carried_ns, long long offset, long long nbytes, long long rate) noexcept nogil
    @cython.locals(ready_ns=cython.longlong, retry=cython.longlong, free_ns=cython.longlong, behind_ns=cython.longlong)
    cdef long long _ready(self, long long plane, long long page, long long start_ns) noexcept nogil
    @cython.locals(each_ns=cython.double, more_ns=cython.longlong, retry=cython.longlong, plane=cython.longlong)
    cdef void _skip(self, long long rows) noexcept nogil
    @cython.locals(mixed=cython.ulonglong)
    cdef long long _turn(self, long long row) noexcept nogil
    cpdef void count_on_from(self, Planes before)
    cpdef void take_over(self, Planes before) noexcept
