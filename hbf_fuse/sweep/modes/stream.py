"""Mode stream: every token reads the tier, for the mount has a resident budget."""

import dataclasses

from hbf_fuse.errors import HbfError
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.modes import mmap
from hbf_fuse.sweep.modes.served import Measured
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.traces.trace import Trace


def measure(cell: Cell, workspace: Workspace) -> Measured:
    measured = mmap.measure(cell, workspace)
    if measured.stats and (stopped := measured.stats.get("trace_stopped")):
        raise HbfError(f"the reads could not be recorded ({stopped})", "make room for them")
    return dataclasses.replace(measured, trace=Trace.parse(workspace.trace.read_bytes()))
