"""What the model says a reader gets: the device itself, driven in virtual time."""

import heapq
from collections.abc import Sequence

from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.spec import TierSpec
from hbf_fuse.tier.window import Window

CHUNK_BYTES = 4 << 20
"""What a staging copy has in flight: the reference experiment's chunk."""

READS = 4000
"""Enough for the mean to settle within about a percent, where the jitter's deviation is at most half of a
read's time. Heavy tails settle later or never: of `lognormal` with S = 3 this many draws have a mean that is
off by -33 to +29% from seed to seed.
"""


def closed_loop(spec: TierSpec, nbytes: int, depth: int, reads: int = READS) -> float | None:
    """Decimal MB/s of `depth` readers that each ask for the next `nbytes` as soon as the last have come.

    This is what a queue depth and a request size can have from a tier, whatever its bandwidth: at
    500 MB/s + 5 ms with one read of 1 MiB in flight, 148 MB/s. None where nothing bounds it.
    """
    if not spec.throttled:
        return None
    last_ns = Window(Tier(spec), depth).read(0, 0, reads * nbytes, nbytes)
    if last_ns >= FOREVER_NS and reads > 1:
        # Decades: as many as the clock can hold tell the same.
        return closed_loop(spec, nbytes, depth, reads // 2)
    return reads * nbytes * 1e3 / last_ns if last_ns else None


def ends_ns(
    spec: TierSpec, nbytes: int, begins_ns: Sequence[int], reads: int, pause_ns: int = 0
) -> list[int]:
    """When each of some readers has its last read, if they begin then and each makes so many of nbytes, one
    after the other, pausing for so long between them.
    """
    tier, ends = Tier(spec), list(begins_ns)
    waiting = [(begin_ns, 0, number) for number, begin_ns in enumerate(begins_ns)]
    heapq.heapify(waiting)
    while waiting:
        arrival_ns, done, number = heapq.heappop(waiting)
        # Where each one reads matters to flash planes alone.
        ends[number] = tier.reserve(arrival_ns, (done * len(ends) + number) * nbytes, nbytes)
        if done + 1 < reads:
            heapq.heappush(waiting, (ends[number] + pause_ns, done + 1, number))
    return ends


def readers_error_pct(
    spec: TierSpec, nbytes: int, reads: int, readers: Sequence[tuple[int, int, Sequence[int]]]
) -> float:
    """By how many percent readers were faster (+) or slower than the tier lets them be, all together.

    readers: of each, when it began and ended, and how long its reads took, in ns; what is left of its time it
    paused between them. Each begins in the model when it began, so that nothing depends on how they start.
    """
    begins = [began for began, _, _ in readers]
    took = sum(ended - began for began, ended, _ in readers)
    paused = took - sum(sum(times) for _, _, times in readers)
    pause_ns = paused // len(readers) // max(1, reads - 1)
    model = sum(ends_ns(spec, nbytes, begins, reads, pause_ns)) - sum(begins)
    return (model / took - 1) * 100


def staging_mbps(spec: TierSpec, chunked: bool) -> float | None:
    """Decimal MB/s that staging a large model comes to by bandwidth and latency alone.

    chunked: one chunk of CHUNK_BYTES in flight; else so much is in flight that latency hides behind it.
    Without jitter and flash detail. None where nothing bounds it.
    """
    return spec.chunked_mbps(CHUNK_BYTES) if chunked else spec.bandwidth_mbps
