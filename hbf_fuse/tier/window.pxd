cimport cython

from hbf_fuse.tier.device cimport Tier
from hbf_fuse.tier.heap cimport Heap

cdef long long _NO_LIMIT

@cython.final
cdef class Window:
    cdef readonly long long moved
    cdef Tier _tier
    cdef Heap _free
    cpdef long long free_ns(self) noexcept nogil
    cpdef long long read(self, long long issued_ns, long long offset, long long nbytes, long long chunk_bytes) noexcept nogil
    cpdef long long read_until(self, long long until_ns, long long issued_ns, long long offset, long long nbytes, long long chunk_bytes) noexcept nogil
    cpdef long long write(self, long long issued_ns, long long offset, long long nbytes, long long chunk_bytes) noexcept nogil
    @cython.locals(first=cython.longlong, end=cython.longlong, ready_ns=cython.longlong, begin_ns=cython.longlong, slot=cython.longlong, size=cython.longlong, deadline_ns=cython.longlong)
    cdef long long _move(self, long long issued_ns, long long offset, long long nbytes, long long chunk_bytes, long long until_ns, bint writes) noexcept nogil
