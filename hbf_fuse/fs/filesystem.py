"""The filesystem object that an engine is handed: names, attributes, throttled reads.

Errors are OSError with the errno that the caller should see. Everything is read-only.
"""

import errno
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hbf_fuse.fs import verdict
from hbf_fuse.fs.arrival import Arrival
from hbf_fuse.fs.backing import Backing
from hbf_fuse.fs.costs import Costs
from hbf_fuse.fs.pacer import Pacer
from hbf_fuse.fs.service import Service
from hbf_fuse.fs.tree import Node, Tree
from hbf_fuse.fs.verdict import Verdict
from hbf_fuse.tier import TierSpec

NAME_MAX = 255
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND


class OpenFile:
    """An open handle: the node and where its bytes come from. `live` bytes do not pass the tier."""

    __slots__ = ("backing", "live", "node")

    def __init__(self, node: Node, backing: Backing | None, live: memoryview | None) -> None:
        self.node = node
        self.backing = backing
        self.live = live


class Filesystem:
    """A tree of files served through one tier.

    Raises HbfError where the source cannot be served; see Tree.
    """

    def __init__(self, source: Path, spec: TierSpec) -> None:
        self.source = source
        self.spec = spec
        self.replies_seen = True
        """Whether the engine knows when a reply was sent: see verdict.judge."""
        self.mount_facts: dict[str, Any] = {}
        """What the mounting side knows (engine, readahead, pid): shown in spec.json."""
        self._hidden = {b"spec.json": self._spec_json, b"stats.json": self._stats_json}
        self.tree = Tree(source, tuple(self._hidden))
        self.costs = Costs()
        self.serve_from(spec)
        self._open: dict[int, OpenFile] = {}
        self._backings: dict[int, tuple[Backing, int]] = {}
        self._handles = itertools.count(1)
        self._lock = threading.Lock()

    def serve_from(self, spec: TierSpec) -> None:
        """Serve from this tier from now on, with all counters at zero."""
        self.pacer = Pacer(spec, self.costs)
        self._arrivals = {node.ino: Arrival(node.size) for node in self.tree.files()}

    # Names and attributes

    def node(self, ino: int) -> Node:
        """The node of an inode number, or ENOENT."""
        node = self.tree.nodes.get(ino)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node

    def lookup(self, parent: int, name: bytes) -> Node:
        """The child of a directory by name, or ENOENT or ENOTDIR."""
        folder = self.node(parent)
        if not folder.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        child = folder.children.get(name)
        if child is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return child

    def listing(self, ino: int) -> Iterator[tuple[bytes, Node]]:
        """Names in a directory with their nodes, `.` and `..` first, in a stable order."""
        folder = self.node(ino)
        yield b".", folder
        yield b"..", self.node(folder.parent)
        yield from ((name, child) for name, child in folder.children.items() if child.listed)

    def is_live(self, node: Node) -> bool:
        """Whether a file's content is made at the moment of opening, so that nothing may be cached."""
        return not node.is_dir and node.source is None and not node.target

    def refuse_write(self) -> None:
        """Every change of the tree ends here."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def total_bytes(self) -> int:
        """Size of all files, for statfs."""
        return sum(node.size for node in self.tree.files())

    # Reading

    def open(self, ino: int, flags: int) -> int:
        """A handle for reading; EROFS for any writing flag, ESTALE if the source was replaced."""
        node = self.node(ino)
        if node.is_dir:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if flags & _WRITING:
            self.refuse_write()
        with self._lock:
            if node.source is None:
                opened = OpenFile(node, None, memoryview(self._live_content(node)))
            else:
                backing, users = self._backings.get(ino, (None, 0))
                backing = backing or Backing(node.source, node.size, node.mtime_ns, node.source_ino)
                self._backings[ino] = (backing, users + 1)
                opened = OpenFile(node, backing, None)
            handle = next(self._handles)
            self._open[handle] = opened
        return handle

    def release(self, handle: int) -> None:
        """Forget a handle; the source is unmapped with its last one."""
        with self._lock:
            opened = self._open.pop(handle, None)
            if opened is None or opened.backing is None:
                return
            backing, users = self._backings.pop(opened.node.ino)
            if users > 1:
                self._backings[opened.node.ino] = (backing, users - 1)

    def read(self, handle: int, offset: int, nbytes: int, reader: int, arrival_ns: int) -> Service:
        """Begin a read: the caller calls service.wait, sends service.data, and calls finish or abandon.

        reader: the thread id that waits for it. arrival_ns: CLOCK_MONOTONIC.
        """
        opened = self._open.get(handle)
        if opened is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if opened.backing is None:
            return Service(
                (opened.live or memoryview(b""))[offset : offset + nbytes], offset, reader, arrival_ns
            )
        service = Service(opened.backing.slice(offset, nbytes), offset, reader, arrival_ns)
        service.arrival = self._arrivals[opened.node.ino]
        self.pacer.begin(service)
        return service

    # .hbf/

    def _live_content(self, node: Node) -> bytes:
        folder = self.tree.nodes[node.parent]
        name = next(name for name, child in folder.children.items() if child is node)
        return (json.dumps(self._hidden[name](), indent=2) + "\n").encode()

    def _spec_json(self) -> dict[str, Any]:
        return {"tier": self.spec.to_dict(), "source": str(self.source), **self.mount_facts}

    def _stats_json(self) -> dict[str, Any]:
        begun = {ino: arrival for ino, arrival in self._arrivals.items() if arrival.first_arrival_ns}
        files = {
            self.tree.path_of(self.tree.nodes[ino]): {
                **arrival.to_dict(),
                "staging": self._judge(arrival).to_dict(),
            }
            for ino, arrival in begun.items()
        }
        return {"now_ns": time.monotonic_ns(), **self.pacer.stats(), "files": files}

    def _judge(self, arrival: Arrival) -> Verdict:
        """Whether a file's first pass can be believed; see verdict.judge."""
        return verdict.judge(
            self.pacer.tier.spec,
            arrival.arrived_bytes,
            arrival.seconds,
            arrival.model_seconds,
            self.pacer.counters,
            self.costs.copy_per_mib_ns,
            replies_seen=self.replies_seen,
            idle_cores=arrival.idle_cores,
        )
