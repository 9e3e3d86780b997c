"""Transient cgroups: made, entered, and gone with whoever made them, also if that one is killed.

A group's name says who made it. Should the watcher have been killed, too, the next run sees that its owner is
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
from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.limits import files, hierarchy
from hbf_fuse.limits.devices import Disk
from hbf_fuse.limits.files import Limits, Setting
from hbf_fuse.limits.hierarchy import Place

_NAME = re.compile(r"hbf-(?P<pid>\d+)-(?P<start>\d+)-(?P<namespace>\d+)-[0-9a-f]{6}")


@dataclass(frozen=True)
class Group:
    """A group with limits: one directory in v2, one per controller in v1."""

    name: str
    places: tuple[Place, ...]
    disk: Disk | None

    @property
    def directories(self) -> list[Path]:
        return list(dict.fromkeys(place.parent / self.name for place in self.places))

    @property
    def versions(self) -> dict[str, int]:
        """Of cgroups, by controller."""
        return {place.controller: place.version for place in self.places}

    def enter(self) -> None:
        """Move this process in, with all its threads. Fit for the moment between fork and exec."""
        for directory in self.directories:
            _write(directory / "cgroup.procs", "0")

    @contextmanager
    def joined(self) -> Iterator[None]:
        """This process is in the group meanwhile, and back where it was afterwards."""
        self.enter()
        try:
            yield
        finally:
            for own in dict.fromkeys(place.own for place in self.places):
                _write(own / "cgroup.procs", "0")

    def in_force(self) -> Limits:
        """The limits as the kernel has them: of this group and, where they count, of those above it."""
        found = []
        for place in self.places:
            group = place.parent / self.name
            above = [each for each in group.parents if each.is_relative_to(place.root)]
            # v1's blkio throttles each group by itself.
            flat = place.version == 1 and place.controller == "io"
            found += [files.in_force(each, self.disk) for each in (group, *([] if flat else above))]
        return files.tightest(found)


@contextmanager
def made(limits: Limits, disk: Disk | None) -> Iterator[Group]:
    """A new group with these limits; whatever is in it at the end is killed.

    HbfError if it cannot be made (hierarchy.NotPermitted if root could), or if the limits do not take hold.
    """
    group = Group(_new_name(), tuple(hierarchy.places(limits.controllers)), disk)
    wanted = files.settings(limits, disk, group.versions)
    remove_leftovers({place.parent for place in group.places})
    # The watcher knows the names before the groups are there: there is no moment to be killed unseen.
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
    """Remove groups whose owner is dead, with what is left in them; returns their names."""
    return [
        directory.name
        for parent in parents
        for directory in parent.glob("hbf-*")
        if _is_leftover(directory.name) and reaper.remove_group(str(directory), give_up_seconds=1)
    ]


def _is_leftover(name: str) -> bool:
    found = _NAME.fullmatch(name)
    # The numbers of another pid namespace mean nothing here.
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
        raise HbfError(f"cannot make the cgroup {error.filename}: {error.strerror}; run as root") from error
    for controller, file, text in wanted:
        try:
            _write(place_of[controller] / file, text)
        except FileNotFoundError as error:
            raise HbfError(
                f"this kernel has no {file}; boot one with CONFIG_BLK_DEV_THROTTLING and CONFIG_MEMCG"
            ) from error
        except OSError as error:
            raise HbfError(
                f"the kernel refuses {text!r} in {file}: {error.strerror}; try another limit"
            ) from error


def _remove(group: Group) -> None:
    stuck = [str(each) for each in group.directories if not reaper.remove_group(str(each))]
    if stuck:
        raise HbfError(
            f"processes in {' and '.join(stuck)} do not die; the next run removes it when they have"
        )


def _write(file: Path, text: str) -> None:
    """Write to a file that is there; if it is not, open(..., "w") would try to make it."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
