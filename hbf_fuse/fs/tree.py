"""The served names: a snapshot of a file or a directory, taken once, so that inodes and times never move.

A single file appears under its own name and as `model.gguf`; a directory appears as it is, plus
`model.gguf` for its first GGUF. `.hbf/` can be opened by name but is not listed, as ZFS does with `.zfs`.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hbf_fuse import linux
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.backing import identity
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
            self._scan(source, self.root)
            self._alias_first_gguf()
        elif stat.S_ISREG(info.st_mode):
            self._add_single_file(source)
        else:
            raise HbfError(f"{source} is neither a file nor a directory; name a GGUF or a directory of them")
        self._add_hidden(hidden_names, writable)

    def files(self) -> Iterator[Node]:
        """Every regular file that has a source."""
        return (node for node in self.nodes.values() if node.source is not None)

    def doubt(self) -> str:
        """Why llama.cpp would load nothing of what is served, or "". Looks into a source that is one file."""
        if not self._source.is_dir():
            with contextlib.suppress(OSError):
                if not _is_gguf(self._source):
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

    def _add_file(self, source: Path, parent: Node, name: bytes) -> Node:
        info = source.stat()
        if not os.access(source, os.R_OK):
            raise HbfError(f"cannot read {source}: Permission denied; make it readable or run as its owner")
        node = self._add(stat.S_IFREG | (stat.S_IMODE(info.st_mode) & 0o444), parent.ino, name)
        if info.st_size > MAX_FILE_BYTES:
            raise HbfError(
                f"{source} has {format_size(info.st_size)}; "
                f"at most {format_size(MAX_FILE_BYTES)} can be served"
            )
        node.size, node.mtime_ns, node.identity = info.st_size, info.st_mtime_ns, identity(info)
        node.uid, node.gid, node.source = info.st_uid, info.st_gid, source
        return node

    def _add_link(self, parent: Node, name: bytes, target: bytes) -> None:
        node = self._add(stat.S_IFLNK | 0o777, parent.ino, name)
        node.size, node.target = len(target), target

    def _add_single_file(self, source: Path) -> None:
        self._add_file(source, self.root, ALIAS)
        if os.fsencode(source.name) != ALIAS:
            self._add_link(self.root, os.fsencode(source.name), ALIAS)

    def _scan(self, folder: Path, parent: Node, depth: int = 1) -> None:
        if depth > MAX_DEPTH:
            raise HbfError(
                f"{folder} is nested more than {MAX_DEPTH} folders deep; mount a smaller directory"
            )
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name, path = os.fsencode(entry.name), Path(entry.path)
            if parent is self.root and name == HIDDEN:
                continue
            if entry.is_symlink():
                self._add_link(parent, name, os.fsencode(path.readlink()))
            elif entry.is_dir():
                info = entry.stat()
                child = self._add(stat.S_IFDIR | (stat.S_IMODE(info.st_mode) & 0o555), parent.ino, name)
                child.mtime_ns, child.uid, child.gid = info.st_mtime_ns, info.st_uid, info.st_gid
                self._scan(path, child, depth + 1)
            elif entry.is_file():
                self._add_file(path, parent, name)
        if parent is self.root and not parent.children:
            raise HbfError(f"{folder} is empty; put a GGUF into it, or make one: hbf model make tiny -o FILE")

    def _alias_first_gguf(self) -> None:
        if ALIAS in self.root.children:
            return
        for node in self.files():
            if node.source is not None and _is_gguf(node.source):
                self._add_link(self.root, ALIAS, os.fsencode(self.path_of(node)))
                return

    def _add_hidden(self, names: tuple[bytes, ...], writable: bytes) -> None:
        folder = self._add(stat.S_IFDIR | 0o500, ROOT, HIDDEN)
        folder.uid, folder.gid, folder.listed = os.getuid(), os.getgid(), False
        for name in names:
            node = self._add(stat.S_IFREG | (0o600 if name == writable else 0o400), folder.ino, name)
            node.uid, node.gid = os.getuid(), os.getgid()


def _is_gguf(path: Path) -> bool:
    with open(path, "rb", opener=_without_waiting) as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def _without_waiting(path: str, flags: int) -> int:
    """Also of a pipe that was put there a moment ago: it would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)
