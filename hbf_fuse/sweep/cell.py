"""One cell: a function of (spec, model, mode, machine) to one JSON document.

It shares nothing with other cells and assumes no terminal, no working directory and no single host.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.mount import tied
from hbf_fuse.observe import machine
from hbf_fuse.sweep import llama
from hbf_fuse.tier import TierSpec

SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """What to measure. The model is a path on the machine that runs the cell."""

    model: Path
    spec: TierSpec
    repeat: int = 1
    mode: str = "mmap"
    engine: str = "kernel"
    bench: llama.BenchOptions = dataclasses.field(default_factory=llama.BenchOptions)

    @property
    def name(self) -> str:
        """Unique within a sweep; fit for a file name."""
        link = "max" if self.spec.bandwidth_mbps is None else f"{self.spec.bandwidth_mbps:g}"
        return f"{self.mode}-{link}mbps-{self.spec.latency_ms:g}ms-r{self.repeat}"


def run(cell: Cell, scratch: Path) -> dict[str, Any]:
    """Mount afresh, run llama-bench on the mount, unmount; the document of what was measured.

    scratch: a directory of this cell's own for the mountpoint, made and removed.
    Raises HbfError if the cell cannot be run.
    """
    binary = llama.find()
    before = machine.now()
    mountpoint = scratch / "mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    try:
        with tied.mounted(cell.model, mountpoint, cell.spec, cell.engine) as mount:
            bench = llama.run(binary, mount / "model.gguf", cell.bench)
            stats = tied.stats(mount)
    finally:
        with contextlib.suppress(OSError):
            mountpoint.rmdir()
            scratch.rmdir()
    return {
        "schema": SCHEMA,
        "cell": describe(cell),
        "metrics": {**_staging(stats), **_running(bench, stats)},
        "command": bench.command,
        "llama_bench": {"version": llama.version(binary), "records": bench.records},
        "tier_stats": stats,
        "environment": {**machine.facts(), "before": before, "after": machine.now()},
    }


def describe(cell: Cell) -> dict[str, Any]:
    """The cell as JSON holds it: what a finished run is recognised by."""
    return {
        "name": cell.name,
        "mode": cell.mode,
        "engine": cell.engine,
        "repeat": cell.repeat,
        "tier_mbps": cell.spec.bandwidth_mbps,
        "tier_lat_ms": cell.spec.latency_ms,
        "model": {"path": str(cell.model), "size": cell.model.stat().st_size},
        "bench": dataclasses.asdict(cell.bench),
    }


def _staging(stats: dict[str, Any]) -> dict[str, Any]:
    """The mount's own verdict on the model file, under the names of the CSV."""
    try:
        (file,) = stats["files"].values()
    except ValueError:
        raise HbfError("llama-bench did not read the model from the mount") from None
    staging = file["staging"]
    complete = file["complete"]
    return {
        "stage_seconds": staging["seconds"],
        "stage_effective_mbps": staging["achieved_mbps"],
        "model_mbps": staging["model_mbps"],
        "tier_error_pct": staging["error_pct"],
        "valid": staging["valid"] and complete,
        "why": staging["why"] if complete else "not every byte of the model was read",
    }


def _running(bench: llama.BenchRun, stats: dict[str, Any]) -> dict[str, Any]:
    """The times that docs/definitions.md defines, and what the processes and the server counted."""
    return {
        "pp": bench.pp,
        "tg": bench.tg,
        "load_seconds": bench.load_seconds,
        "bench_wall_seconds": bench.wall_seconds,
        # Through mmap the weights are staged while llama-bench runs: its wall time holds both.
        "total_first_run_seconds": bench.wall_seconds,
        "tier_bytes_read": stats["bytes_read"],
        "stall_seconds": stats["wait_seconds"],
        "major_faults": bench.major_faults,
        "lateness_p50_us": stats["lateness_ns"]["p50"] / 1000,
        "lateness_p99_us": stats["lateness_ns"]["p99"] / 1000,
        "in_flight_max": stats["in_flight_max"],
    }
