"""What a tier is: its parameters, checked once, in the units of the arithmetic."""

import math
from dataclasses import dataclass
from typing import Any, Self

MAX_MBPS = 1e9
"""1 PB/s: past any announced memory; a larger figure is a slip of the unit."""

MAX_LATENCY_MS = 60_000.0
"""One minute: longer than any device answers; a larger figure is a slip of the unit."""


class SpecError(ValueError):
    """A tier that cannot be: says which parameter, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class TierSpec:
    """An emulated device.

    bandwidth_mbps: decimal MB/s of the link, None for unlimited.
    latency_ms: from the end of a read's transfer to its data being visible; overlaps between reads.

    Raises SpecError for values that no device can have.
    """

    bandwidth_mbps: float | None = None
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        if self.bandwidth_mbps is not None:
            _check("bandwidth (--mbps)", self.bandwidth_mbps, MAX_MBPS, "MB/s")
            if self.bytes_per_second < 1:
                raise SpecError(
                    f"bandwidth (--mbps) must be above 0 MB/s, got {self.bandwidth_mbps:g}; "
                    "leave it out for an unthrottled tier"
                )
        _check("latency (--lat)", self.latency_ms, MAX_LATENCY_MS, "ms")

    @property
    def bytes_per_second(self) -> int:
        """Link rate in bytes per second, 0 for unlimited."""
        return round(self.bandwidth_mbps * 1e6) if self.bandwidth_mbps is not None else 0

    @property
    def latency_ns(self) -> int:
        """Latency in ns."""
        return round(self.latency_ms * 1e6)

    @property
    def throttled(self) -> bool:
        """Whether a read ever waits for this tier."""
        return self.bandwidth_mbps is not None or self.latency_ms > 0

    def chunked_mbps(self, chunk_bytes: int, depth: int = 1) -> float | None:
        """Steady rate, in decimal MB/s, of a reader that keeps `depth` reads of `chunk_bytes` in flight.

        Each read is away for transfer + latency, so the rate is depth x chunk / (chunk / bandwidth +
        latency), and never more than the link. With one read of 4 MiB in flight this is the model
        that the reference experiment was held against. None where neither bounds it.
        """
        link = self.bandwidth_mbps
        round_trip_us = self.latency_ms * 1e3 + (chunk_bytes / link if link else 0.0)
        if round_trip_us == 0:
            return None
        window = depth * chunk_bytes / round_trip_us
        return min(window, link) if link else window

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"bandwidth_mbps": self.bandwidth_mbps, "latency_ms": self.latency_ms}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """From JSON; an unknown key is a SpecError."""
        unknown = sorted(set(fields) - {"bandwidth_mbps", "latency_ms"})
        if unknown:
            raise SpecError(f"unknown tier parameter {unknown[0]!r}; known: bandwidth_mbps, latency_ms")
        return cls(**fields)

    def __str__(self) -> str:
        if not self.throttled:
            return "unthrottled"
        link = f"{self.bandwidth_mbps:g} MB/s" if self.bandwidth_mbps is not None else "unlimited MB/s"
        return f"{link} + {self.latency_ms:g} ms"


def _check(name: str, value: Any, most: float, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or not 0 <= value <= most:
        raise SpecError(f"{name} must be from 0 to {most:g} {unit}, got {value:g}")
