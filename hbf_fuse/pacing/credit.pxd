cimport cython

cdef long long LIFETIME_NS, MAX_OWED_NS, _WAYS, _BUCKETS, _UNKNOWN

@cython.final
cdef class Credit:
    cdef public long long forgiven_ns
    cdef long long[::1] _names, _came, _due, _done
    cpdef void sending(self, long long reader, long long arrival_ns, long long due_ns) noexcept nogil
    cpdef void sent(self, long long reader, long long due_ns, long long done_ns) noexcept nogil
    cpdef void nothing_owed(self, long long reader) noexcept nogil
    cpdef long long waited(self, long long reader) noexcept nogil
    cpdef long long owed(self, long long reader, long long arrival_ns) noexcept nogil
    @cython.locals(place=cython.longlong)
    cpdef list readers(self, long long since_ns)
    cdef long long _find(self, long long reader) noexcept nogil
    cdef long long _oldest(self, long long reader) noexcept nogil
