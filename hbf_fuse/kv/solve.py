"""What a tier must be to decode as fast as one wants."""

import dataclasses

from hbf_fuse.errors import HbfError
from hbf_fuse.kv.sim import simulate, tokens_for
from hbf_fuse.kv.spill import Spill, token_seconds
from hbf_fuse.tier import TierSpec, expect

MOST_MBPS = 1e8
"""100 TB/s: past any announced memory."""


def least_mbps(spill: Spill, spec: TierSpec, tps: float, percentile: float = 50) -> float:
    """The least bandwidth at which `percentile` percent of the tokens come at `tps` or faster.

    HbfError if none does, with what bounds it.
    """

    def enough(mbps: float) -> bool:
        return speed(spill, with_mbps(spec, mbps), percentile) >= tps

    if not enough(MOST_MBPS):
        unlimited = simulate(spill, with_mbps(spec, MOST_MBPS))
        raise HbfError(
            f"no bandwidth gives {tps:g} tokens/s: {unlimited.bound} alone leaves "
            f"{unlimited.tps(100 - percentile):.3g}"
        )
    return expect.least(enough, 1e-3, MOST_MBPS)


def most_lat_ms(spill: Spill, spec: TierSpec, tps: float, percentile: float = 50) -> float:
    """The greatest latency at which it still does. HbfError if not even none does."""

    def too_much(lat_ms: float) -> bool:
        return speed(spill, with_lat_ms(spec, lat_ms), percentile) < tps

    if too_much(_least_latency(spec)):
        still = simulate(spill, with_lat_ms(spec, _least_latency(spec)))
        raise HbfError(
            f"no latency gives {tps:g} tokens/s: {still.bound} alone leaves {still.tps(100 - percentile):.3g}"
        )
    return expect.least(too_much, max(_least_latency(spec), 1e-6), 60_000.0)


def with_mbps(spec: TierSpec, mbps: float) -> TierSpec:
    """The same tier with another bandwidth."""
    return dataclasses.replace(spec, bandwidth_mbps=mbps)


def with_lat_ms(spec: TierSpec, lat_ms: float) -> TierSpec:
    """The same tier with another latency."""
    return dataclasses.replace(spec, latency_ms=lat_ms)


def speed(spill: Spill, spec: TierSpec, percentile: float) -> float:
    """Tokens/s that `percentile` percent of the tokens reach: by closed form where there is one."""
    seconds = token_seconds(spill, spec)
    if seconds is not None:
        return 1 / seconds if seconds else float("inf")
    return simulate(spill, spec, tokens_for(percentile)).tps(100 - percentile)


def _least_latency(spec: TierSpec) -> float:
    """What jitter must not take below zero."""
    from hbf_fuse.tier import jitter

    return sum(part.below_ms() for part in jitter.parse(spec.jitter))
