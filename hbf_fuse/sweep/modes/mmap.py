"""Mode mmap: the workload maps the model from a fresh mount."""

from hbf_fuse.host import residency
from hbf_fuse.mount import client
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.modes.served import Measured, mounted, run_from_mount
from hbf_fuse.sweep.workspace import Workspace


def measure(cell: Cell, workspace: Workspace) -> Measured:
    with mounted(cell, workspace) as mount:
        resident = residency.resident_bytes(*mount.files)
        bench = run_from_mount(cell, workspace, mount.files[0])
        stats = client.read_stats(mount.mountpoint)
        return Measured(bench, stats, resident, mount_seconds=mount.seconds)
