"""The served names: a snapshot of a file or a directory, taken once, so that inodes and times never change.

A single file appears under its own name and as `model.gguf`; a directory appears as it is, plus `model.gguf`
for its largest model. A part of a split model brings its siblings, and there is no `model.gguf`: llama.cpp
finds siblings by name. A link that leads outside appears as a file, under the link's name. `.hbf/` can be
opened by name but is not listed, as ZFS does with `.zfs`.
"""

import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.folder import strangers_link
from hbf_fuse.fs import contents, links
from hbf_fuse.fs.links import KEEP, TIER, Lead
from hbf_fuse.fs.node import ROOT, Node
from hbf_fuse.gguf import kinds
from hbf_fuse.host import linux
from hbf_fuse.models import split
from hbf_fuse.units import format_size

ALIAS = b"model.gguf"
HIDDEN = b".hbf"
MAX_NODES = 200_000
MAX_DEPTH = 200
MAX_FILE_BYTES = 1 << 44
"""16 TiB, as in ext4."""


class Tree:
    """All nodes by inode number and by name. hidden_names: the files in `.hbf/`; writable: the one that its
    owner may write. way: what becomes of links that lead outside, see links.py. shared: other users will read
    it, so no link of theirs may choose a file.

    Raises HbfError if the source cannot be served: missing, unreadable, neither file nor directory, empty
    directory, more than MAX_NODES names.
    """

    def __init__(
        self,
        source: Path,
        hidden_names: tuple[bytes, ...],
        writable: bytes = b"",
        way: str = TIER,
        shared: bool = False,
    ) -> None:
        self.nodes: dict[int, Node] = {}
        self.remark = ""
        """On links that are left out, or that bypass the tier; "" if there are none."""
        self._inodes = itertools.count(ROOT)
        self._way, self._shared = way, shared
        self._leads: dict[int, Lead] = {}
        self._ways: dict[Path, tuple[Path, int | None]] = {}
        try:
            self.source = source = linux.located(source)
            info = source.stat()
            self._base = source if stat.S_ISDIR(info.st_mode) else source.parent
            # Held open: an automounter unmounts an unused file system and mounts it again as another device.
            self._held = linux.Descriptor(os.open(self._base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            self._held_devices = {os.fstat(self._held.number).st_dev: self._held}
        except OSError as error:
            raise HbfError(
                f"cannot read {source}: {error.strerror}", "name an existing GGUF or directory"
            ) from error
        root_info = info if stat.S_ISDIR(info.st_mode) else None
        self.root = self._add(
            stat.S_IFDIR | (stat.S_IMODE(info.st_mode) & 0o555 if root_info else 0o555), ROOT
        )
        self.root.uid, self.root.gid = info.st_uid, info.st_gid
        self.root.mtime_ns = info.st_mtime_ns
        if stat.S_ISDIR(info.st_mode):
            self._scan(self._held.number, ".", self.root)
            self._settle_links()
            self._contents = contents.look(self.files(), self.open)
            self._alias_model()
        elif stat.S_ISREG(info.st_mode):
            self._add_single_file()
        else:
            raise HbfError(
                f"{source} is neither a file nor a directory", "name a GGUF or a directory of them"
            )
        self._add_hidden(hidden_names, writable)

    def files(self) -> Iterator[Node]:
        """Every regular file that has a source."""
        return (node for node in self.nodes.values() if node.folder is not None)

    def sets(self, files: Sequence[Node]) -> list[list[int]]:
        """Split models among these files: for each the places of its parts, in order."""
        by_folder: dict[int, list[int]] = {}
        for place, node in enumerate(files):
            by_folder.setdefault(node.parent, []).append(place)
        return [
            [places[part] for part in parts]
            for places in by_folder.values()
            for parts in split.sets([os.fsdecode(files[place].name) for place in places])
        ]

    def open(self, node: Node, flags: int = 0) -> int:
        """Open the source of a regular file. OSError: the source's own errno, ELOOP if a link has replaced a
        part of its path, or ESTALE if it is no longer the file that was mounted.
        """
        if node.folder is None:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder, below = self._way_to(node.folder)
        fd = linux.open_unlinked(folder / node.file, linux.READ | flags, below)
        if _identity(os.fstat(fd)) == node.identity:
            return fd
        os.close(fd)
        raise OSError(errno.ESTALE, "source changed since it was mounted", str(node.source))

    def _way_to(self, folder: Path) -> tuple[Path, int | None]:
        """How a folder of sources is opened: its path, and the descriptor that this is relative to."""
        way = self._ways.get(folder)
        if way is None:
            outside = folder == linux.OWN_DESCRIPTORS or not folder.is_relative_to(self._base)
            way = (folder, None) if outside else (folder.relative_to(self._base), self._held.number)
            self._ways[folder] = way
        return way

    def doubt(self) -> str:
        """What is to be told about what is served: why llama.cpp would not load it, or which of several
        models is model.gguf; else "". Reads the header of a source that is one file.
        """
        if self._base == self.source:
            has_gguf = any(node.name.endswith(b".gguf") for node in self.nodes.values())
            return contents.doubt_of_folder(self.source, self._contents, self.path_of, has_gguf)
        files = list(self.files())
        for node in files:
            name = self.source.name if node.name == ALIAS else os.fsdecode(node.name)
            with contextlib.suppress(OSError):
                path, is_part = self.source.with_name(name), len(files) > 1
                if reason := kinds.defect(path, self.open(node), is_part):
                    return f"{reason}: llama.cpp will not load it"
        return ""

    def path_of(self, node: Node) -> str:
        """The node's path inside the mount, without a leading slash."""
        if node is self.root:
            return ""
        parent, name = self.nodes[node.parent], os.fsdecode(node.name)
        return name if parent is self.root else f"{self.path_of(parent)}/{name}"

    def next_inode(self) -> int:
        """A number that no node had before."""
        return next(self._inodes)

    def _add(self, mode: int, parent: int, name: bytes = b"") -> Node:
        if len(self.nodes) >= MAX_NODES:
            raise HbfError(f"the source holds more than {MAX_NODES} names", "mount a smaller directory")
        node = Node(self.next_inode(), parent, mode, name, mtime_ns=time.time_ns())
        self.nodes[node.ino] = node
        if name:
            self.nodes[parent].children[name] = node
        return node

    def _add_file(
        self,
        folder: Path,
        file: str,
        info: os.stat_result,
        name: bytes,
        parent: Node,
        below: int | None = None,
    ) -> None:
        """Add a file of a folder under a name. below: the folder, if it is open."""
        node = self._add(stat.S_IFREG, parent.ino, name)
        self._fill(node, folder, file, info)
        try:
            if below is None:
                os.close(self.open(node))
            else:
                os.close(os.open(file, linux.READ | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=below))
        except PermissionError as error:
            raise HbfError(
                f"cannot read {node.source}: {error.strerror}", "make it readable or run as its owner"
            ) from error
        except OSError:
            # It is being written or replaced. Opening it later reports the error.
            pass

    def _fill(self, node: Node, folder: Path, file: str, info: os.stat_result) -> None:
        """Make a node that of a real file."""
        if info.st_size > MAX_FILE_BYTES:
            raise HbfError(
                f"{folder / file} has {format_size(info.st_size)}",
                f"at most {format_size(MAX_FILE_BYTES)} can be served",
            )
        node.mode, node.target = stat.S_IFREG | (stat.S_IMODE(info.st_mode) & 0o444), b""
        node.size, node.mtime_ns, node.identity = info.st_size, info.st_mtime_ns, _identity(info)
        node.bytes_on_disk = info.st_blocks * 512
        node.uid, node.gid, node.folder, node.file = info.st_uid, info.st_gid, folder, file

    def _add_link(self, parent: Node, name: bytes, target: bytes) -> Node:
        node = self._add(stat.S_IFLNK | 0o777, parent.ino, name)
        node.size, node.target = len(target), target
        return node

    def _add_single_file(self) -> None:
        if split.part_name(self.source.name):
            for part in split.parts_of(self.source):
                self._add_named(part, os.fsencode(part.name))
            return
        self._add_named(self.source, ALIAS)
        if os.fsencode(self.source.name) != ALIAS:
            self._add_link(self.root, os.fsencode(self.source.name), ALIAS)

    def _add_named(self, path: Path, name: bytes) -> None:
        """Add a file that a person named. It may be a link, which it is no longer in the mount."""
        if linux.is_own_descriptor(path):
            self._add_file(path.parent, path.name, path.stat(), name, self.root)
            return
        lead = links.lead(path.name, self._held.number, self._shared)
        if lead.path is None or lead.info is None:
            if lead.lost == links.STRANGERS:
                raise strangers_link(path)
            raise HbfError(f"cannot read {path}: it leads {lead.lost}", "name an existing GGUF or directory")
        self._hold(lead)
        self._add_file(lead.path.parent, lead.path.name, lead.info, name, self.root)

    def _hold(self, lead: Lead) -> None:
        """Keep a file system in use that the served folder is not on: see _held."""
        if lead.info and lead.path and lead.info.st_dev not in self._held_devices:
            with contextlib.suppress(OSError):
                held = os.open(lead.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                self._held_devices[lead.info.st_dev] = linux.Descriptor(held)

    def _settle_links(self) -> None:
        """Make links that lead outside files, or leave them out. `remark` says what became of them."""
        outside = [
            node for node in self.nodes.values() if node.target and not links.stays_inside(self.nodes, node)
        ]
        if self._way == KEEP:
            self.remark = links.bypassing([self.path_of(node) for node in outside])
            return
        lost = []
        for node in outside:
            path, lead = self.path_of(node), self._leads[node.ino]
            where = lead.lost or self._followed(node, lead)
            if where:
                lost.append((path, where))
                del self.nodes[node.ino]
                del self.nodes[node.parent].children[node.name]
        self._leads.clear()
        self.remark = links.told(lost)
        if not self.root.children:
            raise HbfError(f"{self.source} holds nothing that can be served: {self.remark}", "see --links")

    def _followed(self, node: Node, lead: Lead) -> str:
        """Make a link a file; returns why it cannot be one, or ""."""
        if lead.path is None or lead.info is None:
            return lead.lost
        self._hold(lead)
        self._fill(node, lead.path.parent, lead.path.name, lead.info)
        try:
            with open(self.open(node), "rb", buffering=0) as file:
                # A file of /proc says that it is empty, and is not.
                return "" if node.size or not file.read(1) else links.SIZELESS
        except PermissionError:
            return links.CLOSED
        except OSError:
            return links.NOTHING

    def _scan(self, folder: int, name: str, parent: Node, depth: int = 1) -> None:
        """Add a folder's content. folder: descriptor of the folder that contains `name`."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            self._scan_open(fd, parent, depth)
        finally:
            os.close(fd)

    def _scan_open(self, folder: int, parent: Node, depth: int) -> None:
        path = self._base / self.path_of(parent)
        if depth > MAX_DEPTH:
            raise HbfError(
                f"{path} is nested more than {MAX_DEPTH} folders deep", "mount a smaller directory"
            )
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name, info = os.fsencode(entry.name), entry.stat(follow_symlinks=False)
            if parent is self.root and name == HIDDEN:
                continue
            if stat.S_ISLNK(info.st_mode):
                link = self._add_link(parent, name, os.readlink(name, dir_fd=folder))
                if self._way == TIER:
                    self._leads[link.ino] = links.lead(entry.name, folder, self._shared)
            elif stat.S_ISDIR(info.st_mode):
                child = self._add(stat.S_IFDIR | (stat.S_IMODE(info.st_mode) & 0o555), parent.ino, name)
                child.mtime_ns, child.uid, child.gid = info.st_mtime_ns, info.st_uid, info.st_gid
                self._scan(folder, entry.name, child, depth + 1)
            elif stat.S_ISREG(info.st_mode):
                self._add_file(path, entry.name, info, name, parent, folder)
        if parent is self.root and not parent.children:
            raise HbfError(f"{path} is empty", "put a GGUF into it, or make one: hbf model make tiny -o FILE")

    def _alias_model(self) -> None:
        model = self._contents.model
        if model and ALIAS not in self.root.children:
            self._add_link(self.root, ALIAS, os.fsencode(self.path_of(model)))

    def _add_hidden(self, names: tuple[bytes, ...], writable: bytes) -> None:
        folder = self._add(stat.S_IFDIR | 0o500, ROOT, HIDDEN)
        folder.uid, folder.gid, folder.listed = os.getuid(), os.getgid(), False
        for name in names:
            node = self._add(stat.S_IFREG | (0o600 if name == writable else 0o400), folder.ino, name)
            node.uid, node.gid = os.getuid(), os.getgid()


def _identity(info: os.stat_result) -> tuple[int, ...]:
    """What a file is recognised by: device, inode, type, size and modification time."""
    return info.st_dev, info.st_ino, stat.S_IFMT(info.st_mode), info.st_size, info.st_mtime_ns
