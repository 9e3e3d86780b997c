"""A lock that needs no interpreter; mutex.py is the same for the uncompiled code."""

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)


cdef class Mutex:
    def __cinit__(self):
        pthread_mutex_init(&self._lock, NULL)

    cpdef void acquire(self) noexcept nogil:
        pthread_mutex_lock(&self._lock)

    cpdef void release(self) noexcept nogil:
        pthread_mutex_unlock(&self._lock)
