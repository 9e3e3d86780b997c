"""Unmounts, removes cgroups, sockets and folders in memory, and ends a trace if the process that made them is
killed.

Run as a script it is the watcher: reaper.py [--mount FOLDER:MOUNTPOINT] [--reads TRACE:RING] [--socket
FOLDER:NAME] [--tree FOLDER:NAME] [--group DIRECTORY]... FOLDER, TRACE and RING are open descriptors. The
watched process holds the other end of stdin. It imports next to nothing, and nothing of hbf_fuse: one watcher
sleeps beside every mount.
"""

import errno
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

_UNLIMITED = {
    "io.max": "rbps=max riops=max",
    "blkio.throttle.read_bps_device": "0",
    "blkio.throttle.read_iops_device": "0",
}
"""The text that lifts a device's limit, by file name."""

_DETACH_NOFOLLOW = 2 | 8
"""MNT_DETACH and UMOUNT_NOFOLLOW of umount2(2)."""

_RECORD, _PAGE = 48, os.sysconf("SC_PAGESIZE")
"""Of traces/trace.py, and what follows the records in a ring."""

_GIVE_UP_SECONDS = 5.0
_LOOK_SECONDS = 0.001


@contextmanager
def watching(
    mountpoint: str = "",
    groups: Sequence[str] = (),
    reads: Sequence[int] = (),
    socket: str = "",
    tree: str = "",
) -> Iterator[Callable[[int], None]]:
    """Start a small process that unmounts and removes these cgroups (they need not exist yet) if this process
    dies without cleaning up. It notices by its stdin. Yields a function: call it with the mount's id when the
    mount is made. No other mount on the same path is touched.

    reads: descriptors of a trace and of the ring (observe/ring.py) whose newest records belong into it.
    socket: a socket to remove, with the folder that is its own. tree: a folder to remove with all that is in
    it.
    """
    # Not at the top: the watcher does not need it.
    import subprocess

    folders: list[int] = []
    line = [sys.executable, "-I", "-S", __file__]
    if mountpoint:
        # Opened now: when the watcher runs, the path may lead elsewhere.
        folders.append(os.open(os.path.dirname(mountpoint), os.O_PATH | os.O_CLOEXEC))
        line += ["--mount", f"{folders[-1]}:{mountpoint}"]
    if socket:
        parent, name = os.path.split(os.path.dirname(socket))
        folders.append(os.open(parent, os.O_PATH | os.O_CLOEXEC))
        line += ["--socket", f"{folders[-1]}:{name}/{os.path.basename(socket)}"]
    if tree:
        parent, name = os.path.split(tree)
        folders.append(os.open(parent, os.O_PATH | os.O_CLOEXEC))
        line += ["--tree", f"{folders[-1]}:{name}"]
    if reads:
        line += ["--reads", ":".join(map(str, reads))]
    watcher = subprocess.Popen(
        [*line, *(part for group in groups for part in ("--group", group))],
        pass_fds=[*folders, *reads],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    for folder in folders:
        os.close(folder)

    def mounted(number: int) -> None:
        # If the watcher was killed, the mount still serves.
        with suppress(OSError):
            if watcher.stdin is not None:
                os.write(watcher.stdin.fileno(), b"%d" % number)

    try:
        yield mounted
    finally:
        try:
            watcher.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            watcher.kill()
            watcher.wait()


def remove_group(directory: str, give_up_seconds: float = _GIVE_UP_SECONDS) -> bool:
    """Lift the I/O limits of a cgroup, kill its processes, and remove it with the groups below it. False if
    it still exists after a while.

    The limits are lifted first: a process that waits for throttled I/O dies only when that is done.
    """
    give_up = time.monotonic() + give_up_seconds
    with suppress(OSError):
        _lift(directory)
    while True:
        with suppress(OSError):
            _kill_members(directory)
            for below in [entry.path for entry in os.scandir(directory) if entry.is_dir()]:
                remove_group(below, give_up - time.monotonic())
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > give_up:
                return False
            time.sleep(_LOOK_SECONDS)
        else:
            return True


def _lift(directory: str) -> None:
    for name in os.listdir(directory):
        if name not in _UNLIMITED:
            continue
        path = os.path.join(directory, name)
        with open(path) as file:
            devices = [line.split()[0] for line in file]
        for device in devices:
            with open(path, "w") as file:
                file.write(f"{device} {_UNLIMITED[name]}\n")


def _kill_members(directory: str) -> None:
    """By the kernel itself (cgroup v2, since 5.14), or one by one. Never by pid alone: it may belong to
    another process by then. Does not kill this process.
    """
    if os.getpid() not in _members(directory):
        with suppress(OSError):
            with open(os.path.join(directory, "cgroup.kill"), "w") as file:
                file.write("1")
            return
    for pid in _members(directory):
        # 0 stands for a process of another PID namespace.
        if not pid or pid == os.getpid():
            continue
        with suppress(OSError):
            process = os.pidfd_open(pid)
            try:
                # Checked again: the pidfd may refer to a newer process with the same pid.
                if pid in _members(directory):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)


