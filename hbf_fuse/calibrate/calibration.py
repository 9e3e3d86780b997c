"""Achieved against model over a grid of tiers and readers: what this machine can emulate.

The server runs in this process and changes its tier from point to point. The readers are separate processes
with one read in flight each, past the page cache, so that request size and queue depth are exact. Each point
is measured by the clients and by the server.
"""

import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.calibrate import readers
from hbf_fuse.calibrate.envelope import EngineFacts, Envelope, EnvelopeCell
from hbf_fuse.calibrate.plan import POINT_SECONDS, GridPoint, Plan
from hbf_fuse.calibrate.readers import Access
from hbf_fuse.engine import MEMORY
from hbf_fuse.host import machine
from hbf_fuse.mount import floor
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.verdict import tolerance_pct

CROWD = 4
"""Concurrent readers for the ceiling."""

CEILING_READS = 1500
FLOOR_WAIT_NS = 400_000
"""The floor is reported for a wait of this length."""

LATENCY_TOLERANCE_NS = 25_000
MAPPED_TOLERANCE_NS = 2_000
"""Of a touch of a mapping."""

LATENCY_TOLERANCE = 0.02


@dataclass(frozen=True)
class Sample:
    """One run of a point. Rates in decimal MB/s, times in ns. error_pct: the readers' own clocks against the
    model, in which each reader begins when it really began.
    """

    client_mbps: float
    error_pct: float
    server_mbps: float
    p50_ns: int
    lateness_p99_ns: int
    starved_ns: int
    floor_known: bool


class Calibration:
    """A plan in progress. Its results so far are available at any time.

    Rounds interleave the engines and shuffle the points, so that a drifting machine does not look like a
    property of one of them.
    """

    def __init__(self, plan: Plan, source: Path, mountpoint: Path, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self.points = plan.points()
        self._source = source
        self._mountpoint = mountpoint
        self._tell = tell
        self._samples: dict[tuple[str, GridPoint], list[Sample]] = {}
        self._ceilings: dict[str, list[float]] = {}
        self._floors: dict[str, list[Floor]] = {}

    @property
    def steps(self) -> int:
        """Number of runs in all."""
        return len(self.points) * self.plan.runs * len(self.plan.engines)

    def run(self) -> Iterator[None]:
        """Measure. Yields after every step."""
        order = random.Random(1)  # noqa: S311 - an order, not a secret
        for _ in range(self.plan.runs):
            for engine in self.plan.engines:
                yield from self._round(engine, order.sample(self.points, len(self.points)))

    def _round(self, engine: str, points: list[GridPoint]) -> Iterator[None]:
        found = _floor_of(engine)
        self._floors.setdefault(engine, []).append(found)
        crowd = GridPoint(TierSpec(), 1 << 20, CROWD)
        ceiling = self._run(engine, crowd, Floor(), CEILING_READS).client_mbps
        self._ceilings.setdefault(engine, []).append(ceiling)
        for point in points:
            sample = self._run(engine, point, found, point.reads)
            self._samples.setdefault((engine, point), []).append(sample)
            yield

    def _run(self, engine: str, point: GridPoint, known: Floor, reads: int) -> Sample:
        reached = readers.reached(self._source, self._mountpoint, engine, point, known, self._tell)
        if engine == MEMORY:
            # A page of a mapping comes once.
            reads = min(reads, self._source.stat().st_size // point.size // point.readers)
        with reached as access:
            return _run(access, point, reads)

    def document(self) -> Envelope:
        """The envelope: all results so far."""
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

    def _facts(self, engine: str, cells: list[EnvelopeCell]) -> EngineFacts:
        floors = [one for one in self._floors[engine] if one.known] or [Floor(known=False)]
        valid = [cell["valid"] for cell in cells if cell["engine"] == engine]
        return {
            "ceiling_mbps": statistics.median(self._ceilings[engine]),
            "floor_ns": statistics.median(one.of(0, FLOOR_WAIT_NS) for one in floors),
            "floor_ns_per_mib": statistics.median(one.per_mib_ns for one in floors),
            "share_valid": statistics.mean(valid) if valid else 0.0,
        }


def _floor_of(engine: str) -> Floor:
    if engine == MEMORY:
        from hbf_fuse.engine.memory import floor as mapped

        return mapped.measure()
    return floor.measure(engine)


def _run(access: Access, point: GridPoint, reads: int) -> Sample:
    starved_before_ns = machine.own_threads_starved_ns()
    results = readers.read(access, point, reads)
    if access.served.mapped:
        access.served.mapped.look()
    pacer = access.served.books
    counters = pacer.counters
    nbytes = point.size * reads * point.readers
    timed = [(one["begin"], one["end"], one["times"]) for one in results]
    return Sample(
        client_mbps=nbytes * 1e3 / (max(end for _, end, _ in timed) - min(begin for begin, _, _ in timed)),
        error_pct=expect.readers_error_pct(point.spec, point.size, reads, timed)
        if point.spec.throttled
        else 0.0,
        server_mbps=nbytes * 1e3 / (counters.last_done_ns - counters.first_arrival_ns),
        p50_ns=round(statistics.median(time for one in results for time in one["times"])),
        lateness_p99_ns=counters.lateness.percentile(99),
        starved_ns=machine.own_threads_starved_ns() - starved_before_ns,
        floor_known=pacer.floor.known,
    )


def _cell(engine: str, point: GridPoint, runs: list[Sample], ceilings: list[float]) -> EnvelopeCell:
    spec = point.spec
    model = expect.closed_loop(spec, point.size, point.readers, point.reads * point.readers) or 0.0
    error_pct = statistics.median(run.error_pct for run in runs)
    p50 = statistics.median(run.p50_ns for run in runs)
    if point.is_latency_point:
        least_ns = MAPPED_TOLERANCE_NS if engine == MEMORY else LATENCY_TOLERANCE_NS
        allowed = max(least_ns, LATENCY_TOLERANCE * spec.latency_ns)
        valid = abs(p50 - spec.latency_ns) <= allowed
        reason = "short-reads"
    else:
        valid = abs(error_pct) <= tolerance_pct(spec)
        if engine == MEMORY:
            # How long a touch takes for its reader, against the model.
            touch_ns = point.size * point.readers * 1e3 / model if model else 0.0
            valid = valid or abs(error_pct) / 100 * touch_ns <= MAPPED_TOLERANCE_NS
        reason = _reason(model, statistics.median(ceilings), runs)
    return {
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
        "valid": valid,
        "reasons": [] if valid else [reason],
    }


def _reason(model: float, ceiling: float, runs: list[Sample]) -> str:
    """The most probable reason why a cell misses its model, as a code of verdict/words.py."""
    if sum(run.floor_known for run in runs) * 2 <= len(runs):
        return "floor-unknown"
    if model > ceiling * 0.95:
        return "above-ceiling"
    if statistics.median(run.starved_ns for run in runs) > 0.02 * POINT_SECONDS * 1e9:
        return "cpu-contention"
    return "late-replies"
