"""Measures the machine's floor: what a read or a write takes beyond the tier and the server.

Uses a small mount of its own. No other process can reach it: it is detached as soon as its file is open.
"""

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hbf_fuse import compiled, engine, reaper, signals
from hbf_fuse.errors import HbfError, naming
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.kv_files import KvFolder
from hbf_fuse.host import linux, machine
from hbf_fuse.mount import mountpoint, probe
from hbf_fuse.pacing.floor import WRITTEN_UNSURE_NS_PER_MIB, Floor
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces.trace import RECORD, Read

WRITTEN_WAITS_MS = (1.0, 10.0)
"""Latencies of the probe's writes. After the longer one, caches are cold, and a copy takes twice as long."""

SLOWER_NS, SLOWER = 25_000, 1.5
"""By how much a write may be slower than the slowest tenth of the probe's: for its call, and for each MiB."""

WAITS_MS = (0.02, 0.1, 0.4, 2.0, 10.0)
"""Latencies of the probe's reads. They cover the wake-up time after short and after long sleeps."""

LARGE_MS = 1.0
"""Latency of large reads."""

PROBE_MS = 30
"""About how long one measurement takes."""

LEAST_READS, MOST_READS = 10, 100
"""Reads of one measurement. Fewer say little about the usual read; more add nothing."""

SMALL = 4096
LARGE = 1 << 20

LARGE_WRITES = {"kernel": LARGE, "memory": LARGE, "fusepy": 128 << 10}
"""Bytes of one request. In parts, one after the other, a larger write would take seconds to measure."""

MOST_NS = 500_000
"""A larger floor comes from load on the machine and is rejected."""

MOST_WRITTEN_NS = 2_000_000
"""The same of writes: a large one has its data copied, in up to 0.5 ms on a quiet machine."""

MOST_STARVED_NS = 100_000
"""A floor is rejected if the server's threads waited longer for a CPU per read. With an idle core it is a
tenth of this.
"""

ATTEMPTS = 4
PATIENCE_SECONDS = 5


def lean_library() -> str:
    """The module with which probe.py times reads."""
    source = "mount/lean.py"
    return f"{compiled.PACKAGE}/{source}" if compiled.why_not() else compiled.library(source)


class Writing(NamedTuple):
    """The floor of writes: the usual one, and that of the slowest tenth."""

    usual: Floor
    at_most: Floor


