"""Achieved against model over a grid of tiers and readers: what this machine can emulate.

The server runs in this process and changes its tier from point to point; the readers are processes of
their own, one read in flight each, past the page cache, so that request size and queue depth are exact.
Each point is measured as the clients see it and as the server counts it.
"""

import json
import os
import random
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.host import machine
from hbf_fuse.mount import floor, probe
from hbf_fuse.mount.server import MountConfig, mounted_here
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.verdict import tolerance_pct

SOURCE_BYTES = 256 << 20
POINT_SECONDS = 0.4
CROWD = 4
"""Readers at once that the ceiling is measured with."""

CEILING_READS = 1500
SMALL = 4096
FLOOR_WAIT_NS = 400_000
"""What is told of the floor: after a wait of so long."""
MOST_READS_PER_SECOND = 25_000
"""More small reads than this from processes of their own keep two cores busy by themselves."""

LATENCY_TOLERANCE_NS = 25_000
LATENCY_TOLERANCE = 0.02


@dataclass(frozen=True)
class Point:
    """A tier and its readers: `readers` processes with one read of `size` bytes in flight each."""

    spec: TierSpec
    size: int
    readers: int

    @property
    def is_latency_point(self) -> bool:
        """Judged by the time of a single small read, not by a rate."""
        return self.size == SMALL and self.readers == 1 and self.spec.bandwidth_mbps is None


@dataclass(frozen=True)
class Plan:
    """What to measure: every combination, `runs` times."""

    mbps: tuple[float | None, ...]
    lat_ms: tuple[float, ...]
    sizes: tuple[int, ...]
    readers: tuple[int, ...]
    runs: int
    engines: tuple[str, ...] = ("kernel",)

    def points(self) -> list[Point]:
        """All of them that FUSE may serve at all: rates over the grid, and single small reads at each latency
        above 0.
        """
        rates = [
            Point(TierSpec(mbps, lat), size, readers)
            for mbps in self.mbps
            for lat in self.lat_ms
            for size in self.sizes
            for readers in self.readers
        ]
        rates = [point for point in rates if _reads_per_second(point) <= MOST_READS_PER_SECOND]
        return rates + [Point(TierSpec(None, lat), SMALL, 1) for lat in self.lat_ms if lat]


QUICK = Plan((100, 500, 1000, 2000), (0, 1), (1 << 17, 1 << 20), (1, 4), runs=3)
FULL = Plan(
    (50, 100, 250, 500, 1000, 1500, 2000),
    (0, 0.2, 1, 5),
    (SMALL, 1 << 17, 1 << 20),
    (1, 4, 8),
    5,
    ("kernel", "fusepy"),
)


@dataclass(frozen=True)
class Sample:
    """One run of a point. Rates in decimal MB/s, times in ns. error_pct: of the readers' own clocks against
    the model, which begins each one when it began.
    """

    client_mbps: float
    error_pct: float
    server_mbps: float
    p50_ns: int
    lateness_p99_ns: int
    starved_ns: int
    floor_known: bool


