cimport cython

cdef extern from "math.h" nogil:
    cpdef double cos(double)
    cpdef double exp(double)
    cpdef double log(double)
    cpdef double sqrt(double)

cdef long long _UNIFORM, _NORMAL, _LOGNORMAL, _EXPONENTIAL, _TAIL
cdef unsigned long long _MASK, _STEP, _FIRST, _SECOND
cdef double _TURN, _UNIT, _MOST_NS

@cython.final
cdef class Draws:
    cdef unsigned long long _state
    cpdef double uniform(self) noexcept nogil
    cpdef double normal(self) noexcept nogil
    cpdef double exponential(self) noexcept nogil
    @cython.locals(mixed=cython.ulonglong)
    cdef unsigned long long _bits(self) noexcept nogil

@cython.final
cdef class Latencies:
    cdef Draws _draws
    cdef double _latency_ms
    cdef Py_ssize_t _count
    cdef long long[::1] _kinds
    cdef double[::1] _firsts, _lasts
    cpdef long long draw(self) noexcept nogil
    cdef double _of_part(self, long long kind, double first, double last) noexcept nogil
