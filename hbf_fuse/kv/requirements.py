"""What a model needs of a tier: contexts against targets."""

from collections.abc import Iterable

from hbf_fuse.documents import Row
from hbf_fuse.errors import HbfError
from hbf_fuse.kv.sim import simulate, tokens_for
from hbf_fuse.kv.solve import least_mbps, most_lat_ms, with_lat_ms, with_mbps
from hbf_fuse.kv.spill import Spill
from hbf_fuse.tier import TierSpec


def table(spills: Iterable[Spill], spec: TierSpec, targets_tps: list[float], percentile: float) -> list[Row]:
    """A row per spill and target; see `row`."""
    return [row(spill, target, spec, percentile) for spill in spills for target in targets_tps]


def row(spill: Spill, tps: float, spec: TierSpec, percentile: float) -> Row:
    """The least bandwidth that gives so many tokens/s, or with one given the greatest latency, or why none.

    simulated_tps is what the simulation gives at that tier.
    """
    solved = "least_mbps" if spec.bandwidth_mbps is None else "most_lat_ms"
    known = {"context": spill.context, "tps": tps, "percentile": percentile, solved: None, "why": ""}
    if not spill.kv_bytes:
        return {**known, "why": f"nothing is spilled: {spill.unspilled}"}
    if not spill.spilled_tokens:
        return {**known, "why": "nothing is spilled: DRAM holds the whole context"}
    try:
        if solved == "least_mbps":
            found = with_mbps(spec, least_mbps(spill, spec, tps, percentile))
        else:
            found = with_lat_ms(spec, most_lat_ms(spill, spec, tps, percentile))
    except HbfError as error:
        return {**known, "why": str(error)}
    value = found.bandwidth_mbps if solved == "least_mbps" else found.latency_ms
    return {
        **known,
        solved: value,
        "simulated_tps": simulate(spill, found, tokens_for(percentile)).tps(100 - percentile),
    }
