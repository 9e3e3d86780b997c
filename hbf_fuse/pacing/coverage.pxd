cimport cython

from hbf_fuse.observe.counters cimport Counters
from hbf_fuse.pacing.credit cimport Credit
from hbf_fuse.pacing.idle cimport Idle
from hbf_fuse.pacing.pages cimport Pages

cdef long long _PAGE, _BLIND_NS, _MOMENTS, _FIGURES, _NAMED, _SOMETIMES_NS, ENDLESS, LIFETIME_NS

@cython.final
cdef class Coverage:
    cdef readonly long long moments
    cdef Counters _counters
    cdef Credit _credit
    cdef Idle _idle
    cdef Pages _seen
    cdef long long[::1] _sizes, _pages, _first_page, _arrived, _uncounted, _in_flight, _begun, _first_ns, _owed_ns
    cdef long long[::1] _complete_ns, _complete_due_ns, _timed_ns, _unsure_ns, _most_unsure_ns
    cdef long long[::1] _late_ns, _quarters, _before, _after, _now
    cdef long long[::1] _of_moment, _reader_of_moment
    cdef long long _looked
    cdef dict _looks, _ready
    cdef object _look_lock, _readers, _servers
    cpdef bint is_complete(self, long long file) noexcept nogil
    cdef void _note(self, long long file, long long reader) noexcept nogil
    cpdef void begin(self, long long file, long long arrival_ns, long long began_ns, long long owed_ns, long long reader) noexcept nogil
    @cython.locals(at=cython.longlong, figure=cython.longlong, pause_ns=cython.longlong)
    cdef void _leave_out_pause(self, long long file, long long began_ns) noexcept nogil
    @cython.locals(at=cython.longlong)
    cdef void _note_figures(self, long long[::1] figures, long long file) noexcept nogil
    cpdef void abandon(self, long long file) noexcept nogil
    @cython.locals(place=cython.longlong)
    cpdef void copy_pass(self, long long file, long long[::1] figures) noexcept nogil
    @cython.locals(fresh=cython.longlong, quarter=cython.longlong, base=cython.longlong, size=cython.longlong,
                   first=cython.longlong, end=cython.longlong, end_byte=cython.longlong, is_endless=cython.bint)
    cpdef void add(
        self,
        long long file,
        long long offset,
        long long nbytes,
        long long due_ns,
        long long done_ns,
        long long timed_ns,
        long long unsure_ns,
    ) noexcept nogil
    @cython.locals(within=cython.bint, head=cython.longlong, tail=cython.longlong, base=cython.longlong)
    cdef void _count_parts(self, long long file, long long offset, long long end_byte) noexcept nogil
