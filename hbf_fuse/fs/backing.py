"""The real file behind a served file: mapped once, handed out as slices without a copy."""

import errno
import mmap
import os
from pathlib import Path


class Backing:
    """A mapped source file.

    Raises OSError on opening: the source's own errno, or ESTALE if it is no longer the file that was
    mounted. A source that shrinks later cannot crash us: the pages behind the slice are only touched
    inside write calls, which then fail with EFAULT.
    """

    def __init__(self, source: Path, size: int, mtime_ns: int, ino: int) -> None:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if (info.st_size, info.st_mtime_ns, info.st_ino) != (size, mtime_ns, ino):
                raise OSError(errno.ESTALE, "source changed since it was mounted", str(source))
            self._map = mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else None
        finally:
            os.close(fd)
        self._view = memoryview(self._map) if self._map else memoryview(b"")

    def slice(self, offset: int, nbytes: int) -> memoryview:
        """Up to nbytes from offset on; shorter at the end of the file."""
        return self._view[offset : offset + nbytes]
