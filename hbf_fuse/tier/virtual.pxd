cimport cython

from hbf_fuse.tier.device cimport Tier
from hbf_fuse.tier.heap cimport Heap

cdef long long FOREVER_NS

@cython.final
cdef class Replay:
    cdef Py_ssize_t _count, _most_tiers
    # Arrays, not views: slicing an array copies it, slicing a view does not.
    cdef object _arrivals, _waits
    cdef long long[::1] _offsets, _nbytes, _tiers, _firsts, _children, _thinks
    @cython.locals(
        tier=Tier, place=cython.Py_ssize_t, at=cython.Py_ssize_t, child=cython.Py_ssize_t, done_ns=cython.longlong
    )
    cdef void _run(
        self, tuple tiers, Heap ready, long long[::1] arrivals, long long[::1] waits, long long[::1] done
    ) except *
