"""What a machine lends to one cell after another: a directory for its mount, and memory for its copy."""

import contextlib
import fcntl
import json
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.folder import Folder
from hbf_fuse.host import machine
from hbf_fuse.mount import mountpoint as points
from hbf_fuse.tier.expect import CHUNK_BYTES
from hbf_fuse.workload import child, copier

_PREFIX = "hbf-sweep-"
_MOUNTPOINT, TRACE = "mnt", "trace"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_MADV_POPULATE_WRITE = 23
_COPIER = Path(copier.__file__)


class Workspace:
    """No figure passes from cell to cell through it. The memory is kept because a virtual machine may need
    seconds to get it from its host; it has no name and is gone with this process.
    """

    def __init__(self, mountpoint: Path, memory: list[int]) -> None:
        self.mountpoint = mountpoint
        self.trace = mountpoint.with_name(TRACE)
        """Where a cell's mount writes every read, if that is wanted; the next cell writes over it."""
        self.traced = False
        """Whether it is wanted in any mode."""
        self._memory = memory
        """A descriptor for each file that was copied into memory."""

    def warm(self, nbytes: int) -> None:
        """Touch this much fresh memory and let it go, so that a host gives it now, and not while a tier is
        being measured. Less if there is not enough; nothing on real hardware, which has its memory.
        """
        if not machine.facts()["virtual"]:
            return
        size = min(nbytes, machine.available_bytes() // 2)
        with contextlib.suppress(OSError), mmap.mmap(-1, size) as fresh:
            fresh.madvise(_MADV_POPULATE_WRITE)

    def copy(self, files: Sequence[Path]) -> float:
        """Copy files from a mount into the memory one after the other, CHUNK_BYTES in flight; returns the
        seconds it took.

        HbfError if one cannot be copied.
        """
        while len(self._memory) < len(files):
            self._memory.append(os.memfd_create("hbf-stage", os.MFD_CLOEXEC))
        memory = self._memory[: len(files)]
        line = [sys.executable, "-I", "-S", str(_COPIER), str(CHUNK_BYTES)]
        for file, descriptor in zip(files, memory, strict=True):
            line += [str(file), str(_path_of(descriptor))]
        said = child.run_group(line, pass_fds=memory, unprivileged=True)
        try:
            answer = json.loads(said.stdout)
        except ValueError:
            raise HbfError(f"copying {files[0]} ended without a result: {said.stderr[-300:]}") from None
        if "error" in answer:
            raise HbfError(f"copying the model into memory failed: {answer['error']}")
        return float(answer["seconds"])

    @contextmanager
    def copies(self, names: Sequence[str]) -> Iterator[tuple[Path, Sequence[int]]]:
        """What was copied, for a child that gets the descriptors: the first file's path, and the descriptors.

        llama.cpp finds the parts of a model by their names, so several have links of these names meanwhile.
        """
        memory = self._memory[: len(names)]
        if len(names) == 1:
            yield _path_of(memory[0]), memory
            return
        links = [self.mountpoint.with_name(name) for name in names]
        try:
            for link, descriptor in zip(links, memory, strict=True):
                link.symlink_to(_path_of(descriptor))
            yield links[0], memory
        finally:
            for link in links:
                link.unlink(missing_ok=True)


def _path_of(descriptor: int) -> Path:
    """Where a process that has the descriptor finds its file."""
    return Path(f"/proc/self/fd/{descriptor}")


@contextmanager
def lent() -> Iterator[Workspace]:
    """A workspace in a directory of its own that nobody else may enter. It is removed afterwards; what one
    that was killed has left goes now.
    """
    _remove_left_behind()
    own, memory = _made(), list[int]()
    try:
        own.below(_MOUNTPOINT)
        yield Workspace(own.path / _MOUNTPOINT, memory)
    finally:
        for descriptor in memory:
            os.close(descriptor)
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
