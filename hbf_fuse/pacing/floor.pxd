cimport cython

cdef long long _MIB, _UNSURE_NS, _UNSURE_NS_PER_MIB

cpdef long long unsure_ns(long long nbytes) noexcept nogil

@cython.final
cdef class Floor:
    cdef readonly long long per_mib_ns
    cdef readonly bint known
    cdef long long[::1] _waited, _fixed
    cdef Py_ssize_t _last
    cdef long long _doubt_ns, _doubt_per_mib_ns
    cpdef long long of(self, long long nbytes, long long waited_ns) noexcept nogil
    cpdef long long unsure(self, long long nbytes) noexcept nogil
    @cython.locals(at=cython.Py_ssize_t, fixed_ns=cython.longlong, beyond_ns=cython.longlong)
    cdef long long _after(self, long long waited_ns) noexcept nogil
