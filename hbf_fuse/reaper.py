"""Unmounts, and removes cgroups, when the process that made them dies hard.

Run as a script it is that watcher: reaper.py [--mount FOLDER:MOUNTPOINT] [--group DIRECTORY]..., with the
process that it watches at the other end of stdin. Stands alone and imports next to nothing, because one of
these sleeps beside every mount.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

_UNLIMITED = {
    "io.max": "rbps=max riops=max",
    "blkio.throttle.read_bps_device": "0",
    "blkio.throttle.read_iops_device": "0",
}
"""What lifts the limit of a device, by the name of the file."""

_DETACH_NOFOLLOW = 2 | 8
"""MNT_DETACH and UMOUNT_NOFOLLOW of umount2(2)."""

_GIVE_UP_SECONDS = 5.0
_LOOK_SECONDS = 0.001


@contextmanager
def watching(mountpoint: str = "", groups: Sequence[str] = ()) -> Iterator[Callable[[int], None]]:
    """A small process that unmounts and removes these cgroups, there yet or not, if this process dies without
    a word. It learns of that through its stdin. Yields what is to be called with the id of the mount when
    that is made: no other one on the same path is touched.
    """
    # Not above: the watcher itself has no use for it.
    import subprocess

    folders: list[int] = []
    line = [sys.executable, "-I", "-S", __file__]
    if mountpoint:
        # Opened here and now: by the time that the watcher runs, its name may lead elsewhere.
        folders = [os.open(os.path.dirname(mountpoint), os.O_PATH | os.O_CLOEXEC)]
        line += ["--mount", f"{folders[0]}:{mountpoint}"]
    watcher = subprocess.Popen(
        [*line, *(part for group in groups for part in ("--group", group))],
        pass_fds=folders,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    for folder in folders:
        os.close(folder)

    def mounted(number: int) -> None:
        # The watcher may have been killed: that is no reason not to serve.
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
    """Lift the I/O limits of a cgroup, kill what is in it, and remove it with what its members made below it.
    False if it is still there after a while.

    Lifted first: who waits for throttled I/O dies only when that is done.
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
    """By the kernel itself (cgroup v2, since 5.14), or one by one: never by a number alone, which may be
    another process's by then. Not this process.
    """
    if os.getpid() not in _members(directory):
        with suppress(OSError):
            with open(os.path.join(directory, "cgroup.kill"), "w") as file:
                file.write("1")
            return
    for pid in _members(directory):
        # 0 is a process of another pid namespace.
        if not pid or pid == os.getpid():
            continue
        with suppress(OSError):
            process = os.pidfd_open(pid)
            try:
                # What is held now is what is a member now.
                if pid in _members(directory):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)


def _members(directory: str) -> list[int]:
    with open(os.path.join(directory, "cgroup.procs")) as file:
        return [int(line) for line in file]


def _unmount(folder: int, name: str, number: bytes) -> None:
    """Only a mount that has no server any more is touched: a new one on the same path answers. folder: where
    the mountpoint lies, whatever that is called by now. number: the mount's id; empty if it never came to
    that.
    """
    mountpoint = f"/proc/self/fd/{folder}/{name}"
    try:
        # Not stat: the kernel answers that from its cache for as long as it likes.
        os.statvfs(mountpoint)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED) or not number:
            return
        if os.geteuid():
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
            os.execvp("fusermount3", ["fusermount3", "-u", "-z", "--", path])  # noqa: S606, S607
        # Not above: it would take memory beside every mount.
        import ctypes

        if _lies_on(folder, name) == number:
            ctypes.CDLL(None).umount2(mountpoint.encode(errors="surrogateescape"), _DETACH_NOFOLLOW)


def _lies_on(folder: int, name: str) -> bytes:
    """The id of the mount at that name."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        facts = dict(line.split(b":", 1) for line in file)
    return facts[b"mnt_id"].strip()


def _watch(arguments: list[str]) -> None:
    """Wait until the other end of the pipe closes, however that happens, and clean up what is left: after a
    hard death, or when the kernel was told to abort a mount's connection.
    """
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    # systemd ends what is left of a service whose server died: this is what is left, and has yet to clean up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    named = list(zip(arguments[::2], arguments[1::2], strict=True))
    points = [path.split(":", 1) for kind, path in named if kind == "--mount"]
    number = b""
    while said := os.read(0, 64):
        number += said
    for kind, path in named:
        if kind == "--group":
            remove_group(path)
    for folder, path in points:
        _unmount(int(folder), os.path.basename(path), number)


if __name__ == "__main__":
    _watch(sys.argv[1:])
