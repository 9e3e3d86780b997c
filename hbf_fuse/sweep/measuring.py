"""Measures one cell: a function of (spec, model, mode, machine) to one JSON document.

It shares no figure with other cells and assumes no terminal, no working directory and no single host.
"""

import dataclasses
import json
import os
import resource
import time
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.sweep import decode
from hbf_fuse.sweep.cell import SCHEMA, Cell, describe
from hbf_fuse.sweep.modes import cgroup, mmap, stage, stream
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.verdict import AGREES, UNSURE, tolerance_pct, words
from hbf_fuse.workload import llama

_MODES = {
    "mmap": mmap.measure,
    "stage": stage.measure,
    "stream": stream.measure,
    "cgroup": cgroup.measure,
}
_SERVED = ("tier_bytes_read", "stall_seconds", "lateness_p50_us", "lateness_p99_us", "in_flight_max")


def run(cell: Cell, workspace: Workspace) -> dict[str, Any]:
    """Run llama-bench as the mode wants it, on a fresh mount or none; the document of what was measured.

    Raises HbfError if the cell cannot be run.
    """
    binary = llama.find()
    cell.model.require_unchanged()
    begin, before, busy = time.monotonic(), machine.now(), _busy_seconds()
    measured = _MODES[cell.mode](cell, workspace, binary)
    cell.model.require_unchanged()
    bench, stats = measured.bench, measured.stats
    wall = time.monotonic() - begin
    machine_busy, ours = (after - was for after, was in zip(_busy_seconds(), busy, strict=True))
    staging = _staging(cell, stats, measured.resident) if stats else {}
    judged = (
        decode.verdict(measured.own, staging, stats["overfills"]) if stats and cell.mode == "stream" else {}
    )
    return {
        "schema": SCHEMA,
        "cell": describe(cell),
        "metrics": {
            **staging,
            **_running(cell, bench, stats),
            "resident_before_bytes": measured.resident,
            "harness_seconds": wall - bench.wall_seconds - measured.besides_seconds,
            "other_cpu_seconds": max(0.0, machine_busy - ours),
            **measured.own,
            **judged,
        },
        "command": [*llama.settings(), binary.name, *_without(bench.command[1:], cell, workspace)],
        "llama_bench": {
            "version": llama.version(binary),
            "flags": sorted(llama.flags(binary)),
            "records": _without(bench.records, cell, workspace),
            "phases": [dataclasses.asdict(phase) for phase in bench.phases],
        },
        "tier_stats": stats,
        "environment": {**machine.facts(), "before": before, "after": machine.now()},
    }


def _staging(cell: Cell, stats: dict[str, Any], resident: int | None) -> dict[str, Any]:
    """The mount's own verdict on the model file, under the names of the CSV."""
    try:
        (file,) = stats["files"].values()
    except ValueError:
        reader = "the copy" if cell.mode == "stage" else "llama-bench"
        raise HbfError(f"{reader} did not read the model from the mount") from None
    staging = file["staging"]
    verdict, reasons, bound = staging["verdict"], list(staging["reasons"]), staging["bound_pct"]
    off_chunks = stage.off_chunks_pct(cell, staging)
    if off_chunks is not None and off_chunks <= tolerance_pct(cell.spec):
        verdict, reasons = AGREES, ["window-bound"] if staging["shares"]["window"] else []
        bound = off_chunks if bound is None else min(bound, off_chunks)
    if not file["complete"]:
        verdict, reasons = UNSURE, ["incomplete", *reasons]
    elif resident:
        verdict, reasons = UNSURE, ["not-cold", *reasons]
    return {
        "stage_seconds": staging["seconds"],
        "stage_effective_mbps": staging["achieved_mbps"],
        "model_mbps": staging["model_mbps"],
        "tier_error_pct": staging["error_pct"],
        "tier_bound_pct": bound,
        "verdict": verdict,
        "reasons": reasons,
        "valid": verdict == AGREES,
        "why": words.sentence(reasons),
        **{f"{name}_share": share for name, share in staging["shares"].items()},
    }


def _running(cell: Cell, bench: llama.BenchRun, stats: dict[str, Any] | None) -> dict[str, Any]:
    """The times that docs/definitions.md defines, and what the processes and the server counted."""
    staged_before = 0.0
    if stats and cell.mode == "stage":
        # Through mmap the weights are staged while llama-bench runs: its wall time holds both.
        (file,) = stats["files"].values()
        staged_before = file["staging"]["seconds"]
    return {
        "pp": bench.pp,
        "tg": bench.tg,
        "bench_wall_seconds": bench.wall_seconds,
        "total_first_run_seconds": staged_before + bench.wall_seconds,
        "load_seconds": bench.load_seconds,
        "prefill_seconds": bench.prefill_seconds,
        "decode_seconds": bench.decode_seconds,
        **bench.stalls,
        **_served(stats),
    }


def _served(stats: dict[str, Any] | None) -> dict[str, Any]:
    """What the mount's server counted; None each where there was no mount."""
    if stats is None:
        return dict.fromkeys(_SERVED)
    return {
        "tier_bytes_read": stats["bytes_read"],
        "stall_seconds": stats["wait_seconds"],
        "lateness_p50_us": stats["lateness_ns"]["p50"] / 1000,
        "lateness_p99_us": stats["lateness_ns"]["p99"] / 1000,
        "in_flight_max": stats["in_flight_max"],
    }


def _without(document: Any, cell: Cell, workspace: Workspace) -> Any:
    """The document without this machine's paths, the mountpoint as MOUNT: results get published."""
    text = json.dumps(document)
    for path, name in ((workspace.mountpoint, "MOUNT"), (cell.model.path, cell.model.path.name)):
        text = text.replace(json.dumps(str(path))[1:-1], json.dumps(name)[1:-1])
    return json.loads(text)


def _busy_seconds() -> tuple[float, float]:
    """CPU seconds of the whole machine, and of this process with the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = sum(os.times()[:2]) + children.ru_utime + children.ru_stime
    return machine.busy_core_seconds(), own
