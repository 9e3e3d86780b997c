"""What a reader gets according to the model: the device itself, run in virtual time."""

import heapq
from collections.abc import Callable, Sequence

from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.spec import TierSpec
from hbf_fuse.tier.window import Window

CHUNK_BYTES = 4 << 20
"""What a staging copy has in flight: the reference experiment's chunk."""

MAPPED_CHUNK_BYTES = 256 << 10
"""What one fault of a mapping brings under the memory engine, unless the tier says something else."""

READS = 4000
"""Enough for the mean to settle within about a percent, if the jitter's deviation is at most half of a read's
time. Heavy tails settle later or never: with `lognormal` and S = 3, the mean of this many draws is off by -33
to +29%, depending on the seed.
"""

PRECISION = 1e-3
_STEPS = 60


def closed_loop(
    spec: TierSpec, nbytes: int, depth: int, reads: int = READS, writes: bool = False
) -> float | None:
    """Decimal MB/s of `depth` readers that each request the next `nbytes` as soon as the last have arrived.
    With `writes` they are writers.

    The most that this queue depth and request size can get from a tier: with one read of 1 MiB in flight, 148
    MB/s at 500 MB/s + 5 ms. None if nothing limits the rate.
    """
    if not (spec.throttles_writes if writes else spec.throttled):
        return None
    window = Window(Tier(spec), depth)
    last_ns = (window.write if writes else window.read)(0, 0, reads * nbytes, nbytes)
    if last_ns >= FOREVER_NS and reads > 1:
        # Decades: fewer reads, which fit into the clock, give the same rate.
        return closed_loop(spec, nbytes, depth, reads // 2, writes)
    return reads * nbytes * 1e3 / last_ns if last_ns else None


def ends_ns(
    spec: TierSpec, nbytes: int, begins_ns: Sequence[int], reads: int, pause_ns: int = 0
) -> list[int]:
    """When each reader has its last read. begins_ns: when each begins. Each makes `reads` reads of nbytes,
    one after the other, with pauses of pause_ns between them.
    """
    tier, ends = Tier(spec), list(begins_ns)
    waiting = [(begin_ns, 0, number) for number, begin_ns in enumerate(begins_ns)]
    heapq.heapify(waiting)
    while waiting:
        arrival_ns, done, number = heapq.heappop(waiting)
        # The offsets matter only to flash planes.
        ends[number] = tier.reserve(arrival_ns, (done * len(ends) + number) * nbytes, nbytes)
        if done + 1 < reads:
            heapq.heappush(waiting, (ends[number] + pause_ns, done + 1, number))
    return ends


def readers_error_pct(
    spec: TierSpec, nbytes: int, reads: int, readers: Sequence[tuple[int, int, Sequence[int]]]
) -> float:
    """By how many percent the readers together were faster (+) or slower (-) than the model.

    readers: for each, when it began, when it ended, and how long its reads took, in ns. The rest of its time
    counts as pauses between reads. In the model, each reader begins when it really began, so their start
    times do not matter.
    """
    begins = [began for began, _, _ in readers]
    took = sum(ended - began for began, ended, _ in readers)
    paused = took - sum(sum(times) for _, _, times in readers)
    pause_ns = paused // len(readers) // max(1, reads - 1)
    model = sum(ends_ns(spec, nbytes, begins, reads, pause_ns)) - sum(begins)
    return (model / took - 1) * 100


def staging_mbps(spec: TierSpec, chunked: bool) -> float | None:
    """Decimal MB/s for staging a large model, by bandwidth and latency alone.

    chunked: one chunk of CHUNK_BYTES in flight; otherwise enough is in flight to hide the latency. Without
    jitter and flash detail. None if nothing limits the rate.
    """
    return spec.chunked_mbps(CHUNK_BYTES) if chunked else spec.bandwidth_mbps


def mapped_mbps(spec: TierSpec, threads: int = 1) -> float | None:
    """Decimal MB/s of threads that read through a mapping under the memory engine. There is no readahead: a
    thread has one chunk C in flight, so it gets C / (C / bandwidth + latency). None if nothing limits it.
    """
    chunk = spec.chunk_bytes or MAPPED_CHUNK_BYTES
    return spec.chunked_mbps(chunk, threads) if spec.plain else closed_loop(spec, chunk, threads)


def mapped_wait_ms(spec: TierSpec) -> float:
    """How long a thread alone waits for a chunk of a mapping; 0 if nothing limits it."""
    rate = mapped_mbps(spec)
    return (spec.chunk_bytes or MAPPED_CHUNK_BYTES) / rate / 1000 if rate else 0.0


def least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least value, within PRECISION of itself, for which something holds that does not below it. It is
    taken to hold at `high`.
    """
    for _ in range(_STEPS):
        if high / low <= 1 + PRECISION:
            break
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
