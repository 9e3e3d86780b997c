"""A long array of words of which few are not zero, without the interpreter; words.py is the same for the uncompiled
code.

A tree as of page tables: 64 words in a leaf, 64 children in a node above. A node is made when its first word is set,
and freed with its last. Most callers go from one word to the next, so the newest leaf is remembered.
"""

from libc.stdlib cimport calloc, free

cdef enum:
    BITS = 6  # of a place, for each level
    SLOTS = 1 << BITS
    MOST_LEVELS = 11


cdef inline int slot_of(long long at, int height) noexcept nogil:
    return (at >> (BITS * height)) & (SLOTS - 1)


cdef void free_below(Node *node, int height) noexcept nogil:
    cdef int place
    if node and height:
        for place in range(SLOTS):
            free_below(node.slot[place].node, height - 1)
    free(node)


cdef class Words:
    def __cinit__(self, long long count):
        self._near_at = -1
        # Shifting by 64 bits and more is undefined.
        while self._height < MOST_LEVELS - 1 and (count - 1) >> (BITS * (self._height + 1)) > 0:
            self._height += 1

    def __dealloc__(self):
        free_below(self._root, self._height)

    cpdef unsigned long long get(self, long long at) noexcept nogil:
        if at >> BITS != self._near_at:
            self._near, self._near_at = self._found(at), at >> BITS
        return self._near.slot[at & (SLOTS - 1)].word if self._near else 0

    cpdef bint put(self, long long at, unsigned long long word) noexcept nogil:
        cdef Slot *slot
        if at >> BITS != self._near_at:
            self._near, self._near_at = self._found(at), at >> BITS
        if not self._near:
            if not word:
                return True
            self._near = self._made(at)
            if not self._near:
                return False
        slot = &self._near.slot[at & (SLOTS - 1)]
        self._near.used += (word != 0) - (slot.word != 0)
        slot.word = word
        if not self._near.used:
            self._prune(at)
        return True

    cdef Node *_found(self, long long at) noexcept nogil:
        """The leaf of a word; NULL if all of its words are zero."""
        cdef Node *node = self._root
        cdef int height = self._height
        while node and height:
            node = node.slot[slot_of(at, height)].node
            height -= 1
        return node

    cdef Node *_made(self, long long at) noexcept nogil:
        """The leaf of a word, made if it is not there. NULL if there is no memory for it."""
        cdef Node **place = &self._root
        cdef Node *above = NULL
        cdef int height = self._height
        while True:
            if not place[0]:
                place[0] = <Node *> calloc(1, sizeof(Node))
                if not place[0]:
                    # Nodes above that are empty now stay until a leaf below them is made and freed.
                    return NULL
                if above:
                    above.used += 1
            if not height:
                return place[0]
            above = place[0]
            place = &above.slot[slot_of(at, height)].node
            height -= 1

    cdef void _prune(self, long long at) noexcept nogil:
        """Free a leaf without words, and the nodes above it that have no other."""
        cdef Node *path[MOST_LEVELS]
        cdef int height = self._height
        path[height] = self._root
        while height:
            path[height - 1] = path[height].slot[slot_of(at, height)].node
            height -= 1
        self._near, self._near_at = NULL, -1
        while not path[height].used:
            free(path[height])
            if height == self._height:
                self._root = NULL
                return
            height += 1
            path[height].slot[slot_of(at, height)].node = NULL
            path[height].used -= 1
