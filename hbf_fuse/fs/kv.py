"""The folder kv/ of a mount: files that can be written. They lie in a real folder; the tier says when.

A file's bytes have addresses in the tier: its number, then its offset. Errors are OSError with the errno that
the caller should see.
"""

import contextlib
import errno
import heapq
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.node import Node
from hbf_fuse.fs.tree import Tree
from hbf_fuse.host import linux
from hbf_fuse.host.linux import Descriptor
from hbf_fuse.pacing.room import Room
from hbf_fuse.units import format_size

NAME = b"kv"
OFFSET_BITS = 40
"""A file has up to 1 TiB."""

MAX_FILES = 1 << 20
_FIRST_NUMBER = 16
"""Of addresses: below lie the offsets of served files, which have up to 2^44 bytes (fs/tree.py)."""

_BLOCK = 4096
_FOLDER = os.O_PATH | os.O_DIRECTORY
RENAME_NOREPLACE = 1


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


class Region:
    """kv/ in a tree. Safe for concurrent callers.

    unit: bytes of which a file takes whole ones. trimmed: told of addresses and sizes that are no longer
    needed. HbfError if the tree has another kv/, or the folder holds more than it may.
    """

    def __init__(self, tree: Tree, kept: KvFolder, unit: int, trimmed: Callable[[int, int], None]) -> None:
        self.kept = kept
        self.room = Room(kept.size, max(unit, -(-_BLOCK // unit) * unit))
        self.files = 0
        self._tree, self._trimmed = tree, trimmed
        self._lock = threading.RLock()
        self._numbers = itertools.count(_FIRST_NUMBER)
        self._unused: list[int] = []
        if NAME in tree.root.children:
            raise HbfError(f"{tree.source} has a kv of its own", "rename it, or mount without --kv")
        self.root = self._add(tree.root, NAME, stat.S_IFDIR | 0o700)
        self._scan(self.root)

    # Names

    def create(self, parent: Written, name: bytes, mode: int) -> Written:
        """A new file, empty. OSError EEXIST, and what the real folder says."""
        with self._lock:
            self._check_new(parent, name)
            if self.files >= MAX_FILES:
                _refuse(errno.ENOSPC)
            with self._opened(parent) as folder:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, mode & 0o777 | 0o600, dir_fd=folder))
            return self._add(parent, name, stat.S_IFREG | mode & 0o777)

    def make_folder(self, parent: Written, name: bytes, mode: int) -> Written:
        """A new folder. OSError as `create`."""
        with self._lock:
            self._check_new(parent, name)
            with self._opened(parent) as folder:
                os.mkdir(name, mode & 0o777 | 0o700, dir_fd=folder)
            return self._add(parent, name, stat.S_IFDIR | mode & 0o777)

    def remove(self, parent: Written, name: bytes) -> None:
        """Remove a file's name. Its bytes go with its last handle. OSError ENOENT, EISDIR."""
        with self._lock:
            node = self._child(parent, name)
            if node.is_dir:
                _refuse(errno.EISDIR)
            with self._kept_open(node), self._opened(parent) as folder:
                os.unlink(name, dir_fd=folder)
                self._forget(node)

    def remove_folder(self, parent: Written, name: bytes) -> None:
        """OSError ENOENT, ENOTDIR, ENOTEMPTY."""
        with self._lock:
            node = self._child(parent, name)
            if not node.is_dir or node.children:
                _refuse(errno.ENOTEMPTY if node.is_dir else errno.ENOTDIR)
            with self._opened(parent) as folder:
                os.rmdir(name, dir_fd=folder)
            self._forget(node)

    def rename(self, parent: Written, name: bytes, to: Written, new: bytes, flags: int = 0) -> None:
        """Give a file or a folder another name. What had that name is gone, as rename(2) says. OSError EEXIST
        with RENAME_NOREPLACE, EINVAL for other flags.
        """
        with self._lock:
            node, before = self._child(parent, name), to.children.get(new)
            if flags & ~RENAME_NOREPLACE:
                _refuse(errno.EINVAL)
            if before is not None and flags:
                _refuse(errno.EEXIST)
            if before is node:
                return
            replaced = before if isinstance(before, Written) else None
            with (
                self._kept_open(replaced),
                self._opened(parent) as folder,
                self._opened(to) as other,
            ):
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=other)
                if replaced:
                    self._forget(replaced)
            del parent.children[name]
            node.parent, node.name = to.ino, new
            to.children[new] = node

    # Attributes

    def refresh(self, node: Written) -> None:
        """Take over what the real file says of its size and times."""
        with contextlib.suppress(OSError):
            info = self._info(node)
            node.mtime_ns = info.st_mtime_ns
            if not node.is_dir:
                node.size = info.st_size

    def set_mode(self, node: Written, mode: int) -> None:
        """Change the permissions."""
        with self._open_for(node, os.O_RDONLY) as fd:
            os.fchmod(fd, stat.S_IMODE(mode) | (0o700 if node.is_dir else 0o600))
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)

    def set_times(self, node: Written, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Change the times; None leaves one as it is."""
        with self._open_for(node, os.O_RDONLY) as fd:
            info = os.fstat(fd)
            times = (
                info.st_atime_ns if atime_ns is None else atime_ns,
                info.st_mtime_ns if mtime_ns is None else mtime_ns,
            )
            os.utime(fd, ns=times)

    # Content

    def truncate(self, node: Written, size: int) -> None:
        """Make a file this long. OSError ENOSPC, EFBIG."""
        with self._lock, self._open_for(node, os.O_RDWR) as fd:
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
            _refuse(errno.EOPNOTSUPP)
        with self._lock, self._open_for(node, os.O_RDWR) as fd:
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
            with self._open_for(node, os.O_RDONLY) as fd:
                os.fsync(fd)
            # The name, too: a file that was fsynced is found again.
            with self._open_for(self._parent(node), os.O_RDONLY) as fd:
                os.fsync(fd)

    def open(self, node: Written) -> Descriptor:
        """The real file for one more handle."""
        with self._lock:
            if node.descriptor is None:
                with self._opened(self._parent(node)) as folder:
                    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
                    node.descriptor = Descriptor(os.open(node.name, flags, dir_fd=folder))
            node.users += 1
            return node.descriptor

    def released(self, node: Written) -> None:
        """A handle is gone; with the last one a file without a name goes."""
        with self._lock:
            node.users -= 1
            if node.users:
                return
            if node.gone:
                self._free(node)
            node.descriptor = None

    # Within

    def _scan(self, parent: Written) -> None:
        """Add what the real folder holds already; links and what is no file are left alone."""
        with self._opened(parent) as folder:
            readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            with os.scandir(readable) as entries:
                found = [(os.fsencode(entry.name), entry.stat(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(readable)
        for name, info in sorted(found):
            if stat.S_ISDIR(info.st_mode):
                self._scan(self._add(parent, name, info.st_mode))
            elif stat.S_ISREG(info.st_mode):
                node = self._add(parent, name, info.st_mode)
                node.size = info.st_size
                if info.st_size >> OFFSET_BITS or not self.room.grow(0, info.st_size):
                    raise HbfError(
                        f"the folder of kv/ holds more than {format_size(self.room.size)}",
                        "give more (--kv), or remove files",
                    )

    def _add(self, parent: Node, name: bytes, mode: int) -> Written:
        is_file = stat.S_ISREG(mode)
        number = (heapq.heappop(self._unused) if self._unused else next(self._numbers)) if is_file else 0
        node = Written(self._tree.next_inode(), parent.ino, mode, name, number=number)
        node.uid, node.gid = os.geteuid(), os.getegid()
        self.files += is_file
        self._tree.nodes[node.ino] = node
        parent.children[name] = node
        return node

    def _forget(self, node: Written) -> None:
        """A node has lost its name. A file goes with its last use: the caller has it open."""
        self._tree.nodes[node.parent].children.pop(node.name, None)
        node.gone = True
        if node.is_dir:
            del self._tree.nodes[node.ino]

    def _free(self, node: Written) -> None:
        """Nobody uses a file that has no name."""
        if node.descriptor is not None:
            size = os.fstat(node.descriptor.number).st_size
            self.room.grow(size, 0)
            self._trimmed(node.base, size)
        heapq.heappush(self._unused, node.number)
        self.files -= 1
        self._tree.nodes.pop(node.ino, None)

    def _child(self, parent: Written, name: bytes) -> Written:
        node = parent.children.get(name)
        if not isinstance(node, Written):
            _refuse(errno.ENOENT)
        return node

    def _check_new(self, parent: Written, name: bytes) -> None:
        if name in parent.children:
            _refuse(errno.EEXIST)

    def _make_room(self, before: int, after: int) -> None:
        if after >> OFFSET_BITS:
            _refuse(errno.EFBIG)
        if not self.room.grow(before, after):
            _refuse(errno.ENOSPC)

    def _parent(self, node: Written) -> Written:
        parent = self._tree.nodes[node.parent]
        return parent if isinstance(parent, Written) else self.root

    def _path(self, node: Written) -> Path:
        names = []
        while node is not self.root:
            names.append(os.fsdecode(node.name))
            node = self._parent(node)
        return Path(*reversed(names))

    def _info(self, node: Written) -> os.stat_result:
        if node.descriptor is not None:
            return os.fstat(node.descriptor.number)
        if node is self.root:
            return os.fstat(self.kept.folder.number)
        with self._opened(self._parent(node)) as folder:
            return os.stat(node.name, dir_fd=folder, follow_symlinks=False)

    @contextlib.contextmanager
    def _opened(self, folder: Written) -> Iterator[int]:
        """A folder's descriptor, without following links."""
        fd = linux.open_unlinked(self._path(folder), _FOLDER, self.kept.folder.number)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _open_for(self, node: Written, flags: int) -> Iterator[int]:
        """The real file or folder of a node, for a moment."""
        if node.descriptor is not None:
            yield node.descriptor.number
            return
        fd = linux.open_unlinked(self._path(node), flags, self.kept.folder.number)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _kept_open(self, node: Written | None) -> Iterator[None]:
        """Have a file open while its name goes, so that its bytes can be given back afterwards."""
        if node is None or node.is_dir:
            yield
            return
        self.open(node)
        try:
            yield
        finally:
            self.released(node)


def _refuse(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))
