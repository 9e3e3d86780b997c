"""One answer for a model and a tier: lines that say how they were got, and how well such lines have held."""

from collections.abc import Iterator
from dataclasses import dataclass

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import GgufError, GgufFile, kv, weights
from hbf_fuse.predict import arithmetic
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import format_size

CHUNK_BYTES, DEPTH, LOAD_DEPTH = 1 << 20, 2, 8
"""What a mount has in flight: the readahead window that is read, and the next one. A window has 1 MiB where
there is a resident budget, and 4 MiB in a load without one.
"""

DRAM_MBPS = 20_000.0
"""Assumed: what a few cores read of DDR4 or DDR5 while they decode."""

EXACT = "exact: nothing is estimated"
LOAD_HELD = (
    "the tier's part alone, which was within 1% (docs/accuracy.md). llama.cpp parses the vocabulary besides: "
    "0.3 to 0.4 s of gemma-3's 262,144 entries"
)
RATE_HELD = "the device itself: mounts were within 1% of it (docs/accuracy.md)"
DECODE_HELD = (
    "against 12 real decodes: tiny within 4%, SmolLM2 5 to 24% too fast, for it reads some pages twice "
    "(docs/how-much-dram.md); `hbf trace replay --resident` is closer"
)
BYTES_HELD = "real decodes read 1 to 18% more: some pages twice (docs/how-much-dram.md)"
EXPERTS_HELD = (
    "against 6 real decodes of tiny-moe: bytes 22 to 26% too few, tokens/s 33 to 35% too fast, for more "
    "neighbours are read (docs/how-much-dram.md); `hbf trace replay --resident` is closer"
)
CACHE_HELD = "the bytes that llama.cpp allocates in f16, exactly (docs/kv-spill.md)"
NOT_HELD = "not held against measurements"


@dataclass(frozen=True)
class Question:
    """resident_bytes: the DRAM in front of the tier; None if it is not said. compute_seconds: of a token with
    all weights in memory, and how it is known. context: tokens of a stream's cache.
    """

    spec: TierSpec
    resident_bytes: int | None
    compute_seconds: float
    compute_how: str
    context: int
    chunk_bytes: int = CHUNK_BYTES
    depth: int = DEPTH
    load_depth: int = LOAD_DEPTH


@dataclass(frozen=True)
class Line:
    """value: in `unit`, None if it is unlimited or unknown. how: the formula. held: against what."""

    name: str
    value: float | None
    unit: str
    how: str
    held: str


def lines(model: GgufFile, size: int, question: Question) -> Iterator[Line]:
    """The answer. size: of all files."""
    spec, compute = question.spec, question.compute_seconds
    rate = arithmetic.rate_mbps(spec, question.chunk_bytes, question.depth)
    active = weights.active_bytes(model)
    experts = weights.experts(model)
    yield Line("weights", size, "bytes", "size of the files", EXACT)
    of_experts = ""
    if experts:
        dense = active - experts.used_bytes
        of_experts = f": {format_size(dense)} dense, {format_size(experts.used_bytes)} of experts"
    bytes_held, decode_held = (EXPERTS_HELD, EXPERTS_HELD) if experts else (BYTES_HELD, DECODE_HELD)
    yield Line("bytes_per_token", active, "bytes", f"active weights{of_experts}", bytes_held)
    in_flight = f"{question.depth} reads of {format_size(question.chunk_bytes)} in flight"
    yield Line("tier_rate", rate, "MB/s", in_flight, RATE_HELD)
    load_rate = arithmetic.rate_mbps(spec, question.chunk_bytes, question.load_depth)
    load = arithmetic.read_seconds(size, load_rate)
    yield Line("first_load", load, "s", f"every byte once, {question.load_depth} reads in flight", LOAD_HELD)
    yield Line("first_run", load + compute, "s", "the load, then a token is computed", LOAD_HELD)
    speed = 1 / compute if compute else None
    yield Line("tg_all_resident", speed, "tokens/s", question.compute_how, NOT_HELD)
    read = arithmetic.missing_bytes(model, 0, question.chunk_bytes)
    if experts:
        window = format_size(question.chunk_bytes)
        yield Line("bytes_read", read, "bytes", f"and {window} of neighbours with each expert", EXPERTS_HELD)
    yield from _decode("tg_none_resident", read, rate, question, decode_held)
    if question.resident_bytes is not None:
        missing = arithmetic.missing_bytes(model, question.resident_bytes, question.chunk_bytes)
        yield Line(
            "bytes_from_tier",
            missing,
            "bytes",
            "less what comes first in the file and stays (pin)",
            bytes_held,
        )
        yield from _decode("tg_part_resident", missing, rate, question, decode_held)
    yield Line(
        "break_even",
        arithmetic.break_even_mbps(read, compute),
        "MB/s",
        "reading takes as long as computing",
        NOT_HELD,
    )
    yield from _streams(model, size, question)


def require_decoder(model: GgufFile) -> None:
    """HbfError for a model that decodes nothing."""
    if not weights.decodes(model):
        raise HbfError(
            f"{model.path.name} decodes nothing: it has no token embeddings", "name a language model"
        )


def computed_in_dram(model: GgufFile, dram_mbps: float) -> float:
    """Seconds that a token computes, if that is reading its weights from memory."""
    return arithmetic.read_seconds(weights.active_bytes(model), dram_mbps)


def binds(model: GgufFile, question: Question) -> str:
    """What takes longest for a token: compute, or of the tier its bandwidth, latency or planes."""
    spec = question.spec
    nbytes = arithmetic.missing_bytes(model, question.resident_bytes or 0, question.chunk_bytes)
    rate = arithmetic.rate_mbps(spec, question.chunk_bytes, question.depth)
    if arithmetic.read_seconds(nbytes, rate) <= question.compute_seconds:
        return "compute"
    if spec.bandwidth_mbps and rate and rate >= 0.95 * spec.bandwidth_mbps:
        return "bandwidth"
    return "planes" if spec.t_read_us > spec.mean_latency_ms * 1e3 else "latency"


def _decode(name: str, nbytes: float, rate: float | None, question: Question, held: str) -> Iterator[Line]:
    compute = question.compute_seconds
    yield Line(
        name,
        arithmetic.decode_tps(nbytes, rate, compute),
        "tokens/s",
        "1 / (compute + bytes / rate)",
        held,
    )
    yield Line(
        f"{name}_overlapped",
        arithmetic.overlapped_tps(nbytes, rate, compute),
        "tokens/s",
        "1 / max(compute, bytes / rate)",
        NOT_HELD,
    )


def _streams(model: GgufFile, size: int, question: Question) -> Iterator[Line]:
    """How many streams' caches the DRAM has room for: beside the weights, or with those in the tier."""
    if question.resident_bytes is None:
        return
    try:
        each = sum(part.nbytes for part in kv.parts(model, question.context))
    except GgufError:
        return
    if not each:
        return
    what = f"caches of {question.context} tokens, {format_size(each)} each"
    for name, beside in (("streams_beside_weights", size), ("streams_weights_in_tier", 0)):
        fit = arithmetic.streams(question.resident_bytes, beside, each)
        yield Line(name, int(fit), "streams", what, CACHE_HELD)
