"""What is at a mountpoint: free, ours, somebody else's, or left behind by a server that died."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.host.mountinfo import by_number, find

T = TypeVar("T")

MOUNT_TYPE = mounting.FSTYPE
ANSWER_SECONDS = 5.0
"""How long a mount may take to answer before it counts as stuck. A live one takes about 1 ms."""


class NoAnswer(HbfError):
    """Nobody serves this mount, although its connection is open."""


def absolute(path: Path) -> Path:
    """The path without links, not touching the last component unless it is one: it may be a dead mount.
    Root follows no stranger's link: HbfError.
    """
    whole = path.name in ("", "..") or _is_link(path)
    try:
        folder = linux.open_folder(path if whole else path.parent)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise HbfError(f"{path}: another user's link is in the way; name where it leads to") from error
        return path.resolve() if whole else path.parent.resolve() / path.name
    try:
        found = linux.path_of(folder)
    finally:
        os.close(folder)
    return found if whole else found / path.name


def _is_link(path: Path) -> bool:
    """Without a question to the server of a mount there: it may be suspended, dead, or another user's."""
    try:
        path.readlink()
    except OSError:
        return False
    return True


def is_stale(mountpoint: Path, patience: float = ANSWER_SECONDS) -> bool:
    """Whether a dead server's mount is still there ("Transport endpoint is not connected").

    NoAnswer if its server lives and does not answer for `patience` seconds.
    """
    return ask(mountpoint, patience) in (errno.ENOTCONN, errno.ECONNABORTED)


def ask(mountpoint: Path, patience: float = ANSWER_SECONDS) -> int:
    """The errno that a mountpoint answers with, 0 if all is well. NoAnswer if it does not answer."""
    try:
        # Not stat: the kernel answers that from its cache, with or without a server.
        answer(mountpoint, lambda: os.statvfs(mountpoint), patience)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def answer(mountpoint: Path, question: Callable[[], T], patience: float = ANSWER_SECONDS) -> T:
    """What a mount's server says to a question, or the OSError that it has for it. NoAnswer if there is none
    for `patience` seconds; the thread that asks then waits on.
    """
    answers: list[T] = []
    errors: list[OSError] = []

    def wait_for_answer() -> None:
        try:
            answers.append(question())
        except OSError as error:
            errors.append(error)

    asking = threading.Thread(target=wait_for_answer, daemon=True)
    asking.start()
    asking.join(patience)
    if errors:
        raise errors[0]
    if not answers:
        raise NoAnswer(
            f"{mountpoint} does not answer: its server is suspended or stuck; let it go on with "
            f"`kill -CONT`, or end the mount with `hbf-umount --force {mountpoint}`"
        )
    return answers[0]


def prepare(mountpoint: Path) -> str | None:
    """Make sure that a mount can begin here. Returns what was repaired, if anything was.

    Raises HbfError for a mountpoint that is missing, no directory, in use, or not ours to use.
    """
    repaired = None
    if is_stale(mountpoint):
        dead = find(mountpoint)
        if dead is None or dead.fstype != MOUNT_TYPE:
            raise HbfError(f"{mountpoint} holds a dead mount of something else; end it with `umount`")
        mounting.unmount_or_explain(dead, lazy=True)
        repaired = f"{mountpoint} held the mount of a server that had died; it was unmounted"
    try:
        os.close(_opened(mountpoint))
    except PermissionError as error:
        raise HbfError(
            f"cannot use mountpoint {mountpoint}: {error.strerror}; use a directory of your own"
        ) from error
    if os.geteuid() != 0 and not os.access(mountpoint, os.W_OK):
        raise HbfError(f"mountpoint {mountpoint} is not writable by you; use a directory of your own")
    return repaired


@contextmanager
def claimed(mountpoint: Path) -> Iterator[int]:
    """A mountpoint's directory, open: what is mounted on is what was looked at. Nobody else begins a mount
    here meanwhile: of two that try, the later one gets an HbfError.
    """
    fd = _opened(mountpoint)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Whoever was here before has mounted over it.
        os.close(_opened(mountpoint))
        yield fd
    finally:
        os.close(fd)


def _opened(mountpoint: Path) -> int:
    """An empty directory on which nothing of FUSE is mounted."""
    try:
        fd = linux.open_unlinked(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise HbfError(
            f"mountpoint {mountpoint} does not exist; make it with `mkdir -p {mountpoint}`"
        ) from error
    except NotADirectoryError as error:
        raise HbfError(f"mountpoint {mountpoint} is not a directory; name an empty directory") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise HbfError(f"mountpoint {mountpoint} was exchanged for a link; name a directory") from error
    try:
        entry = by_number(linux.mount_id(fd))
        if entry and entry.mountpoint == mountpoint and entry.fstype.startswith("fuse"):
            raise HbfError(
                f"{mountpoint} is mounted already ({entry.fstype}); end it with `hbf-umount {mountpoint}`"
            )
        if os.listdir(fd):  # noqa: PTH208 - of a descriptor
            raise HbfError(f"mountpoint {mountpoint} is not empty; use an empty directory")
    except BaseException:
        os.close(fd)
        raise
    return fd


def readahead_file(mountpoint: Path) -> Path:
    """Where the kernel keeps a mount's readahead in KiB. The mount's server must be answering."""
    device = mountpoint.stat().st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
