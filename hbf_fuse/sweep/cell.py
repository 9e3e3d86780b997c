"""One cell: a function of (spec, model, mode, machine) to one JSON document.

It shares no figure with other cells and assumes no terminal, no working directory and no single host.
"""

import dataclasses
import hashlib
import json
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hbf_fuse.errors import HbfError
from hbf_fuse.mount import tied
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe import machine, residency
from hbf_fuse.sweep import llama
from hbf_fuse.sweep.place import Place
from hbf_fuse.tier import TierSpec

SCHEMA = 2
Mode = Literal["mmap", "stage"]
"""Where llama-bench maps the weights from: the mount, or a copy that was made through it first."""


def checked_mode(name: str) -> Mode:
    """A mode by its name, or an HbfError."""
    for mode in get_args(Mode):
        if name == mode:
            return mode  # type: ignore[no-any-return]
    raise HbfError(f"unknown mode {name!r} (--mode); there are: {', '.join(get_args(Mode))}")


@dataclass(frozen=True)
class Model:
    """A GGUF on the machine that runs the cell, and what it is recognised by elsewhere."""

    path: Path
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Model":
        """Read the whole file for its hash (about a second per GiB)."""
        with path.open("rb") as file:
            return cls(path, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Cell:
    """What to measure. timeout_seconds is for llama-bench; it is no part of what the cell is."""

    model: Model
    spec: TierSpec
    repeat: int = 1
    mode: Mode = "mmap"
    engine: str = "kernel"
    bench: llama.BenchOptions = dataclasses.field(default_factory=llama.BenchOptions)
    timeout_seconds: float = 3600.0

    @property
    def name(self) -> str:
        """Unique within a sweep; fit for a file name."""
        link = "max" if self.spec.bandwidth_mbps is None else f"{self.spec.bandwidth_mbps:g}"
        threads = f"-t{self.bench.threads}" if self.bench.threads else ""
        return (
            f"{self.mode}-{link}mbps-{self.spec.latency_ms:g}ms-p{self.bench.n_prompt}-n{self.bench.n_gen}"
            f"{threads}-r{self.repeat}"
        )


def run(cell: Cell, place: Place) -> dict[str, Any]:
    """Mount afresh, run llama-bench as the mode wants it, unmount; the document of what was measured.

    Raises HbfError if the cell cannot be run.
    """
    binary = llama.find()
    begin, before, busy = time.monotonic(), machine.now(), _busy_seconds()
    config = MountConfig(cell.model.path, place.mountpoint, cell.spec, cell.engine)
    copy_seconds = 0.0
    with tied.mounted(config) as mount:
        file = mount / "model.gguf"
        resident = residency.resident_bytes(file)
        if cell.mode == "mmap":
            bench = llama.run(binary, file, cell.bench, cell.timeout_seconds)
        else:
            copy_seconds = place.copy(file)
        stats = tied.stats(mount)
    if cell.mode == "stage":
        copy, fds = place.memory_path, (place.memory,)
        bench = llama.run(binary, copy, cell.bench, cell.timeout_seconds, fds)
    wall = time.monotonic() - begin
    machine_busy, ours = (after - was for after, was in zip(_busy_seconds(), busy, strict=True))
    return {
        "schema": SCHEMA,
        "cell": describe(cell),
        "metrics": {
            **_staging(stats, resident),
            **_running(cell, bench, stats),
            "resident_before_bytes": resident,
            "harness_seconds": wall - bench.wall_seconds - copy_seconds,
            "other_cpu_seconds": max(0.0, machine_busy - ours),
        },
        "command": [binary.name, *_without(bench.command[1:], place.mountpoint)],
        "llama_bench": {
            "version": llama.version(binary),
            "flags": sorted(llama.flags(binary)),
            "records": _without(bench.records, place.mountpoint),
        },
        "tier_stats": stats,
        "environment": {**machine.facts(), "before": before, "after": machine.now()},
    }


def describe(cell: Cell) -> dict[str, Any]:
    """The cell as JSON holds it: what a finished run is recognised by."""
    spec = cell.spec.to_dict()
    return {
        "name": cell.name,
        "mode": cell.mode,
        "engine": cell.engine,
        "repeat": cell.repeat,
        "tier_mbps": cell.spec.bandwidth_mbps,
        "tier_lat_ms": cell.spec.latency_ms,
        "tier": spec,
        "tier_sha256": hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest(),
        "model": {"name": cell.model.path.name, "size": cell.model.size, "sha256": cell.model.sha256},
        "bench": dataclasses.asdict(cell.bench),
    }


def _staging(stats: dict[str, Any], resident: int | None) -> dict[str, Any]:
    """The mount's own verdict on the model file, under the names of the CSV."""
    try:
        (file,) = stats["files"].values()
    except ValueError:
        raise HbfError("llama-bench did not read the model from the mount") from None
    staging = file["staging"]
    why = staging["why"]
    if not file["complete"]:
        why = "not every byte of the model was read"
    elif resident:
        why = f"the cache was not cold: {resident} bytes of the model were resident before the first read"
    return {
        "stage_seconds": staging["seconds"],
        "stage_effective_mbps": staging["achieved_mbps"],
        "model_mbps": staging["model_mbps"],
        "tier_error_pct": staging["error_pct"],
        "valid": staging["valid"] and file["complete"] and not resident,
        "why": why,
    }


def _running(cell: Cell, bench: llama.BenchRun, stats: dict[str, Any]) -> dict[str, Any]:
    """The times that docs/definitions.md defines, and what the processes and the server counted."""
    (file,) = stats["files"].values()
    # Through mmap the weights are staged while llama-bench runs: its wall time holds both.
    staged_before = file["staging"]["seconds"] if cell.mode == "stage" else 0.0
    return {
        "pp": bench.pp,
        "tg": bench.tg,
        "bench_wall_seconds": bench.wall_seconds,
        "total_first_run_seconds": staged_before + bench.wall_seconds,
        "load_seconds": bench.load_seconds,
        "prefill_seconds": bench.prefill_seconds,
        "decode_seconds": bench.decode_seconds,
        "tier_bytes_read": stats["bytes_read"],
        "stall_seconds": stats["wait_seconds"],
        "major_faults": bench.major_faults,
        "lateness_p50_us": stats["lateness_ns"]["p50"] / 1000,
        "lateness_p99_us": stats["lateness_ns"]["p99"] / 1000,
        "in_flight_max": stats["in_flight_max"],
    }


def _without(document: Any, mountpoint: Path) -> Any:
    """The document with this machine's mountpoint named MOUNT: results get published."""
    return json.loads(json.dumps(document).replace(json.dumps(str(mountpoint))[1:-1], "MOUNT"))


def _busy_seconds() -> tuple[float, float]:
    """CPU seconds of the whole machine, and of this process with the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = sum(os.times()[:2]) + children.ru_utime + children.ru_stime
    return machine.busy_core_seconds(), own
