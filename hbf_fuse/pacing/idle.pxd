cimport cython

@cython.final
cdef class Idle:
    cdef readonly long long window_ns, pause_ns, floor_ns, late_ns
    cdef long long _carried_ns, _due_ns, _late_ns
    @cython.locals(idle_ns=cython.longlong, window_ns=cython.longlong, floor_ns=cython.longlong)
    cpdef void ended(self, long long began_ns, long long owed_ns, long long unsure_ns) noexcept nogil
    cpdef void taken(self, long long carried_ns, long long due_ns) noexcept nogil
    cpdef void replied(self, long long done_ns, long long late_ns) noexcept nogil
    cpdef void untimed(self, long long took_ns) noexcept nogil
    cpdef long long window_until_ns(self, long long moment_ns) noexcept nogil
