"""First-order formulas for weights in a tier. Rates in decimal MB/s, times in seconds."""

from hbf_fuse.gguf import GgufFile, weights
from hbf_fuse.pacing.resident import WINDOW_BYTES
from hbf_fuse.tier import TierSpec, expect


def rate_mbps(spec: TierSpec, chunk_bytes: int, depth: int) -> float | None:
    """What `depth` reads of chunk_bytes in flight get of a tier, by the device in virtual time. None if
    nothing limits it.
    """
    return expect.closed_loop(spec, chunk_bytes, depth)


def read_seconds(nbytes: float, mbps: float | None) -> float:
    """To read so much at a rate; 0 where nothing limits it."""
    return nbytes / (mbps * 1e6) if mbps else 0.0


def decode_tps(nbytes: float, mbps: float | None, compute_seconds: float) -> float | None:
    """Tokens/s if each token reads nbytes of the tier, and computing waits for that: no overlap, as with
    llama.cpp, which touches a page when it needs it. None if neither takes any time.
    """
    seconds = compute_seconds + read_seconds(nbytes, mbps)
    return 1 / seconds if seconds else None


def overlapped_tps(nbytes: float, mbps: float | None, compute_seconds: float) -> float | None:
    """The same if reading goes on under computing, as where weights are prefetched: the longer of the two."""
    seconds = max(compute_seconds, read_seconds(nbytes, mbps))
    return 1 / seconds if seconds else None


def break_even_mbps(nbytes: float, compute_seconds: float) -> float | None:
    """The rate at which a token's reads take as long as its computing: half of the speed is left. None if
    computing takes no time.
    """
    return nbytes / compute_seconds / 1e6 if compute_seconds else None


def missing_bytes(model: GgufFile, resident_bytes: int, window_bytes: int) -> float:
    """What a token reads of the tier with so much DRAM under policy `pin`: what comes first in the file
    stays, but for a window that the rest passes through. Experts are taken to be used evenly, and each that
    is read brings a readahead window of its neighbours.
    """
    kept = max(0, resident_bytes - WINDOW_BYTES)
    missing = 0.0
    for tensor, active, piece in weights.active_parts(model):
        gone = tensor.nbytes - min(tensor.nbytes, kept)
        kept -= tensor.nbytes - gone
        read: float = active
        if 0 < piece < tensor.nbytes:
            read = min(tensor.nbytes, active * (piece + window_bytes) / piece)
        missing += read * gone / tensor.nbytes if tensor.nbytes else 0.0
    return missing


def streams(memory_bytes: float, weight_bytes: float, stream_bytes: float) -> float:
    """How many streams' caches fit into memory beside weights."""
    return max(0.0, memory_bytes - weight_bytes) / stream_bytes
