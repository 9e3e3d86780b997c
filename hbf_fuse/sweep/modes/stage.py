"""Mode stage: the model is copied through a fresh mount into memory, and llama-bench has the copy."""

from hbf_fuse.host import residency
from hbf_fuse.mount import client
from hbf_fuse.observe.status import StagingStatus
from hbf_fuse.sweep import workloads
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.modes.served import Measured, mounted
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.tier import expect


def measure(cell: Cell, workspace: Workspace) -> Measured:
    with mounted(cell, workspace) as mount:
        resident = residency.resident_bytes(*mount.files)
        copy_seconds = workspace.copy(mount.files)
        stats = client.read_stats(mount.mountpoint)
    with workspace.copies(cell.model.served_names) as (path, memory):
        shown = f"MEMORY/{cell.model.served_names[0]}"
        bench = workloads.run(cell, workspace, path, pass_fds=memory, shown=shown)
    return Measured(bench, stats, resident, copy_seconds, mount.seconds)


def off_chunks_pct(cell: Cell, staging: StagingStatus) -> float | None:
    """By how many percent a copy is off what its chunks take by bandwidth and latency; None where no chunks
    are known.

    The mount is unsure where pauses might be its own doing. In mode `stage` all pauses are known beforehand,
    so where both models agree there is nothing left to doubt.
    """
    ideal = expect.staging_mbps(cell.spec, chunked=True)
    if cell.mode != "stage" or not ideal or not cell.spec.plain or staging["error_pct"] is None:
        return None
    errors = staging["error_pct"], (staging["achieved_mbps"] / ideal - 1) * 100
    return max(map(abs, errors))
