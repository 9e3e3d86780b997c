"""How much of a file is in the page cache, and since when."""

import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse.host import linux

_LOOK_SECONDS = 0.002
_LOOK_BYTES = 64 << 20
"""What a look goes over at most: 16,384 pages take about a tenth of a millisecond."""


def resident_bytes(path: Path) -> int | None:
    """Bytes of a file that the page cache holds, in whole pages; reads none of it.

    None where the kernel does not tell: it does only for files that one owns or may write.
    """
    with open(linux.open_file(path), "rb") as file:
        return resident_bytes_of(file.fileno())


def resident_bytes_of(fd: int) -> int | None:
    """The same of a file that is open."""
    status = os.fstat(fd)
    if os.geteuid() not in (0, status.st_uid) and not os.access(f"/proc/self/fd/{fd}", os.W_OK):
        return None
    if not status.st_size:
        return 0
    with mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as mapped:
        return linux.resident_pages(mapped).count(1) * mmap.PAGESIZE


def drop(path: Path) -> int | None:
    """Have the page cache forget a file; returns what it still holds, as resident_bytes does.

    Pages that a process maps stay.
    """
    with open(linux.open_file(path), "rb") as file:
        # What is not on the disk yet cannot be dropped.
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return resident_bytes_of(file.fileno())


class Filling:
    """When a file that was cold came into the page cache, in ns of CLOCK_MONOTONIC; None for not yet.

    begun_ns: the last look at which nothing was there; filled_ns: the first at which everything had been.
    """

    def __init__(self) -> None:
        self.begun_ns: int | None = None
        self.filled_ns: int | None = None

    @property
    def seconds(self) -> float | None:
        """From the one to the other."""
        if self.begun_ns is None or self.filled_ns is None:
            return None
        return (self.filled_ns - self.begun_ns) / 1e9


@contextmanager
def watching(path: Path) -> Iterator[Filling]:
    """Look at a cold file every 2 ms meanwhile, from a thread of its own: how far it is there without a gap.

    A page that came and went before its turn is waited for until it is back.
    """
    filling, stop = Filling(), threading.Event()
    with (
        open(linux.open_file(path), "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped,
    ):
        watcher = threading.Thread(target=_watch, args=(mapped, filling, stop), daemon=True)
        watcher.start()
        try:
            yield filling
        finally:
            stop.set()
            watcher.join()


def _watch(file: mmap.mmap, filling: Filling, stop: threading.Event) -> None:
    before, there = time.monotonic_ns(), 0
    while not stop.is_set():
        now = time.monotonic_ns()
        there += _run_from(file, there)
        if there and filling.begun_ns is None:
            filling.begun_ns = before
        if there >= len(file):
            filling.filled_ns = now
            return
        before = now
        stop.wait(_LOOK_SECONDS)


def _run_from(file: mmap.mmap, offset: int) -> int:
    """Bytes from there on that are resident without a gap; at most those of one look."""
    pages = linux.resident_pages(file, offset, _LOOK_BYTES)
    gap = pages.find(0)
    return (len(pages) if gap < 0 else gap) * mmap.PAGESIZE
