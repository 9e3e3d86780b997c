cimport cython

cdef long long RING_RECORDS, _WORDS, _COUNT

@cython.final
cdef class Ring:
    cdef readonly long long count
    cdef object _memory, _file
    cdef long long[::1] _words
    @cython.locals(at=cython.longlong)
    cpdef void add(
        self,
        long long arrival_ns,
        long long due_ns,
        long long done_ns,
        long long offset,
        long long nbytes,
        long long reader,
        long long ino,
        long long tier,
        long long way,
    ) noexcept nogil
