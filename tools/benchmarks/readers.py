"""Ways to read a file that the benchmarks share. A way returns decimal MB/s of one cold pass."""

import mmap
import os
import random
import time
from pathlib import Path

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
    """Read the whole file one way: a mapping walked page by page with an madvise or fadvise, or read(2)."""
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
