"""Where the files of kv/ are: a folder that the user names, or one in memory that goes with the mount."""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse import reaper, signals
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.kv_files import KvFolder
from hbf_fuse.host import linux
from hbf_fuse.host.linux import Descriptor
from hbf_fuse.units import format_size

MEMORY = Path("/dev/shm")  # noqa: S108 - the folder made in it has an unpredictable name and is closed to others
_PREFIX = "hbf-kv-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEAST = 4096


@contextmanager
def prepared(size: int | None, folder: Path | None, tell: Callable[[str], None]) -> Iterator[KvFolder | None]:
    """The folder of kv/ for as long as the mount lives; None without a size. HbfError if it cannot be had."""
    if size is None:
        yield None
        return
    if size < _LEAST:
        raise HbfError(f"--kv of {size} bytes holds nothing", f"give at least {_LEAST}")
    if folder is None:
        with _in_memory(size) as descriptor:
            tell("what is written to kv/ is in memory, and is gone after the unmount: --kv-dir keeps it")
            yield KvFolder(descriptor, size, is_kept=False)
    else:
        descriptor = _named(folder)
        free = _free(descriptor.number)
        if free < size:
            tell(f"{folder} has {format_size(free)} free, less than the {format_size(size)} of --kv")
        yield KvFolder(descriptor, size, is_kept=True)


@contextmanager
def _in_memory(size: int) -> Iterator[Descriptor]:
    """A folder of one's own in memory. It is removed at the end, by a watcher if this process is killed."""
    try:
        parent = Descriptor(os.open(MEMORY, _FOLDER))
    except OSError as error:
        raise HbfError(
            f"cannot use {MEMORY} for kv/: {error.strerror}", "name a folder (--kv-dir)"
        ) from error
    free = _free(parent.number)
    if free < size:
        raise HbfError(
            f"--kv {format_size(size)} is more than fits into memory: {MEMORY} has {format_size(free)} free",
            "give less, or name a folder on a disk (--kv-dir)",
        )
    name = _PREFIX + secrets.token_hex(8)
    with reaper.watching(tree=str(MEMORY / name)):
        with signals.deferred():
            os.mkdir(name, 0o700, dir_fd=parent.number)
        try:
            yield Descriptor(os.open(name, _FOLDER, dir_fd=parent.number))
        finally:
            with signals.deferred():
                shutil.rmtree(name, dir_fd=parent.number, ignore_errors=True)


def _named(folder: Path) -> Descriptor:
    """The folder that the user names; it is made if it does not exist."""
    try:
        parent = Descriptor(linux.open_folder(folder.parent))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder.name, 0o700, dir_fd=parent.number)
        found = Descriptor(os.open(folder.name, _FOLDER, dir_fd=parent.number))
    except OSError as error:
        raise HbfError(
            f"cannot use {folder} for kv/: {error.strerror}", "name a folder of your own (--kv-dir)"
        ) from error
    info = os.fstat(found.number)
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HbfError(
            f"{folder} belongs to another user, or others may write to it",
            "name a folder that only you can write to (--kv-dir)",
        )
    try:
        fcntl.flock(found.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise HbfError(
            f"another mount keeps its kv/ in {folder}", "name another folder (--kv-dir)"
        ) from error
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=found.number, effective_ids=True):
        raise HbfError(f"{folder} cannot be written to", "name a folder that can be (--kv-dir)")
    return found


def _free(folder: int) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
