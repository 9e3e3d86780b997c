"""The real files behind kv/: what is in them, how long they are, and whether there is room.

Errors are OSError with the errno that the caller should see.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hbf_fuse.fs.node import ROOT, Node
from hbf_fuse.fs.tree import Tree
from hbf_fuse.host import linux
from hbf_fuse.host.linux import Descriptor
from hbf_fuse.pacing.room import Room

OFFSET_BITS = 40
"""A file has up to 1 TiB."""

_BLOCK = 4096


@dataclass(frozen=True)
class KvFolder:
    """Where the files of kv/ are. folder: open. size: bytes that they may take. is_kept: whether they are
    there after the unmount.
    """

    folder: Descriptor
    size: int
    is_kept: bool


@dataclass(slots=True, eq=False)
class Written(Node):
    """A file or a folder in kv/. number: of its addresses. descriptor: of the real file, while it is open;
    users: its handles. gone: whether it has no name any more. What it is besides, the real file knows.
    """

    number: int = 0
    descriptor: Descriptor | None = None
    users: int = 0
    gone: bool = False

    @property
    def base(self) -> int:
        """The address of its first byte."""
        return self.number << OFFSET_BITS


class RealFiles:
    """Files and folders below the folder of kv/. They are opened from it part by part; no link is followed.
    Safe for concurrent callers.

    unit: bytes of which a file takes whole ones. trimmed: told of addresses and sizes that are no longer
    needed.
    """

    def __init__(self, tree: Tree, kept: KvFolder, unit: int, trimmed: Callable[[int, int], None]) -> None:
        self.kept = kept
        self.room = Room(kept.size, max(unit, -(-_BLOCK // unit) * unit))
        self._tree, self._trimmed = tree, trimmed
        self.lock = threading.RLock()
        """Held while a name or a size changes."""

    def refresh(self, node: Written) -> None:
        """Take over what the real file says of its size and times."""
        with contextlib.suppress(OSError):
            info = self._info(node)
            node.mtime_ns = info.st_mtime_ns
            if not node.is_dir:
                node.size = info.st_size

    def set_mode(self, node: Written, mode: int) -> None:
        """Change the permissions."""
        with self.opened(node, os.O_RDONLY) as fd:
            os.fchmod(fd, stat.S_IMODE(mode) | (0o700 if node.is_dir else 0o600))
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)

    def set_times(self, node: Written, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Change the times; None leaves one as it is."""
        with self.opened(node, os.O_RDONLY) as fd:
            info = os.fstat(fd)
            times = (
                info.st_atime_ns if atime_ns is None else atime_ns,
                info.st_mtime_ns if mtime_ns is None else mtime_ns,
            )
            os.utime(fd, ns=times)

    def truncate(self, node: Written, size: int) -> None:
        """Make a file this long. OSError ENOSPC, EFBIG."""
        with self.lock, self.opened(node, os.O_RDWR) as fd:
            before = os.fstat(fd).st_size
            self._make_room(before, size)
            try:
                os.ftruncate(fd, size)
            except OSError:
                self.room.grow(size, before)
                raise
            if size < before:
                self._trimmed(node.base + size, before - size)

    def allocate(self, node: Written, offset: int, nbytes: int, mode: int) -> None:
        """As fallocate(2). OSError EOPNOTSUPP for any mode but 0, ENOSPC, EFBIG."""
        if mode:
            refuse(errno.EOPNOTSUPP)
        with self.lock, self.opened(node, os.O_RDWR) as fd:
            before = os.fstat(fd).st_size
            after = max(before, offset + nbytes)
            self._make_room(before, after)
            try:
                os.posix_fallocate(fd, offset, nbytes)
            except OSError:
                self.room.grow(after, os.fstat(fd).st_size)
                raise

    def store(self, fd: int, offset: int, data: bytes | memoryview) -> int:
        """Write into a real file. Returns how many bytes it has taken. OSError ENOSPC, EFBIG."""
        before = os.fstat(fd).st_size
        after = max(before, offset + len(data))
        self._make_room(before, after)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            # A disk that is full takes less.
            self.room.grow(after, max(before, os.fstat(fd).st_size))

    def sync(self, node: Written) -> None:
        """Bring a file or the names in a folder to the disk, where there is one."""
        if self.kept.is_kept:
            with self.opened(node, os.O_RDONLY) as fd:
                os.fsync(fd)
            # The name, too: a file that was fsynced is found again.
            if not node.gone and isinstance(parent := self._tree.nodes.get(node.parent), Written):
                with self.opened(parent, os.O_RDONLY) as fd:
                    os.fsync(fd)

    def folder(self, node: Written) -> contextlib.AbstractContextManager[int]:
        """A folder's descriptor for a moment, to reach names in it."""
        return self.opened(node, os.O_PATH | os.O_DIRECTORY)

    @contextlib.contextmanager
    def opened(self, node: Written, flags: int) -> Iterator[int]:
        """The real file or folder of a node, for a moment."""
        if node.descriptor is not None:
            yield node.descriptor.number
            return
        fd = linux.open_unlinked(self._path(node), flags, self.kept.folder.number)
        try:
            yield fd
        finally:
            os.close(fd)

    def free(self, node: Written) -> None:
        """The file of a node goes: give its room and its pages back."""
        if node.descriptor is not None:
            size = os.fstat(node.descriptor.number).st_size
            self.room.grow(size, 0)
            self._trimmed(node.base, size)

    def _make_room(self, before: int, after: int) -> None:
        if after >> OFFSET_BITS:
            refuse(errno.EFBIG)
        if not self.room.grow(before, after):
            refuse(errno.ENOSPC)

    def _path(self, node: Node) -> Path:
        """Below the folder of kv/."""
        names = []
        while node.parent != ROOT:
            names.append(os.fsdecode(node.name))
            node = self._tree.nodes[node.parent]
        return Path(*reversed(names))

    def _info(self, node: Written) -> os.stat_result:
        if node.descriptor is not None:
            return os.fstat(node.descriptor.number)
        with self.opened(node, os.O_PATH) as fd:
            return os.fstat(fd)


def refuse(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))
