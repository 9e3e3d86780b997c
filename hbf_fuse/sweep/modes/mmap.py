"""Mode mmap: llama-bench maps the model from a fresh mount."""

from pathlib import Path

from hbf_fuse.host import residency
from hbf_fuse.mount import child
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.modes.served import Measured, mounted, run_from_mount
from hbf_fuse.sweep.workspace import Workspace


def measure(cell: Cell, workspace: Workspace, binary: Path) -> Measured:
    with mounted(cell, workspace) as file:
        resident = residency.resident_bytes(file)
        bench = run_from_mount(cell, binary, file, cell.bench)
        return Measured(bench, child.stats(file.parent), resident)
