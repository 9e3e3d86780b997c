"""The disk whose I/O the kernel can limit for a file: the whole disk, resolved as systemd does.

A partition belongs to its disk. A device-mapper device (LUKS, LVM) leads to its origin. btrfs names its
device in mountinfo. See src/shared/blockdev-util.c of systemd.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host.mountinfo import Mount, mount_of

_SYS = Path("/sys")
_INSTEAD = "use a file on a local disk (ext4, xfs, btrfs)"
_NO_DISK = {
    "which is memory: no disk is read": ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs"),
    "which the kernel generates: no disk is read": (
        *(
            "proc",
            "sysfs",
            "cgroup",
            "cgroup2",
            "debugfs",
            "tracefs",
            "securityfs",
            "devpts",
            "configfs",
            "bpf",
        ),
    ),
    "which another machine serves: no disk of this machine is read": (
        *("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "virtiofs", "afs"),
    ),
    "which is stacked on file systems that the kernel does not name": ("overlay", "aufs"),
}
"""Why a file on such a file system has no disk to limit."""


@dataclass(frozen=True)
class Disk:
    """A whole disk. number: "MAJOR:MINOR", as cgroup files have it; name: as in /sys/block."""

    number: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.number})"


def of(path: Path, sys: Path = _SYS) -> Disk:
    """The disk that a file or directory is on, or that a block device belongs to.

    HbfError if there is none, or more than one, with what to use instead.
    """
    try:
        info = path.stat()
    except OSError as error:
        raise HbfError(f"cannot use {path}: {error.strerror}", "name an existing file") from error
    if stat.S_ISBLK(info.st_mode):
        return whole_disk(_number(info.st_rdev), sys)
    if os.major(info.st_dev):
        return whole_disk(_number(info.st_dev), sys)
    mount = mount_of(path)
    if mount.fstype == "btrfs":
        return _of_btrfs(path, mount, sys)
    raise HbfError(f"{path} is on {mount.fstype}, {_why_no_disk(mount.fstype)}", _INSTEAD)


def of_all(paths: Iterable[Path], sys: Path = _SYS) -> Disk:
    """The one disk that all these files are on. HbfError if there are several: each would get the limit."""
    one_of_each = {path.stat().st_dev: path for path in paths}.values()
    disks = {of(path, sys): path for path in one_of_each}
    if len(disks) != 1:
        found = ", ".join(f"{path} on {disk}" for disk, path in disks.items()) or "none"
        raise HbfError(
            f"an I/O limit holds for one disk, and the files are on: {found}", "use files on one disk"
        )
    return next(iter(disks))


def whole_disk(number: str, sys: Path = _SYS) -> Disk:
    """The disk behind a block device by its number. HbfError if it is unknown or on several disks."""
    folder = sys / "dev" / "block" / number
    if not folder.exists():
        raise HbfError(f"block device {number} is not in {folder.parent}", _INSTEAD)
    return _origin(folder.resolve())


def _origin(folder: Path) -> Disk:
    if (folder / "partition").exists():
        folder = folder.parent
    slaves = folder / "slaves"
    disks = {_origin(slave.resolve()) for slave in slaves.iterdir()} if slaves.is_dir() else set()
    if not disks:
        return Disk((folder / "dev").read_text().strip(), folder.name)
    if len(disks) > 1:
        raise HbfError(_several(folder.name, [disk.name for disk in disks]))
    return disks.pop()


def _of_btrfs(path: Path, mount: Mount, sys: Path) -> Disk:
    """btrfs numbers its subvolumes itself. The device is the one that was mounted."""
    try:
        number = _number(Path(mount.source).stat().st_rdev)
    except OSError as error:
        raise HbfError(
            f"cannot find {mount.source}, the device of {path}: {error.strerror}", f"{_INSTEAD}"
        ) from error
    name = (sys / "dev" / "block" / number).resolve().name
    for members in sys.glob("fs/btrfs/*/devices"):
        names = [member.name for member in members.iterdir()]
        if name in names and len(names) > 1:
            raise HbfError(_several(f"the btrfs of {path}", names))
    return whole_disk(number, sys)


def _several(what: str, names: list[str]) -> str:
    return (
        f"{what} is on several disks ({', '.join(sorted(names))}), and each would get the whole limit; "
        "use a file on a single disk"
    )


def _why_no_disk(fstype: str) -> str:
    if fstype.startswith("fuse"):
        return "which a process serves: that process would need the limit"
    return next(
        (why for why, kinds in _NO_DISK.items() if fstype in kinds), "which has no single block device"
    )


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
