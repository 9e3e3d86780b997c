"""A reader in a process of its own. Run as a script: reader.py FILE SIZE READS START STRIDE.

Reads SIZE bytes at a time past the page cache, READS times, beginning with piece START and going on by
STRIDE pieces, round and round. Waits for a line on stdin before it begins. Prints a JSON object:
CLOCK_MONOTONIC at begin and end, and p50 of a read, in ns.
"""

import json
import mmap
import os
import sys
import time


def main(path: str, size: int, reads: int, start: int, stride: int) -> None:
    """See the module."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    pieces = os.fstat(fd).st_size // size
    buffer = mmap.mmap(-1, size)
    taken = []
    print("ready", flush=True)
    sys.stdin.readline()
    begin = before = time.monotonic_ns()
    for count in range(reads):
        os.preadv(fd, [buffer], (start + count * stride) % pieces * size)
        now = time.monotonic_ns()
        taken.append(now - before)
        before = now
    taken.sort()
    print(json.dumps({"begin": begin, "end": before, "p50": taken[len(taken) // 2]}))


if __name__ == "__main__":
    main(sys.argv[1], *(int(number) for number in sys.argv[2:]))
