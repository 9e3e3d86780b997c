"""Finds the machine's floor under a fresh mount: what a read takes beyond the tier and the server."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.costs import CROWD, Floor
from hbf_fuse.tier import TierSpec

LATENCY_MS = 0.5
READS = 150
SMALL = 4096
MIDDLE = 1 << 17
LARGE = 1 << 20
MOST_NS = 500_000
"""A floor above this is no floor but a machine under load: it is not believed."""

_PROBE = Path(__file__).with_name("probe.py")


def measure(fs: Filesystem, mountpoint: Path) -> Floor:
    """Read through the mount from outside for about 0.4 s, at a known latency. No floor if that fails.

    Leaves the filesystem serving from the probe's tier.
    """
    largest = max(fs.tree.files(), key=lambda node: node.size, default=None)
    if largest is None or largest.size < LARGE:
        return Floor()
    file = mountpoint / fs.tree.path_of(largest)
    fs.costs.floor = Floor()
    fixed = _unseen(fs, file, SMALL, readers=1)
    alone = Floor(fixed, max(0, _unseen(fs, file, LARGE, readers=1) - fixed))
    crowded = _unseen(fs, file, MIDDLE, readers=CROWD)
    return Floor(alone.fixed_ns, alone.per_mib_ns, max(0, crowded - alone.of(MIDDLE, others=0)))


def _unseen(fs: Filesystem, file: Path, size: int, readers: int) -> int:
    """Of a usual read's ns, those that pass at the reader and not between the server's arrival and reply."""
    fs.serve_from(TierSpec(latency_ms=LATENCY_MS))
    fs.pacer.log = []
    command = [sys.executable, "-I", "-S", str(_PROBE), str(file), str(size), str(READS)]
    probes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(readers)]
    try:
        said = [(probe.pid, probe.communicate(timeout=30)[0]) for probe in probes]
    except subprocess.TimeoutExpired:
        return 0
    finally:
        for probe in probes:
            probe.kill()
            probe.wait()
    unseen = sorted(ns for pid, text in said for ns in _differences(text, pid, fs.pacer.log))
    usual = unseen[len(unseen) // 10 : -(len(unseen) // 10)]
    return max(0, min(MOST_NS, round(statistics.mean(usual)))) if usual else 0


def _differences(said: str, reader: int, log: list[tuple[int, int]]) -> Iterator[int]:
    at_server = [ns for who, ns in log if who == reader]
    at_reader = json.loads(said) if said else []
    return (there - here for there, here in zip(at_reader, at_server, strict=False))
