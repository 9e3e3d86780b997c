"""Finds the machine's floor under a fresh mount: what a read takes beyond the tier and the server."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.costs import Floor
from hbf_fuse.tier import TierSpec

LATENCY_MS = 0.5
READS = 80
MOST_NS = 500_000
"""A floor above this is no floor but a machine under load: it is not believed."""

_PROBE = Path(__file__).with_name("probe.py")
_MIB = 1 << 20


def measure(fs: Filesystem, mountpoint: Path) -> Floor:
    """Read through the mount from outside for about 0.2 s, at a known latency. No floor if that fails.

    Leaves the filesystem serving from the probe's tier.
    """
    largest = max(fs.tree.files(), key=lambda node: node.size, default=None)
    if largest is None or largest.size < 4096:
        return Floor()
    fs.serve_from(TierSpec(latency_ms=LATENCY_MS))
    command = [
        sys.executable,
        "-I",
        "-S",
        str(_PROBE),
        str(mountpoint / fs.tree.path_of(largest)),
        str(READS),
    ]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return Floor()
    beyond = {int(size): _usual(times) - LATENCY_MS * 1e6 for size, times in json.loads(said).items()}
    fixed = max(0, min(MOST_NS, round(beyond[4096])))
    per_mib = max(0, min(MOST_NS, round(beyond.get(_MIB, fixed) - fixed)))
    return Floor(fixed, per_mib)


def _usual(times: list[int]) -> float:
    """The mean of sorted times without the slowest tenth: that is lateness, which the server sees itself."""
    return statistics.mean(times[: max(1, len(times) * 9 // 10)])
