"""A live mount from outside: reading its .hbf/ files, changing its tier, ending it."""

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil

from hbf_fuse import documents
from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import read_file
from hbf_fuse.host import linux
from hbf_fuse.host.answers import ANSWER_SECONDS, NoAnswer, answer
from hbf_fuse.host.mountinfo import Mount, by_number, find, layers, mount_of, mounts
from hbf_fuse.mount import mountpoint as points
from hbf_fuse.observe.status import Spec, Stats
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces.trace import Trace

Document = TypeVar("Document", Spec, Stats)

_END_SECONDS = 10.0
_MAX_TRACE_BYTES = 64 << 20
"""A hundred times the size of the newest reads."""

_PATIENCE_SECONDS = 1.0
"""How long a mount may take to answer when it is ended by force."""


def all_mounts() -> list[Path]:
    """Mountpoints of hbf on this machine."""
    return [entry.mountpoint for entry in mounts() if entry.fstype == points.MOUNT_TYPE]


def read_hidden(mountpoint: Path, name: str) -> dict[str, Any]:
    """The content of `.hbf/NAME`. HbfError if this is not a live hbf mount of this user; NoAnswer if its
    server does not answer.
    """
    try:
        content = documents.parse_json(_hidden(mountpoint, name, documents.MAX_JSON_BYTES))
        if mount_of(mountpoint).fstype != points.MOUNT_TYPE or not isinstance(content, dict):
            raise ValueError("its .hbf belongs to another program")
    except (OSError, ValueError) as error:
        raise _not_ours(mountpoint, error) from error
    return content


def _hidden(mountpoint: Path, name: str, most: int) -> bytes:
    """The bytes of a file in `.hbf/`. The mount may be another program's: its content and its delay are
    arbitrary.
    """

    def read() -> bytes:
        try:
            return read_file(os.open(mountpoint / ".hbf" / name, linux.READ), most)
        except ValueError as error:
            raise OSError(errno.EBADMSG, str(error)) from error

    return answer(mountpoint, read)


def read_spec(mountpoint: Path) -> Spec:
    """What a live mount serves. HbfError as above, or if it is not what this version writes."""
    return _checked(mountpoint, "spec.json", Spec)


def reaching(mountpoint: Path, inject: bool = False) -> dict[str, str]:
    """What a program needs in its environment to have a live mount's tier under its mappings: nothing unless
    the memory engine serves it. inject: see engine/memory/door.py, environment. HbfError as above.
    """
    place = read_spec(mountpoint).get("memory_socket")
    if place is None:
        return {}
    from hbf_fuse.engine.memory.door import environment

    return environment(place, inject)


def read_stats(mountpoint: Path) -> Stats:
    """A live mount's counters. HbfError as above, or if they are not what this version writes."""
    return _checked(mountpoint, "stats.json", Stats)


def _checked(mountpoint: Path, name: str, kind: type[Document]) -> Document:
    """Another user may have written it: every value has the type that it is declared with."""
    # Not at the top: ending a mount needs none of it, and it takes a tenth of a second.
    from pydantic import TypeAdapter, ValidationError

    content = read_hidden(mountpoint, name)
    try:
        TypeAdapter(kind).validate_python(content, strict=True)
    except ValidationError as error:
        raise _unreadable(mountpoint) from error
    return cast(Document, content)


def read_tier(mountpoint: Path) -> TierSpec:
    """The tier of a live mount. HbfError as above."""
    try:
        return TierSpec.from_dict(read_spec(mountpoint)["tier"])
    except ValueError as error:
        raise _unreadable(mountpoint) from error


def _unreadable(mountpoint: Path) -> HbfError:
    return HbfError(
        f"{mountpoint} has an unreadable status: another version of hbf?",
        f"end it with `hbf-umount {mountpoint}`, then mount again",
    )


def read_trace(mountpoint: Path) -> Trace:
    """The newest reads of a live mount. HbfError if it is not a live hbf mount of this user."""
    try:
        return Trace.parse(_hidden(mountpoint, "trace", _MAX_TRACE_BYTES))
    except (OSError, ValueError) as error:
        raise _not_ours(mountpoint, error) from error


def send(mountpoint: Path, message: dict[str, Any]) -> None:
    """Write a message to `.hbf/control`. HbfError if it is refused, or if this is not a live hbf mount of
    this user.
    """
    try:
        answer(mountpoint, lambda: _write_control(mountpoint, json.dumps(message).encode()))
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise HbfError(f"the mount refused {json.dumps(message)}", "the tier stays as it was") from error
        raise _not_ours(mountpoint, error) from error


def _write_control(mountpoint: Path, message: bytes) -> bytes:
    with control_of(mountpoint) as fd:
        os.write(fd, message)
    return b""


