cimport cython

from hbf_fuse.pacing.words cimport Words

cdef unsigned long long _ALL

@cython.locals(ones=cython.longlong)
cdef long long _ones(unsigned long long word) noexcept nogil

@cython.final
cdef class Pages:
    cdef Words _words
    cpdef bint has(self, long long page) noexcept nogil
    @cython.locals(fresh=cython.longlong, at=cython.longlong, bit=cython.longlong, count=cython.longlong,
                   known=cython.ulonglong, new=cython.ulonglong)
    cpdef long long add(self, long long first, long long end) noexcept nogil
