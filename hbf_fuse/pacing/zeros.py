"""Zeros in memory that is allocated when it is first used."""

import mmap
from collections.abc import Iterator

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def zeros(rows: int, count: int) -> "Iterator[memoryview[int]]":
    """Rows of words of 8 bytes, `count` each, in one piece of memory."""
    whole = memoryview(mmap.mmap(-1, max(8, 8 * rows * count), flags=_PRIVATE)).cast("q")
    for row in range(rows):
        yield whole[row * count : (row + 1) * count]
