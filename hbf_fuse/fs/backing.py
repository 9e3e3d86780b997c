"""The real file behind a served file: mapped and sliced, or read from its disk each time, or written."""

import errno
import mmap
import os
import threading
from typing import Protocol

from hbf_fuse.host.linux import Descriptor

_ALIGNMENT = 4096
"""O_DIRECT wants offsets and lengths to be multiples of the disk's logical block: 512 or 4096 bytes."""


class Backing(Protocol):
    """Where a served file's bytes come from.

    memory: the whole file, mapped; None if it is read from its disk each time. fd: the source's descriptor.
    """

    memory: memoryview | None
    fd: int

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """Bytes within the file. Only write calls may touch them: these fail with EFAULT if the source has
        lost the bytes. Valid until this thread's next call. OSError EIO if the source has become shorter.
        """

    def copy(self, offset: int, nbytes: int) -> bytes:
        """The same bytes as a copy. OSError EIO as above."""


class Mapped:
    """A source in the page cache, mapped.

    A source that shrinks later, or whose disk fails, must not crash this process. So only write calls touch
    the pages: they fail with EFAULT, where an access here would raise SIGBUS. The page with the new end of a
    shrunk source stays, filled with zeros. Hence `slice` checks the size.
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


class Kept:
    """A file of kv/: others may change its size meanwhile, so what is read may be shorter."""

    memory: memoryview | None = None

    def __init__(self, descriptor: Descriptor) -> None:
        self._shared = descriptor
        self.fd = descriptor.number

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """See Backing."""
        return memoryview(self.copy(offset, nbytes))

    def copy(self, offset: int, nbytes: int) -> bytes:
        """See Backing."""
        return os.pread(self.fd, nbytes, offset)


class Uncached:
    """Read with O_DIRECT into a buffer of the calling thread: a limit on the disk limits every slice.

    Reading raises OSError: the disk's error, or EIO if the source shrank. fd: opened with O_DIRECT.
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
        """Page-aligned and kept for the thread's next read: the kernel would have to clear fresh memory each
        time.
        """
        known: memoryview | None = getattr(self._of_thread, "buffer", None)
        if known is None or len(known) < nbytes:
            known = self._of_thread.buffer = memoryview(mmap.mmap(-1, nbytes))
        return known[:nbytes]
