"""Mode stream: every token reads the tier, for the mount has a resident budget."""

import dataclasses
from pathlib import Path

from hbf_fuse import gguf
from hbf_fuse.errors import HbfError
from hbf_fuse.host import residency
from hbf_fuse.mount import child
from hbf_fuse.sweep import decode
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.modes.served import MODEL_FILE, Measured, mounted, run_from_mount
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.traces.trace import Trace
from hbf_fuse.workload import llama


def measure(cell: Cell, workspace: Workspace, binary: Path) -> Measured:
    """Decode from the tier, and the same from memory to know what compute takes.

    Repacking would copy the weights out of the tier's reach at load.
    """
    options = dataclasses.replace(cell.bench, repack=0)
    compute = llama.run(binary, cell.model.path, options, cell.timeout_seconds)
    with mounted(cell, workspace) as file:
        resident = residency.resident_bytes(file)
        bench = run_from_mount(cell, binary, file, options)
        stats = child.stats(file.parent)
    if stats.get("trace_stopped"):
        raise HbfError(f"the reads could not be recorded ({stats['trace_stopped']}); make room for them")
    trace = Trace.parse(workspace.trace.read_bytes())
    decoding = decode.metrics(bench, compute, trace, gguf.read(cell.model.path), MODEL_FILE)
    return Measured(bench, stats, resident, compute.wall_seconds, decoding=decoding)
