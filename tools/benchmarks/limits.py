"""Writes docs/kernel-limits.md: how exact the kernel's I/O limits are, compared with FUSE, and what a kill leaves behind.

Reads a file of random bytes on a real disk with dd, with a cold page cache each time: under `hbf run --io-max`, through a
mount with the same bandwidth, and through `hbf-mount --io-max`, alternating. Then kills `hbf run` at random moments. Prints JSON.

    tools/bench limits --folder DIRECTORY     about 4 minutes; the directory must be on a disk
"""

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pages import mark
from readers import make_source

from hbf_fuse.host import machine, residency
from hbf_fuse.limits import devices, hierarchy
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.report.statistics import Spread
from hbf_fuse.report.tables import table
from hbf_fuse.sweep.modes.cgroup import HEAD_START_SECONDS, TOLERANCE_PCT
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import format_size, parse_size

DOCS = Path(__file__).parent.parent.parent / "docs"
HBF = [sys.executable, "-P", "-m", "hbf_fuse"]
RATE = 100.0
SIDE_BY_SIDE = (50.0, 100.0, 200.0)
MOST_SECONDS_BEFORE_A_KILL = 1.5
"""`hbf run` takes about half a second until its command runs."""

_DD_SECONDS = re.compile(r", ([\d.]+) s,")
_INTRO = """# What the kernel enforces

`hbf run` and `hbf-mount --io-max` put a process into a cgroup and let the block layer throttle the disk. Measured
on {machine}, cgroup {versions}, as root.

Each reading is one `dd bs=1M` of {size} of random bytes on {disk}, which gives {disk_mbps:.0f} MB/s
without a limit. The file is not in the page cache before (checked with mincore).

"""
_SIDE_BY_SIDE = """## FUSE against cgroup

The same file, read {repeats} times each way, alternating in a new order each round. Medians in MB/s (least to most).

- FUSE: `hbf-mount --mbps N`, the source in memory. The tier model schedules every read.
- cgroup: `hbf run --io-max N`, no FUSE. The block layer delays reads.
- both: `hbf-mount --io-max N`. FUSE serves, and the block layer delays the server's reads of the disk.

"""
_DIFFERENCES = """Why they differ:

- The tier model's link begins with the first read and is never ahead of its rate. The kernel's throttle counts in
  slices of {slice:g} s (DFL_THROTL_SLICE in blk-throttle.c) and lets a group have up to one slice's bytes in
  advance: with this file up to {ahead}. A shorter reading has a larger error. If it takes a
  cell of a sweep's mode `cgroup` past {tolerance:g}%, the cell is marked as not valid, with the reason.
- The kernel delays requests to the disk. A reading from the page cache is not delayed at all. A reading from a
  disk slower than the limit is only as fast as the disk. The kernel cannot emulate latency. FUSE can, and needs
  no disk.
- Reading through FUSE costs a copy and two context switches a request. At these rates, waiting hides that cost.

"""
_KILLS = """## Killed at random moments

`hbf run --io-max 50 --mem 1G -- sleep 60`, killed with SIGKILL after 0 to {most:g} s, {kills} times: in {had} of
them its groups were there at that moment. Left behind: **{left} groups, {members} processes**.
{lived}

A small process removes them. It is started before the groups are made, and sleeps on a pipe. If it is killed,
too, the next `hbf run` finds the group: its name holds the process id and start time of its owner.

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", default=Path.cwd(), type=Path)
    parser.add_argument("--size", default="512M", type=parse_size)
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--kills", default=100, type=int)
    parser.add_argument("--output", default=DOCS / "kernel-limits.md", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hbf-limits-", dir=options.folder) as name:
        folder = Path(name)
        (folder / "mnt").mkdir()
        file = make_source(folder, options.size)
        measured = {
            "machine": machine.facts(),
            "versions": {place.controller: place.version for place in hierarchy.places(["io", "memory"])},
            "size": options.size,
            "disk": str(devices.of(file)),
            "disk_mbps": _cold(file, lambda: _dd(file)),
            "hbf_run": [_cold(file, lambda: _under_hbf_run(file, RATE)) for _ in range(options.repeats)],
            "side_by_side": _side_by_side(file, folder / "mnt", options.repeats),
            "kills": _kills(file, options.kills),
        }
    print(json.dumps(measured, indent=1))
    options.output.write_text(_page(measured))


# Measuring


def _cold(file: Path, read: Callable[[], float]) -> float:
    """Decimal MB/s of one way to read the file, with a cold page cache."""
    if left := residency.drop(file):
        raise SystemExit(f"{left} bytes of {file} stay in the page cache: use a file on a disk of your own")
    return file.stat().st_size / read() / 1e6


def _dd(file: Path, before: tuple[str, ...] = ()) -> float:
    """Seconds that dd reports itself, so that the start of a program does not count."""
    line = [*before, "dd", f"if={file}", "of=/dev/null", "bs=1M"]
    said = subprocess.run(
        line, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    ).stderr
    return float(_DD_SECONDS.findall(said)[-1])


def _under_hbf_run(file: Path, mbps: float) -> float:
    return _dd(file, (*HBF, "run", "--io-max", f"{mbps:g}", "--device", str(file), "--"))


def _through_a_mount(file: Path, point: Path, spec: TierSpec, io_max: float | None) -> float:
    with child.mounted(MountConfig(file, point, spec, io_max_mbps=io_max)) as mount:
        return _dd(mount / "model.gguf")


def _side_by_side(file: Path, point: Path, repeats: int) -> dict[str, dict[str, list[float]]]:
    """MB/s by rate and way."""
    ways: dict[str, Callable[[float], float]] = {
        "FUSE": lambda mbps: _through_a_mount(file, point, TierSpec(mbps), None),
        "cgroup": lambda mbps: _under_hbf_run(file, mbps),
        "both": lambda mbps: _through_a_mount(file, point, TierSpec(), mbps),
    }
    found: dict[str, dict[str, list[float]]] = {
        f"{mbps:g}": {way: [] for way in ways} for mbps in SIDE_BY_SIDE
    }
    turns = [(mbps, way) for mbps in SIDE_BY_SIDE for way in ways]
    for _ in range(repeats):
        random.shuffle(turns)
        for mbps, way in turns:
            rate = _cold(file, partial(ways[way], mbps))
            found[f"{mbps:g}"][way].append(rate)
    return found


def _kills(file: Path, count: int) -> dict[str, Any]:
    """Groups and their members after SIGKILL, and how long they existed after it, in ms."""
    parents = {place.parent for place in hierarchy.places(["io", "memory"])}
    left = members_left = 0
    lived = []
    for _ in range(count):
        line = [*HBF, "run", "--io-max", "50", "--mem", "1G", "--device", str(file), "--", "sleep", "60"]
        running = subprocess.Popen(line, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0, MOST_SECONDS_BEFORE_A_KILL))  # noqa: S311
        running.send_signal(signal.SIGSTOP)  # so that nothing changes between the look and the kill
        there = _groups(parents, running.pid)
        members = {pid for group in there for pid in (group / "cgroup.procs").read_text().split()}
        killed = time.monotonic()
        running.kill()
        while _groups(parents, running.pid) and time.monotonic() < killed + 5:
            time.sleep(0.0005)
        running.wait()
        if there:
            lived.append((time.monotonic() - killed) * 1e3)
        time.sleep(0.05)
        left += len(_groups(parents, running.pid))
        members_left += sum(_runs(pid) for pid in members)
    return {"count": count, "groups_left": left, "processes_left": members_left, "lived_ms": lived}


def _groups(parents: set[Path], owner: int) -> list[Path]:
    return [group for parent in parents for group in parent.glob(f"hbf-{owner}-*")]


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# The page


def _page(measured: dict[str, Any]) -> str:
    kinds = " and ".join(sorted({f"v{version}" for version in measured["versions"].values()}))
    intro = _INTRO.format(
        machine=machine.described(measured["machine"]),
        versions=kinds,
        size=format_size(measured["size"]),
        disk=measured["disk"],
        disk_mbps=measured["disk_mbps"],
    )
    return "".join(
        [
            mark("limits"),
            intro,
            _hbf_run(measured["hbf_run"]),
            _table(measured),
            _killed(measured["kills"]),
            "Repeat it with `tools/bench limits`.\n",
        ]
    )


def _hbf_run(rates: list[float]) -> str:
    worst = max(abs(rate / RATE - 1) * 100 for rate in rates)
    within = "within" if worst <= TOLERANCE_PCT else "not within"
    shown = ", ".join(f"{rate:.1f}" for rate in rates)
    return (
        f"## `hbf run --io-max {RATE:g}`\n\n{shown} MB/s: at most {worst:.1f}% off, "
        f"{within} the required {TOLERANCE_PCT:g}%.\n\n"
    )


def _table(measured: dict[str, Any]) -> str:
    rows = []
    for mbps, ways in measured["side_by_side"].items():
        row: dict[str, Any] = {"MB/s": mbps}
        for way, rates in ways.items():
            spread = Spread.of(rates)
            assert spread is not None
            row[way] = f"{spread.median:.1f} ({spread.least:.1f} to {spread.most:.1f})"
            row[f"{way}, off by"] = f"{(spread.median / float(mbps) - 1) * 100:+.1f}%"
        rows.append(row)
    slices = [
        float(mbps) * 1e6 * HEAD_START_SECONDS / measured["size"] * 100
        for mbps in (min(SIDE_BY_SIDE), max(SIDE_BY_SIDE))
    ]
    ahead = f"{slices[0]:.1f}% at {min(SIDE_BY_SIDE):g} MB/s and {slices[1]:.1f}% at {max(SIDE_BY_SIDE):g}"
    repeats = len(next(iter(ways.values())))
    differences = _DIFFERENCES.format(slice=HEAD_START_SECONDS, ahead=ahead, tolerance=TOLERANCE_PCT)
    return f"{_SIDE_BY_SIDE.format(repeats=repeats)}{table(tuple(rows[0]), rows)}\n{differences}"


def _killed(kills: dict[str, Any]) -> str:
    lived = sorted(kills["lived_ms"])
    text = ""
    if lived:
        text = f"They existed for another {statistics.median(lived):.0f} ms in the median, {lived[-1]:.0f} ms at most."
    return _KILLS.format(
        most=MOST_SECONDS_BEFORE_A_KILL,
        kills=kills["count"],
        had=len(lived),
        left=kills["groups_left"],
        members=kills["processes_left"],
        lived=text,
    )


if __name__ == "__main__":
    main()
