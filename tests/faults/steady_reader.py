"""Reads a served file over and over and compares every block with its source. Run as a script:

steady_reader.py WAY FILE SOURCE PASSES    (0: until something goes wrong)

Exit code 0 if all passes were right, 1 for wrong bytes, 2 for an error, whose name is printed. Ways: read and
direct are read(2), through and past the page cache; mmap and scattered are mappings, in order and not.
SIGUSR1 is handled, by doing nothing.
"""

import errno
import itertools
import mmap
import os
import random
import signal
import sys
from collections.abc import Iterator

BLOCK = 1 << 17


def blocks(way: str, fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Every block of the file once, with its offset, read again."""
    offsets = list(range(0, size, BLOCK))
    if way in ("mmap", "scattered"):
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as view:
            if way == "scattered":
                view.madvise(mmap.MADV_RANDOM)
                random.shuffle(offsets)
            yield from ((at, view[at : at + BLOCK]) for at in offsets)
    else:
        buffer = mmap.mmap(-1, BLOCK)
        yield from ((at, filled(buffer, fd, at, min(BLOCK, size - at))) for at in offsets)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def filled(buffer: mmap.mmap, fd: int, at: int, nbytes: int) -> bytes:
    """The bytes at an offset, read into aligned memory, as O_DIRECT may need. Shorter only at the end.

    A read may bring less than requested before the next one gives an error.
    """
    done = 0
    while done < nbytes:
        count = os.preadv(fd, [memoryview(buffer)[done:]], at + done)
        if not count:
            break
        done += count
    return buffer[: min(done, nbytes)]


def main() -> int:
    way, path, source, passes = sys.argv[1:]
    signal.signal(signal.SIGUSR1, lambda *_: None)
    original = os.open(source, os.O_RDONLY)
    size = os.fstat(original).st_size
    try:
        fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if way == "direct" else 0))
        for _ in range(int(passes)) if int(passes) else itertools.count():
            for at, got in blocks(way, fd, size):
                if got != os.pread(original, BLOCK, at):
                    print(f"wrong bytes in the block at {at}, of which {len(got)} came")
                    return 1
    except OSError as error:
        print(errno.errorcode.get(error.errno or 0, error))
        return 2
    return 0


if __name__ == "__main__":
    code = main()
    # Python removes its signal handlers before it ends.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.exit(code)
