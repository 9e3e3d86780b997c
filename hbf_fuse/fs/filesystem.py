"""The filesystem object that engines serve: names, attributes, open files.

Errors are OSError with the errno that the caller should see. Everything is read-only but kv/, and there is
none unless it is asked for.
"""

import errno
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from hbf_fuse.fs import hidden
from hbf_fuse.fs.backing import Backing, Kept, Mapped, Uncached
from hbf_fuse.fs.hidden import Hidden
from hbf_fuse.fs.kv import MAX_FILES, Region
from hbf_fuse.fs.kv_files import KvFolder, Written
from hbf_fuse.fs.links import TIER
from hbf_fuse.fs.node import Node
from hbf_fuse.fs.placement import Layout
from hbf_fuse.fs.served import Served
from hbf_fuse.fs.tree import Tree
from hbf_fuse.observe.bounds import DIRECT, WRITES
from hbf_fuse.pacing.serving import Read
from hbf_fuse.tier import TierSpec

NO_LAYOUT = Layout()
NAME_MAX = 255
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND

BLOCK = 4096
_FREE_BLOCKS = 1 << 38
"""1 PiB, as mounts of object stores tell."""
_FREE_NAMES = 1 << 30


class Space(NamedTuple):
    """Blocks of BLOCK bytes, and names: all, and those that are free."""

    blocks: int
    free_blocks: int
    names: int
    free_names: int


class OpenFile:
    """An open handle: its node and where its bytes come from. `live` bytes do not pass the tier.

    direct: whether it was opened for reads past the page cache.
    """

    __slots__ = ("backing", "direct", "live", "node")

    def __init__(self, node: Node, backing: Backing | None, live: memoryview | None, direct: bool) -> None:
        self.node = node
        self.backing = backing
        self.live = live
        self.direct = direct


