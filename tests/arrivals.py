"""A million reads of all kinds of tiers, and digests of their deadlines.

python tests/arrivals.py    prints the digests as JSON
"""

import hashlib
import json
import math
import random
from array import array
from collections.abc import Iterator

from hbf_fuse.tier import Tier, TierSpec

READS = 80_000
"""Of each tier."""

SECOND_NS = 1_000_000_000
SIZES = (4096, 40_960, 131_072, 1 << 20)

SPECS = {
    "link": TierSpec(500, 1.0),
    "link alone": TierSpec(1000),
    "latency alone": TierSpec(None, 0.1),
    "odd rate": TierSpec(777.777777, 0.02),
    "odder rate": TierSpec(3333.333333),
    "one byte per second": TierSpec(1e-6),
    "fastest": TierSpec(1e9, 0.001),
    "planes": TierSpec(1000, 0.05, planes=64, page_bytes=16_384, t_read_us=40),
    "planes without a link": TierSpec(None, 0, planes=3, page_bytes=4097, t_read_us=13.5),
    "planes and depth": TierSpec(800, 0.5, planes=7, t_read_us=25, depth=32),
    "depth": TierSpec(300, 0.2, depth=4),
}
"""Without jitter."""

JITTERS = {
    "every jitter": TierSpec(
        2000, 0.5, "normal:0.1+tail:1e-3,2+uniform:0.05+exponential:0.02+lognormal:0.05,0.5", seed=7
    ),
    "jitter and flash": TierSpec(800, 0.5, "normal:0.1", -3, planes=7, t_read_us=25, depth=32),
}


def arrivals(name: str, spec: TierSpec) -> Iterator[tuple[int, int, int]]:
    """(arrival ns, offset, bytes): bursts, pauses, and reads that come up to 200 us behind later ones.

    Random numbers come from random() alone: Python promises to keep its numbers.
    """
    draw = random.Random(name).random
    now = 1000 * SECOND_NS
    for _ in range(READS):
        size = _size(name, draw())
        if draw() < 0.9:
            mean_ns = size * 1e3 / (spec.bandwidth_mbps or 1e4) + 1
            now += int(-math.log(1 - draw()) * mean_ns)
        else:
            now += (0, 600_000, 3_000_000, 150_000_000)[int(draw() ** 3 * 4)]
        late_ns = int(draw() * 200_000) if draw() < 0.3 else 0
        yield now - late_ns, int(draw() * (1 << 34)), size


def _size(name: str, chance: float) -> int:
    if name == "one byte per second":
        return int(chance * 200) + 1
    if name == "fastest" and chance < 0.1:
        return int(chance * 10 * (1 << 44)) + 1
    return SIZES[int(chance * 4)] if chance < 0.8 else int((chance - 0.8) * (5 << 20)) + 1


def digest(name: str, spec: TierSpec) -> str:
    """SHA-256 of the deadlines, and of the planes' sensed pages."""
    tier = Tier(spec)
    deadlines = array("q", (tier.reserve(*read) for read in arrivals(name, spec)))
    sensed = f"{tier.planes.bytes_sensed} {tier.planes.bytes_asked}" if tier.planes else ""
    return hashlib.sha256(deadlines.tobytes() + sensed.encode()).hexdigest()


def digests(part: int = 0, parts: int = 1) -> dict[str, str]:
    """Digests by the name of the tier: of all arrivals, or of every `parts`-th."""
    every = list((SPECS | JITTERS).items())
    return {name: digest(name, spec) for name, spec in every[part::parts]}


if __name__ == "__main__":
    print(json.dumps(digests(), indent=2))
