"""The folder `.hbf/` of a mount: what it says of itself, and the messages that it takes."""

import errno
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping

from hbf_fuse.fs import control, kv_status
from hbf_fuse.fs.kv import Region
from hbf_fuse.fs.served import Served
from hbf_fuse.host import machine
from hbf_fuse.observe.phases import Phases
from hbf_fuse.observe.status import MountFacts, ServedFile, Spec, Stats
from hbf_fuse.traces.trace import TraceFile, header_line

CONTROL = b"control"
"""The only writable file: it takes messages to the mount, see control.py."""

NAMES = b"spec.json", b"stats.json", CONTROL, b"trace"
MAX_NAMED = 1000
"""spec.json names at most this many files."""


class Hidden:
    """What the files of `.hbf/` hold.

    facts: what the mounting side knows (engine, readahead, pid); spec.json shows it. broken: threads of the
    server that ended with an error, and with which; stats.json shows it.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self.facts: MountFacts = {}
        self.broken: list[str] = []
        self.trace: TraceFile | None = None
        self.kv: Region | None = None
        self._phases = Phases()
        self._lock = threading.Lock()
        makers: tuple[Callable[[], bytes], ...] = (
            lambda: _as_json(self.spec_document()),
            lambda: _as_json(self.stats_document()),
            lambda: _as_json(control.current(served.spec)),
            lambda: header_line(self.spec_document()) + served.ring.since(0)[0],
        )
        self._makers = dict(zip(NAMES, makers, strict=True))

    def content(self, name: bytes) -> bytes:
        """What a file holds now."""
        return self._makers[name]()

    def take(self, message: bytes) -> None:
        """Do what a message says. OSError EINVAL if it cannot be understood."""
        # Two messages at once must not overwrite each other's changes.
        with self._lock:
            try:
                spec = control.applied(message, self._served.spec)
                phase = control.parsed(message).get(control.PHASE)
                if spec.chunk_bytes != self._served.spec.chunk_bytes:
                    raise ValueError("the chunk of a live mount cannot be changed")
                if phase is not None:
                    self._phases.begin(phase, *self._counted())
            except ValueError as error:
                raise OSError(errno.EINVAL, str(error)) from error
            if spec != self._served.spec:
                self._served.exchange(spec)

    def _counted(self) -> tuple[int, int, int]:
        """The time in ns, and how many reads and bytes there were so far."""
        counters = self._served.books.counters
        return time.monotonic_ns(), counters.reads, counters.bytes

    def spec_document(self) -> Spec:
        """What is served and how: spec.json, and the header of traces."""
        named = itertools.islice(self._served.files, MAX_NAMED)
        files: dict[str, ServedFile] = {
            str(node.ino): {"path": self._served.tree.path_of(node), "size": node.size} for node in named
        }
        return {
            "tier": self._served.spec.to_dict(),
            "tiers": {name: spec.to_dict() for name, spec in self._served.tiers.items()},
            "source": str(self._served.tree.source),
            "files": files,
            **self.facts,
        }

    def stats_document(self) -> Stats:
        """The counters: stats.json."""
        served, mapped = self._served, self._served.mapped
        if mapped:
            mapped.look()
        pacer, coverage = served.books, served.books.coverage
        # mypy cannot know that the pacer holds no key of what comes below.
        stats: Stats = {
            "now_ns": time.monotonic_ns(),
            **pacer.status(),  # type: ignore[typeddict-item]
            "starved_seconds": machine.own_threads_starved_ns() / 1e9,
            "files": {
                served.tree.path_of(served.files[pacer.models[model][0]]): {
                    **coverage.status(model),
                    "staging": served.judged(pacer, model).status(),
                }
                for model in coverage.begun()
            },
        }
        if self._phases.current:
            with self._lock:
                stats["phase"], stats["phases"] = self._phases.current, self._phases.status(*self._counted())
        resident = served.resident and served.resident.status()
        if mapped:
            stats["mapped"] = mapped.status()
            if pacer is not served.pacer:
                stats["overfills"] += stats["mapped"]["overfills"]
                resident = mapped.resident_status()
        if resident:
            stats["resident"] = resident
        if self.kv:
            stats["kv"] = kv_status.of(self.kv, served)
        if self.trace and self.trace.stopped:
            stats["trace_stopped"] = self.trace.stopped
        if self.broken:
            stats["broken"] = list(self.broken)
        return stats


def _as_json(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
