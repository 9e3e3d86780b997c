"""Timed reads and writes without the interpreter between the clock and each; lean.py is the same uncompiled."""

import os
from array import array

from libc.stdlib cimport free
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int, void *, size_t, long long)
    ssize_t pwrite(int, const void *, size_t, long long)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t, size_t)


cdef inline long long now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec * 1000000000LL + t.tv_nsec


cdef inline unsigned long long scattered(unsigned long long number) noexcept nogil:
    number ^= number << 13
    number ^= number >> 7
    return number ^ number << 17


def measure(
    int fd, long long size, long long reads, long long start, long long stride, long long pause_ns=0,
    bint writes=False, long long until_ns=0, unsigned long long seed=0,
):
    """See lean.py."""
    cdef long long pieces = max(1, os.lseek(fd, 0, os.SEEK_END) // size)
    cdef long long[::1] times = array("q", bytes(8 * reads))
    cdef char *buffer = <char *> aligned_alloc(4096, size)
    cdef long long count, begin, offset, came, began = 0, ended = 0, done = 0
    cdef bint failed = buffer == NULL
    with nogil:
        if not failed:
            # First touch of memory takes milliseconds in some virtual machines.
            memset(buffer, 1, size)
        began = now()
        for count in range(reads if not failed else 0):
            begin = now()
            if until_ns and count and begin > until_ns and (count >= 3 or begin > until_ns + 3000000000LL):
                break
            if seed:
                seed = scattered(seed)
                offset = <long long> (seed % <unsigned long long> pieces) * size
            else:
                offset = (start + count * stride) % pieces * size
            came = pwrite(fd, buffer, size, offset) if writes else pread(fd, buffer, size, offset)
            if came < size:
                failed = True
                break
            ended = now()
            times[count] = ended - begin
            done += 1
            while count < reads - 1 and now() < ended + pause_ns:
                pass
    free(buffer)
    if failed:
        raise OSError("a read or a write failed")
    return began, ended, list(times[:done])
