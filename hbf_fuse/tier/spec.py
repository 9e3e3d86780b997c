"""The parameters of a tier, checked once, in the units of the arithmetic."""

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from hbf_fuse.tier import jitter as jitters
from hbf_fuse.tier.errors import SpecError

MAX_MBPS = 1e9
"""1 PB/s: more than any announced memory; a larger figure is a wrong unit."""

MAX_LATENCY_MS = 60_000.0
"""One minute: longer than any device; a larger figure is a wrong unit."""

MAX_PLANES = 65_536
MAX_PAGE_BYTES = 1 << 24
MAX_DEPTH = 65_536
MAX_SEED = (1 << 63) - 1
MIN_CHUNK, MAX_CHUNK = 4096, 2 << 20
MAX_BLOCK_PAGES = 65_536
MAX_SPARE_PCT = 1000.0
MAX_CYCLES = 1_000_000_000
HASHED, MODULO = "hashed", "modulo"
INTERLEAVES = (HASHED, MODULO)
_KINDS = {str: "a text", int: "a whole number"}
_SHORT = {
    "bandwidth_mbps": "mbps",
    "latency_ms": "lat",
    "page_bytes": "page",
    "t_read_us": "t_read",
    "seek_ms": "seek",
    "chunk_bytes": "chunk",
    "t_prog_us": "t_prog",
    "t_erase_us": "t_erase",
    "block_pages": "block",
    "spare_pct": "spare",
    "suspend_us": "suspend",
}
"""Short names of fields, on the command line and in control messages, where they differ from the field's
name.
"""


