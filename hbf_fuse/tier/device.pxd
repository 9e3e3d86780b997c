cimport cython

from hbf_fuse.tier.draws cimport Latencies
from hbf_fuse.tier.flash cimport Planes
from hbf_fuse.tier.heap cimport Heap
from hbf_fuse.tier.link cimport Pipe

cdef long long FOREVER_NS, _NOWHERE

@cython.final
cdef class Tier:
    cdef readonly object spec
    cdef readonly Planes planes
    cdef readonly long long carried_ns, written_bytes
    cdef long long _rate, _latency_ns, _seek_ns, _arm_ns, _arm_at
    cdef bint _programs
    cdef Latencies _latencies
    cdef Pipe _link, _intake
    cdef Py_ssize_t _depth
    cdef Heap _working
    @cython.locals(begin_ns=cython.longlong, carried_ns=cython.longlong)
    cpdef long long reserve(self, long long arrival_ns, long long offset, long long nbytes) noexcept nogil
    @cython.locals(begin_ns=cython.longlong, carried_ns=cython.longlong)
    cpdef long long write(self, long long arrival_ns, long long offset, long long nbytes) noexcept nogil
    @cython.locals(taken_ns=cython.longlong)
    cdef long long _begun(self, long long arrival_ns, long long offset) noexcept nogil
    @cython.locals(latency_ns=cython.longlong, deadline_ns=cython.longlong)
    cdef long long _done(self, long long carried_ns, long long end) noexcept nogil
    cdef long long _sought(self, long long taken_ns, long long offset) noexcept nogil
    cdef long long _admitted(self, long long arrival_ns) noexcept nogil
