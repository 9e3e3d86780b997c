cimport cython

from hbf_fuse.observe.counters cimport Counters
from hbf_fuse.observe.readers cimport Readers
from hbf_fuse.observe.ring cimport Ring
from hbf_fuse.pacing.coverage cimport Coverage
from hbf_fuse.pacing.credit cimport Credit
from hbf_fuse.pacing.floor cimport Floor
from hbf_fuse.pacing.idle cimport Idle
from hbf_fuse.pacing.mutex cimport Mutex
from hbf_fuse.pacing.resident cimport Resident
from hbf_fuse.pacing.tiers cimport Rank, Regions
from hbf_fuse.tier.device cimport Tier
from hbf_fuse.tier.translation cimport Translation

cdef long long _PAGE, _UNSEEN_NS, _LINK_WAIT_NS, _BEAT_NS, _REST_NS, _LATE_BEAT_NS, _LIVELY_NS, OFFSETS, DIRECT, WRITES, KV

@cython.final
cdef class Pacer:
    cdef readonly bint throttled
    cdef long long _least_wait_ns
    cdef readonly Counters counters
    cdef readonly Floor floor
    cdef readonly Floor writing, writing_at_most
    cdef readonly Credit credit
    cdef readonly Idle idle
    cdef readonly Ring ring
    cdef readonly Readers readers
    cdef readonly Coverage coverage
    cdef readonly Resident resident
    cdef readonly Rank tiers
    cdef Regions _regions
    cdef list _names
    cdef long long[::1] _inodes, _sizes, _padded_end, _model, _base
    cdef readonly list models
    cdef readonly long long kv, kv_model, kv_read_bytes, kv_since_ns
    cdef Mutex _mutex
    @cython.locals(waited_ns=cython.longlong, arrived_ns=cython.longlong, owed_ns=cython.longlong, began_ns=cython.longlong,
                   due_ns=cython.longlong, ready_ns=cython.longlong, piece_end=cython.longlong, end=cython.longlong, place=cython.longlong)
    cpdef long long admit(
        self, long long file, long long offset, long long nbytes, long long reader, long long way, long long arrival_ns
    ) noexcept nogil
    cdef long long _floor_of(self, long long way, long long nbytes, long long waited_ns) noexcept nogil
    cdef long long _unsure_ns(self, long long way, long long nbytes) noexcept nogil
    cpdef void sending(self, long long reader, long long arrival_ns, long long due_ns) noexcept nogil
    @cython.locals(at=cython.longlong, end=cython.longlong, piece_end=cython.longlong, place=cython.longlong,
                   took_ns=cython.longlong, timed=cython.bint, model=cython.longlong, begin=cython.longlong,
                   covered=cython.longlong, inode=cython.longlong, shown=cython.longlong, told=cython.longlong, tier=cython.longlong)
    cpdef void complete(
        self,
        long long file,
        long long offset,
        long long nbytes,
        long long reader,
        long long way,
        long long arrival_ns,
        long long due_ns,
        long long started_ns,
        long long done_ns,
    ) noexcept nogil
    cpdef void abandon(self, long long file, long long nbytes, long long reader, long long way, bint interrupted) noexcept nogil
    cpdef void was_blind(self, long long since_ns, long long until_ns) noexcept nogil
    @cython.locals(lively=cython.bint)
    cpdef long long next_beat(self, long long now_ns) noexcept nogil
    @cython.locals(seen_ns=cython.longlong, steady=cython.bint, others_ran=cython.bint)
    cpdef void beat(self, long long due_ns, long long now_ns) noexcept nogil
    cdef void _name_reader(self, long long thread, long long slot) noexcept
    cdef void _trim(self, Translation translation, long long first, long long end) noexcept
    cdef void _sum_readers(self, long long[::1] reads, long long[::1] nbytes) noexcept
    cdef void _exchange(self, Tier heir, bint reads, bint writes, long long least_wait_ns) noexcept
    @cython.locals(named=cython.bint)
    cpdef bint next_drop(self) noexcept nogil
    cpdef long long inode(self, long long file) noexcept nogil
