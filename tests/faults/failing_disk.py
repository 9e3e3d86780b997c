"""A disk with bad sectors: serves FOLDER on MOUNTPOINT and answers EIO to every read that touches BAD, and to
those that touch SLOW after SLOW_SECONDS.

Run as a script: failing_disk.py FOLDER MOUNTPOINT. Put each at a multiple of 4096, so that one page holds it.
"""

import errno
import os
import sys
import time

import fuse

BAD = b"this sector cannot be read" * 4
SLOW = b"this sector takes its time" * 4
SLOW_SECONDS = 2.0


class Disk(fuse.Operations):  # type: ignore[misc]
    """The folder's files, read-only."""

    use_ns = True

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        info = os.lstat(self.folder + path)
        names = ("st_mode", "st_size", "st_uid", "st_gid", "st_nlink", "st_blocks", "st_ino", "st_mtime_ns")
        return {name.removesuffix("_ns"): getattr(info, name) for name in names}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(entry.name for entry in os.scandir(self.folder + path))]

    def open(self, path: str, flags: int) -> int:
        return os.open(self.folder + path, flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        data = os.pread(fh, size, offset)
        if BAD in data:
            raise fuse.FuseOSError(errno.EIO)
        if SLOW in data:
            time.sleep(SLOW_SECONDS)
        return data

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


if __name__ == "__main__":
    fuse.FUSE(Disk(sys.argv[1]), sys.argv[2], foreground=True, use_ino=True, allow_other=True)
