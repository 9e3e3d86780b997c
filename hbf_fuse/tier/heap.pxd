cimport cython

cdef long long NOTHING, _NEVER

@cython.final
cdef class Heap:
    cdef readonly Py_ssize_t count
    cdef Py_ssize_t _room
    cdef long long[::1] _keys, _items
    cpdef bint push(self, long long key, long long item) noexcept nogil
    cpdef long long pop(self) noexcept nogil
    cpdef long long first_key(self) noexcept nogil
    cpdef long long item(self, Py_ssize_t at) noexcept nogil
    cpdef bint remove(self, long long item) noexcept nogil
    cdef void _take(self, Py_ssize_t at) noexcept nogil
    cdef void _rise(self, Py_ssize_t at, long long key, long long item) noexcept nogil
    cdef Py_ssize_t _smaller_child(self, Py_ssize_t at) noexcept nogil
    cdef bint _before(self, long long key, long long item, long long other_key, long long other_item) noexcept nogil
