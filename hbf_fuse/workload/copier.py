"""Copies a file in chunks, one chunk in flight. Run as a script: copier.py SOURCE TARGET CHUNK.

Reads past the page cache and straight into the mapped TARGET, whose memory is there before the first read; a
TARGET that is there already is written over. Stands alone.

Prints a JSON object: seconds of the copy. If that fails, prints {"error": why} and exits with 1.
"""

import json
import mmap
import os
import sys
import time

_MADV_POPULATE_WRITE = 23


def _prepared(target: str, size: int) -> mmap.mmap:
    """The target, mapped, with all its memory in place."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, size)
    mapped = mmap.mmap(fd, size)
    try:
        mapped.madvise(_MADV_POPULATE_WRITE)
    except OSError:
        # Linux before 5.14
        for page in range(0, size, mmap.PAGESIZE):
            mapped[page] = 0
    return mapped


def _copy(source: int, target: memoryview, chunk: int) -> None:
    for offset in range(0, len(target), chunk):
        left, at = target[offset : offset + chunk], offset
        while left:
            count = os.preadv(source, [left], at)
            if not count:
                raise OSError(5, "the source ended early")
            left, at = left[count:], at + count


def main(source: str, target: str, chunk: int) -> None:
    """See the module."""
    try:
        reading = os.open(source, os.O_RDONLY | os.O_DIRECT)
        mapped = _prepared(target, os.fstat(reading).st_size)
        begin = time.monotonic_ns()
        _copy(reading, memoryview(mapped), chunk)
    except OSError as error:
        print(json.dumps({"error": error.strerror}))
        sys.exit(1)
    print(json.dumps({"seconds": (time.monotonic_ns() - begin) / 1e9}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
