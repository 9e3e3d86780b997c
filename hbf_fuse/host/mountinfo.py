"""/proc/self/mountinfo: what is mounted where. See proc_pid_mountinfo(5)."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux

FSTYPE = "fuse.hbf"
"""The type of our own mounts."""

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. device: MAJOR:MINOR. root: the part of the file system that is mounted. options:
    those of the file system.
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
    """The mounts in the content of a mountinfo file."""
    found = []
    for line in content.rstrip(b"\n").split(b"\n"):
        before, _, after = line.partition(b" - ")
        number, _, device, root, mountpoint, *_ = map(_plain, before.split(b" "))
        fstype, source, options = map(_plain, after.split(b" ", 2))
        found.append(
            Mount(int(number), device, root, Path(mountpoint), fstype, source, tuple(options.split(",")))
        )
    return found


def layers(mount: Mount) -> list[str]:
    r"""The folders that an overlay was made of, as it was told them. In a name, it shows `,` and `:` as `\,`
    and `\:`. lowerdir has several names, or comes several times (`lowerdir+`).
    """
    options = re.split(r"(?<!\\),", ",".join(mount.options))
    found = []
    for option in options:
        name, _, value = option.partition("=")
        if name in ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"):
            found += [re.sub(r"\\(.)", r"\1", each) for each in re.split(r"(?<!\\):", value) if each]
    return found


def find(mountpoint: Path) -> Mount | None:
    """The mount on exactly this path, the topmost if there are several."""
    matching = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    return matching[-1] if matching else None


def mount_of(path: Path) -> Mount:
    """The mount that a path is on, by the kernel's mount id: names are not compared."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = by_number(linux.mount_id(fd))
    finally:
        os.close(fd)
    if found is None:
        raise HbfError(f"{path} is on a mount that /proc/self/mountinfo does not list", "use another path")
    return found


def above(path: Path) -> Mount | None:
    """The mount that a path without links is on, by the names alone: no mount is asked."""
    matching = [mount for mount in mounts() if path.is_relative_to(mount.mountpoint)]
    return max(matching, key=lambda mount: len(mount.mountpoint.parts), default=None)


def by_number(number: int) -> Mount | None:
    """The mount with an id, wherever it is mounted now."""
    return next((mount for mount in mounts() if mount.number == number), None)


def _plain(field: bytes) -> str:
    r"""A field without its escapes, such as \040 for a blank."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field))
