cimport cython

from hbf_fuse.tier.device cimport Tier
from hbf_fuse.tier.heap cimport Heap

@cython.final
cdef class Window:
    cdef Tier _tier
    cdef Heap _free
    cpdef long long read(self, long long issued_ns, long long offset, long long nbytes, long long chunk_bytes) noexcept nogil
