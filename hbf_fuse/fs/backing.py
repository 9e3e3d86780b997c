"""The real file behind a served file: mapped and handed out as slices, or read from its disk each time."""

import errno
import mmap
import os
import threading
from typing import Protocol

from hbf_fuse.host.linux import Descriptor

_ALIGNMENT = 4096
"""What O_DIRECT asks of offset and length: a multiple of the disk's logical block, which has 512 or 4096."""


class Backing(Protocol):
    """Where a served file's bytes come from.

    memory: all of them, mapped; None for those that are read from their disk each time. fd: the source's
    descriptor.
    """

    memory: memoryview | None
    fd: int

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """Bytes within the file, not to be touched but by write calls, which fail with EFAULT where the
        source has lost them. Good until this thread's next call. OSError EIO if the source no longer
        reaches so far.
        """

    def copy(self, offset: int, nbytes: int) -> bytes:
        """The same to keep. OSError EIO as above."""


class Mapped:
    """In the page cache, as far as that holds it.

    A source that shrinks later, or whose disk fails, cannot crash us: the pages behind the slice are only
    touched inside write calls, which then fail with EFAULT. To touch them here would be SIGBUS. But the page
    that the source now ends in stays, with zeros behind the end: hence the look at its size.
    """

    def __init__(self, fd: int) -> None:
        self._owned = Descriptor(fd)
        self.fd = fd
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else None
        self.memory: memoryview | None = memoryview(self._map) if self._map else memoryview(b"")

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """See Backing."""
        if self.memory is None or os.fstat(self.fd).st_size < offset + nbytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.memory[offset : offset + nbytes]

    def copy(self, offset: int, nbytes: int) -> bytes:
        """See Backing."""
        read = os.pread(self.fd, nbytes, offset)
        if len(read) < nbytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read


class Uncached:
    """Read with O_DIRECT into a buffer of the calling thread: what limits the disk limits every slice.

    OSError on reading: what the disk says, or EIO if the source shrank. fd: opened with O_DIRECT.
    """

    memory: memoryview | None = None

    def __init__(self, fd: int) -> None:
        self._owned = Descriptor(fd)
        self.fd = fd
        self._of_thread = threading.local()

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """See Backing."""
        first, end = offset // _ALIGNMENT * _ALIGNMENT, offset + nbytes
        buffer = self._buffer(-(-(end - first) // _ALIGNMENT) * _ALIGNMENT)
        have = 0
        while have < end - first:
            count = os.preadv(self.fd, [buffer[have:]], first + have)
            have += count
            if have < end - first and (not count or have % _ALIGNMENT):
                raise OSError(errno.EIO, "the source ended early")
        return buffer[offset - first : end - first]

    def copy(self, offset: int, nbytes: int) -> bytes:
        """See Backing."""
        return bytes(self.slice(offset, nbytes))

    def _buffer(self, nbytes: int) -> memoryview:
        """Page-aligned, kept for the thread's next read: fresh memory would have to be cleared each time."""
        known: memoryview | None = getattr(self._of_thread, "buffer", None)
        if known is None or len(known) < nbytes:
            known = self._of_thread.buffer = memoryview(mmap.mmap(-1, nbytes))
        return known[:nbytes]
