"""Unmounts, and removes cgroups, when the process that made them dies hard.

Run as a script it is that watcher: watcher.py [--mount MOUNTPOINT] [--group DIRECTORY]..., with the process
that it watches at the other end of stdin. Stands alone and imports next to nothing, because one of these
sleeps beside every mount.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_UNLIMITED = {
    "io.max": "rbps=max riops=max",
    "blkio.throttle.read_bps_device": "0",
    "blkio.throttle.read_iops_device": "0",
}
"""What lifts the limit of a device, by the name of the file."""

_GIVE_UP_SECONDS = 5.0
_LOOK_SECONDS = 0.001


@contextmanager
def watching(mountpoint: str = "", groups: Sequence[str] = ()) -> Iterator[None]:
    """A small process that unmounts and removes these cgroups, there yet or not, if this process dies without
    a word. It learns of that through its stdin.
    """
    # Not above: the watcher itself has no use for it.
    import subprocess

    line = [sys.executable, "-I", "-S", __file__, *(["--mount", mountpoint] if mountpoint else [])]
    watcher = subprocess.Popen(
        [*line, *(part for group in groups for part in ("--group", group))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    try:
        yield
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
    with open(os.path.join(directory, "cgroup.procs")) as file:
        members = [int(line) for line in file]
    for pid in members:
        # 0 is a process of another pid namespace.
        if pid and pid != os.getpid():
            with suppress(OSError):
                os.kill(pid, 9)


def _unmount(folder: int, name: str) -> None:
    """Only a mount that has no server any more is touched: a new one on the same path answers. folder: where
    the mountpoint lies, whatever that is called by now.
    """
    mountpoint = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    try:
        # Not stat: the kernel answers that from its cache for as long as it likes.
        os.statvfs(mountpoint)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            return
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        os.execvp(command[0], [*command, "--", mountpoint])  # noqa: S606


def _watch(arguments: list[str]) -> None:
    """Wait until the other end of the pipe closes, however that happens, and clean up what is left: after a
    hard death, or when the kernel was told to abort a mount's connection.
    """
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    # systemd ends what is left of a service whose server died: this is what is left, and has yet to clean up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    named = list(zip(arguments[::2], arguments[1::2], strict=True))
    points = [os.path.split(path) for kind, path in named if kind == "--mount"]
    folders = [os.open(folder, os.O_PATH | os.O_CLOEXEC) for folder, _ in points]
    os.read(0, 1)
    for kind, path in named:
        if kind == "--group":
            remove_group(path)
    for folder, (_, name) in zip(folders, points, strict=True):
        _unmount(folder, name)


if __name__ == "__main__":
    _watch(sys.argv[1:])