class Filesystem:
    """A tree of files served through tiers.

    layout: which bytes are in which tier; all in the one tier if left out. uncached: read the source from its
    disk each time, never from the page cache. links, shared: see Tree. kv: where the files of kv/ are, if
    there is one. Raises HbfError if the source cannot be served; see Tree, Served and Region.
    """

    def __init__(
        self,
        source: Path,
        spec: TierSpec,
        layout: Layout = NO_LAYOUT,
        *,
        uncached: bool = False,
        links: str = TIER,
        shared: bool = False,
        kv: KvFolder | None = None,
    ) -> None:
        self.source = source
        self._uncached = uncached
        self.tree = Tree(source, hidden.NAMES, hidden.CONTROL, links, shared)
        self.served = Served(self.tree, spec, layout, kv.size if kv else 0)
        unit = spec.page_bytes if spec.t_prog_us else BLOCK
        self.kv = Region(self.tree, kv, unit, self.served.pacer.trim) if kv else None
        self.hidden = Hidden(self.served)
        self.hidden.kv = self.kv
        self._open: dict[int, OpenFile] = {}
        self._listed: dict[int, list[tuple[bytes, Node]]] = {}
        self._backings: dict[int, tuple[Backing, int]] = {}
        self._handles = itertools.count(1)
        self._lock = threading.Lock()

    # Names and attributes

    def node(self, ino: int) -> Node:
        """The node with an inode number. OSError ENOENT if there is none."""
        node = self.tree.nodes.get(ino)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._refreshed(node)

    def _refreshed(self, node: Node) -> Node:
        if self.kv is not None and isinstance(node, Written):
            self.kv.real.refresh(node)
        return node

    def changing(self, ino: int) -> tuple[Region, Written]:
        """The node with an inode number, which may be changed. OSError EROFS if it may not."""
        node = self.node(ino)
        if self.kv is None or not isinstance(node, Written):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self.kv, node

    def lookup(self, parent: int, name: bytes) -> Node:
        """The child of a directory by name. OSError ENOENT if there is none, ENOTDIR, ENAMETOOLONG."""
        folder = self.node(parent)
        if not folder.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        child = folder.children.get(name)
        if child is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._refreshed(child)

    def target(self, ino: int) -> bytes:
        """Where a symbolic link points. OSError EINVAL for anything but a link."""
        node = self.node(ino)
        if not node.target:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return node.target

    def open_folder(self, ino: int) -> int:
        """A handle for listing a directory. In kv/ it keeps the names of now; elsewhere it is 0."""
        folder = self.node(ino)
        if not isinstance(folder, Written):
            return 0
        handle = next(self._handles)
        self._listed[handle] = list(folder.children.items())
        return handle

    def release_folder(self, handle: int) -> None:
        """Forget a handle for listing."""
        self._listed.pop(handle, None)

    def listing(self, ino: int, begin: int = 0, handle: int = 0) -> Iterator[tuple[int, bytes, Node]]:
        """Names in a directory from a place on, with the place of the next one and their nodes, in a stable
        order: first `.` and `..`. handle: see open_folder.
        """
        folder = self.node(ino)
        children: Iterable[tuple[bytes, Node]] = folder.children.items()
        if isinstance(folder, Written):
            children = self._listed.get(handle) or list(children)
        names = itertools.chain([(b".", folder), (b"..", self.node(folder.parent))], children)
        # More than there can be, for islice, which takes no number of any size.
        begin = min(begin, MAX_FILES + 2)
        # islice: a large directory is listed in many pieces, and each begins with skipping those before.
        for place, (name, child) in enumerate(itertools.islice(names, begin, None), begin + 1):
            if child.listed:
                yield place, name, child

    def is_live(self, node: Node) -> bool:
        """Whether a file's content is made when it is opened. Nothing of it may be cached."""
        return not node.is_dir and node.folder is None and not node.target and not isinstance(node, Written)

    def is_written(self, node: Node) -> bool:
        """Whether a file or folder is in kv/."""
        return isinstance(node, Written)

    def is_control(self, node: Node) -> bool:
        """Whether this is `.hbf/control`."""
        return node.name == hidden.CONTROL and self.is_live(node)

    def refuse_write(self) -> None:
        """Raises EROFS: every attempt to change the tree ends here."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def space(self, node: Node) -> Space:
        """What statfs tells. In kv/, its own. Elsewhere, used: what is served; free: so much that nobody
        takes a mount for a full disk. Only the flag "read-only" could say that nothing can be written there,
        and it would close .hbf/control, too.
        """
        if self.kv is not None and isinstance(node, Written):
            room, files = self.kv.real.room, self.kv.files
            return Space(room.size // BLOCK, (room.size - room.used) // BLOCK, MAX_FILES, MAX_FILES - files)
        used = -(-sum(node.size for node in self.served.files) // BLOCK)
        return Space(used + _FREE_BLOCKS, _FREE_BLOCKS, len(self.tree.nodes) + _FREE_NAMES, _FREE_NAMES)

    # Reading

    def open(self, ino: int, flags: int) -> int:
        """A handle for reading, in kv/ for writing, too. OSError: EROFS for a writing flag, ESTALE if the
        source was replaced, EISDIR or ELOOP for a directory or a link.
        """
        node = self.node(ino)
        if node.is_dir or node.target:
            code = errno.EISDIR if node.is_dir else errno.ELOOP
            raise OSError(code, os.strerror(code))
        if flags & _WRITING and not self.is_written(node) and not self.is_control(node):
            self.refuse_write()
        if self.kv is not None and isinstance(node, Written):
            opened = OpenFile(node, Kept(self.kv.open(node)), None, bool(flags & os.O_DIRECT))
        elif node.folder is None:
            opened = OpenFile(node, None, memoryview(self.hidden.content(node.name)), direct=True)
        else:
            opened = OpenFile(node, self._backing(node), None, bool(flags & os.O_DIRECT))
        handle = next(self._handles)
        self._open[handle] = opened
        return handle

    def _backing(self, node: Node) -> Backing:
        """A file's bytes for one more user. Opens the source each time, to check it even if others have it
        open.
        """
        # Not under the lock: a hanging disk must not block other files.
        fd = self.tree.open(node, os.O_DIRECT if self._uncached else 0)
        fresh: Backing = Uncached(fd) if self._uncached else Mapped(fd)
        with self._lock:
            backing, users = self._backings.get(node.ino, (fresh, 0))
            self._backings[node.ino] = (backing, users + 1)
        return backing

    def take(self, opened: OpenFile, data: bytes) -> None:
        """Take a message to the mount: one write. OSError as Hidden.take, EROFS for any other file."""
        if not self.is_control(opened.node):
            self.refuse_write()
        self.hidden.take(data)

    def store(
        self,
        opened: OpenFile,
        offset: int,
        data: bytes | memoryview,
        writer: int,
        arrival_ns: int,
        direct: bool | None = None,
    ) -> Read | None:
        """Store data in a file of kv/. Returns the write through the tier, which is not served yet; None for
        any other file. OSError as Region.store. direct: as in `read`.
        """
        if self.kv is None or not isinstance(opened.node, Written) or opened.backing is None:
            return None
        stored = self.kv.real.store(opened.backing.fd, offset, data)
        way = WRITES | self._way(opened, direct)
        place = self.served.place(opened.node)
        return Read(place, offset, stored, writer, way, arrival_ns, opened.node.base)

    def release(self, handle: int) -> None:
        """Forget a handle. The source is unmapped with its last handle."""
        with self._lock:
            opened = self._open.pop(handle, None)
            if opened is None or opened.backing is None:
                return
            if self.kv is not None and isinstance(opened.node, Written):
                self.kv.released(opened.node)
                return
            backing, users = self._backings.pop(opened.node.ino)
            if users > 1:
                self._backings[opened.node.ino] = (backing, users - 1)

    def opened(self, handle: int) -> OpenFile:
        """The open file of a handle. OSError EBADF if there is none."""
        opened = self._open.get(handle)
        if opened is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return opened

    def read(
        self,
        opened: OpenFile,
        offset: int,
        nbytes: int,
        reader: int,
        arrival_ns: int,
        direct: bool | None = None,
    ) -> Read:
        """A read through the tier, limited to the bytes that the file has. It is not served yet. Only for
        handles with a backing.

        reader: the id of the thread that waits for it. arrival_ns: CLOCK_MONOTONIC. direct: whether the read
        goes past the page cache; None if the engine only knows how the file was opened.
        """
        node, base = self._refreshed(opened.node), 0
        if isinstance(node, Written):
            base = node.base
        size = max(0, min(nbytes, node.size - offset))
        place = self.served.place(node)
        return Read(place, offset, size, reader, self._way(opened, direct), arrival_ns, base)

    def _way(self, opened: OpenFile, direct: bool | None) -> int:
        return DIRECT if (opened.direct if direct is None else direct) else 0
