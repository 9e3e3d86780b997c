"""What the model says a reader gets: the device itself, driven in virtual time."""

import heapq

from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.spec import TierSpec

CHUNK_BYTES = 4 << 20
"""What a staging copy has in flight: the reference experiment's chunk."""

READS = 4000
"""Enough for the mean of any jitter with a mean to settle within a percent or so."""


def closed_loop(spec: TierSpec, nbytes: int, depth: int, reads: int = READS) -> float | None:
    """Decimal MB/s of `depth` readers that each ask for the next `nbytes` as soon as the last have come.

    This is what a queue depth and a request size can have from a tier, whatever its bandwidth: at
    500 MB/s + 5 ms with one read of 1 MiB in flight, 148 MB/s. None where nothing bounds it.
    """
    if not spec.throttled:
        return None
    tier = Tier(spec)
    ready = [(0, reader) for reader in range(depth)]
    last = 0
    for count in range(reads):
        arrival, reader = heapq.heappop(ready)
        deadline = tier.reserve(arrival, count * nbytes, nbytes, reader)
        last = max(last, deadline)
        heapq.heappush(ready, (deadline, reader))
    return reads * nbytes * 1e3 / last if last else None


def staging_mbps(spec: TierSpec, chunked: bool) -> float | None:
    """Decimal MB/s that staging a large model comes to by bandwidth and latency alone.

    chunked: one chunk of CHUNK_BYTES in flight; else so much is in flight that latency hides behind it.
    Without jitter and flash detail. None where nothing bounds it.
    """
    return spec.chunked_mbps(CHUNK_BYTES) if chunked else spec.bandwidth_mbps
