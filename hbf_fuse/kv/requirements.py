"""What a model needs of a tier: contexts against targets."""

from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.kv.solve import least_mbps
from hbf_fuse.kv.spill import Spill
from hbf_fuse.tier import TierSpec


def table(
    spills: dict[int, Spill], spec: TierSpec, targets_tps: list[float], percentile: float
) -> list[dict[str, Any]]:
    """A row per context (the keys of spills) and target: the least MB/s, or why there is none."""
    rows = []
    for context, spill in spills.items():
        for target in targets_tps:
            row: dict[str, Any] = {"context": context, "tps": target, "mbps": None, "why": ""}
            if not spill.spilled_tokens:
                row.update(mbps=0.0, why="no spill: the context fits into DRAM")
            else:
                try:
                    row["mbps"] = least_mbps(spill, spec, target, percentile)
                except HbfError as error:
                    row["why"] = str(error)
            rows.append(row)
    return rows
