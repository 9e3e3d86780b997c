"""Where cgroups can be made: read from /proc/self/mountinfo and /proc/self/cgroup, never guessed."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host.mountinfo import Mount, mounts

_V1_NAMES = {"io": "blkio", "memory": "memory"}


class NotPermitted(HbfError):
    """The controllers exist, but this user may not make a group with them."""


@dataclass(frozen=True)
class Controller:
    """Where a group with a controller is made.

    controller: io or memory, in both versions. root: the topmost visible group. own: the group of this
    process. parent: where new groups are made.
    """

    controller: str
    version: int
    root: Path
    own: Path
    parent: Path


def places(controllers: Collection[str]) -> list[Controller]:
    """One place for each controller. In v2 all have the same parent: a process is in only one group there.

    Enables controllers for the parent's groups if needed. They stay enabled: other programs may rely on them
    by the time that we end. Raises NotPermitted, or HbfError if a controller is in neither version.
    """
    unified = v2_groups("self")
    offered = _words(unified[0] / "cgroup.controllers") if unified else []
    in_v2 = [name for name in controllers if name in offered]
    parent = _delegated(*unified, in_v2) if unified and in_v2 else None
    return [
        Controller(name, 2, *unified, parent) if unified and parent and name in in_v2 else _v1(name, offered)
        for name in controllers
    ]


def v2_groups(pid: int | str) -> tuple[Path, Path] | None:
    """The topmost v2 group and the group of a process; None if v2 is not mounted."""
    for mount in mounts():
        if mount.fstype == "cgroup2":
            return mount.mountpoint, _below(mount, _membership("", pid))
    return None


def _v1(name: str, offered: list[str]) -> Controller:
    v1_name = _V1_NAMES[name]
    for mount in mounts():
        if mount.fstype == "cgroup" and v1_name in mount.options:
            own = _below(mount, _membership(v1_name, "self"))
            if not os.access(own, os.W_OK):
                raise _not_permitted([v1_name], own)
            return Controller(name, 1, mount.mountpoint, own, own)
    raise HbfError(
        f"this machine has no cgroup controller {name} (v2 offers: {' '.join(offered) or 'none'}, v1's "
        f"{v1_name} is not mounted)",
        "mount cgroups, as with `mount -t cgroup2 none /sys/fs/cgroup`, or boot a kernel that has it",
    )


def _delegated(root: Path, own: Path, controllers: list[str]) -> Path:
    """The nearest group, from our own upwards, in which this process may make groups with these controllers.

    A group that contains processes does not allow it, except the real root: so it is seldom our own.
    """
    for group in (own, *own.parents):
        if not group.is_relative_to(root):
            break
        if _gives(group, controllers):
            return group
    raise _not_permitted(controllers, own)


def _gives(group: Path, controllers: list[str]) -> bool:
    if not set(controllers) <= set(_words(group / "cgroup.controllers")):
        return False
    # Moving a process needs write access to cgroup.procs of the nearest common group, too.
    if not (os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK)):
        return False
    switch = group / "cgroup.subtree_control"
    missing = [name for name in controllers if name not in _words(switch)]
    try:
        if missing:
            switch.write_text(" ".join(f"+{name}" for name in missing))
    except OSError:
        return False
    return True


def _not_permitted(controllers: list[str], own: Path) -> NotPermitted:
    return NotPermitted(
        f"no cgroup with {' and '.join(controllers)} can be made in {own} or above it: not yours to "
        "change, or mounted read-only",
        "run as root, or where they are delegated (systemd: Delegate=yes)",
    )


def _membership(controller: str, pid: int | str) -> str:
    """The path of a process's group: in a v1 hierarchy, or in v2 if the name is empty. See cgroups(7)."""
    file = Path(f"/proc/{pid}/cgroup")
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise HbfError(
            f"cannot read {file}: {error.strerror}", "is this a kernel without cgroups?"
        ) from error
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"


def _below(mount: Mount, path: str) -> Path:
    """A group's directory in a mount. The mount may show only a part of the hierarchy, as in a container."""
    relative = os.path.relpath(path, mount.root)
    group = mount.mountpoint / relative
    return group if not relative.startswith("..") and group.is_dir() else mount.mountpoint


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
