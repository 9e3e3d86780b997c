cimport cython

from hbf_fuse.observe.histogram cimport Histogram

cdef long long _GAP_NS

@cython.final
cdef class Counters:
    cdef public long long reads, bytes, writes, bytes_written, in_flight, in_flight_max, largest_read, interrupted, failed, waited_ns, sending_ns
    cdef public long long unseen_ns, stops, blind_ns, nameless, exchanges, overfills, last_seen_ns, first_arrival_ns, last_done_ns
    cdef public long long gap_end_ns, floored_ns, woken_late_ns, wakes
    cdef readonly Histogram took, lateness, backlog
    cpdef void began(self, long long arrival_ns, long long nbytes, long long reader, bint writes = *) noexcept nogil
    cpdef void finished(
        self, long long arrival_ns, long long due_ns, long long started_ns, long long done_ns, long long nbytes,
        bint writes = *,
    ) noexcept nogil
    cpdef void abandoned(self, bint interrupted) noexcept nogil
    cpdef void copy_to(self, Counters other) noexcept nogil
