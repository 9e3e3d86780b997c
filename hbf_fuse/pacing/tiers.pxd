cimport cython

from hbf_fuse.tier.device cimport Tier

@cython.final
cdef class Rank:
    cdef readonly Tier tier
    cdef readonly Rank following
    cdef readonly long long nbytes
    cdef readonly bint throttled, throttles_writes
    cdef long long reserve(self, long long place, long long arrival_ns, long long offset, long long nbytes) noexcept nogil
    cdef long long write(self, long long arrival_ns, long long offset, long long nbytes) noexcept nogil
    cdef long long carried_ns(self, long long place) noexcept nogil
    cdef void served(self, long long place, long long nbytes) noexcept nogil
    cdef bint is_throttled(self, long long place) noexcept nogil
    cdef void exchange(self, Tier tier, bint throttled, bint throttles_writes) noexcept
    cdef bint any_throttled(self) noexcept nogil

@cython.final
cdef class Regions:
    cdef long long[::1] _first, _starts, _tiers
    cdef readonly long long tier
    @cython.locals(low=cython.longlong, high=cython.longlong, middle=cython.longlong)
    cdef long long piece_end(self, long long file, long long offset, long long end) noexcept nogil