@contextlib.contextmanager
def control_of(mountpoint: Path) -> Iterator[int]:
    """`.hbf/control`, open: each write is a message. It takes microseconds, and as long as the server may be
    stuck: for a mount of one's own, or behind `answer`.

    Checked after opening it and before writing: another file may have taken its name. OSError if it has.
    """
    fd = os.open(mountpoint / ".hbf/control", os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        lies_on = by_number(linux.mount_id(fd))
        if lies_on is None or lies_on.fstype != points.MOUNT_TYPE:
            raise OSError(errno.EXDEV, "it is not a file of hbf")
        yield fd
    finally:
        os.close(fd)


def _not_ours(mountpoint: Path, error: Exception) -> HbfError:
    """Why a mountpoint does not answer as a live hbf mount of this user, and what to do."""
    code = error.errno if isinstance(error, OSError) else None
    entry = find(points.absolute(mountpoint))
    if entry is not None and entry.fstype == points.MOUNT_TYPE:
        if code in (errno.ENOTCONN, errno.ECONNABORTED):
            return HbfError(
                f"{mountpoint} is not a live hbf mount: its server died",
                f"`hbf-umount {mountpoint}` clears it",
            )
        if code in (errno.EACCES, errno.EPERM):
            return HbfError(f"{mountpoint} is not a live hbf mount of yours: another user made it")
    reason = getattr(error, "strerror", None) or "unreadable answer"
    return HbfError(f"{mountpoint} is not a live hbf mount of yours ({reason})", "`hbf status` lists them")


def unmount(mountpoint: Path, force: bool) -> None:
    """End the mount and wait until its server is gone. HbfError if it is busy (and force is off), or if its
    server goes on.
    """
    path = points.absolute(mountpoint)
    entry = find(path)
    if entry is None:
        raise HbfError(f"nothing of hbf is mounted on {path}", "`hbf status` lists what is")
    if entry.fstype != points.MOUNT_TYPE:
        raise _other_mount(entry)
    try:
        stale = points.is_stale(path, _PATIENCE_SECONDS if force else ANSWER_SECONDS)
        server = None if stale else _server_of(entry)
    except NoAnswer:
        if not force:
            raise
        mounting.abort(entry)
        stale = True
    if stale:
        mounting.unmount_or_explain(entry, lazy=True)
        return
    mounting.unmount_or_explain(entry, lazy=force)
    if server is None:
        return
    if not force and (uses := _further_uses(entry)) and _runs(server):
        raise _in_use_elsewhere(path, uses)
    if force and _runs(server):
        # Its last user may keep it for long. Ending the server gives that user an error instead.
        _terminate(server)
    give_up = time.monotonic() + _END_SECONDS
    while _runs(server):
        if time.monotonic() > give_up:
            if uses := _further_uses(entry, perhaps=True):
                raise _in_use_elsewhere(path, uses)
            raise HbfError(
                f"{path} is unmounted, but its server goes on: the mount is also in another mount namespace, "
                "as of a container",
                f"end it with `kill {server.pid}`",
            )
        time.sleep(0.01)


def _other_mount(entry: Mount) -> HbfError:
    path = entry.mountpoint
    if any(other.mountpoint == path and other.fstype == points.MOUNT_TYPE for other in mounts()):
        return HbfError(
            f"{path} is a {entry.fstype} mount over one of hbf",
            f"end it with `umount {path}`, then `hbf-umount {path}`",
        )
    if not entry.fstype.startswith("fuse"):
        return HbfError(f"nothing of hbf is mounted on {path}", "`hbf status` lists what is")
    return HbfError(f"{path} is a {entry.fstype} mount, not one of hbf", f"end it with `umount {path}`")


def _in_use_elsewhere(path: Path, uses: dict[Path, str]) -> HbfError:
    return HbfError(
        f"{path} is unmounted, but its server goes on: {', and '.join(uses.values())}",
        f"end that with `umount {' '.join(map(str, uses))}`",
    )


def _further_uses(mount: Mount, perhaps: bool = False) -> dict[Path, str]:
    """What else in this mount namespace uses the file system of a mount, by mountpoint. Bind mounts are
    further mounts of the same device. Overlays name the folders that they lie over.

    perhaps: also overlays that name a folder from another one, which nobody knows any more, if it may be it.
    """
    found = {}
    for other in mounts():
        same = (other.device, other.fstype, other.source) == (mount.device, mount.fstype, mount.source)
        if same and other.number != mount.number:
            found[other.mountpoint] = f"it is also mounted on {other.mountpoint}, as by `mount --bind`"
        elif other.fstype == "overlay" and any(_is_within(name, mount, perhaps) for name in layers(other)):
            found[other.mountpoint] = f"the overlay on {other.mountpoint} lies over it"
    return found


def _is_within(name: str, mount: Mount, perhaps: bool) -> bool:
    layer, point = Path(name), mount.mountpoint
    ends = [Path(*point.parts[at:]) for at in range(1, len(point.parts))] if perhaps else []
    return any(layer.is_relative_to(end) for end in (point, *ends))


def _server_of(mount: Mount) -> psutil.Process | None:
    """A mount's server, if it is known for certain. The mount's own statement may be false, or meant for
    another PID namespace: the process must belong to the user that the kernel has for the mount. NoAnswer if
    the mount does not answer.
    """
    try:
        spec = read_hidden(mount.mountpoint, "spec.json")
        pid, began = spec.get("pid"), spec.get("start_time")
        if spec.get("pid_namespace") != linux.pid_namespace() or not isinstance(pid, int) or pid <= 0:
            return None
        server = psutil.Process(pid)
        same = linux.start_time(pid) == began and f"user_id={server.uids().real}" in mount.options
    except NoAnswer:
        raise
    except (HbfError, psutil.Error, OverflowError):
        return None
    return server if same else None


def _terminate(server: psutil.Process) -> None:
    """Send SIGTERM by pidfd: the pid may belong to another process by now."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(server.pid)
        try:
            # is_running compares start times.
            if server.is_running():
                signal.pidfd_send_signal(process, signal.SIGTERM)
        finally:
            os.close(process)


def _runs(server: psutil.Process) -> bool:
    """Whether the process is alive. A zombie is not."""
    try:
        return server.is_running() and server.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
