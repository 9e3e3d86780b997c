cimport cython

cdef long long _MIB, _UNSURE_NS, _UNSURE_NS_PER_MIB

cpdef long long unsure_ns(long long nbytes) noexcept nogil

@cython.final
cdef class Floor:
    cdef readonly long long fixed_ns, per_mib_ns
    cdef readonly bint known
    cpdef long long of(self, long long nbytes) noexcept nogil
