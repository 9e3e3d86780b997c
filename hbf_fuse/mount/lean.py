"""Timed reads and writes; lean.pyx is the same compiled. The interpreter adds 10 to 20 us to each."""

import mmap
import os
import time


def measure(
    fd: int, size: int, reads: int, start: int, stride: int, pause_ns: int = 0, writes: int = 0
) -> tuple[int, int, list[int]]:
    """Read `reads` times `size` bytes, one read at a time: piece `start` of the file, then every `stride`-th
    piece, again and again; busy for pause_ns between reads. With `writes`, write them instead. fd is opened
    with O_DIRECT. OSError if one fails.

    Returns when the first read began and the last one ended (CLOCK_MONOTONIC, ns), and how long each took.
    """
    pieces = os.fstat(fd).st_size // size
    buffer = mmap.mmap(-1, size)
    # First touch of memory takes milliseconds in some virtual machines.
    buffer.write(b"\1" * size)
    times = []
    began = ended = time.monotonic_ns()
    for count in range(reads):
        begin = time.monotonic_ns()
        (os.pwritev if writes else os.preadv)(fd, [buffer], (start + count * stride) % pieces * size)
        ended = time.monotonic_ns()
        times.append(ended - begin)
        while count < reads - 1 and time.monotonic_ns() < ended + pause_ns:
            pass
    return began, ended, times
