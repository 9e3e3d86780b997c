"""How much of a file is in the page cache, and since when."""

import mmap
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hbf_fuse.host import linux

_LOOK_SECONDS = 0.002
_CHUNK = 8 << 20
_LOOK_BYTES = 64 << 20
"""Bytes checked at once, at most: 16,384 pages take about a tenth of a millisecond."""


def resident_bytes(*paths: Path) -> int | None:
    """Bytes of files in the page cache, in whole pages. Does not read the files.

    None where the kernel does not tell: it tells only the owner, or a user who may write the file.
    """
    return _sum(_resident_bytes(path) for path in paths)


def _sum(figures: Iterable[int | None]) -> int | None:
    whole = 0
    for figure in figures:
        if figure is None:
            return None
        whole += figure
    return whole


def _resident_bytes(path: Path) -> int | None:
    with open(linux.open_file(path), "rb") as file:
        return resident_bytes_of(file.fileno())


def resident_bytes_of(fd: int) -> int | None:
    """The same for an open file."""
    if not _is_told(fd):
        return None
    return sum(pages.count(1) for pages in _resident_pages(fd)) * mmap.PAGESIZE


def is_resident(fd: int) -> bool:
    """Whether an open file is known to be in the page cache as a whole. Stops at the first gap."""
    return _is_told(fd) and all(0 not in pages for pages in _resident_pages(fd))


def _is_told(fd: int) -> bool:
    return os.geteuid() in (0, os.fstat(fd).st_uid) or os.access(f"/proc/self/fd/{fd}", os.W_OK)


def _resident_pages(fd: int) -> Iterator[bytes]:
    """See linux.resident_pages: a piece of the file at a time. All of a large one would need memory for each
    page, and more address space than there may be.
    """
    size = os.fstat(fd).st_size
    for offset in range(0, size, _LOOK_BYTES):
        length = min(_LOOK_BYTES, size - offset)
        with mmap.mmap(fd, length, access=mmap.ACCESS_COPY, offset=offset) as mapped:
            yield linux.resident_pages(mapped)


def fill(*paths: Path) -> None:
    """Read files, so that they are in the page cache. OSError if one cannot be read."""
    buffer = bytearray(_CHUNK)
    for path in paths:
        with open(linux.open_file(path), "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(*paths: Path) -> int | None:
    """Drop files from the page cache. Returns what is still resident, as resident_bytes does.

    Pages that a process maps stay.
    """
    return _sum([_drop(path) for path in paths])


def _drop(path: Path) -> int | None:
    with open(linux.open_file(path), "rb") as file:
        # Dirty pages cannot be dropped.
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return resident_bytes_of(file.fileno())


class Filling:
    """When cold files came into the page cache, in ns of CLOCK_MONOTONIC; None for not yet.

    begun_ns: the last look that found no page of any. filled_ns: the first look by which every page of all
    had been there.
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
def watching(*paths: Path) -> Iterator[Filling]:
    """Watch cold files during this block. A thread looks every 2 ms how far each is resident without a gap.

    If a page was dropped again before the look reached it, the look waits until it is back.
    """
    filling, stop = Filling(), threading.Event()
    with ExitStack() as stack:
        mapped = [stack.enter_context(_mapped(path)) for path in paths]
        watcher = threading.Thread(target=_watch, args=(mapped, filling, stop), daemon=True)
        watcher.start()
        try:
            yield filling
        finally:
            stop.set()
            watcher.join()


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with (
        open(linux.open_file(path), "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped,
    ):
        yield mapped


def _watch(files: Sequence[mmap.mmap], filling: Filling, stop: threading.Event) -> None:
    before, there = time.monotonic_ns(), [0] * len(files)
    while not stop.is_set():
        now = time.monotonic_ns()
        there = [at + _run_from(file, at) for file, at in zip(files, there, strict=True)]
        if any(there) and filling.begun_ns is None:
            filling.begun_ns = before
        if all(at >= len(file) for file, at in zip(files, there, strict=True)):
            filling.filled_ns = now
            return
        before = now
        stop.wait(_LOOK_SECONDS)


def _run_from(file: mmap.mmap, offset: int) -> int:
    """Resident bytes from `offset` up to the first gap; at most _LOOK_BYTES."""
    if offset >= len(file):
        return 0
    pages = linux.resident_pages(file, offset, _LOOK_BYTES)
    gap = pages.find(0)
    return (len(pages) if gap < 0 else gap) * mmap.PAGESIZE
