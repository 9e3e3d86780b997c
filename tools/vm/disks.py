"""Disk images for guests: ext4 made from a folder, without root and without mounting anything."""

import shutil
import struct
from pathlib import Path

import debian

PARTITION_START = 1 << 20
_SECTOR = 512
_LINUX = 0x83


def write(folder: Path, target: Path, room: int) -> None:
    """An ext4 image of all that is in `folder`, with `room` bytes to spare."""
    _format(folder, target, 0, _used(folder) + room)


def write_partitioned(folder: Path, target: Path, room: int) -> None:
    """The same as the first and only partition of a disk."""
    nbytes = _used(folder) + room
    _format(folder, target, PARTITION_START, nbytes)
    chs = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0, chs, _LINUX, chs, PARTITION_START // _SECTOR, nbytes // _SECTOR)
    with target.open("r+b") as disk:
        disk.seek(446)
        disk.write(entry + bytes(48) + b"\x55\xaa")


def _used(folder: Path) -> int:
    """Bytes that the files take, in whole MiB, including ext4's overhead."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    nbytes = sum(-(-path.stat().st_size // 4096) * 4096 for path in files) + 512 * len(files)
    return (nbytes * 11 // 10 >> 20) + 1 << 20


def _format(folder: Path, target: Path, offset: int, nbytes: int) -> None:
    with target.open("wb") as disk:
        disk.truncate(offset + nbytes)
    mkfs = shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4"
    options = ["-q", "-F", "-m", "0", "-E", f"offset={offset},root_owner=0:0", "-d", str(folder)]
    debian.output([mkfs, *options, str(target), f"{nbytes >> 10}k"])
