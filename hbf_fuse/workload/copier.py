"""Copies files in chunks, one chunk in flight. Run as a script: copier.py CHUNK SOURCE TARGET [SOURCE ...]

Reads past the page cache directly into the mapped TARGET. The target's memory is allocated before the first
read; an existing TARGET is overwritten. Imports nothing of hbf_fuse.

Prints a JSON object: seconds of the copy. On failure prints {"error": why} and exits with 1.
"""

import json
import mmap
import os
import sys
import time

_MADV_POPULATE_WRITE = 23


def _prepared(target: str, size: int) -> mmap.mmap:
    """The target, mapped, with all its memory allocated."""
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


def main(chunk: int, *paths: str) -> None:
    """See the module. paths: SOURCE and TARGET by turns. All targets are prepared before the first read."""
    try:
        sources = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths[::2]]
        targets = [
            _prepared(path, os.fstat(source).st_size)
            for source, path in zip(sources, paths[1::2], strict=True)
        ]
        begin = time.monotonic_ns()
        for source, target in zip(sources, targets, strict=True):
            _copy(source, memoryview(target), chunk)
    except OSError as error:
        print(json.dumps({"error": error.strerror}))
        sys.exit(1)
    print(json.dumps({"seconds": (time.monotonic_ns() - begin) / 1e9}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
