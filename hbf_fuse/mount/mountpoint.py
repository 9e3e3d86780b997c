"""The state of a mountpoint: free, ours, another program's, or left behind by a server that died."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.host import answers, linux
from hbf_fuse.host.answers import ANSWER_SECONDS
from hbf_fuse.host.mountinfo import FSTYPE, by_number, find

MOUNT_TYPE = FSTYPE


def absolute(path: Path) -> Path:
    """The path without links. The last component is not touched unless it is a link: it may be a dead mount.
    HbfError if root would follow a link of an untrusted user; NoAnswer if a mount on the way is stuck.
    """
    whole = path.name in ("", "..")

    def located() -> bytes:
        follows = whole or _is_link(path)
        folder = linux.open_folder(path if follows else path.parent)
        try:
            return os.fsencode(linux.path_of(folder) / ("" if follows else path.name))
        finally:
            # Perhaps it is the mountpoint, which would be in use.
            os.close(folder)

    try:
        return Path(os.fsdecode(answers.answer(path.parent, located)))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise HbfError(f"{path}: another user's link is in the way", "name the link's target") from error
        return path.resolve() if whole or _is_link(path) else path.parent.resolve() / path.name


def _is_link(path: Path) -> bool:
    """Does not ask the server of a mount there: it may be suspended, dead, or another user's."""
    try:
        path.readlink()
    except OSError:
        return False
    return True


def is_stale(mountpoint: Path, patience: float = ANSWER_SECONDS) -> bool:
    """Whether the mount of a dead server is still there ("Transport endpoint is not connected").

    NoAnswer if its server lives but does not answer within `patience` seconds.
    """
    return ask(mountpoint, patience) in (errno.ENOTCONN, errno.ECONNABORTED)


def ask(mountpoint: Path, patience: float = ANSWER_SECONDS) -> int:
    """The errno of a mountpoint's answer, 0 for success. NoAnswer if it does not answer."""

    def asked() -> bytes:
        os.statvfs(mountpoint)
        return b""

    try:
        # Not stat: the kernel answers that from its cache, with or without a server.
        answers.answer(mountpoint, asked, patience)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def prepare(mountpoint: Path) -> str | None:
    """Check that a mount can begin here. Returns what was repaired, if anything.

    Raises HbfError for a mountpoint that is missing, not a directory, in use, or not usable by this user.
    """
    repaired = None
    if is_stale(mountpoint):
        dead = find(mountpoint)
        if dead is None or dead.fstype != MOUNT_TYPE:
            raise HbfError(f"{mountpoint} holds a dead mount of another program", "end it with `umount`")
        mounting.unmount_or_explain(dead, lazy=True)
        repaired = f"{mountpoint} held the mount of a server that had died; it was unmounted"
    try:
        os.close(_opened(mountpoint))
    except PermissionError as error:
        raise HbfError(
            f"cannot use mountpoint {mountpoint}: {error.strerror}", "use a directory of your own"
        ) from error
    if os.geteuid() != 0 and not os.access(mountpoint, os.W_OK):
        raise HbfError(f"mountpoint {mountpoint} is not writable by you", "use a directory of your own")
    return repaired


@contextmanager
def claimed(mountpoint: Path) -> Iterator[int]:
    """A mountpoint's open directory: the mount goes over the directory that was checked. No other hbf begins
    a mount here meanwhile: of two that try, the later one gets an HbfError.
    """
    fd = _opened(mountpoint)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        # If another hbf held the lock before, its mount is here now, and this fails.
        os.close(_opened(mountpoint))
        yield fd
    finally:
        os.close(fd)


def _opened(mountpoint: Path) -> int:
    """Open an empty directory that has no FUSE mount."""
    try:
        fd = linux.open_unlinked(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise HbfError(
            f"mountpoint {mountpoint} does not exist", f"make it with `mkdir -p {mountpoint}`"
        ) from error
    except NotADirectoryError as error:
        raise HbfError(f"mountpoint {mountpoint} is not a directory", "name an empty directory") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise HbfError(f"mountpoint {mountpoint} was replaced by a link", "name a directory") from error
    try:
        entry = by_number(linux.mount_id(fd))
        if entry and entry.mountpoint == mountpoint and entry.fstype.startswith("fuse"):
            raise HbfError(
                f"{mountpoint} is mounted already ({entry.fstype})", f"end it with `hbf-umount {mountpoint}`"
            )
        if os.listdir(fd):  # noqa: PTH208 - of a descriptor
            raise HbfError(f"mountpoint {mountpoint} is not empty", "use an empty directory")
    except BaseException:
        os.close(fd)
        raise
    return fd


def readahead_file(mountpoint: Path) -> Path:
    """The sysfs file with a mount's readahead in KiB. The mount's server must answer."""
    device = mountpoint.stat().st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
