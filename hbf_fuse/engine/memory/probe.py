"""Touches a mapping of a file, like a reader: one byte of each chunk. Run as a script, under the shim.

It speaks as mount/probe.py: "ready", then a JSON object for each line on stdin. A place of the file can be
touched for the first time only once.
"""

import json
import mmap
import sys
import time


def command(fd: int) -> list[str]:
    """The command line that touches the file of fd, which it inherits."""
    return [sys.executable, "-I", "-S", __file__, str(fd)]


def _measure(mapped: mmap.mmap, size: int, reads: int, start: int, stride: int) -> dict[str, object]:
    clock = time.monotonic_ns
    times = list[int]()
    before = begin = clock()
    for at in range(start * size, (start + reads * stride) * size, stride * size):
        mapped[at]
        after = clock()
        times.append(after - before)
        before = after
    return {"begin": begin, "end": before, "times": times}


def _main(fd: int) -> None:
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(_measure(mapped, *map(int, line.split()))), flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
