"""Finds the machine's floor under a fresh mount: what a read takes beyond the tier and the server."""

import contextlib
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.costs import CROWD, Floor
from hbf_fuse.observe.trace import Read, joined, wholes
from hbf_fuse.tier import TierSpec

USUAL_LATENCY_MS = 0.5
LATENCIES_MS = (0.1, 2.0)
"""The least and the greatest latency to measure the floor at: waking up costs more after a longer sleep."""

PROBE_MS = 40
"""About how long one measurement takes."""

LEAST_READS, MOST_READS = 24, 150
"""Of one measurement: fewer say little about the usual read, more nothing new."""

SMALL = 4096
MIDDLE = 1 << 17
LARGE = 1 << 20
MOST_NS = 500_000
"""A floor above this is no floor but a machine under load: it is not believed."""

MOST_STARVED_NS = 100_000
"""The same of the server's threads, which on a machine with an idle core wait a tenth of that for one."""

ATTEMPTS = 4
PATIENCE_SECONDS = 5

_PROBE = Path(__file__).with_name("probe.py")


def measure(fs: Filesystem, mountpoint: Path, spec: TierSpec, tell: Callable[[str], None]) -> Floor:
    """Read through the mount from outside for about 0.2 s, at about the latency of `spec`.

    An unknown floor if that fails, which is told. Leaves the filesystem serving from the probe's tier.
    """
    largest = max(fs.tree.files(), key=lambda node: node.size, default=None)
    if largest is None or largest.size < LARGE:
        return Floor()
    file = mountpoint / fs.tree.path_of(largest)
    fs.costs.floor = Floor()
    least, most = LATENCIES_MS
    probe = TierSpec(
        latency_ms=min(max(spec.latency_ms, least), most) if spec.latency_ms else USUAL_LATENCY_MS
    )
    try:
        fixed = _usual(fs, file, probe, SMALL, readers=1)
        large = _usual(fs, file, probe, LARGE, readers=1)
        per_mib = max(0, large - fixed) * LARGE // fs.pacer.counters.largest_read
        alone = Floor(fixed, per_mib)
        crowded = _usual(fs, file, probe, MIDDLE, readers=CROWD)
    except _TooBusy:
        tell(
            "cannot find out what a read takes beyond the tier (too busy, or the source fails): "
            "this mount's figures are not valid"
        )
        return Floor(known=False)
    return Floor(fixed, per_mib, max(0, crowded - alone.of(MIDDLE, others=0)))


class _TooBusy(Exception):
    """What was measured, if anything, is no floor."""


def _usual(fs: Filesystem, file: Path, probe: TierSpec, size: int, readers: int) -> int:
    """What _unseen says in a moment that is quiet enough."""
    for _ in range(ATTEMPTS):
        with contextlib.suppress(_TooBusy):
            return _unseen(fs, file, probe, size, readers)
    raise _TooBusy


def _unseen(fs: Filesystem, file: Path, probe: TierSpec, size: int, readers: int) -> int:
    """Of a usual request's ns, those that pass at the reader and not between the server's arrival and reply.

    libfuse 2 has several requests, one after the other, to a read of this size.
    """
    fs.serve_from(probe)
    before = fs.trace.count
    reads = max(LEAST_READS, min(MOST_READS, round(PROBE_MS / probe.latency_ms)))
    command = [sys.executable, "-I", "-S", str(_PROBE), str(file), str(size), str(reads)]
    # In this process group (see daemon.py on automounts), so Ctrl-C would reach them, too.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        probes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(readers)]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    for reader in probes:
        fs.gate.invite(reader.pid)
    try:
        said = [(reader.pid, reader.communicate(timeout=PATIENCE_SECONDS)[0]) for reader in probes]
    except subprocess.TimeoutExpired as error:
        raise _TooBusy from error
    finally:
        for reader in probes:
            reader.kill()
            reader.wait()
    unseen = sorted(ns for pid, text in said for ns in _differences(text, pid, fs.trace.since(before)))
    usual = unseen[len(unseen) // 10 : -(len(unseen) // 10)]
    counters = fs.pacer.counters
    if not usual:
        raise _TooBusy
    floor_ns = round(statistics.mean(usual))
    # The threads that serve a crowd also wait for each other.
    starved_ns = counters.starved_ns // max(1, counters.reads) // min(readers, 2)
    if floor_ns > MOST_NS or starved_ns > MOST_STARVED_NS:
        raise _TooBusy
    return max(0, floor_ns)


def _differences(said: str, reader: int, reads: list[Read]) -> Iterator[int]:
    served = map(joined, wholes(reads))
    at_server = [read.done_ns - read.arrival_ns for read in served if read.reader == reader]
    at_reader = json.loads(said) if said else []
    each = max(1, len(at_server) // max(1, len(at_reader)))
    for place, there in enumerate(at_reader):
        yield (there - sum(at_server[place * each : (place + 1) * each])) // each
