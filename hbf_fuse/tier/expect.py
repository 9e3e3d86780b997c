"""What the model says a reader gets: the device itself, driven in virtual time."""

from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.spec import TierSpec
from hbf_fuse.tier.window import Window

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
    last_ns = Window(Tier(spec), depth).read(0, 0, reads * nbytes, nbytes)
    if last_ns >= FOREVER_NS and reads > 1:
        # Decades: as many as the clock can hold tell the same.
        return closed_loop(spec, nbytes, depth, reads // 2)
    return reads * nbytes * 1e3 / last_ns if last_ns else None


def staging_mbps(spec: TierSpec, chunked: bool) -> float | None:
    """Decimal MB/s that staging a large model comes to by bandwidth and latency alone.

    chunked: one chunk of CHUNK_BYTES in flight; else so much is in flight that latency hides behind it.
    Without jitter and flash detail. None where nothing bounds it.
    """
    return spec.chunked_mbps(CHUNK_BYTES) if chunked else spec.bandwidth_mbps
