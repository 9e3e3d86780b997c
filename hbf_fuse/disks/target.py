"""A file or disk that is measured: what it lies on, and that its reads really reach that."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux, residency
from hbf_fuse.host.mountinfo import mount_of
from hbf_fuse.limits import devices
from hbf_fuse.limits.devices import Disk

_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
_SECTOR = 512
_READ, _WRITTEN = 2, 6
"""Places of sectors read and written in a disk's `stat` (Documentation/block/stat.rst of Linux)."""

_INSTEAD = "name a file on the disk that you mean, such as a GGUF"


@dataclass(frozen=True)
class Target:
    """An open file or block device. about: what it lies on, without paths: profiles get published. disk:
    None where Linux names none, as on a network or a FUSE file system.
    """

    path: Path
    fd: int
    size: int
    about: str
    disk: Disk | None

    @property
    def readahead_kib(self) -> int | None:
        """What the kernel reads ahead of it; None if unknown."""
        if self.disk is None:
            return None
        return int(Path(f"/sys/block/{self.disk.name}/queue/read_ahead_kb").read_text())

    def transferred(self) -> int | None:
        """Bytes that the disk has read and written since boot, for anybody; None if unknown."""
        if self.disk is None:
            return None
        fields = Path(f"/sys/block/{self.disk.name}/stat").read_text().split()
        return (int(fields[_READ]) + int(fields[_WRITTEN])) * _SECTOR

    def require_uncached(self) -> None:
        """HbfError if reads past the page cache have filled it: what was measured is memory."""
        if residency.resident_bytes_of(self.fd):
            raise HbfError(
                f"{self.path} came into the page cache while it was read past it: its file system does not "
                "read directly, or another process read it",
                _INSTEAD,
            )


@contextmanager
def opened(path: Path) -> Iterator[Target]:
    """A file or disk for reads past the page cache, dropped from it. HbfError if they would reach no disk."""
    info = path.stat()
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise HbfError(f"{path} is no file and no disk", _INSTEAD)
    fstype = "block device" if stat.S_ISBLK(info.st_mode) else mount_of(path).fstype
    if fstype in _MEMORY:
        raise HbfError(f"{path} lies in memory ({fstype}): no disk would be measured", _INSTEAD)
    disk = _disk(path)
    _require_direct(disk)
    try:
        fd = os.open(path, linux.READ | os.O_DIRECT)
    except OSError as error:
        raise HbfError(f"{path} cannot be read past the page cache: {error.strerror}", _INSTEAD) from error
    try:
        if stat.S_ISREG(info.st_mode) and residency.drop(path):
            raise HbfError(
                f"{path} stays in the page cache, for a process maps it",
                "end that process, or name another file",
            )
        size = os.lseek(fd, 0, os.SEEK_END)
        yield Target(path, fd, size, f"{_named(disk)}{fstype}", disk)
    finally:
        os.close(fd)


def _disk(path: Path) -> Disk | None:
    try:
        return devices.of(path)
    except HbfError:
        return None


def _require_direct(disk: Disk | None) -> None:
    """A loop device may read its own file through the page cache."""
    direct = Path(f"/sys/block/{disk.name}/loop/dio") if disk else None
    if disk and direct and direct.exists() and direct.read_text().strip() == "0":
        raise HbfError(
            f"{disk.name} is a loop device that reads through the page cache",
            f"`losetup --direct-io=on /dev/{disk.name}`, or {_INSTEAD}",
        )


def _named(disk: Disk | None) -> str:
    if disk is None:
        return ""
    model = Path(f"/sys/block/{disk.name}/device/model")
    name = model.read_text().strip() if model.exists() else disk.name
    return f"{name}, "
