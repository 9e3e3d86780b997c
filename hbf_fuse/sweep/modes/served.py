"""What the modes that read from a mount have in common."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.engine import MEMORY
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.control import PHASE
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe.status import Stats
from hbf_fuse.runs.metrics import Staging
from hbf_fuse.sweep import workloads
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.traces.trace import Trace
from hbf_fuse.workload.llama import BenchRun


@dataclass(frozen=True)
class Measured:
    """What a mode found out. stats: the mount's, None where there was none. besides_seconds: spent on
    other measurements than the workload on the weights. mount_seconds: to the mount's first answer. staging:
    where no mount judges it. trace: of mode stream.
    """

    bench: BenchRun
    stats: Stats | None
    resident: int | None
    besides_seconds: float = 0.0
    mount_seconds: float | None = None
    staging: Staging | None = None
    trace: Trace | None = None


def run_from_mount(cell: Cell, workspace: Workspace, file: Path) -> BenchRun:
    """Ended when the mount ends or the source changes. llama.cpp has the kernel populate its mapping, which
    tries pages that give errors again and again (seen with Linux 6.18). The result has MOUNT for its path.
    """
    mountpoint = file.parent
    device = mountpoint.stat().st_dev

    def require_served() -> None:
        try:
            served = os.lstat(mountpoint).st_dev == device
        except OSError:
            served = False
        if not served:
            raise HbfError(f"the mount ended while {workloads.program_of(cell).name} read from it")
        with suppress(OSError):
            cell.model.require_unchanged()

    # Held open: the server is ours, and to name a phase must not take time from what is measured.
    with client.control_of(mountpoint) as control:
        return workloads.run(
            cell,
            workspace,
            file,
            require=require_served,
            environment=client.reaching(mountpoint),
            phase=lambda name: os.write(control, json.dumps({PHASE: name}).encode()),
            shown=f"MOUNT/{file.name}",
        )


@dataclass(frozen=True)
class Mounted:
    """The model's files in a mount, and how long it took until that answered."""

    files: tuple[Path, ...]
    seconds: float

    @property
    def mountpoint(self) -> Path:
        return self.files[0].parent


@contextmanager
def mounted(cell: Cell, workspace: Workspace) -> Iterator[Mounted]:
    """A fresh mount of the cell's tier."""
    if cell.engine == MEMORY and cell.mode == "stage":
        raise HbfError("mode stage copies with read(2)", "engine memory serves mappings: mode mmap or stream")
    config = MountConfig(
        cell.model.path,
        workspace.mountpoint,
        cell.spec,
        cell.engine,
        readahead_kib=cell.readahead_kib,
        layout=cell.layout,
        # The copy's chunks are larger than FUSE's largest read: their parts must not wait for each other.
        async_dio=cell.mode == "stage",
        # To write one takes time from what is measured.
        trace=workspace.trace if workspace.traced or cell.mode == "stream" else None,
    )
    begun = time.monotonic()
    with child.mounted(config) as mount:
        yield Mounted(tuple(mount / name for name in cell.model.served_names), time.monotonic() - begun)
