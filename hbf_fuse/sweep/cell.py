"""One cell: a function of (spec, model, mode, machine) to one JSON document.

It shares no figure with other cells and assumes no terminal, no working directory and no single host.
"""

import dataclasses
import hashlib
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hbf_fuse import gguf
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.filesystem import NO_LAYOUT
from hbf_fuse.fs.placement import Layout
from hbf_fuse.host import machine, residency
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.sweep import iomax, stream
from hbf_fuse.sweep.workspace import Place
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.traces.trace import Trace
from hbf_fuse.verdict import AGREES, UNSURE, tolerance_pct, words
from hbf_fuse.workload import llama

SCHEMA = 2
MODEL_FILE = "model.gguf"
"""The model's path in a mount of one file."""

Mode = Literal["mmap", "stage", "stream", "cgroup"]
"""Where llama-bench has the weights from: mapped from the mount; from a copy that was made through it first;
mapped from a mount with a resident budget, so that every token reads the tier; mapped from the real file,
with the kernel's io.max in the place of the tier.
"""


_SERVED = ("tier_bytes_read", "stall_seconds", "lateness_p50_us", "lateness_p99_us", "in_flight_max")


def checked_mode(name: str) -> Mode:
    """A mode by its name, or an HbfError."""
    for mode in get_args(Mode):
        if name == mode:
            return mode  # type: ignore[no-any-return]
    raise HbfError(f"unknown mode {name!r} (--mode); there are: {', '.join(get_args(Mode))}")


