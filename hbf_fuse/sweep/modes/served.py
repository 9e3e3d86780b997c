"""What the modes that read from a mount have in common."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.runs.run import Staging, Streamed
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.workload import llama

MODEL_FILE = "model.gguf"
"""The model's path in a mount of one file."""


@dataclass(frozen=True)
class Measured:
    """What a mode found out. stats: the mount's, None where there was none. besides_seconds: spent on
    other measurements than llama-bench on the weights. staging: where no mount judges it. decoding: of mode
    stream.
    """

    bench: llama.BenchRun
    stats: dict[str, Any] | None
    resident: int | None
    besides_seconds: float = 0.0
    staging: Staging | None = None
    decoding: Streamed | None = None


def run_from_mount(cell: Cell, binary: Path, file: Path, options: llama.BenchOptions) -> llama.BenchRun:
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
            raise HbfError("the mount ended while llama-bench read from it")
        with suppress(OSError):
            cell.model.require_unchanged()

    return llama.run(
        binary, file, options, cell.timeout_seconds, require=require_served, shown=f"MOUNT/{file.name}"
    )


@contextmanager
def mounted(cell: Cell, workspace: Workspace) -> Iterator[Path]:
    """A fresh mount of the cell's tier; the model in it."""
    config = MountConfig(
        cell.model.path,
        workspace.mountpoint,
        cell.spec,
        cell.engine,
        layout=cell.layout,
        # The copy's chunks are larger than FUSE's largest read: their parts must not wait for each other.
        async_dio=cell.mode == "stage",
        # To write one takes time from what is measured.
        trace=workspace.trace if workspace.traced or cell.mode == "stream" else None,
    )
    with child.mounted(config) as mount:
        yield mount / MODEL_FILE
