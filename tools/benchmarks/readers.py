"""Ways to read a file, shared by the benchmarks. Run as a script: readers.py FILE WAY UNTIL

The script reads the file again and again until the time UNTIL (seconds since the epoch), and prints the SHA-256
of each pass. WAY: mmap or read.
"""

import hashlib
import mmap
import os
import random
import sys
import time
from pathlib import Path

SCRIPT = __file__
WAYS = ("mmap sequential", "mmap willneed", "read")


def make_source(folder: Path, size: int) -> Path:
    """A file of `size` random bytes, in the page cache."""
    path = folder / "source"
    block = random.Random(1).randbytes(min(size, 1 << 24))  # noqa: S311
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
    path.read_bytes()
    return path


def read_rate(path: Path, way: str) -> float:
    """Read the whole file in one way: a mapping, page by page, with an madvise or fadvise; or read(2). Returns
    decimal MB/s; the page cache should be cold.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        begin = time.perf_counter()
        if way == "read":
            buffer = bytearray(1 << 20)
            while file.readinto(buffer):
                pass
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                if way == "mmap sequential":
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                else:
                    view.madvise(mmap.MADV_WILLNEED)
                for at in range(0, size, mmap.PAGESIZE):
                    view[at]
        return size / (time.perf_counter() - begin) / 1e6


def digest(path: str, way: str) -> str:
    """The SHA-256 of a file, read through a mapping or with read(2), 1 MiB at a time."""
    whole = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        if way == "mmap":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as mapped:
                for at in range(0, len(mapped), 1 << 20):
                    whole.update(mapped[at : at + (1 << 20)])
        else:
            while block := file.read(1 << 20):
                whole.update(block)
    return whole.hexdigest()


if __name__ == "__main__":
    while time.time() < float(sys.argv[3]):
        print(digest(sys.argv[1], sys.argv[2]), flush=True)