def measure_writing(engine_name: str) -> Writing:
    """As `measure`, for writes. Each has its data copied before the server can see it."""
    after: list[list[tuple[int, int]]] = [[], []]
    per_mib: list[list[int]] = [[], []]
    try:
        with (
            _mounted(engine_name, TierSpec(latency_ms=LARGE_MS), writes=True) as (fs, file),
            _prober(file) as prober,
        ):
            for wait in WRITTEN_WAITS_MS:
                fs.served.pacer.exchange(TierSpec(latency_ms=wait))
                # If one of them is disturbed, the other has to do.
                with contextlib.suppress(_TooBusy):
                    small = _quiet(fs, prober, SMALL, writes=True)
                    large = _quiet(fs, prober, LARGE_WRITES[engine_name], writes=True)
                    for place in range(2):
                        after[place].append((round(wait * 1e6), small[place]))
                        more = max(0, large[place] - small[place])
                        per_mib[place].append(more * LARGE // large.largest)
    except (HbfError, OSError):
        after[0].clear()
    if not after[0]:
        return Writing(Floor(known=False), Floor(known=False))
    usual = Floor(after[0], sum(per_mib[0]) // len(per_mib[0]), doubt_per_mib_ns=WRITTEN_UNSURE_NS_PER_MIB)
    slow = [(waited_ns, floor_ns + SLOWER_NS) for waited_ns, floor_ns in after[1]]
    per_mib_at_most = round(max(per_mib[1]) * SLOWER)
    return Writing(usual, Floor(slow, per_mib_at_most, doubt_per_mib_ns=WRITTEN_UNSURE_NS_PER_MIB))


def measure(engine_name: str) -> Floor:
    """Measure from outside, through a mount, for about 0.2 s.

    An unknown floor if the machine is too busy, or nothing can be mounted.
    """
    try:
        with _mounted(engine_name, TierSpec(latency_ms=LARGE_MS)) as (fs, file), _prober(file) as prober:
            large = _quiet(fs, prober, LARGE)
            small = _quiet(fs, prober, SMALL).usual
            per_mib = max(0, large.usual - small) * LARGE // large.largest
            after = [(round(LARGE_MS * 1e6), small)]
            for wait in WAITS_MS:
                fs.served.pacer.exchange(TierSpec(latency_ms=wait))
                # If one measurement is disturbed, the floor is interpolated from its neighbours.
                with contextlib.suppress(_TooBusy):
                    after.append((round(wait * 1e6), _quiet(fs, prober, SMALL).usual))
            return Floor(sorted(after), per_mib)
    except (_TooBusy, HbfError, OSError):
        return Floor(known=False)


class _TooBusy(Exception):
    """What was measured, if anything, cannot be a floor."""


@contextmanager
def _mounted(engine_name: str, spec: TierSpec, writes: bool = False) -> Iterator[tuple[Filesystem, int]]:
    """An open file of LARGE bytes, served from a tier with this spec; to be written, if `writes`."""
    with tempfile.TemporaryDirectory(prefix="hbf-floor-") as folder:
        own = Path(folder).resolve()
        source, point = own / "source", own / "mnt"
        with naming(source):
            source.write_bytes(os.urandom(LARGE))
        point.mkdir()
        kept = own / "kv"
        kept.mkdir()
        kv = KvFolder(linux.Descriptor(os.open(kept, os.O_RDONLY | os.O_DIRECTORY)), LARGE, True)
        fs = Filesystem(source, spec, kv=kv if writes else None)
        mount = engine.create(engine_name, fs, point, allow_other=False)
        # A signal or a kill here must not leak the mount.
        with (
            reaper.watching(str(point)) as is_mounted,
            signals.deferred(),
            mountpoint.claimed(point) as directory,
        ):
            try:
                mount.start(directory, is_mounted)
                if writes:
                    (point / "kv/file").write_bytes(bytes(LARGE))
                    file = os.open(point / "kv/file", os.O_RDWR | os.O_DIRECT)
                else:
                    file = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
            finally:
                mount.stop(lazy=True)
    try:
        yield fs, file
    finally:
        os.close(file)
        mount.join(PATIENCE_SECONDS)


@contextmanager
def _prober(file: int) -> "Iterator[subprocess.Popen[str]]":
    """A probe that is ready."""
    # It stays in this process group (see daemon._detach), so Ctrl-C must be blocked for it.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        reader = subprocess.Popen(
            probe.command(lean_library(), file),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # If the mount is ended under it, nobody wants its traceback.
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=[file],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    with reader:
        try:
            _line(reader)
            yield reader
        finally:
            reader.kill()


def _line(reader: "subprocess.Popen[str]") -> str:
    """The reader's next line. TimeoutError if it prints none."""
    if reader.stdout is None or not select.select([reader.stdout], [], [], PATIENCE_SECONDS)[0]:
        raise TimeoutError
    return reader.stdout.readline()


class _Unseen(NamedTuple):
    """The part of a request's ns that passes at the reader, not between the server's arrival and reply:
    usually, and in the slowest tenth. largest: bytes of a request. libfuse 2 splits a large one into several.
    """

    usual: int
    at_most: int
    largest: int


def _quiet(fs: Filesystem, prober: "subprocess.Popen[str]", size: int, writes: bool = False) -> _Unseen:
    """The first result of _unseen that is quiet enough."""
    for _ in range(ATTEMPTS):
        with contextlib.suppress(_TooBusy):
            return _unseen(fs, prober, size, writes)
    raise _TooBusy


def _unseen(fs: Filesystem, prober: "subprocess.Popen[str]", size: int, writes: bool) -> _Unseen:
    """Measure once."""
    before, starved_before_ns = fs.served.pacer.ring.count, machine.own_threads_starved_ns()
    reads = max(LEAST_READS, min(MOST_READS, round(PROBE_MS / fs.served.pacer.tiers.tier.spec.latency_ms)))
    if prober.stdin is not None:
        prober.stdin.write(probe.order(size, reads, writes=writes))
        prober.stdin.flush()
    said = json.loads(_line(prober) or "{}")
    records = fs.served.pacer.ring.since(before)[0]
    reads_seen = [Read(*fields) for fields in RECORD.iter_unpack(records)]
    unseen = sorted(_differences(said.get("times", []), reads_seen))
    usual = unseen[len(unseen) // 10 : -(len(unseen) // 10)]
    if not usual:
        raise _TooBusy
    floor_ns = round(statistics.mean(usual))
    starved_ns = (machine.own_threads_starved_ns() - starved_before_ns) // reads
    if floor_ns > (MOST_WRITTEN_NS if writes else MOST_NS) or starved_ns > MOST_STARVED_NS:
        raise _TooBusy
    largest = max(read.nbytes for read in reads_seen)
    return _Unseen(max(0, floor_ns), max(0, usual[-1]), largest)


def _differences(at_reader: list[int], reads: list[Read]) -> Iterator[int]:
    at_server = [read.done_ns - read.arrival_ns for read in reads]
    each = max(1, len(at_server) // max(1, len(at_reader)))
    for place, there in enumerate(at_reader):
        yield (there - sum(at_server[place * each : (place + 1) * each])) // each