def _members(directory: str) -> list[int]:
    with open(os.path.join(directory, "cgroup.procs")) as file:
        return [int(line) for line in file]


def _unmount(folder: int, name: str, number: bytes) -> None:
    """Unmount only a mount without a server: a new mount on the same path answers. folder: open parent of the
    mountpoint; its path may have changed. number: the mount's id; empty if there was no mount.
    """
    mountpoint = f"/proc/self/fd/{folder}/{name}"
    try:
        # Not stat: the kernel may answer that from its cache.
        os.statvfs(mountpoint)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED) or not number:
            return
        if os.geteuid():
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
            os.execvp("fusermount3", ["fusermount3", "-u", "-z", "--", path])  # noqa: S606, S607
        # Not at the top: it would take memory beside every mount.
        import ctypes

        if _lies_on(folder, name) == number:
            ctypes.CDLL(None).umount2(mountpoint.encode(errors="surrogateescape"), _DETACH_NOFOLLOW)


def _write_newest(trace: int, ring: int) -> None:
    """Append the records that a killed server had in memory only. Nothing if somebody has truncated the trace
    since: its header is gone with it.
    """
    capacity = (os.fstat(ring).st_size - _PAGE) // _RECORD
    count, written, size = struct.unpack("=3q", os.pread(ring, 24, capacity * _RECORD))
    # It may have been killed between writing and noting that, or in the midst of a record.
    more = (os.fstat(trace).st_size - size) // _RECORD
    # Without a size, writing had failed before.
    if more < 0 or not size:
        return
    os.ftruncate(trace, size + more * _RECORD)
    for place in range(max(written + more, count - capacity), count):
        os.write(trace, os.pread(ring, _RECORD, place % capacity * _RECORD))


def _remove_socket(parent: str, path: str) -> None:
    """path: the socket's, from an open folder on: NAME/SOCKET."""
    name, socket = os.path.split(path)
    folder = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=int(parent))
    os.unlink(socket, dir_fd=folder)
    os.rmdir(name, dir_fd=int(parent))


def _remove_tree(parent: int, name: str) -> None:
    """Remove a folder and all that is in it. Links are removed, not followed."""
    folder = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=parent)
    for each in os.listdir(folder):
        try:
            os.unlink(each, dir_fd=folder)
        except IsADirectoryError:
            _remove_tree(folder, each)
    os.close(folder)
    os.rmdir(name, dir_fd=parent)


def _lies_on(folder: int, name: str) -> bytes:
    """The id of the mount at this name."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        facts = dict(line.split(b":", 1) for line in file)
    return facts[b"mnt_id"].strip()


def _watch(arguments: list[str]) -> None:
    """Wait until the other end of the pipe closes, for whatever reason. Then clean up what remains: after a
    kill, or after the kernel was told to abort a mount's connection.
    """
    # Started with `nice`, it may have more, and must not ask for less.
    os.setpriority(os.PRIO_PROCESS, 0, max(5, os.getpriority(os.PRIO_PROCESS, 0)))
    # systemd ends the remaining processes of a service when its server died. This one must still clean up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    named = list(zip(arguments[::2], arguments[1::2], strict=True))
    points = [path.split(":", 1) for kind, path in named if kind == "--mount"]
    number = b""
    while said := os.read(0, 64):
        number += said
    for kind, path in named:
        if kind == "--group":
            remove_group(path)
        elif kind == "--socket":
            with suppress(OSError):
                _remove_socket(*path.split(":", 1))
        elif kind == "--tree":
            folder, name = path.split(":", 1)
            with suppress(OSError):
                _remove_tree(int(folder), name)
        elif kind == "--reads":
            trace, ring = map(int, path.split(":"))
            with suppress(OSError):
                _write_newest(trace, ring)
    for folder, path in points:
        _unmount(int(folder), os.path.basename(path), number)


if __name__ == "__main__":
    _watch(sys.argv[1:])
