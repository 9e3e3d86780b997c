"""KV spill in virtual time, on the very device that mounts emulate."""

import math
from dataclasses import dataclass

import numpy as np

from hbf_fuse.documents import Row
from hbf_fuse.errors import HbfError
from hbf_fuse.kv.spill import Spill, fastest_seconds, layer_read_seconds, token_seconds
from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.window import Window

TOKENS = 64
TOKENS_BEYOND = 10
"""How many tokens must be slower than a percentile for it to mean anything."""

WARM_UP = 2
"""Tokens before the pipeline is as full as it will be; they are not counted."""


def tokens_for(percentile: float) -> int:
    """How many tokens must be simulated for a percentile of them to mean anything; TOKENS at least."""
    rarer = min(percentile, 100 - percentile) / 100
    return max(TOKENS, math.ceil(TOKENS_BEYOND / rarer))


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
        transfer = spill.step_bytes / (spec.bandwidth_mbps * 1e6) if spec.bandwidth_mbps else 0.0
        read = layer_read_seconds(spill, spec) * spill.layers * spill.batch
        parts = {
            "compute": spill.busy_seconds,
            "bandwidth": transfer,
            "latency": max(0.0, read - transfer),
            "write": spill.written_bytes / (spill.write_mbps * 1e6) if spill.write_mbps else 0.0,
        }
        return max(parts, key=lambda name: parts[name])

    def to_dict(self) -> Row:
        """Speed at percentiles, times per token in ms, and the closed forms beside them."""
        fastest = fastest_seconds(self.spill, self.spec)
        exact = token_seconds(self.spill, self.spec)
        mean = float(np.mean(self.seconds))
        return {
            "mbps": self.spec.bandwidth_mbps,
            "lat_ms": self.spec.latency_ms,
            "jitter": self.spec.jitter,
            "context": self.spill.context,
            "spilled_tokens": self.spill.spilled_tokens,
            "batch": self.spill.batch,
            "bytes_per_token": self.spill.token_bytes,
            **({"constant_bytes": self.spill.constant_bytes} if self.spill.constant_bytes else {}),
            **{f"tps_p{share}": self.tps(share) for share in (5, 50, 95)},
            **{f"token_ms_p{p}": self._token_ms(p) for p in (50, 95, 99)},
            "tps_mean": 1 / mean,
            "tps_all_streams": self.spill.batch / mean,
            "closed_form_tps": 1 / exact if exact else None,
            "ceiling_tps": 1 / fastest if fastest else None,
            "departs_pct": (fastest / mean - 1) * 100 if fastest else None,
            "bound": self.bound,
            "filled_pct": self.filled_pct,
            "prefill_written_gb": self.spill.prefill_written_bytes / 1e9,
            "written_gb_per_day": self.spill.written_bytes / mean * 86_400 / 1e9,
        }

    @property
    def filled_pct(self) -> float | None:
        """Share of the link's bandwidth that chunks of this size, so many in flight, can have of this tier;
        None without a link.
        """
        if not self.spec.bandwidth_mbps:
            return None
        rate = expect.closed_loop(self.spec, self.spill.chunk_bytes, self.spill.depth)
        return rate / self.spec.bandwidth_mbps * 100 if rate else None

    def _token_ms(self, percentile: int) -> float | None:
        """None where too few tokens were simulated: a percentile needs ten beyond it."""
        if len(self.seconds) * (100 - percentile) / 100 < TOKENS_BEYOND:
            return None
        return float(np.percentile(self.seconds, percentile)) * 1e3


def simulate(spill: Spill, spec: TierSpec, tokens: int = TOKENS) -> Simulated:
    """Decode `tokens` tokens of every stream. Deterministic for the tier's seed. HbfError where no token
    takes any time, or where they take decades.
    """
    window = Window(Tier(spec), spill.depth)
    write_ns = round(spill.written_bytes * 1e3 / spill.write_mbps) if spill.write_mbps else 0
    compute_ns = round(spill.busy_seconds / spill.layers * 1e9)
    layer_bytes, chunk_bytes = spill.layer_bytes, spill.chunk_bytes
    if spill.step_bytes > FOREVER_NS:
        raise HbfError(
            f"a step reads {spill.step_bytes:.3g} bytes", f"at most {FOREVER_NS:.3g} are simulated"
        )
    starts: list[int] = []
    ends: list[int] = []
    end = written = 0
    for token in range(tokens + WARM_UP):
        for layer in range(spill.layers):
            job = token * spill.layers + layer
            ahead = job - spill.prefetch
            issued = end if not spill.prefetch else starts[ahead] if ahead >= 0 else 0
            ready = issued
            # Every stream's keys and values lie in one piece, layer by layer, and the weights behind them.
            for stream in range(spill.batch):
                at = (stream * spill.layers + layer) * layer_bytes
                ready = max(ready, window.read(issued, at, layer_bytes, chunk_bytes))
            at = spill.batch * spill.layers * layer_bytes + layer * spill.layer_weight_bytes
            ready = max(ready, window.read(issued, at, spill.layer_weight_bytes, chunk_bytes))
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
    by_layer = spill.batch * -(-layer_bytes // chunk_bytes) + -(-spill.layer_weight_bytes // chunk_bytes)
    reads = (tokens + WARM_UP) * spill.layers * by_layer
    return Simulated(spill, spec, tuple(counted.tolist()), reads)
