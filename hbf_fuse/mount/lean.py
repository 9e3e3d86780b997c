"""Timed reads and writes; lean.pyx is the same compiled. The interpreter adds 10 to 20 us to each."""

import mmap
import os
import time

_LEAST, _LONGER_NS = 3, 3_000_000_000
_64_BITS = (1 << 64) - 1


def measure(
    fd: int,
    size: int,
    reads: int,
    start: int,
    stride: int,
    pause_ns: int = 0,
    writes: int = 0,
    until_ns: int = 0,
    seed: int = 0,
) -> tuple[int, int, list[int]]:
    """Read `reads` times `size` bytes, one read at a time: piece `start` of the file, then every `stride`-th
    piece, again and again; busy for pause_ns between reads. With `writes`, write them instead. fd is opened
    with O_DIRECT. OSError if one fails. until_ns (CLOCK_MONOTONIC): none but the first three begins later,
    and none but the first 3 s later; 0 for no such end. seed: other than 0, the pieces come in a random
    order of its own.

    Returns when the first read began and the last one ended (CLOCK_MONOTONIC, ns), and how long each took.
    """
    pieces = max(1, os.lseek(fd, 0, os.SEEK_END) // size)
    buffer = mmap.mmap(-1, size)
    # First touch of memory takes milliseconds in some virtual machines.
    buffer.write(b"\1" * size)
    times = []
    began = ended = time.monotonic_ns()
    for count in range(reads):
        begin = time.monotonic_ns()
        is_over = until_ns and count and begin > until_ns
        if is_over and (count >= _LEAST or begin > until_ns + _LONGER_NS):
            break
        seed = _scattered(seed)
        piece = seed % pieces if seed else (start + count * stride) % pieces
        (os.pwritev if writes else os.preadv)(fd, [buffer], piece * size)
        ended = time.monotonic_ns()
        times.append(ended - begin)
        while count < reads - 1 and time.monotonic_ns() < ended + pause_ns:
            pass
    return began, ended, times


def _scattered(number: int) -> int:
    """The next number (xorshift64; Marsaglia, Journal of Statistical Software 8, 2003)."""
    number ^= number << 13 & _64_BITS
    number ^= number >> 7
    return number ^ number << 17 & _64_BITS
