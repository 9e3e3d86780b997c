"""What a machine lends to one cell after another: a directory for its mount, and memory for its copy."""

import contextlib
import fcntl
import json
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hbf_fuse.errors import HbfError
from hbf_fuse.folder import Folder
from hbf_fuse.host import machine
from hbf_fuse.mount import mountpoint as points
from hbf_fuse.tier.expect import CHUNK_BYTES
from hbf_fuse.workload import child

_PREFIX = "hbf-sweep-"
_MOUNTPOINT, TRACE = "mnt", "trace"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_MADV_POPULATE_WRITE = 23
_COPIER = Path(child.__file__).with_name("copier.py")


class Workspace:
    """No figure passes from cell to cell through it. The memory is kept because a virtual machine may need
    seconds to get it from its host; it has no name and is gone with this process.
    """

    def __init__(self, mountpoint: Path, memory: int) -> None:
        self.mountpoint = mountpoint
        self.trace = mountpoint.with_name(TRACE)
        """Where a cell's mount writes every read, if that is wanted; the next cell writes over it."""
        self.traced = False
        """Whether it is wanted in any mode."""
        self.memory = memory
        """A descriptor of what is in memory; its path is memory_path here and in children that get it."""

    @property
    def memory_path(self) -> Path:
        """Where a process that has the descriptor finds the copy."""
        return Path(f"/proc/self/fd/{self.memory}")

    def warm(self, nbytes: int) -> None:
        """Touch this much fresh memory and let it go, so that a host gives it now, and not while a tier is
        being measured. Less if there is not enough; nothing on real hardware, which has its memory.
        """
        if not machine.facts()["virtual"]:
            return
        size = min(nbytes, psutil.virtual_memory().available // 2)
        with contextlib.suppress(OSError), mmap.mmap(-1, size) as fresh:
            fresh.madvise(_MADV_POPULATE_WRITE)

    def copy(self, file: Path) -> float:
        """Copy a file from a mount into the memory, CHUNK_BYTES in flight; returns the seconds it took.

        HbfError if it cannot be copied.
        """
        line = [sys.executable, "-I", "-S", str(_COPIER), str(file), str(self.memory_path)]
        said = child.run_group([*line, str(CHUNK_BYTES)], pass_fds=(self.memory,), unprivileged=True)
        try:
            answer = json.loads(said.stdout)
        except ValueError:
            raise HbfError(f"copying {file} ended without a result: {said.stderr[-300:]}") from None
        if "error" in answer:
            raise HbfError(f"copying the model into memory failed: {answer['error']}")
        return float(answer["seconds"])


@contextmanager
def lent() -> Iterator[Workspace]:
    """A workspace in a directory of its own that nobody else may enter. It is removed afterwards; what one
    that was killed has left goes now.
    """
    _remove_left_behind()
    own, memory = _made(), os.memfd_create("hbf-stage", os.MFD_CLOEXEC)
    try:
        own.below(_MOUNTPOINT)
        yield Workspace(own.path / _MOUNTPOINT, memory)
    finally:
        os.close(memory)
        _remove(own)


def _made() -> Folder:
    """A fresh scratch directory, locked: others take one without a lock for one that was left behind."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        own = Folder(os.open(path, _OPEN), path)
        fcntl.flock(own.fd, fcntl.LOCK_EX)
        if os.fstat(own.fd).st_nlink:
            return own


def _remove_left_behind() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Anybody may make such a name there.
        with contextlib.suppress(OSError):
            left = Folder(os.open(path, _OPEN), path)
            if not left.is_shared:
                fcntl.flock(left.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)


def _remove(scratch: Folder) -> None:
    mountpoint = points.absolute(scratch.path / _MOUNTPOINT)
    with contextlib.suppress(OSError, HbfError):
        if points.is_stale(mountpoint):
            points.prepare(mountpoint)
    for name, remove in ((TRACE, os.unlink), (_MOUNTPOINT, os.rmdir)):
        with contextlib.suppress(OSError):
            remove(name, dir_fd=scratch.fd)
    with contextlib.suppress(OSError):
        scratch.path.rmdir()
