cimport cython

cdef struct Node

cdef union Slot:
    unsigned long long word
    Node *node

cdef struct Node:
    long long used  # slots that are not zero
    Slot slot[64]

@cython.final
cdef class Words:
    cdef Node *_root
    cdef Node *_near  # where the newest word is, or would be
    cdef long long _near_at
    cdef int _height
    cpdef unsigned long long get(self, long long at) noexcept nogil
    cpdef bint put(self, long long at, unsigned long long word) noexcept nogil
    cdef Node *_found(self, long long at) noexcept nogil
    cdef Node *_made(self, long long at) noexcept nogil
    cdef void _prune(self, long long at) noexcept nogil
