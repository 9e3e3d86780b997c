"""Measures what a reader waits for a read of known latency. Run as a script: probe.py FILE READS.

Stands alone, outside the server's process, as readers do. Prints a JSON object: size in bytes to a sorted
list of times in ns. Reads past the page cache (O_DIRECT), one at a time.
"""

import json
import mmap
import os
import sys
import time

SIZES = (4096, 1 << 20)


def measure(path: str, reads: int) -> dict[int, list[int]]:
    """Times of `reads` reads of each size that the file holds."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    length = os.fstat(fd).st_size
    times = {}
    for size in SIZES:
        if length < size:
            continue
        buffer = mmap.mmap(-1, size)
        taken = []
        for count in range(reads):
            begin = time.monotonic_ns()
            os.preadv(fd, [buffer], count % (length // size) * size)
            taken.append(time.monotonic_ns() - begin)
        times[size] = sorted(taken)
    return times


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
