"""The real file behind a served file: mapped and handed out as slices, or read from its disk each time."""

import errno
import mmap
import os
import threading
from pathlib import Path
from typing import Protocol

_ALIGNMENT = 4096
"""What O_DIRECT asks of offset and length: a multiple of the disk's logical block, which has 512 or 4096."""


class Backing(Protocol):
    """Where a served file's bytes come from."""

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """Up to nbytes from offset on; shorter at the end of the file. Good until this thread's next call."""

    def check(self, end: int) -> None:
        """OSError EIO if the source no longer reaches to this byte, for an engine that does not touch what
        slice gave.
        """

    def taken(self, data: memoryview, offset: int) -> bytes:
        """What slice gave for an offset, for an engine that must touch it. OSError EIO where the source no
        longer has it.
        """


def open_source(source: Path, size: int, mtime_ns: int, ino: int, *, uncached: bool = False) -> Backing:
    """The file that was mounted, mapped or uncached.

    Raises OSError: the source's own errno, or ESTALE if it is no longer the file that was mounted.
    """
    # A pipe or a terminal in place of the file must not keep us waiting.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(source, flags | (os.O_DIRECT if uncached else 0))
    try:
        info = os.fstat(fd)
        if (info.st_size, info.st_mtime_ns, info.st_ino) != (size, mtime_ns, ino):
            raise OSError(errno.ESTALE, "source changed since it was mounted", str(source))
        return Uncached(fd, size) if uncached else Mapped(fd, size)
    finally:
        os.close(fd)


class Mapped:
    """In the page cache, as far as that holds it.

    A source that shrinks later, or whose disk fails, cannot crash us: the pages behind the slice are only
    touched inside write calls, which then fail with EFAULT. To touch them here would be SIGBUS. But the page
    that the source now ends in stays, with zeros behind the end: hence `check`.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = _Duplicate(fd)
        self._map = mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else None
        self._view = memoryview(self._map) if self._map else memoryview(b"")

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """See Backing."""
        return self._view[offset : offset + nbytes]

    def check(self, end: int) -> None:
        """See Backing."""
        if os.fstat(self._fd.number).st_size < end:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def taken(self, data: memoryview, offset: int) -> bytes:
        """See Backing."""
        read = os.pread(self._fd.number, len(data), offset)
        if len(read) < len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read


class Uncached:
    """Read with O_DIRECT into a buffer of the calling thread: what limits the disk limits every slice.

    OSError on reading: what the disk says, or EIO if the source shrank. fd: opened with O_DIRECT.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = _Duplicate(fd)
        self._size = size
        self._of_thread = threading.local()

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """See Backing."""
        end = min(offset + nbytes, self._size)
        if offset >= end:
            return memoryview(b"")
        first = offset // _ALIGNMENT * _ALIGNMENT
        buffer = self._buffer(-(-(end - first) // _ALIGNMENT) * _ALIGNMENT)
        have = 0
        while have < end - first:
            count = os.preadv(self._fd.number, [buffer[have:]], first + have)
            have += count
            if have < end - first and (not count or have % _ALIGNMENT):
                raise OSError(errno.EIO, "the source ended early")
        return buffer[offset - first : end - first]

    def check(self, end: int) -> None:
        """See Backing. What was read is there."""

    def taken(self, data: memoryview, offset: int) -> bytes:
        """See Backing."""
        return bytes(data)

    def _buffer(self, nbytes: int) -> memoryview:
        """Page-aligned, kept for the thread's next read: fresh memory would have to be cleared each time."""
        known: memoryview | None = getattr(self._of_thread, "buffer", None)
        if known is None or len(known) < nbytes:
            known = self._of_thread.buffer = memoryview(mmap.mmap(-1, nbytes))
        return known[:nbytes]


class _Duplicate:
    """A descriptor that is closed when nobody has this any more."""

    def __init__(self, fd: int) -> None:
        self.number = -1
        self.number = os.dup(fd)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
