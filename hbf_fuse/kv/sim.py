"""KV spill in virtual time, on the very device that mounts emulate."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hbf_fuse.errors import HbfError
from hbf_fuse.kv.spill import Spill, ceiling_tps, layer_read_seconds, token_seconds
from hbf_fuse.tier import Tier, TierSpec
from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.window import Window

TOKENS = 64
WARM_UP = 2
"""Tokens before the pipeline is as full as it will be; they are not counted."""


@dataclass(frozen=True)
class Simulated:
    """seconds: of each counted token. reads: simulated in all."""

    spill: Spill
    spec: TierSpec
    seconds: tuple[float, ...]
    reads: int

    def tps(self, percentile: float = 50) -> float:
        """Tokens/s that all but `percentile` percent of the tokens reach."""
        return float(1 / np.percentile(self.seconds, 100 - percentile))

    @property
    def bound(self) -> str:
        """What takes longest for a token: compute, latency, bandwidth, or write."""
        spill, spec = self.spill, self.spec
        transfer = spill.token_bytes / (spec.bandwidth_mbps * 1e6) if spec.bandwidth_mbps else 0.0
        parts = {
            "compute": spill.compute_seconds,
            "bandwidth": transfer,
            "latency": max(0.0, layer_read_seconds(spill, spec) * spill.layers - transfer),
            "write": spill.written_bytes / (spill.write_mbps * 1e6) if spill.write_mbps else 0.0,
        }
        return max(parts, key=lambda name: parts[name])

    def to_dict(self) -> dict[str, Any]:
        """Speed at percentiles, times per token in ms, and the closed forms beside them."""
        first_order = ceiling_tps(self.spill.token_bytes, self.spec, self.spill.layers)
        exact = token_seconds(self.spill, self.spec)
        mean = float(np.mean(self.seconds))
        return {
            "mbps": self.spec.bandwidth_mbps,
            "lat_ms": self.spec.latency_ms,
            "jitter": self.spec.jitter,
            "context": self.spill.context,
            "spilled_tokens": self.spill.spilled_tokens,
            "bytes_per_token": self.spill.token_bytes,
            **{f"tps_p{share}": self.tps(share) for share in (5, 50, 95)},
            **{f"token_ms_p{p}": float(np.percentile(self.seconds, p)) * 1e3 for p in (50, 95, 99)},
            "tps_mean": 1 / mean,
            "closed_form_tps": 1 / exact if exact else None,
            "ceiling_tps": first_order,
            "departs_pct": (1 / mean / first_order - 1) * 100 if first_order else None,
            "bound": self.bound,
            "written_gb_per_day": self.spill.written_bytes / mean * 86_400 / 1e9,
        }


def simulate(spill: Spill, spec: TierSpec, tokens: int = TOKENS) -> Simulated:
    """Decode `tokens` tokens. Deterministic for the tier's seed. HbfError where no token takes any time, or
    where they take decades.
    """
    window = Window(Tier(spec), spill.depth)
    write_ns = round(spill.written_bytes * 1e3 / spill.write_mbps) if spill.write_mbps else 0
    compute_ns = round(spill.compute_seconds / spill.layers * 1e9)
    layer_bytes, chunk_bytes = spill.layer_bytes, spill.chunk_bytes
    if spill.token_bytes > FOREVER_NS:
        raise HbfError(f"a token reads {spill.token_bytes:.3g} bytes; at most {FOREVER_NS:.3g} are simulated")
    starts: list[int] = []
    ends: list[int] = []
    end = written = 0
    for token in range(tokens + WARM_UP):
        for layer in range(spill.layers):
            job = token * spill.layers + layer
            ahead = job - spill.prefetch
            issued = end if not spill.prefetch else starts[ahead] if ahead >= 0 else 0
            ready = window.read(issued, layer * layer_bytes, layer_bytes, chunk_bytes)
            starts.append(max(end, ready))
            end = starts[-1] + compute_ns
            if end >= FOREVER_NS:
                raise HbfError("decoding would take decades: this tier is too slow for so large a context")
        # The token's keys and values are written behind its back, one token's at most.
        end = max(end, written)
        written = end + write_ns
        ends.append(end)
    if not end:
        raise HbfError("neither reading nor computing takes any time: there is no speed to tell")
    counted = np.diff(np.array(ends, dtype=float))[WARM_UP - 1 :] / 1e9
    reads = (tokens + WARM_UP) * spill.layers * -(-layer_bytes // chunk_bytes)
    return Simulated(spill, spec, tuple(counted.tolist()), reads)
