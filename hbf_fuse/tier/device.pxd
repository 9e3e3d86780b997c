cimport cython

from hbf_fuse.tier.draws cimport Latencies
from hbf_fuse.tier.flash cimport Planes
from hbf_fuse.tier.heap cimport Heap
from hbf_fuse.tier.link cimport Link

cdef long long FOREVER_NS, _SECOND_NS, _PIECE_BYTES, _NOWHERE

@cython.final
cdef class Tier:
    cdef readonly object spec
    cdef readonly Planes planes
    cdef readonly long long carried_ns
    cdef long long _rate, _latency_ns, _remainder, _seek_ns, _arm_ns, _arm_at
    cdef Latencies _latencies
    cdef Link _link
    cdef Py_ssize_t _depth
    cdef Heap _working
    @cython.locals(begin_ns=cython.longlong)
    cpdef long long reserve(self, long long arrival_ns, long long offset, long long nbytes) noexcept nogil
    @cython.locals(transfer_ns=cython.longlong)
    cdef long long _carried(self, long long start_ns, long long nbytes, long long now_ns) noexcept nogil
    cdef long long _sought(self, long long taken_ns, long long offset) noexcept nogil
    cdef long long _admitted(self, long long arrival_ns) noexcept nogil