@dataclass(frozen=True, slots=True)
class TierSpec:
    """An emulated device.

    bandwidth_mbps: decimal MB/s of the link, None for unlimited.
    latency_ms: from the end of a read's transfer until its data is visible; overlaps between reads.
    jitter: how the latency varies, such as "normal:0.1+tail:1e-4,2"; see jitter.FORMS. Empty for none.
    seed: of the jitter.
    planes, page_bytes, t_read_us, interleave: flash detail. A plane senses a page into its register in
        t_read_us before the link may carry it; 0 planes for none. Page N is in plane N % planes (modulo), or
        that rotated by a hash of N // planes (hashed).
    depth: reads that the device works on at once; 0 for any number.
    seek_ms: of the single arm, before a read that does not begin where the last one ended; 0 for no arm.
    chunk_bytes: what one fault of a mapping brings under the memory engine, in pages; 0 for its default.
    write_mbps: the most that the medium takes of writes, in decimal MB/s; they cross the link besides. None
        for no limit of their own.
    t_prog_us: time in which a plane programs a page; it needs planes. A plane that programs or erases does
        not sense. 0 for none: then there is no translation layer either.
    t_erase_us, block_pages: of an erase block, which lies in one plane.
    spare_pct: over-provisioning, physical over logical pages - 1, in percent.
    suspend_us: in which a program or an erase is suspended for a read that comes meanwhile; None if the read
        has to wait for the end.
    endurance: program and erase cycles of a block; 0 for unknown.

    Raises SpecError for values that no device can have.
    """

    bandwidth_mbps: float | None = None
    latency_ms: float = 0.0
    jitter: str = ""
    seed: int = 0
    planes: int = 0
    page_bytes: int = 4096
    t_read_us: float = 0.0
    depth: int = 0
    interleave: str = HASHED
    seek_ms: float = 0.0
    chunk_bytes: int = 0
    write_mbps: float | None = None
    t_prog_us: float = 0.0
    t_erase_us: float = 0.0
    block_pages: int = 256
    spare_pct: float = 7.0
    suspend_us: float | None = None
    endurance: int = 0

    def __post_init__(self) -> None:
        for name, (shown, most, unit, least) in _RANGES.items():
            if getattr(self, name) is not None or name not in _NULLABLE:
                _check(shown, getattr(self, name), most, unit, least)
        if self.interleave not in INTERLEAVES:
            raise SpecError(
                f"unknown interleave {reprlib.repr(self.interleave)} (--interleave); "
                f"there are: {', '.join(INTERLEAVES)}"
            )
        for name in _WHOLE:
            wanted = str if name == "jitter" else int
            if not isinstance(getattr(self, name), wanted):
                raise SpecError(f"{name} must be {_KINDS[wanted]}, got {reprlib.repr(getattr(self, name))}")
        if self.chunk_bytes and (self.chunk_bytes % MIN_CHUNK or not 0 < self.chunk_bytes <= MAX_CHUNK):
            raise SpecError(
                f"chunk (--chunk) must be whole pages of {MIN_CHUNK} bytes, at most {MAX_CHUNK}, "
                f"got {reprlib.repr(self.chunk_bytes)}"
            )
        if not -MAX_SEED <= self.seed <= MAX_SEED:
            raise SpecError("seed (--seed) must fit into 64 bits")
        if self.planes and not self.page_bytes:
            raise SpecError("page (--page) must be above 0 bytes where there are planes")
        for needing, is_given, needed in (
            ("a page read time (--t-read) needs planes (--planes)", self.t_read_us, self.planes),
            ("a program time (--t-prog) needs planes (--planes)", self.t_prog_us, self.planes),
            ("an erase time (--t-erase) needs a program time (--t-prog)", self.t_erase_us, self.t_prog_us),
            ("--suspend needs a program time (--t-prog)", self.suspend_us is not None, self.t_prog_us),
        ):
            if is_given and not needed:
                raise SpecError(needing)
        below = sum(part.below_ms() for part in jitters.parse(self.jitter))
        if below > self.latency_ms:
            raise SpecError(
                f"jitter {self.jitter!r} would reach below zero: it needs a latency (--lat) of at least "
                f"{below:g} ms, got {self.latency_ms:g}"
            )

    @property
    def bytes_per_second(self) -> int:
        """Link rate in bytes per second, 0 for unlimited."""
        return round(self.bandwidth_mbps * 1e6) if self.bandwidth_mbps is not None else 0

    @property
    def latency_ns(self) -> int:
        """Latency in ns, without jitter."""
        return round(self.latency_ms * 1e6)

    @property
    def mean_latency_ms(self) -> float:
        """Latency with the jitter's mean; page retries are not part of it."""
        parts = jitters.parse(self.jitter)
        return self.latency_ms + sum(
            part.mean_ms() for part in parts if not (self.planes and part.kind == jitters.RETRY)
        )

    @property
    def throttled(self) -> bool:
        """Whether reads wait for this tier."""
        times = self.mean_latency_ms, self.t_read_us, self.seek_ms, self.t_prog_us
        return self.bandwidth_mbps is not None or max(times) > 0

    @property
    def throttles_writes(self) -> bool:
        """Whether writes wait for this tier."""
        return self.throttled or self.write_mbps is not None

    @property
    def most_mbps(self) -> float | None:
        """What it carries at most: the link's bandwidth, or what all planes sense. None for no limit."""
        sensed = self.planes * self.page_bytes / self.t_read_us if self.t_read_us else None
        return min((rate for rate in (self.bandwidth_mbps, sensed) if rate), default=None)

    @property
    def plain(self) -> bool:
        """Whether the tier has only bandwidth and latency: no jitter, flash planes, queue depth or arm."""
        return not (self.jitter or self.planes or self.depth or self.seek_ms)

    @property
    def medium(self) -> tuple[int, ...]:
        """What must be the same for pages to stay where they are: planes, pages and blocks."""
        programs = bool(self.t_prog_us)
        return (programs, self.planes, self.page_bytes, self.block_pages, round(self.spare_pct * 1e6))

    def chunked_mbps(self, chunk_bytes: int, depth: int = 1) -> float | None:
        """Steady rate, in decimal MB/s, of a reader that keeps `depth` reads of `chunk_bytes` in flight.

        Each read takes transfer + latency, so the rate is depth x chunk / (chunk / bandwidth + latency), at
        most the link's. With one read of 4 MiB in flight this is the model that the reference experiment was
        compared with. Ignores jitter and flash detail: use expect.closed_loop for those. None if neither
        limits the rate.
        """
        link = self.bandwidth_mbps
        round_trip_us = self.latency_ms * 1e3 + (chunk_bytes / link if link else 0.0)
        if round_trip_us == 0:
            return None
        window = depth * chunk_bytes / round_trip_us
        return min(window, link) if link else window

    def changed(self, values: Mapping[str, Any]) -> Self:
        """This tier with other values, by the names in NAMES."""
        return dataclasses.replace(self, **{NAMES[name]: value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """As JSON. Newer fields with their defaults are left out: then documents stored before these fields
        existed still describe the same tier.
        """
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if (name, value) not in _NEWER.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """From JSON; an unknown key is a SpecError."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise SpecError(f"unknown tier parameter {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**fields)

    def __str__(self) -> str:
        if not self.throttles_writes:
            return "unthrottled"
        link = f"{self.bandwidth_mbps:g} MB/s" if self.bandwidth_mbps is not None else "unlimited MB/s"
        parts = [link, f"{self.latency_ms:g} ms"]
        if self.jitter:
            parts.append(f"jitter {self.jitter}")
        if self.planes:
            modulo = ", modulo" if self.interleave == MODULO else ""
            parts.append(f"{self.planes} planes of {self.page_bytes} bytes in {self.t_read_us:g} us{modulo}")
        if self.depth:
            parts.append(f"depth {self.depth}")
        if self.seek_ms:
            parts.append(f"seek {self.seek_ms:g} ms")
        if self.chunk_bytes:
            parts.append(f"chunks of {self.chunk_bytes >> 10} KiB")
        if self.write_mbps is not None:
            parts.append(f"writes at {self.write_mbps:g} MB/s")
        if self.t_prog_us:
            suspended = "" if self.suspend_us is None else f", suspended in {self.suspend_us:g} us"
            parts.append(f"programs in {self.t_prog_us:g} us{suspended}")
        return " + ".join(parts)


_RANGES: dict[str, tuple[str, float, str, float]] = {
    "bandwidth_mbps": ("bandwidth (--mbps)", MAX_MBPS, "MB/s", 1e-6),
    "latency_ms": ("latency (--lat)", MAX_LATENCY_MS, "ms", 0),
    "t_read_us": ("page read time (--t-read)", MAX_LATENCY_MS * 1e3, "us", 0),
    "planes": ("planes (--planes)", MAX_PLANES, "planes", 0),
    "page_bytes": ("page (--page)", MAX_PAGE_BYTES, "bytes", 0),
    "seek_ms": ("seek (--seek)", MAX_LATENCY_MS, "ms", 0),
    "depth": ("depth (--depth)", MAX_DEPTH, "reads", 0),
    "write_mbps": ("write bandwidth (--write-mbps)", MAX_MBPS, "MB/s", 1e-6),
    "t_prog_us": ("program time (--t-prog)", MAX_LATENCY_MS * 1e3, "us", 0),
    "t_erase_us": ("erase time (--t-erase)", MAX_LATENCY_MS * 1e3, "us", 0),
    "block_pages": ("erase block (--block)", MAX_BLOCK_PAGES, "pages", 1),
    "spare_pct": ("over-provisioning (--spare)", MAX_SPARE_PCT, "%", 0),
    "suspend_us": ("suspension (--suspend)", MAX_LATENCY_MS * 1e3, "us", 0),
    "endurance": ("endurance (--endurance)", MAX_CYCLES, "cycles", 0),
}
"""Of numbers: the name with its option, the most, the unit, and the least."""

_NULLABLE = ("bandwidth_mbps", "write_mbps", "suspend_us")

_WHOLE = ("jitter", "seed", "planes", "page_bytes", "depth", "chunk_bytes", "block_pages", "endurance")
_NEWER = {
    "interleave": HASHED,
    "seek_ms": 0.0,
    "chunk_bytes": 0,
    "write_mbps": None,
    "t_prog_us": 0.0,
    "t_erase_us": 0.0,
    "block_pages": 256,
    "spare_pct": 7.0,
    "suspend_us": None,
    "endurance": 0,
}

NAMES = {_SHORT.get(field.name, field.name): field.name for field in dataclasses.fields(TierSpec)}
"""Every field of TierSpec by its short name: mbps, lat, jitter, seed, planes, page, ..."""


def _check(name: str, value: Any, most: float, unit: str, least: float = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(f"{name} must be a number, got {reprlib.repr(value)}")
    # Compared without conversion: a whole number may be too large for a float. NaN is in no range.
    if not least <= value <= most:
        bounds = f"above 0 and at most {most:g}" if least else f"from 0 to {most:g}"
        shown = f"{value:g}" if abs(value) < 1e300 else "a number out of any range"
        raise SpecError(f"{name} must be {bounds} {unit}, got {shown}")
