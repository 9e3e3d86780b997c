"""/proc/self/mountinfo: what is mounted where. See proc_pid_mountinfo(5)."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True)
class Mount:
    """A line of it. device: MAJOR:MINOR. root: which part of the file system is mounted; options: the file
    system's own.
    """

    number: int
    device: str
    root: str
    mountpoint: Path
    fstype: str
    source: str
    options: tuple[str, ...]


def mounts() -> list[Mount]:
    """All mounts that this process sees, the newest on a path last."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def parse(content: bytes) -> list[Mount]:
    """The mounts of a file like it."""
    found = []
    for line in content.rstrip(b"\n").split(b"\n"):
        before, _, after = line.partition(b" - ")
        number, _, device, root, mountpoint, *_ = map(_plain, before.split(b" "))
        fstype, source, options = map(_plain, after.split(b" ", 2))
        found.append(
            Mount(int(number), device, root, Path(mountpoint), fstype, source, tuple(options.split(",")))
        )
    return found


def find(mountpoint: Path) -> Mount | None:
    """The mount on exactly this path, the topmost if there are several."""
    matching = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    return matching[-1] if matching else None


def mount_of(path: Path) -> Mount:
    """The mount that a path is on, as the kernel says it: no names are compared."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = by_number(linux.mount_id(fd))
    finally:
        os.close(fd)
    if found is None:
        raise HbfError(f"{path} is on a mount that /proc/self/mountinfo does not list; use another path")
    return found


def by_number(number: int) -> Mount | None:
    """The mount of an id, wherever it lies by now."""
    return next((mount for mount in mounts() if mount.number == number), None)


def _plain(field: bytes) -> str:
    r"""Without the escapes for blanks, as \040."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field))
