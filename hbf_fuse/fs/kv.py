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
from collections.abc import Callable, Iterator

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.kv_files import OFFSET_BITS, KvFolder, RealFiles, Written, refuse
from hbf_fuse.fs.node import Node
from hbf_fuse.fs.tree import Tree
from hbf_fuse.host.linux import Descriptor
from hbf_fuse.units import format_size

NAME = b"kv"
MAX_FILES = 1 << 20
_FIRST_NUMBER = 16
"""Of addresses: below lie the offsets of served files, which have up to 2^44 bytes (fs/tree.py)."""

RENAME_NOREPLACE = 1


class Region:
    """kv/ in a tree. Safe for concurrent callers.

    unit, trimmed: see RealFiles. HbfError if the tree has another kv/, or the folder holds more than it may.
    """

    def __init__(self, tree: Tree, kept: KvFolder, unit: int, trimmed: Callable[[int, int], None]) -> None:
        self.real = RealFiles(tree, kept, unit, trimmed)
        self.files = 0
        self._tree, self._lock = tree, self.real.lock
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
                refuse(errno.ENOSPC)
            with self.real.folder(parent) as folder:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, mode & 0o777 | 0o600, dir_fd=folder))
            return self._add(parent, name, stat.S_IFREG | mode & 0o777)

    def make_folder(self, parent: Written, name: bytes, mode: int) -> Written:
        """A new folder. OSError as `create`."""
        with self._lock:
            self._check_new(parent, name)
            with self.real.folder(parent) as folder:
                os.mkdir(name, mode & 0o777 | 0o700, dir_fd=folder)
            return self._add(parent, name, stat.S_IFDIR | mode & 0o777)

    def remove(self, parent: Written, name: bytes) -> None:
        """Remove a file's name. Its bytes go with its last handle. OSError ENOENT, EISDIR."""
        with self._lock:
            node = self._child(parent, name)
            if node.is_dir:
                refuse(errno.EISDIR)
            with self._kept_open(node), self.real.folder(parent) as folder:
                os.unlink(name, dir_fd=folder)
                self._forget(node)

    def remove_folder(self, parent: Written, name: bytes) -> None:
        """OSError ENOENT, ENOTDIR, ENOTEMPTY."""
        with self._lock:
            node = self._child(parent, name)
            if not node.is_dir or node.children:
                refuse(errno.ENOTEMPTY if node.is_dir else errno.ENOTDIR)
            with self.real.folder(parent) as folder:
                os.rmdir(name, dir_fd=folder)
            self._forget(node)

    def rename(self, parent: Written, name: bytes, to: Written, new: bytes, flags: int = 0) -> None:
        """Give a file or a folder another name. What had that name is gone, as rename(2) says. OSError EEXIST
        with RENAME_NOREPLACE, EINVAL for other flags.
        """
        with self._lock:
            node, before = self._child(parent, name), to.children.get(new)
            if flags & ~RENAME_NOREPLACE:
                refuse(errno.EINVAL)
            if before is not None and flags:
                refuse(errno.EEXIST)
            if before is node:
                return
            replaced = before if isinstance(before, Written) else None
            with (
                self._kept_open(replaced),
                self.real.folder(parent) as folder,
                self.real.folder(to) as other,
            ):
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=other)
                if replaced:
                    self._forget(replaced)
            del parent.children[name]
            node.parent, node.name = to.ino, new
            to.children[new] = node

    # Handles

    def open(self, node: Written) -> Descriptor:
        """The real file for one more handle."""
        with self._lock:
            if node.descriptor is None:
                with self.real.opened(node, os.O_RDWR) as fd:
                    node.descriptor = Descriptor(os.dup(fd))
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
        with self.real.opened(parent, os.O_RDONLY | os.O_DIRECTORY) as fd, os.scandir(fd) as entries:
            found = [(os.fsencode(entry.name), entry.stat(follow_symlinks=False)) for entry in entries]
        for name, info in sorted(found):
            if stat.S_ISDIR(info.st_mode):
                self._scan(self._add(parent, name, info.st_mode))
            elif stat.S_ISREG(info.st_mode):
                node = self._add(parent, name, info.st_mode)
                node.size = info.st_size
                if info.st_size >> OFFSET_BITS or not self.real.room.grow(0, info.st_size):
                    raise HbfError(
                        f"the folder of kv/ holds more than {format_size(self.real.room.size)}",
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
        self.real.free(node)
        heapq.heappush(self._unused, node.number)
        self.files -= 1
        self._tree.nodes.pop(node.ino, None)

    def _child(self, parent: Written, name: bytes) -> Written:
        node = parent.children.get(name)
        if not isinstance(node, Written):
            refuse(errno.ENOENT)
        return node

    def _check_new(self, parent: Written, name: bytes) -> None:
        if name in parent.children:
            refuse(errno.EEXIST)

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
