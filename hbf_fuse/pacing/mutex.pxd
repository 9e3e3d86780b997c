cimport cython

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

@cython.final
cdef class Mutex:
    cdef pthread_mutex_t _lock
    cpdef void acquire(self) noexcept nogil
    cpdef void release(self) noexcept nogil
