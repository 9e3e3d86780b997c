"""A context of which DRAM holds a part: what a token reads and writes, and what that takes by closed forms.

Each decoded token reads the whole spilled context, layer by layer: layer i computes when its keys and values
have come. A token's own keys and values push those of an older one out: they are written to the tier. Streams
that decode together make a token each in a step, from one device.
"""

from dataclasses import dataclass

from hbf_fuse.errors import HbfError
from hbf_fuse.tier import TierSpec

MOST_WRITTEN = 1 << 20
"""Bytes of a write: no more of it passes through FUSE at once."""

_BOUNDS = {
    "kv_bytes": (0, 1 << 40),
    "layers": (1, 1024),
    "context": (1, 100_000_000),
    "resident": (0, 1 << 62),
    "compute_seconds": (0, 3600),
    "chunk_bytes": (512, 1 << 40),
    "depth": (1, 65_536),
    "prefetch": (0, 1024),
    "batch": (1, 4096),
    "weight_bytes": (0, 1 << 50),
    "dram_mbps": (0.001, 1e9),
    "constant_bytes": (0, 1 << 50),
    "touched_bytes": (0, 1 << 51),
    "write_unit": (0, MOST_WRITTEN),
}
"""From and to, of what can be simulated in a sensible time."""


@dataclass(frozen=True, slots=True)
class Spill:
    """kv_bytes: of one token over all layers that cache every token; 0 where none does. context: tokens of
    each stream; resident: tokens whose keys and values DRAM holds, of all streams together. chunk_bytes: of
    a read; depth: reads in flight. prefetch: how many layers ahead reading may be of computing; 0 is none.
    compute_seconds: of a step with everything in DRAM and no context. batch: streams that decode together.
    weight_bytes: of weights that lie in the tier, too; a step reads them once. dram_mbps: attention reads all
    keys and values of the context through DRAM at this rate; None for no time. constant_bytes: what DRAM
    holds of each stream's cache besides, whatever the context: windows that are full, and recurrent states.
    It is never spilled. touched_bytes: what a token reads and writes of it. write_unit: a token's keys and
    values are written to the tier in whole ones of so many bytes; 0 if nothing is written.

    Raises HbfError for what cannot be.
    """

    kv_bytes: int
    layers: int
    context: int
    resident: int
    compute_seconds: float
    chunk_bytes: int = 1 << 20
    depth: int = 8
    prefetch: int = 0
    batch: int = 1
    weight_bytes: int = 0
    dram_mbps: float | None = None
    constant_bytes: int = 0
    touched_bytes: int = 0
    write_unit: int = 1

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            # NaN is within no bounds.
            if value is not None and not least <= value <= most:
                raise HbfError(f"{name} must be from {least:g} to {most:g}, got {value:g}")
        if 0 < self.resident < self.batch:
            raise HbfError(f"a batch of {self.batch} does not fit into DRAM for {self.resident} tokens")

    @property
    def spilled_tokens(self) -> int:
        """Tokens of a stream whose keys and values are in the tier."""
        if not self.kv_bytes:
            return 0
        return max(0, self.context - self.resident // self.batch)

    @property
    def unspilled(self) -> str:
        """Why nothing is spilled; empty where something is."""
        if self.spilled_tokens:
            return ""
        if not self.kv_bytes:
            return "nothing of this model's cache grows with the context"
        return f"{self.resident} tokens in DRAM hold the whole context of {self.context}"

    @property
    def moved_bytes(self) -> int:
        """What a token of a stream reads and writes of its cache, wherever that is."""
        return self.context * self.kv_bytes + self.touched_bytes

    @property
    def step_bytes(self) -> int:
        """What a step reads from the tier: keys and values of every stream, and weights."""
        return self.layers * (self.batch * self.layer_bytes + self.layer_weight_bytes)

    @property
    def token_bytes(self) -> int:
        """What a decoded token reads from the tier: its share of a step."""
        return self.step_bytes // self.batch

    @property
    def layer_bytes(self) -> int:
        """Keys and values of one stream and one layer that are in the tier."""
        return self.spilled_tokens * self.kv_bytes // self.layers

    def ranges(self, layer: int) -> list[tuple[int, int]]:
        """Where a layer lies in the tier, as (offset, bytes): every stream's keys and values in one piece,
        layer by layer, and the weights behind them.
        """
        size, weights = self.layer_bytes, self.layer_weight_bytes
        found = [((stream * self.layers + layer) * size, size) for stream in range(self.batch)]
        return [*found, (self.cache_bytes + layer * weights, weights)]

    @property
    def layer_weight_bytes(self) -> int:
        """Weights of one layer that are in the tier."""
        return self.weight_bytes // self.layers

    @property
    def written_bytes(self) -> int:
        """What a step writes to the tier: a token's keys and values for each stream."""
        if not (self.spilled_tokens and self.write_unit):
            return 0
        return self.batch * -(-self.kv_bytes // self.write_unit) * self.write_unit

    @property
    def write_chunk_bytes(self) -> int:
        """What is written at once, at most: whole units."""
        unit = max(1, self.write_unit)
        return max(unit, min(self.chunk_bytes, MOST_WRITTEN) // unit * unit)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of every stream that are in the tier."""
        return self.batch * self.layers * self.layer_bytes

    @property
    def prefill_written_bytes(self) -> int:
        """What prefill has written before the first token is decoded."""
        return self.batch * self.spilled_tokens * self.kv_bytes

    @property
    def busy_seconds(self) -> float:
        """What a step computes: what it takes without a context, and what its caches take."""
        if self.dram_mbps is None:
            return self.compute_seconds
        return self.compute_seconds + self.batch * self.moved_bytes / (self.dram_mbps * 1e6)

    def chunks(self) -> list[tuple[int, int]]:
        """A layer's reads as (offset in the layer, bytes)."""
        size, step = self.layer_bytes, self.chunk_bytes
        return [(at, min(step, size - at)) for at in range(0, size, step)]


def ceiling_tps(kv_bytes: float, spec: TierSpec, ops_per_token: float) -> float | None:
    """The reference's first-order ceiling: tokens/s = 1 / (ops x latency + bytes / bandwidth).

    kv_bytes: what a token moves, all told. None where nothing bounds it.
    """
    transfer = kv_bytes / (spec.bandwidth_mbps * 1e6) if spec.bandwidth_mbps else 0.0
    seconds = ops_per_token * spec.latency_ms / 1e3 + transfer
    return 1 / seconds if seconds else None


def fastest_seconds(spill: Spill, spec: TierSpec) -> float:
    """What no step is faster than, by bandwidth, latency and compute alone.

    With prefetch, that many layers are being read at once: what takes longest of the link, of that many
    latencies at once and of compute hides the rest.
    """
    per_byte = 1 / (spec.bandwidth_mbps * 1e6) if spec.bandwidth_mbps else 0.0
    transfer, compute = spill.step_bytes * per_byte / spill.layers, spill.busy_seconds / spill.layers
    latency = spec.latency_ms / 1e3 if spill.step_bytes else 0.0
    if not spill.prefetch:
        return spill.layers * (transfer + latency + compute)
    return spill.layers * max(transfer, compute, (transfer + latency) / spill.prefetch)


def layer_read_seconds(spill: Spill, spec: TierSpec) -> float:
    """What reading a layer takes, with `depth` chunks in flight: exact without jitter and flash detail.

    If the link is never idle, bytes / bandwidth + latency. Else the window binds: a round of `depth` chunks
    takes one chunk's transfer and the latency, and the last round as much of that as it has chunks.
    """
    chunks = spill.chunks()
    if not chunks:
        return 0.0
    latency = spec.latency_ms / 1e3
    per_byte = 1 / (spec.bandwidth_mbps * 1e6) if spec.bandwidth_mbps else 0.0
    chunk, last = chunks[0][1] * per_byte, chunks[-1][1] * per_byte
    if spill.depth * chunk >= chunk + latency:
        return spill.layer_bytes * per_byte + latency
    rounds, rest = divmod(len(chunks) - 1, spill.depth)
    return rounds * (chunk + latency) + rest * chunk + last + latency


def token_seconds(spill: Spill, spec: TierSpec) -> float | None:
    """What a token takes, by closed form; None where there is none: with jitter, flash detail, a device
    depth, more than one layer of prefetch, streams beside each other, weights in the tier, or writes that are
    in the way of reads in no simple manner.

    Without prefetch reading and computing alternate; with one layer the longer of the two hides the other.
    """
    if not spec.plain or spill.prefetch > 1 or spill.batch > 1 or spill.weight_bytes:
        return None
    read, compute = layer_read_seconds(spill, spec), spill.busy_seconds / spill.layers
    delay = _delay_seconds(spill, spec, read, compute)
    if delay is None:
        return None
    layer = max(read, compute) if spill.prefetch and spill.spilled_tokens else read + compute
    return max(layer * spill.layers + delay, write_seconds(spill, spec))


def write_seconds(spill: Spill, spec: TierSpec) -> float:
    """What writing a token takes at least, one write in flight: exact with nothing else on the link, and
    without program times.
    """
    rate = min((mbps for mbps in (spec.bandwidth_mbps, spec.write_mbps) if mbps), default=None)
    writes = -(-spill.written_bytes // spill.write_chunk_bytes)
    seconds = (spill.written_bytes / (rate * 1e6) if rate else 0.0) + writes * spec.latency_ms / 1e3
    if spec.t_prog_us:
        programs = spill.written_bytes / spec.page_bytes / spec.planes
        seconds = max(seconds, programs * spec.t_prog_us / 1e6)
    return seconds


def _delay_seconds(spill: Spill, spec: TierSpec, read: float, compute: float) -> float | None:
    """By how much the write of a token delays the reads of the next one. None if that has no simple form.

    read, compute: seconds of a layer. The write comes with the first reads of a layer, behind as many as may
    be in flight. If the layer has more, it is between two rounds of them, where the link may be idle anyway.
    """
    if not (spec.bandwidth_mbps and spill.written_bytes):
        return 0.0
    if spill.written_bytes > spill.write_chunk_bytes:
        return None
    carried, latency = spill.written_bytes / (spec.bandwidth_mbps * 1e6), spec.latency_ms / 1e3
    if spill.prefetch:
        return 0.0 if compute >= read + carried else None
    if len(spill.chunks()) <= spill.depth:
        return 0.0 if carried <= compute else None
    chunk = spill.chunk_bytes / (spec.bandwidth_mbps * 1e6)
    return max(0.0, carried - max(0.0, chunk + latency - spill.depth * chunk))
