"""Reads through a mount from outside the server, as readers do. Run as a script: probe.py FILE SIZE READS.

Stands alone. One read in flight, past the page cache (O_DIRECT). Prints each read's time in ns as JSON,
or nothing if a read failed.
"""

import contextlib
import json
import mmap
import os
import sys
import time


def measure(path: str, size: int, reads: int) -> list[int]:
    """Nanoseconds that each of `reads` reads of `size` bytes takes. OSError if the source fails."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    pieces = os.fstat(fd).st_size // size
    buffer = mmap.mmap(-1, size)
    times = []
    for count in range(reads):
        begin = time.monotonic_ns()
        os.preadv(fd, [buffer], count % pieces * size)
        times.append(time.monotonic_ns() - begin)
    return times


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
