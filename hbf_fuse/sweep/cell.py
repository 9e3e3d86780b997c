"""One cell: a function of (spec, model, mode, machine) to one JSON document.

It shares nothing with other cells and assumes no terminal, no working directory and no single host.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.mount import tied
from hbf_fuse.sweep import conditions, llama
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import mbps

SCHEMA = 1
TOLERANCE_PCT = 1.0
FAST_TOLERANCE_PCT = 3.0
FAST_MBPS = 1500.0
"""From here on 3% counts as agreement: the docs say so wherever such a figure stands."""


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

    scratch: a directory for the mountpoint; left as it was. Raises HbfError if the cell cannot be run.
    """
    binary = llama.find()
    before = conditions.now()
    mountpoint = scratch / "mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    try:
        with tied.mounted(cell.model, mountpoint, cell.spec, cell.engine) as mount:
            bench = llama.run(binary, mount / "model.gguf", cell.bench)
            stats = tied.stats(mount)
    finally:
        if not mountpoint.is_mount():
            mountpoint.rmdir()
    return {
        "schema": SCHEMA,
        "cell": describe(cell),
        "metrics": {**_staging(cell.spec, stats), **_running(bench, stats)},
        "command": bench.command,
        "llama_bench": {"version": llama.version(binary), "records": bench.records},
        "tier_stats": stats,
        "environment": {**conditions.machine(), "before": before, "after": conditions.now()},
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


def _staging(spec: TierSpec, stats: dict[str, Any]) -> dict[str, Any]:
    """Stage time, and what the tier model makes of the very same reads."""
    try:
        (file,) = stats["files"].values()
    except ValueError:
        raise HbfError("llama-bench did not read the model from the mount") from None
    seconds = (file["complete_ns"] - file["first_arrival_ns"]) / 1e9
    model_seconds = (file["complete_deadline_ns"] - file["first_arrival_ns"] - file["forgiven_ns"]) / 1e9
    achieved = mbps(file["arrived_bytes"], seconds)
    model = mbps(file["arrived_bytes"], model_seconds) if spec.throttled else None
    error = (achieved / model - 1) * 100 if achieved and model else None
    valid, why = _verdict(spec, file["complete"], error)
    return {
        "stage_seconds": seconds,
        "stage_effective_mbps": achieved,
        "model_mbps": model,
        "tier_error_pct": error,
        "valid": valid,
        "why": why,
    }


def _verdict(spec: TierSpec, complete: bool, error: float | None) -> tuple[bool, str]:
    if not complete:
        return False, "not every byte of the model was read"
    if error is None:
        return True, "" if not spec.throttled else "no time was measured"
    fast = spec.bandwidth_mbps is None or spec.bandwidth_mbps >= FAST_MBPS
    tolerance = FAST_TOLERANCE_PCT if fast else TOLERANCE_PCT
    if abs(error) > tolerance:
        return False, f"off the model by {error:+.1f}%: this machine did not keep up with the tier"
    return True, ""


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
