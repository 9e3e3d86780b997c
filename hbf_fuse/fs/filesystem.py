"""The filesystem object that an engine is handed: names, attributes, throttled reads.

Errors are OSError with the errno that the caller should see. Everything is read-only.
"""

import dataclasses
import errno
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hbf_fuse.fs import control
from hbf_fuse.fs.backing import Backing, Mapped, Uncached
from hbf_fuse.fs.placement import DRAM, Layout, Placement
from hbf_fuse.fs.tree import Node, Tree
from hbf_fuse.host import machine
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.pacing.resident import Resident
from hbf_fuse.pacing.serving import Read
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces.trace import TraceFile, header_line
from hbf_fuse.verdict import Verdict, judge

NO_LAYOUT = Layout()
CONTROL = b"control"
"""The one file that may be written: messages to the mount, see control.py."""

NAME_MAX = 255
MAX_NAMED = 1000
"""Of a directory with more files than this, spec.json names the first ones."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND


class OpenFile:
    """An open handle: the node and where its bytes come from. `live` bytes do not pass the tier.

    direct: whether it was opened to be read past the page cache.
    """

    __slots__ = ("backing", "direct", "live", "node")

    def __init__(self, node: Node, backing: Backing | None, live: memoryview | None, direct: bool) -> None:
        self.node = node
        self.backing = backing
        self.live = live
        self.direct = direct


class Filesystem:
    """A tree of files served through one tier.

    layout: where what lies; everything in the one tier if left out. uncached: read the source from its disk
    each time, never from the page cache.
    Raises HbfError where the source cannot be served; see Tree, Resident and Placement.
    """

    def __init__(
        self, source: Path, spec: TierSpec, layout: Layout = NO_LAYOUT, *, uncached: bool = False
    ) -> None:
        self.source = source
        self.spec = spec
        self.layout = layout
        self.uncached = uncached
        self.replies_seen = True
        """Whether the engine knows when a reply was sent: see verdict/evidence.py."""
        self.mount_facts: dict[str, Any] = {}
        """What the mounting side knows (engine, readahead, pid): shown in spec.json."""
        self._hidden: dict[bytes, Callable[[], bytes]] = {
            b"spec.json": lambda: _as_json(self.spec_document()),
            b"stats.json": lambda: _as_json(self.stats_document()),
            CONTROL: lambda: _as_json(control.current(self.spec)),
            b"trace": lambda: header_line(self.spec_document()) + self.pacer.ring.since(0)[0],
        }
        self.tree = Tree(source, tuple(self._hidden), writable=CONTROL)
        self.unplaced: list[str] = []
        """Files that rules were given for and that have no tensors."""
        self._files = list(self.tree.files())
        self._places = {node.ino: place for place, node in enumerate(self._files)}
        placements = dict(self._placed())
        self._is_placed = bool(placements)
        self.resident = self._budget(placements) if layout.resident_bytes is not None else None
        specs = layout.specs(spec)
        names = {name: place for place, name in enumerate(specs)}
        self.pacer = Pacer(
            specs,
            [(node.ino, node.size) for node in self._files],
            {
                place: [(start, names[tier]) for start, tier in placement.regions]
                for place, placement in placements.items()
            },
            self.resident,
        )
        self.trace: TraceFile | None = None
        self._open: dict[int, OpenFile] = {}
        self._backings: dict[int, tuple[Backing, int]] = {}
        self._handles = itertools.count(1)
        self._lock = threading.Lock()
        self._control_lock = threading.Lock()

    def _placed(self) -> Iterator[tuple[int, Placement]]:
        """A placement for every GGUF, if there are rules, by the file's place."""
        rules = self.layout.rules()
        if not rules:
            return
        # Brings numpy, which costs every other mount a tenth of a second.
        from hbf_fuse import gguf

        for place, node in enumerate(self._files):
            try:
                yield place, Placement(gguf.read(node.source or self.source, self.tree.open(node)), rules)
            except gguf.GgufError:
                self.unplaced.append(self.tree.path_of(node))

    def _budget(self, placements: dict[int, Placement]) -> Resident:
        resident = Resident(
            self.layout.resident_bytes or 0, self.layout.policy, [node.size for node in self._files]
        )
        for place, placement in placements.items():
            for first, end in placement.spans(DRAM):
                resident.exempt(place, first, end)
        return resident

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

    def target(self, ino: int) -> bytes:
        """Where a symbolic link points, or EINVAL for what is none."""
        node = self.node(ino)
        if not node.target:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return node.target

    def listing(self, ino: int) -> Iterator[tuple[bytes, Node]]:
        """Names in a directory with their nodes, `.` and `..` first, in a stable order."""
        folder = self.node(ino)
        yield b".", folder
        yield b"..", self.node(folder.parent)
        yield from ((name, child) for name, child in folder.children.items() if child.listed)

    def is_live(self, node: Node) -> bool:
        """Whether a file's content is made at the moment of opening, so that nothing may be cached."""
        return not node.is_dir and node.source is None and not node.target

    def is_control(self, node: Node) -> bool:
        """Whether this is `.hbf/control`."""
        return node.name == CONTROL and self.is_live(node)

    def refuse_write(self) -> None:
        """Every change of the tree ends here."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def total_bytes(self) -> int:
        """Size of all files, for statfs."""
        return sum(node.size for node in self.tree.files())

    # Reading

    def open(self, ino: int, flags: int) -> int:
        """A handle for reading; EROFS for any writing flag, ESTALE if the source was replaced, EISDIR or
        ELOOP for what is no file.
        """
        node = self.node(ino)
        if node.is_dir or node.target:
            code = errno.EISDIR if node.is_dir else errno.ELOOP
            raise OSError(code, os.strerror(code))
        if flags & _WRITING and not self.is_control(node):
            self.refuse_write()
        if node.source is None:
            opened = OpenFile(node, None, memoryview(self._live_content(node)), direct=True)
        else:
            opened = OpenFile(node, self._backing(node), None, bool(flags & os.O_DIRECT))
        handle = next(self._handles)
        self._open[handle] = opened
        return handle

    def _backing(self, node: Node) -> Backing:
        """A file's bytes, for one more user; looked at each time, whoever else has it open."""
        # Not under the lock: a disk that hangs must hold up nobody else.
        fd = self.tree.open(node, os.O_DIRECT if self.uncached else 0)
        fresh: Backing = Uncached(fd) if self.uncached else Mapped(fd)
        with self._lock:
            backing, users = self._backings.get(node.ino, (fresh, 0))
            self._backings[node.ino] = (backing, users + 1)
        return backing

    def write(self, handle: int, data: bytes) -> int:
        """Take a message to the mount: one write. EINVAL for one that cannot be understood, EROFS for
        writing anywhere else.
        """
        opened = self._open.get(handle)
        if opened is None or not self.is_control(opened.node):
            self.refuse_write()
        # Of two messages at once, each changes what the other left.
        with self._control_lock:
            try:
                self.spec = control.applied(data, self.spec)
            except ValueError as error:
                raise OSError(errno.EINVAL, str(error)) from error
            self.pacer.exchange(self.spec)
        return len(data)

    def release(self, handle: int) -> None:
        """Forget a handle; the source is unmapped with its last one."""
        with self._lock:
            opened = self._open.pop(handle, None)
            if opened is None or opened.backing is None:
                return
            backing, users = self._backings.pop(opened.node.ino)
            if users > 1:
                self._backings[opened.node.ino] = (backing, users - 1)

    def opened(self, handle: int) -> OpenFile:
        """What a handle stands for, or EBADF."""
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
        """A read through the tier, of bytes that the file has, yet to be served. For handles that have a
        backing.

        reader: the thread id that waits for it. arrival_ns: CLOCK_MONOTONIC. direct: whether it goes past
        the page cache; None where the engine only knows how the file was opened.
        """
        size = max(0, min(nbytes, opened.node.size - offset))
        direct = opened.direct if direct is None else direct
        return Read(self.place(opened.node), offset, size, reader, direct, arrival_ns)

    def place(self, node: Node) -> int:
        """Where a file stands among those that the pacer knows."""
        return self._places[node.ino]

    # .hbf/

    def _live_content(self, node: Node) -> bytes:
        return self._hidden[node.name]()

    def spec_document(self) -> dict[str, Any]:
        """What is served and how: spec.json, and the header of traces."""
        named = itertools.islice(self.tree.files(), MAX_NAMED)
        files = {str(node.ino): {"path": self.tree.path_of(node), "size": node.size} for node in named}
        return {
            "tier": self.spec.to_dict(),
            "tiers": {name: spec.to_dict() for name, spec in self.layout.specs(self.spec).items()},
            "source": str(self.source),
            "files": files,
            **self.mount_facts,
        }

    def stats_document(self) -> dict[str, Any]:
        """The counters: stats.json."""
        coverage = self.pacer.coverage
        files = {
            self.tree.path_of(self._files[place]): {
                **coverage.to_dict(place),
                "staging": self._judge(place).to_dict(),
            }
            for place in coverage.begun()
        }
        held = {"resident": self.resident.to_dict()} if self.resident else {}
        stopped = self.trace.stopped if self.trace else ""
        traced = {"trace_stopped": stopped} if stopped else {}
        starved = {"starved_seconds": machine.own_threads_starved_ns() / 1e9}
        return {
            "now_ns": time.monotonic_ns(),
            **self.pacer.stats(),
            **starved,
            **held,
            **traced,
            "files": files,
        }

    def _judge(self, place: int) -> Verdict:
        """Whether a file's first pass can be believed; see verdict/rules.py."""
        evidence = dataclasses.replace(
            self.pacer.coverage.first_pass(place),
            floor_known=self.pacer.floor.known,
            replies_seen=self.replies_seen,
        )
        return judge(
            list(self.layout.specs(self.spec).values()) if self._is_placed else [self.spec], evidence
        )


def _as_json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