class Calibration:
    """A plan being measured. What it has so far can be asked for at any time.

    Rounds interleave the engines and shuffle the points, so that a machine that drifts does not look like
    a property of one of them.
    """

    def __init__(self, plan: Plan, source: Path, mountpoint: Path, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self.points = plan.points()
        self._source = source
        self._mountpoint = mountpoint
        self._tell = tell
        self._samples: dict[tuple[str, Point], list[Sample]] = {}
        self._ceilings: dict[str, list[float]] = {}
        self._floors: dict[str, list[Floor]] = {}

    @property
    def steps(self) -> int:
        """How many runs there are in all."""
        return len(self.points) * self.plan.runs * len(self.plan.engines)

    def run(self) -> Iterator[None]:
        """Measure; stops for a moment after every step."""
        order = random.Random(1)  # noqa: S311 - an order, not a secret
        for _ in range(self.plan.runs):
            for engine in self.plan.engines:
                yield from self._round(engine, order.sample(self.points, len(self.points)))

    def _round(self, engine: str, points: list[Point]) -> Iterator[None]:
        found = floor.measure(engine)
        self._floors.setdefault(engine, []).append(found)
        ceiling = self._run(engine, Point(TierSpec(), 1 << 20, CROWD), Floor(), CEILING_READS).client_mbps
        self._ceilings.setdefault(engine, []).append(ceiling)
        for point in points:
            sample = self._run(engine, point, found, _reads(point))
            self._samples.setdefault((engine, point), []).append(sample)
            yield

    def _run(self, engine: str, point: Point, floor: Floor, reads: int) -> Sample:
        fs = Filesystem(self._source, point.spec)
        config = MountConfig(self._source, self._mountpoint, point.spec, engine)
        with mounted_here(fs, config, self._tell, floor):
            return _run(fs, self._mountpoint / "model.gguf", point, reads)

    def document(self) -> dict[str, Any]:
        """The envelope: what was measured so far."""
        cells = [
            _cell(engine, point, runs, self._ceilings[engine])
            for (engine, point), runs in self._samples.items()
        ]
        return {
            "machine": machine.facts(),
            "measured": machine.now(),
            "complete": sum(len(runs) for runs in self._samples.values()) == self.steps,
            "runs": self.plan.runs,
            "engines": {engine: self._facts(engine, cells) for engine in self._ceilings},
            "cells": cells,
        }

    def _facts(self, engine: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
        floors = [one for one in self._floors[engine] if one.known] or [Floor(known=False)]
        valid = [cell["valid"] for cell in cells if cell["engine"] == engine]
        return {
            "ceiling_mbps": statistics.median(self._ceilings[engine]),
            "floor_ns": statistics.median(one.of(0, FLOOR_WAIT_NS) for one in floors),
            "floor_ns_per_mib": statistics.median(one.per_mib_ns for one in floors),
            "share_valid": statistics.mean(valid) if valid else 0.0,
        }


def _reads_per_second(point: Point) -> float:
    """By the model; of an unthrottled tier what would be 10 GB/s."""
    return (expect.closed_loop(point.spec, point.size, point.readers, reads=200) or 1e4) * 1e6 / point.size


def _reads(point: Point) -> int:
    """Reads per reader, so that a point takes about POINT_SECONDS by the model."""
    return max(12, min(4000, round(_reads_per_second(point) * POINT_SECONDS / point.readers)))


def _run(fs: Filesystem, file: Path, point: Point, reads: int) -> Sample:
    starved_before_ns = machine.own_threads_starved_ns()
    with ExitStack() as stack:
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
        stack.callback(os.close, fd)
        readers = []
        for _ in range(point.readers):
            reader = subprocess.Popen(
                probe.command(floor.lean_library(), fd),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # If we die, they do so over a mount that is gone, and nobody wants to hear of it.
                stderr=subprocess.DEVNULL,
                text=True,
                pass_fds=[fd],
                # Ctrl-C is for us: we end the readers.
                start_new_session=True,
            )
            stack.callback(_end, reader)
            readers.append(reader)
        for reader in readers:
            if reader.stdout is None or reader.stdout.readline() != "ready\n":
                raise HbfError("a reader could not begin to read from the mount")
        for start, reader in enumerate(readers):
            if reader.stdin is not None:
                reader.stdin.write(probe.order(point.size, reads, start, point.readers))
                reader.stdin.flush()
        said = [_said(reader) for reader in readers]
    counters = fs.pacer.counters
    nbytes = point.size * reads * point.readers
    told = [(one["begin"], one["end"], one["times"]) for one in said]
    return Sample(
        client_mbps=nbytes * 1e3 / (max(end for _, end, _ in told) - min(begin for begin, _, _ in told)),
        error_pct=expect.readers_error_pct(point.spec, point.size, reads, told)
        if point.spec.throttled
        else 0.0,
        server_mbps=nbytes * 1e3 / (counters.last_done_ns - counters.first_arrival_ns),
        p50_ns=round(statistics.median(time for one in said for time in one["times"])),
        lateness_p99_ns=counters.lateness.percentile(99),
        starved_ns=machine.own_threads_starved_ns() - starved_before_ns,
        floor_known=fs.pacer.floor.known,
    )


def _said(reader: "subprocess.Popen[str]") -> dict[str, Any]:
    """What it measured (see probe.py)."""
    said: dict[str, Any] = json.loads(reader.communicate()[0] or "{}")
    if not said:
        raise HbfError("a reader could not read from the mount any more: it was unmounted; calibrate again")
    return said


def _end(reader: "subprocess.Popen[str]") -> None:
    if reader.poll() is None:
        reader.kill()
    reader.communicate()


def _cell(engine: str, point: Point, runs: list[Sample], ceilings: list[float]) -> dict[str, Any]:
    spec = point.spec
    model = expect.closed_loop(spec, point.size, point.readers, _reads(point) * point.readers) or 0.0
    error_pct = statistics.median(run.error_pct for run in runs)
    p50 = statistics.median(run.p50_ns for run in runs)
    cell = {
        "engine": engine,
        "mbps": spec.bandwidth_mbps,
        "lat_ms": spec.latency_ms,
        "size": point.size,
        "readers": point.readers,
        "model_mbps": model,
        "client_mbps": statistics.median(run.client_mbps for run in runs),
        "server_mbps": statistics.median(run.server_mbps for run in runs),
        "error_pct": error_pct,
        "error_pct_runs": [round(run.error_pct, 2) for run in runs],
        "p50_us": p50 / 1000,
        "lateness_p99_us": statistics.median(run.lateness_p99_ns for run in runs) / 1000,
    }
    if point.is_latency_point:
        allowed = max(LATENCY_TOLERANCE_NS, LATENCY_TOLERANCE * spec.latency_ns)
        valid = abs(p50 - spec.latency_ns) <= allowed
        reason = "short-reads"
    else:
        valid = abs(error_pct) <= tolerance_pct(spec)
        reason = _reason(model, statistics.median(ceilings), runs)
    return {**cell, "valid": valid, "reasons": [] if valid else [reason]}


def _reason(model: float, ceiling: float, runs: list[Sample]) -> str:
    """What most probably keeps a cell from its model, as a code of verdict/words.py."""
    if sum(run.floor_known for run in runs) * 2 <= len(runs):
        return "floor-unknown"
    if model > ceiling * 0.95:
        return "above-ceiling"
    if statistics.median(run.starved_ns for run in runs) > 0.02 * POINT_SECONDS * 1e9:
        return "cpu-contention"
    return "late-replies"
