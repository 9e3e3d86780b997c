"""A live mount, seen from outside: its .hbf/ files, and its end."""

import contextlib
import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from hbf_fuse import documents
from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import read_file
from hbf_fuse.host import linux
from hbf_fuse.host.mountinfo import Mount, by_number, find, mount_of, mounts
from hbf_fuse.mount import mountpoint as points
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces.trace import Trace

_END_SECONDS = 10.0
_MAX_TRACE_BYTES = 64 << 20
"""What the newest reads take, a hundred times."""

_PATIENCE_SECONDS = 1.0
"""For a mount that is to be ended by force."""


def all_mounts() -> list[Path]:
    """Where hbf is mounted on this machine."""
    return [entry.mountpoint for entry in mounts() if entry.fstype == points.MOUNT_TYPE]


def read_hidden(mountpoint: Path, name: str) -> dict[str, Any]:
    """The content of `.hbf/NAME`. HbfError if this is no live hbf mount, or not this user's; NoAnswer if its
    server says nothing.
    """
    try:
        content = documents.parse_json(_hidden(mountpoint, name, documents.MAX_JSON_BYTES))
        if mount_of(mountpoint).fstype != points.MOUNT_TYPE or not isinstance(content, dict):
            raise ValueError("it has a .hbf of something else")
    except (OSError, ValueError) as error:
        raise _not_ours(mountpoint, error) from error
    return content


def _hidden(mountpoint: Path, name: str, most: int) -> bytes:
    """A file of `.hbf/`. The mount may be another's: it answers with what it likes, for as long as it
    likes.
    """

    def read() -> bytes:
        try:
            return read_file(os.open(mountpoint / ".hbf" / name, linux.READ), most)
        except ValueError as error:
            raise OSError(errno.EBADMSG, str(error)) from error

    return points.answer(mountpoint, read)


def read_tier(mountpoint: Path) -> TierSpec:
    """The tier of a live mount. HbfError as above."""
    try:
        return TierSpec.from_dict(read_hidden(mountpoint, "spec.json")["tier"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HbfError(f"{mountpoint} has an unreadable status: another version of hbf?") from error


def read_trace(mountpoint: Path) -> Trace:
    """The newest reads of a live mount. HbfError if it is none of ours."""
    try:
        return Trace.parse(_hidden(mountpoint, "trace", _MAX_TRACE_BYTES))
    except (OSError, ValueError) as error:
        raise _not_ours(mountpoint, error) from error


def send(mountpoint: Path, message: dict[str, Any]) -> None:
    """Write a message to `.hbf/control`. HbfError if it is refused, or this is no live mount of ours."""
    try:
        points.answer(mountpoint, lambda: _write_control(mountpoint, json.dumps(message).encode()))
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise HbfError(f"the mount refused {json.dumps(message)}; the tier stays as it was") from error
        raise _not_ours(mountpoint, error) from error


def _write_control(mountpoint: Path, message: bytes) -> None:
    """What has that name may have been exchanged: it is looked at open, before anything is written."""
    fd = os.open(mountpoint / ".hbf/control", os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        lies_on = by_number(linux.mount_id(fd))
        if lies_on is None or lies_on.fstype != points.MOUNT_TYPE:
            raise OSError(errno.EXDEV, "it is no file of hbf")
        os.write(fd, message)
    finally:
        os.close(fd)


def _not_ours(mountpoint: Path, error: Exception) -> HbfError:
    """Why a mountpoint gives no answer that is one of ours, and what to do."""
    code = error.errno if isinstance(error, OSError) else None
    entry = find(points.absolute(mountpoint))
    if entry is not None and entry.fstype == points.MOUNT_TYPE:
        if code in (errno.ENOTCONN, errno.ECONNABORTED):
            return HbfError(
                f"{mountpoint} is no live hbf mount: its server died; `hbf-umount {mountpoint}` clears it"
            )
        if code in (errno.EACCES, errno.EPERM):
            return HbfError(f"{mountpoint} is no live hbf mount of yours: another user made it")
    reason = getattr(error, "strerror", None) or "unreadable answer"
    return HbfError(f"{mountpoint} is no live hbf mount of yours ({reason}); `hbf status` lists them")


def unmount(mountpoint: Path, force: bool) -> None:
    """End the mount and wait until its server is gone. HbfError if it is busy (and force is off), or if its
    server goes on.
    """
    path = points.absolute(mountpoint)
    entry = find(path)
    if entry is None or not entry.fstype.startswith(("fuse", "fuseblk")):
        raise HbfError(f"nothing of hbf is mounted on {path}; `hbf status` lists what is")
    if entry.fstype != points.MOUNT_TYPE:
        raise HbfError(f"{path} is a {entry.fstype} mount, not one of hbf; end it with `umount {path}`")
    try:
        stale = points.is_stale(path, _PATIENCE_SECONDS if force else points.ANSWER_SECONDS)
        server = None if stale else _server_of(entry)
    except points.NoAnswer:
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
    if force and _runs(server):
        # Its last user may hold it for long: a server that ends gives that user an error instead.
        _terminate(server)
    give_up = time.monotonic() + _END_SECONDS
    while _runs(server):
        if time.monotonic() > give_up:
            raise HbfError(
                f"{path} is unmounted, but its server goes on: the mount is also in another mount namespace, "
                f"as of a container; end it with `kill {server.pid}`"
            )
        time.sleep(0.01)


def _server_of(mount: Mount) -> psutil.Process | None:
    """A mount's server, if that is known for sure. What it says of itself may be meant for another PID
    namespace, or be a lie: the process that it names must be of the user that the kernel has for the mount.
    NoAnswer if it says nothing.
    """
    try:
        spec = read_hidden(mount.mountpoint, "spec.json")
        pid, began = spec.get("pid"), spec.get("start_time")
        if spec.get("pid_namespace") != linux.pid_namespace() or not isinstance(pid, int) or pid <= 0:
            return None
        server = psutil.Process(pid)
        same = linux.start_time(pid) == began and f"user_id={server.uids().real}" in mount.options
    except points.NoAnswer:
        raise
    except (HbfError, psutil.Error, OverflowError):
        return None
    return server if same else None


def _terminate(server: psutil.Process) -> None:
    """By descriptor: its number may be another process's by now."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(server.pid)
        try:
            # is_running compares when it began.
            if server.is_running():
                signal.pidfd_send_signal(process, signal.SIGTERM)
        finally:
            os.close(process)


def _runs(server: psutil.Process) -> bool:
    """Whether the process is alive; one that its parent has not reaped yet is not."""
    try:
        return server.is_running() and server.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
