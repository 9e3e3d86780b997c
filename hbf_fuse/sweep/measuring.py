"""Measures one cell: a function of (spec, model, mode, machine) to one run.

It shares no figure with other cells and assumes no terminal, no working directory and no single host.
"""

import dataclasses
import os
import resource
import time

from pydantic import ValidationError

from hbf_fuse import gguf
from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.observe.status import FileStatus, Stats
from hbf_fuse.runs.fields import Document
from hbf_fuse.runs.metrics import Metrics, Running, Serving, Shares, Staging, Streamed, Waiting
from hbf_fuse.runs.results import Unstorable
from hbf_fuse.runs.run import SCHEMA, Environment, Finished, LlamaBench, RunPhase
from hbf_fuse.runs.schema import first_of
from hbf_fuse.sweep import decode, serving, workloads
from hbf_fuse.sweep.cell import Cell, describe
from hbf_fuse.sweep.modes import cgroup, mmap, stage, stream
from hbf_fuse.sweep.modes.served import Measured
from hbf_fuse.sweep.recorded import Recorded
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.verdict import AGREES, UNSURE, tolerance_pct, words
from hbf_fuse.workload.llama import BenchRun
from hbf_fuse.workload.program import settings
from hbf_fuse.workload.serve import ServeRun

_MODES = {
    "mmap": mmap.measure,
    "stage": stage.measure,
    "stream": stream.measure,
    "cgroup": cgroup.measure,
}


def run(cell: Cell, workspace: Workspace) -> Finished:
    """Run the workload as the mode wants it, on a fresh mount or none; what was measured.

    Raises HbfError if the cell cannot be run, Unstorable for figures that cannot be.
    """
    try:
        return _run(cell, workspace)
    except ValidationError as error:
        what = first_of(error)
        raise Unstorable(f"the run {cell.name} has figures that cannot be: {what}") from error


def _run(cell: Cell, workspace: Workspace) -> Finished:
    program = workloads.program_of(cell)
    binary = program.find()
    cell.model.require_unchanged()
    begin, before, busy = time.monotonic(), machine.now(), _busy_seconds()
    memory = workloads.from_memory(cell, workspace)
    measured = _MODES[cell.mode](cell, workspace)
    cell.model.require_unchanged()
    bench = measured.bench
    wall = time.monotonic() - begin
    machine_busy, ours = (after - was for after, was in zip(_busy_seconds(), busy, strict=True))
    running = _running(cell, measured)
    programs = sum(each.lifetime_seconds for each in (bench, memory) if each)
    running.harness_seconds = wall - programs - measured.besides_seconds
    running.other_cpu_seconds = max(0.0, machine_busy - ours)
    figures = Metrics.of(*_judged(cell, measured, memory), running, Waiting.model_validate(bench.stalls))
    return Finished(
        schema=SCHEMA,
        cell=describe(cell),
        metrics=figures,
        command=[*settings(), *bench.command],
        llama_bench=LlamaBench(
            version=program.version(binary),
            flags=sorted(program.flags(binary)),
            records=bench.records,
            phases=[RunPhase(**dataclasses.asdict(phase)) for phase in bench.phases],
        ),
        tier_stats=measured.stats,
        environment=Environment.model_validate({**machine.facts(), "before": before, "after": machine.now()}),
    )


def _judged(cell: Cell, measured: Measured, memory: BenchRun | None) -> tuple[Document, ...]:
    """The staging and its verdict; of mode stream also decode's, and of a server what its users waited for.

    memory: the same workload with the model in memory, where that was run.
    """
    if measured.staging:
        return (measured.staging, *_served(cell, measured, memory, measured.staging))
    if measured.stats is None:
        return ()
    staging, shares = _staging(cell, measured.stats, measured.resident)
    if measured.trace is None:
        return staging, shares, *_served(cell, measured, memory, staging, shares)
    model = gguf.read_whole(cell.model.parts)
    recorded = Recorded.of(measured.trace, cell.model.served_names, model)
    if cell.serve is None:
        assert memory is not None  # noqa: S101 - for the type
        decoding = decode.metrics(measured.bench, memory, recorded)
        return decode.judged(staging, decoding, measured.stats["overfills"]), shares, decoding
    (served,) = _served(cell, measured, memory, staging, shares, recorded)
    shown = decode.attribution_of(recorded, measured.bench)
    judged = serving.judged(staging, served, measured.stats["overfills"])
    return judged, shares, served, Streamed(attribution=shown)


def _served(
    cell: Cell,
    measured: Measured,
    memory: BenchRun | None,
    staging: Staging,
    shares: Shares | None = None,
    recorded: Recorded | None = None,
) -> tuple[Serving, ...]:
    """A server's figures; nothing of llama-bench."""
    if not isinstance(measured.bench, ServeRun) or not isinstance(memory, ServeRun):
        return ()
    before = staging.stage_seconds if cell.mode == "stage" else 0.0
    tier = None
    if shares is not None and shares.busy_share is not None and shares.window_share is not None:
        tier = (shares.busy_share + shares.window_share) * staging.stage_seconds
    return (serving.metrics(measured, measured.bench, memory, tier, before, recorded),)


def _staging(cell: Cell, stats: Stats, resident: int | None) -> tuple[Staging, Shares]:
    """The mount's own verdict on the model file."""
    file = _file(cell, stats)
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
    judged = Staging(
        stage_seconds=staging["seconds"],
        stage_effective_mbps=staging["achieved_mbps"],
        model_mbps=staging["model_mbps"],
        tier_error_pct=staging["error_pct"],
        tier_bound_pct=bound,
        verdict=verdict,
        reasons=reasons,
        valid=verdict == AGREES,
        why=words.sentence(reasons),
    )
    return judged, Shares(**{f"{name}_share": share for name, share in staging["shares"].items()})


def _file(cell: Cell, stats: Stats) -> FileStatus:
    try:
        (file,) = stats["files"].values()
    except ValueError:
        reader = "the copy" if cell.mode == "stage" else workloads.program_of(cell).name
        raise HbfError(f"{reader} did not read the model from the mount") from None
    return file


def _running(cell: Cell, measured: Measured) -> Running:
    """The times that docs/definitions.md defines, and what the server counted, where there was a mount."""
    bench, stats = measured.bench, measured.stats
    staged_before = 0.0
    if stats and cell.mode == "stage":
        # Through mmap the weights are staged while llama-bench runs: its wall time holds both.
        staged_before = _file(cell, stats)["staging"]["seconds"]
    return Running(
        pp=bench.pp,
        tg=bench.tg,
        bench_wall_seconds=bench.wall_seconds,
        total_first_run_seconds=staged_before + bench.wall_seconds,
        load_seconds=bench.load_seconds,
        prefill_seconds=bench.prefill_seconds,
        decode_seconds=bench.decode_seconds,
        tier_bytes_read=stats["bytes_read"] if stats else None,
        stall_seconds=stats["wait_seconds"] if stats else None,
        lateness_p50_us=stats["lateness_ns"]["p50"] / 1000 if stats else None,
        lateness_p99_us=stats["lateness_ns"]["p99"] / 1000 if stats else None,
        in_flight_max=stats["in_flight_max"] if stats else None,
        resident_before_bytes=measured.resident,
    )


def _busy_seconds() -> tuple[float, float]:
    """CPU seconds of the whole machine, and of this process with the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = sum(os.times()[:2]) + children.ru_utime + children.ru_stime
    return machine.busy_core_seconds(), own
