"""Mode stage: the model is copied through a fresh mount into memory, and llama-bench has the copy."""

from pathlib import Path
from typing import Any

from hbf_fuse.host import residency
from hbf_fuse.mount import child
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.modes.served import Measured, mounted
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.tier import expect
from hbf_fuse.workload import llama


def measure(cell: Cell, workspace: Workspace, binary: Path) -> Measured:
    with mounted(cell, workspace) as file:
        resident = residency.resident_bytes(file)
        copy_seconds = workspace.copy(file)
        stats = child.stats(file.parent)
    bench = llama.run(binary, workspace.memory_path, cell.bench, cell.timeout_seconds, (workspace.memory,))
    return Measured(bench, stats, resident, copy_seconds)


def off_chunks_pct(cell: Cell, staging: dict[str, Any]) -> float | None:
    """By how many percent a copy is off what its chunks take by bandwidth and latency; None where no chunks
    are known.

    The mount is unsure where pauses might be its own doing. In mode `stage` all pauses are known beforehand,
    so where both models agree there is nothing left to doubt.
    """
    ideal = expect.staging_mbps(cell.spec, chunked=True)
    if cell.mode != "stage" or not ideal or not cell.spec.plain or staging["error_pct"] is None:
        return None
    errors = float(staging["error_pct"]), (float(staging["achieved_mbps"]) / ideal - 1) * 100
    return max(map(abs, errors))
