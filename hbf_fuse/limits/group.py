"""Transient cgroups: made, entered, and removed at the end, even if the process that made them is killed.

A group's name contains its owner. If the watcher was killed as well, the next run sees that the owner is
dead.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse import reaper
from hbf_fuse.errors import HbfError, naming
from hbf_fuse.host import linux
from hbf_fuse.limits import files, hierarchy
from hbf_fuse.limits.devices import Disk
from hbf_fuse.limits.files import Limits, Setting
from hbf_fuse.limits.hierarchy import Controller

_NAME = re.compile(r"hbf-(?P<pid>\d+)-(?P<start>\d+)-(?P<namespace>\d+)-[0-9a-f]{6}")


@dataclass(frozen=True)
class Group:
    """A group with limits: one directory in v2, one per controller in v1."""

    name: str
    places: tuple[Controller, ...]
    disk: Disk | None

    @property
    def directories(self) -> list[Path]:
        return list(dict.fromkeys(place.parent / self.name for place in self.places))

    @property
    def versions(self) -> dict[str, int]:
        """cgroup version by controller."""
        return {place.controller: place.version for place in self.places}

    def enter(self) -> None:
        """Move this process with all its threads into the group. Safe between fork and exec."""
        for directory in self.directories:
            _write(directory / "cgroup.procs", "0")

    @contextmanager
    def joined(self) -> Iterator[None]:
        """This process is in the group during the block, and back in its old group afterwards."""
        self.enter()
        try:
            yield
        finally:
            for own in dict.fromkeys(place.own for place in self.places):
                _write(own / "cgroup.procs", "0")

    def in_force(self) -> Limits:
        """The limits that apply to this group: its own and, where they count, those of groups above it."""
        found = []
        for place in self.places:
            group = place.parent / self.name
            above = [each for each in group.parents if each.is_relative_to(place.root)]
            # blkio of v1 throttles each group separately.
            flat = place.version == 1 and place.controller == "io"
            found += [files.in_force(each, self.disk) for each in (group, *([] if flat else above))]
        return files.tightest(found)


@contextmanager
def made(limits: Limits, disk: Disk | None) -> Iterator[Group]:
    """A new group with these limits. Processes that are in it at the end are killed.

    HbfError if it cannot be made (hierarchy.NotPermitted if root could), or if the kernel does not enforce
    the limits.
    """
    group = Group(_new_name(), tuple(hierarchy.places(limits.controllers)), disk)
    wanted = files.settings(limits, disk, group.versions)
    remove_leftovers({place.parent for place in group.places})
    # The watcher knows the names before the groups exist: so a kill at any time leaves no group.
    with reaper.watching(groups=[str(directory) for directory in group.directories]):
        try:
            _make(group, wanted)
            found = group.in_force()
            if loose := files.missing(limits, found):
                raise HbfError(
                    f"the kernel took {' '.join(loose)} but does not enforce it (in force: {found})"
                )
            yield group
        finally:
            _remove(group)


def remove_leftovers(parents: set[Path]) -> list[str]:
    """Remove groups of dead owners, with the processes in them. Returns the groups' names."""
    return [
        directory.name
        for parent in parents
        for directory in parent.glob("hbf-*")
        if _is_leftover(directory.name) and reaper.remove_group(str(directory), give_up_seconds=1)
    ]


def _is_leftover(name: str) -> bool:
    found = _NAME.fullmatch(name)
    # Pids of another PID namespace are not valid here.
    if not found or int(found["namespace"]) != linux.pid_namespace():
        return False
    return linux.start_time(int(found["pid"])) != int(found["start"])


def _new_name() -> str:
    pid = os.getpid()
    return f"hbf-{pid}-{linux.start_time(pid)}-{linux.pid_namespace()}-{secrets.token_hex(3)}"


def _make(group: Group, wanted: list[Setting]) -> None:
    place_of = {place.controller: place.parent / group.name for place in group.places}
    try:
        for directory in group.directories:
            directory.mkdir()
    except OSError as error:
        raise HbfError(f"cannot make the cgroup {error.filename}: {error.strerror}", "run as root") from error
    for controller, file, text in wanted:
        try:
            _write(place_of[controller] / file, text)
        except FileNotFoundError as error:
            raise HbfError(
                f"this kernel has no {file}", "boot one with CONFIG_BLK_DEV_THROTTLING and CONFIG_MEMCG"
            ) from error
        except OSError as error:
            raise HbfError(
                f"the kernel refuses {text!r} in {file}: {error.strerror}", "try another limit"
            ) from error


def _remove(group: Group) -> None:
    stuck = [str(each) for each in group.directories if not reaper.remove_group(str(each))]
    if stuck:
        raise HbfError(
            f"processes in {' and '.join(stuck)} do not die", "the next run removes it when they are dead"
        )


def _write(file: Path, text: str) -> None:
    """Write to an existing file. If it is missing, open(..., "w") would try to create it."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with naming(file):
            os.write(fd, text.encode())
    finally:
        os.close(fd)
