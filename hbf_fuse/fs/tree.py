"""The served names: a snapshot of a file or a directory, taken once, so that inodes and times never move.

A single file appears under its own name and as `model.gguf`; a directory appears as it is, plus
`model.gguf` for its first GGUF. `.hbf/` can be opened by name but is not listed, as ZFS does with `.zfs`.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.units import format_size

ROOT = 1
ALIAS = b"model.gguf"
HIDDEN = b".hbf"
MAX_NODES = 100_000
MAX_DEPTH = 200
MAX_FILE_BYTES = 1 << 44
"""16 TiB, as ext4 has it: what is kept of each page takes 4 GiB then."""

GGUF_MAGIC = b"GGUF"


@dataclass(slots=True, eq=False)
class Node:
    """One inode. `source` is the real file behind a regular file, its path without links, and `identity` what
    that is recognised by; hidden files have none.
    """

    ino: int
    parent: int
    mode: int
    name: bytes = b""
    size: int = 0
    bytes_on_disk: int = 0
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0
    source: Path | None = None
    identity: tuple[int, ...] = ()
    target: bytes = b""
    listed: bool = True
    children: dict[bytes, "Node"] = field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Tree:
    """All nodes by inode number and by name. hidden_names: what `.hbf/` holds; writable: the one of them
    that its owner may write.

    Raises HbfError if the source cannot be served: missing, unreadable, neither file nor directory, empty
    directory, more than MAX_NODES names.
    """

    def __init__(self, source: Path, hidden_names: tuple[bytes, ...], writable: bytes = b"") -> None:
        self.nodes: dict[int, Node] = {}
        self._source = source = linux.without_links(source)
        try:
            info = source.stat()
            self._base = source if stat.S_ISDIR(info.st_mode) else source.parent
            # Held: an automounter takes away what is not in use, and brings it back as another device.
            self._held = linux.Descriptor(os.open(self._base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise HbfError(
                f"cannot read {source}: {error.strerror}; name an existing GGUF or directory"
            ) from error
        root_info = info if stat.S_ISDIR(info.st_mode) else None
        self.root = self._add(
            stat.S_IFDIR | (stat.S_IMODE(info.st_mode) & 0o555 if root_info else 0o555), ROOT
        )
        self.root.uid, self.root.gid = info.st_uid, info.st_gid
        self.root.mtime_ns = info.st_mtime_ns
        if stat.S_ISDIR(info.st_mode):
            self._scan(self._held.number, ".", self.root)
            self._alias_first_gguf()
        elif stat.S_ISREG(info.st_mode):
            self._add_single_file(info)
        else:
            raise HbfError(f"{source} is neither a file nor a directory; name a GGUF or a directory of them")
        self._add_hidden(hidden_names, writable)

    def files(self) -> Iterator[Node]:
        """Every regular file that has a source."""
        return (node for node in self.nodes.values() if node.source is not None)

    def open(self, node: Node, flags: int = 0) -> int:
        """Open what is behind a regular file. OSError: the source's own errno, ELOOP if a link was put in its
        way, or ESTALE if it is no longer the file that was mounted.
        """
        if node.source is None:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        is_own = linux.is_own_descriptor(node.source)
        path = node.source if is_own else node.source.relative_to(self._base)
        fd = linux.open_unlinked(path, linux.READ | flags, self._held.number)
        if _identity(os.fstat(fd)) == node.identity:
            return fd
        os.close(fd)
        raise OSError(errno.ESTALE, "source changed since it was mounted", str(node.source))

    def doubt(self) -> str:
        """Why llama.cpp would load nothing of what is served, or "". Looks into a source that is one file."""
        if self._base != self._source:
            node = next(self.files())
            with contextlib.suppress(OSError):
                if not self._is_gguf(node):
                    return f"{self._source} is no GGUF: llama.cpp will not load it"
            return ""
        # Links are not followed, and may lead to one.
        if any(node.target or (node.source and node.name.endswith(b".gguf")) for node in self.nodes.values()):
            return ""
        return f"{self._source} holds no GGUF: llama.cpp will find nothing to load"

    def path_of(self, node: Node) -> str:
        """The node's path inside the mount, without a leading slash."""
        if node is self.root:
            return ""
        parent, name = self.nodes[node.parent], os.fsdecode(node.name)
        return name if parent is self.root else f"{self.path_of(parent)}/{name}"

    def _add(self, mode: int, parent: int, name: bytes = b"") -> Node:
        if len(self.nodes) >= MAX_NODES:
            raise HbfError(f"the source holds more than {MAX_NODES} names; mount a smaller directory")
        node = Node(ino=len(self.nodes) + 1, parent=parent, mode=mode, name=name, mtime_ns=time.time_ns())
        self.nodes[node.ino] = node
        if name:
            self.nodes[parent].children[name] = node
        return node

    def _add_file(self, source: Path, info: os.stat_result, parent: Node, name: bytes) -> Node:
        node = self._add(stat.S_IFREG | (stat.S_IMODE(info.st_mode) & 0o444), parent.ino, name)
        if info.st_size > MAX_FILE_BYTES:
            raise HbfError(
                f"{source} has {format_size(info.st_size)}; "
                f"at most {format_size(MAX_FILE_BYTES)} can be served"
            )
        node.size, node.mtime_ns, node.identity = info.st_size, info.st_mtime_ns, _identity(info)
        node.bytes_on_disk = info.st_blocks * 512
        node.uid, node.gid, node.source = info.st_uid, info.st_gid, source
        try:
            os.close(self.open(node))
        except PermissionError as error:
            raise HbfError(
                f"cannot read {source}: {error.strerror}; make it readable or run as its owner"
            ) from error
        except OSError:
            # It is being written or exchanged: who opens it later is told.
            pass
        return node

    def _add_link(self, parent: Node, name: bytes, target: bytes) -> None:
        node = self._add(stat.S_IFLNK | 0o777, parent.ino, name)
        node.size, node.target = len(target), target

    def _add_single_file(self, info: os.stat_result) -> None:
        self._add_file(self._source, info, self.root, ALIAS)
        if os.fsencode(self._source.name) != ALIAS:
            self._add_link(self.root, os.fsencode(self._source.name), ALIAS)

    def _scan(self, folder: int, name: str, parent: Node, depth: int = 1) -> None:
        """folder: what `name` is in, open."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            self._scan_open(fd, parent, depth)
        finally:
            os.close(fd)

    def _scan_open(self, folder: int, parent: Node, depth: int) -> None:
        path = self._base / self.path_of(parent)
        if depth > MAX_DEPTH:
            raise HbfError(f"{path} is nested more than {MAX_DEPTH} folders deep; mount a smaller directory")
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name, info = os.fsencode(entry.name), entry.stat(follow_symlinks=False)
            if parent is self.root and name == HIDDEN:
                continue
            if stat.S_ISLNK(info.st_mode):
                self._add_link(parent, name, os.readlink(name, dir_fd=folder))
            elif stat.S_ISDIR(info.st_mode):
                child = self._add(stat.S_IFDIR | (stat.S_IMODE(info.st_mode) & 0o555), parent.ino, name)
                child.mtime_ns, child.uid, child.gid = info.st_mtime_ns, info.st_uid, info.st_gid
                self._scan(folder, entry.name, child, depth + 1)
            elif stat.S_ISREG(info.st_mode):
                self._add_file(path / entry.name, info, parent, name)
        if parent is self.root and not parent.children:
            raise HbfError(f"{path} is empty; put a GGUF into it, or make one: hbf model make tiny -o FILE")

    def _alias_first_gguf(self) -> None:
        if ALIAS in self.root.children:
            return
        for node in self.files():
            if self._is_gguf(node):
                self._add_link(self.root, ALIAS, os.fsencode(self.path_of(node)))
                return

    def _add_hidden(self, names: tuple[bytes, ...], writable: bytes) -> None:
        folder = self._add(stat.S_IFDIR | 0o500, ROOT, HIDDEN)
        folder.uid, folder.gid, folder.listed = os.getuid(), os.getgid(), False
        for name in names:
            node = self._add(stat.S_IFREG | (0o600 if name == writable else 0o400), folder.ino, name)
            node.uid, node.gid = os.getuid(), os.getgid()

    def _is_gguf(self, node: Node) -> bool:
        with open(self.open(node), "rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def _identity(info: os.stat_result) -> tuple[int, ...]:
    """What a file is recognised by: device, inode, type, size and time of change of its content."""
    return info.st_dev, info.st_ino, stat.S_IFMT(info.st_mode), info.st_size, info.st_mtime_ns
