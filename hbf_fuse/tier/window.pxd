cimport cython

from hbf_fuse.tier.device cimport Tier
from hbf_fuse.tier.heap cimport Heap

@cython.final
cdef class Window:
    cdef Tier _tier
    cdef Heap _free
    cpdef long long read(self, long long issued_ns, long long offset, long long nbytes, long long chunk_bytes) noexcept nogil
    cpdef long long write(self, long long issued_ns, long long offset, long long nbytes, long long chunk_bytes) noexcept nogil
    @cython.locals(end=cython.longlong, ready_ns=cython.longlong, begin_ns=cython.longlong, slot=cython.longlong, size=cython.longlong, deadline_ns=cython.longlong)
    cdef long long _move(self, long long issued_ns, long long offset, long long nbytes, long long chunk_bytes, bint writes) noexcept nogil