@dataclass(frozen=True)
class Model:
    """A GGUF on the machine that runs the cell, and what it is recognised by elsewhere.

    state: size and time of the file when its hash was taken, the same on every machine that has a copy;
    None if nobody looked.
    """

    path: Path
    size: int
    sha256: str
    state: tuple[int, ...] | None = None

    @classmethod
    def of(cls, path: Path) -> "Model":
        """Read the whole file for its hash (about a second per GiB)."""
        state = _state_of(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        model = cls(path, path.stat().st_size, digest, state)
        model.require_unchanged()
        return model

    def require_unchanged(self) -> None:
        """HbfError if the file is no longer the one whose hash was taken."""
        if self.state is not None and _state_of(self.path) != self.state:
            raise HbfError(f"{self.path} was changed since its hash was taken; begin a new sweep (-o)")


def _state_of(path: Path) -> tuple[int, ...]:
    info = path.stat()
    return info.st_size, info.st_mtime_ns


@dataclass(frozen=True)
class Cell:
    """What to measure. timeout_seconds is for llama-bench; it is no part of what the cell is."""

    model: Model
    spec: TierSpec
    repeat: int = 1
    mode: Mode = "mmap"
    engine: str = "kernel"
    bench: llama.BenchOptions = dataclasses.field(default_factory=llama.BenchOptions)
    layout: Layout = NO_LAYOUT
    timeout_seconds: float = 3600.0

    @property
    def name(self) -> str:
        """Unique within a sweep; fit for a file name."""
        link = "max" if self.spec.bandwidth_mbps is None else f"{self.spec.bandwidth_mbps:g}"
        threads = f"-t{self.bench.threads}" if self.bench.threads else ""
        axes = f"p{self.bench.n_prompt}-n{self.bench.n_gen}{threads}"
        budget = self.layout.resident_bytes
        memory = f"-{budget >> 20}MiB-{self.layout.policy}" if budget is not None else ""
        return f"{self.mode}-{link}mbps-{self.spec.latency_ms:g}ms{memory}-{axes}-r{self.repeat}"


@dataclass(frozen=True)
class _Measured:
    """What a mode found out. stats: the mount's, None where there was none. besides_seconds: what it measured
    for beside llama-bench on the weights.
    """

    bench: llama.BenchRun
    stats: dict[str, Any] | None
    resident: int | None
    besides_seconds: float = 0.0
    own: dict[str, Any] = dataclasses.field(default_factory=dict)


def run(cell: Cell, place: Place) -> dict[str, Any]:
    """Run llama-bench as the mode wants it, on a fresh mount or none; the document of what was measured.

    Raises HbfError if the cell cannot be run.
    """
    binary = llama.find()
    cell.model.require_unchanged()
    begin, before, busy = time.monotonic(), machine.now(), _busy_seconds()
    ways = {"mmap": _mapped, "stage": _staged, "stream": _streamed, "cgroup": _throttled_by_kernel}
    measured = ways[cell.mode](cell, place, binary)
    cell.model.require_unchanged()
    bench, stats = measured.bench, measured.stats
    wall = time.monotonic() - begin
    machine_busy, ours = (after - was for after, was in zip(_busy_seconds(), busy, strict=True))
    staging = _staging(cell, stats, measured.resident) if stats else {}
    judged = (
        stream.verdict(measured.own, staging, stats["overfills"]) if stats and cell.mode == "stream" else {}
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
        "command": [*llama.settings(), binary.name, *_without(bench.command[1:], cell, place)],
        "llama_bench": {
            "version": llama.version(binary),
            "flags": sorted(llama.flags(binary)),
            "records": _without(bench.records, cell, place),
            "phases": [dataclasses.asdict(phase) for phase in bench.phases],
        },
        "tier_stats": stats,
        "environment": {**machine.facts(), "before": before, "after": machine.now()},
    }


def _mapped(cell: Cell, place: Place, binary: Path) -> _Measured:
    with _mounted(cell, place) as file:
        resident = residency.resident_bytes(file)
        bench = _run_from_mount(cell, binary, file, cell.bench)
        return _Measured(bench, child.stats(file.parent), resident)


def _staged(cell: Cell, place: Place, binary: Path) -> _Measured:
    with _mounted(cell, place) as file:
        resident = residency.resident_bytes(file)
        copy_seconds = place.copy(file)
        stats = child.stats(file.parent)
    bench = llama.run(binary, place.memory_path, cell.bench, cell.timeout_seconds, (place.memory,))
    return _Measured(bench, stats, resident, copy_seconds)


def _streamed(cell: Cell, place: Place, binary: Path) -> _Measured:
    """Decode from the tier, and the same from memory to know what compute takes.

    Repacking would copy the weights out of the tier's reach at load.
    """
    options = dataclasses.replace(cell.bench, repack=0)
    compute = llama.run(binary, cell.model.path, options, cell.timeout_seconds)
    with _mounted(cell, place) as file:
        resident = residency.resident_bytes(file)
        bench = _run_from_mount(cell, binary, file, options)
        stats = child.stats(file.parent)
    if stats.get("trace_stopped"):
        raise HbfError(f"the reads could not be recorded ({stats['trace_stopped']}); make room for them")
    trace = Trace.parse(place.trace.read_bytes())
    own = stream.metrics(bench, compute, trace, gguf.read(cell.model.path), MODEL_FILE)
    return _Measured(bench, stats, resident, compute.wall_seconds, own)


def _throttled_by_kernel(cell: Cell, place: Place, binary: Path) -> _Measured:
    if why := iomax.refusal(cell.spec, cell.layout):
        raise HbfError(why)
    bench, resident, own = iomax.measure(binary, cell.model.path, cell.spec, cell.bench, cell.timeout_seconds)
    return _Measured(bench, None, resident, own=own)


def _run_from_mount(cell: Cell, binary: Path, file: Path, options: llama.BenchOptions) -> llama.BenchRun:
    """Ended when the mount ends or the source changes. llama.cpp has the kernel populate its mapping, which
    tries pages that give errors again and again (seen with Linux 6.18).
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

    return llama.run(binary, file, options, cell.timeout_seconds, require=require_served)


@contextmanager
def _mounted(cell: Cell, place: Place) -> Iterator[Path]:
    """A fresh mount of the cell's tier; the model in it."""
    config = MountConfig(
        cell.model.path,
        place.mountpoint,
        cell.spec,
        cell.engine,
        layout=cell.layout,
        # The copy's chunks are larger than FUSE's largest read: their parts must not wait for each other.
        async_dio=cell.mode == "stage",
        # To write one takes time from what is measured.
        trace=place.trace if place.traced or cell.mode == "stream" else None,
    )
    with child.mounted(config) as mount:
        yield mount / MODEL_FILE


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
        "layout": {**dataclasses.asdict(cell.layout), "place": list(cell.layout.place)},
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
    off_chunks = _off_chunks_pct(cell, staging)
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


def _off_chunks_pct(cell: Cell, staging: dict[str, Any]) -> float | None:
    """By how many percent a copy is off what its chunks take by bandwidth and latency; None where no chunks
    are known.

    The mount is unsure where pauses might be its own doing. In mode `stage` all pauses are known beforehand,
    so where both models agree there is nothing left to doubt.
    """
    ideal = expect.staging_mbps(cell.spec, chunked=True)
    if cell.mode != "stage" or not ideal or not cell.spec.plain or staging["error_pct"] is None:
        return None
    errors = float(staging["error_pct"]), (float(staging["achieved_mbps"]) / ideal - 1) * 100
    return max(map(abs, errors))


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


def _without(document: Any, cell: Cell, place: Place) -> Any:
    """The document without this machine's paths, the mountpoint as MOUNT: results get published."""
    text = json.dumps(document)
    for path, name in ((place.mountpoint, "MOUNT"), (cell.model.path, cell.model.path.name)):
        text = text.replace(json.dumps(str(path))[1:-1], json.dumps(name)[1:-1])
    return json.loads(text)


def _busy_seconds() -> tuple[float, float]:
    """CPU seconds of the whole machine, and of this process with the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = sum(os.times()[:2]) + children.ru_utime + children.ru_stime
    return machine.busy_core_seconds(), own
