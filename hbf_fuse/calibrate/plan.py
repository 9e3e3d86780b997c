"""What hbf calibrate measures: tiers, their readers, and how often."""

from dataclasses import dataclass, replace

from hbf_fuse.tier import TierSpec, expect

SOURCE_BYTES = 256 << 20
POINT_SECONDS = 0.4
SMALL = 4096
MOST_READS_PER_SECOND = 25_000
"""More small reads through FUSE than this, by separate processes, keep two cores busy by themselves."""


@dataclass(frozen=True)
class GridPoint:
    """A tier and its readers: `readers` processes, each with one read of `size` bytes in flight."""

    spec: TierSpec
    size: int
    readers: int

    @property
    def is_latency_point(self) -> bool:
        """Whether it is judged by the time of single small reads, not by a rate."""
        return self.size == SMALL and self.readers == 1 and self.spec.bandwidth_mbps is None

    @property
    def reads_per_second(self) -> float:
        """By the model; for an unthrottled tier as at 10 GB/s."""
        rate = expect.closed_loop(self.spec, self.size, self.readers, reads=200) or 1e4
        return rate * 1e6 / self.size

    @property
    def reads(self) -> int:
        """Reads per reader for about POINT_SECONDS by the model."""
        return max(12, min(4000, round(self.reads_per_second * POINT_SECONDS / self.readers)))


@dataclass(frozen=True)
class Plan:
    """What to measure: every combination, `runs` times."""

    mbps: tuple[float | None, ...]
    lat_ms: tuple[float, ...]
    sizes: tuple[int, ...]
    readers: tuple[int, ...]
    runs: int
    engines: tuple[str, ...] = ("kernel",)
    most_reads_per_second: float = MOST_READS_PER_SECOND

    def points(self) -> list[GridPoint]:
        """All points that can be served: rates over the grid, and single small reads at each latency above
        0.
        """
        rates = [
            GridPoint(TierSpec(mbps, lat), size, readers)
            for mbps in self.mbps
            for lat in self.lat_ms
            for size in self.sizes
            for readers in self.readers
        ]
        rates = [point for point in rates if point.reads_per_second <= self.most_reads_per_second]
        return rates + [GridPoint(TierSpec(None, lat), SMALL, 1) for lat in self.lat_ms if lat]


QUICK = Plan((100, 500, 1000, 2000), (0, 1), (1 << 17, 1 << 20), (1, 4), runs=3)
FULL = Plan(
    (50, 100, 250, 500, 1000, 1500, 2000),
    (0, 0.2, 1, 5),
    (SMALL, 1 << 17, 1 << 20),
    (1, 4, 8),
    5,
    ("kernel", "fusepy"),
)
MAPPED = Plan(
    (1000, 2000, 5000, 8000),
    (0.005, 0.01, 0.02, 0.05),
    (1 << 16, 1 << 18, 1 << 21),
    (1, 2),
    5,
    ("memory",),
    most_reads_per_second=float("inf"),
)
"""Of mappings, in chunks."""


def named(engine: str | None, full: bool) -> Plan:
    """What is measured unless more is asked for."""
    if engine == "memory":
        return MAPPED if full else replace(MAPPED, sizes=MAPPED.sizes[1:], lat_ms=MAPPED.lat_ms[2:], runs=3)
    plan = FULL if full else QUICK
    return replace(plan, engines=(engine,)) if engine else plan
