"""A cell: which model, from which tier, read in which way."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.filesystem import NO_LAYOUT
from hbf_fuse.fs.placement import Layout
from hbf_fuse.fs.tree import ALIAS
from hbf_fuse.models import hashes, split
from hbf_fuse.runs.run import Mode, RunBench, RunCell, RunLayout, RunModel, RunServe, Workload
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import llama
from hbf_fuse.workload.serve import ServeOptions

_SLUG = 60


def checked_mode(name: str) -> Mode:
    """A mode by its name, or an HbfError."""
    for mode in get_args(Mode):
        if name == mode:
            return mode  # type: ignore[no-any-return]
    raise HbfError(f"unknown mode {name!r} (--mode)", f"there are: {', '.join(get_args(Mode))}")


def checked_workload(name: str) -> Workload:
    """A workload by its name, or an HbfError."""
    for workload in get_args(Workload):
        if name == workload:
            return workload  # type: ignore[no-any-return]
    raise HbfError(f"unknown workload {name!r} (--workload)", f"there are: {', '.join(get_args(Workload))}")


@dataclass(frozen=True)
class ModelFile:
    """A model on the machine that runs the cell, and what it is recognised by elsewhere.

    parts: its files, in order; a split model has several. size, sha256: of all their bytes in that order.
    state: sizes and times of the files when the hash was taken, the same on every machine that has a copy;
    None if nobody looked.
    """

    parts: tuple[Path, ...]
    size: int
    sha256: str
    state: tuple[int, ...] | None = None

    @classmethod
    def of(cls, path: Path, reading: Callable[[], None] = lambda: None) -> "ModelFile":
        """Read every file for the hash (about a second per GiB), unless it is known from before. HbfError if
        a part is missing.

        reading: called before the files are read.
        """
        parts = split.parts_of(path)
        state = _state_of(parts)
        digest = hashes.of(parts, reading)
        model = cls(parts, sum(part.stat().st_size for part in parts), digest, state)
        model.require_unchanged()
        return model

    @property
    def path(self) -> Path:
        """What llama-bench is given: the first part."""
        return self.parts[0]

    @property
    def served_names(self) -> tuple[str, ...]:
        """Names of the files in a mount. llama.cpp finds the parts of a model by their names."""
        return (os.fsdecode(ALIAS),) if len(self.parts) == 1 else tuple(part.name for part in self.parts)

    def require_unchanged(self) -> None:
        """HbfError if a file is no longer the one whose hash was taken."""
        if self.state is not None and _state_of(self.parts) != self.state:
            raise HbfError(f"{self.path} was changed since its hash was taken", "begin a new sweep (-o)")


def _state_of(parts: Sequence[Path]) -> tuple[int, ...]:
    infos = [part.stat() for part in parts]
    return tuple(figure for info in infos for figure in (info.st_size, info.st_mtime_ns))


@dataclass(frozen=True)
class Cell:
    """What to measure. timeout_seconds is for llama-bench; it is no part of what the cell is.

    serve: the workload is llama-server under such a load instead; bench then holds the tokens of a request
    and the options of both. readahead_kib: of its mount; None for the usual one.
    """

    model: ModelFile
    spec: TierSpec
    repeat: int = 1
    mode: Mode = "mmap"
    engine: str = "kernel"
    bench: llama.BenchOptions = dataclasses.field(default_factory=llama.BenchOptions)
    layout: Layout = NO_LAYOUT
    timeout_seconds: float = 3600.0
    serve: ServeOptions | None = None
    readahead_kib: int | None = None

    @property
    def name(self) -> str:
        """Unique within a sweep; fit for a file name."""
        link = "max" if self.spec.bandwidth_mbps is None else f"{self.spec.bandwidth_mbps:g}"
        axes = f"p{self.bench.n_prompt}-n{self.bench.n_gen}{_slug(self.bench)}"
        if self.serve:
            axes = f"serve-{axes}-c{'_'.join(map(str, self.serve.concurrency))}"
        budget = self.layout.resident_bytes
        memory = f"-{budget >> 20}MiB-{self.layout.policy}" if budget is not None else ""
        if self.readahead_kib is not None:
            memory += f"-ra{self.readahead_kib}"
        return f"{self.mode}-{link}mbps-{self.spec.latency_ms:g}ms{memory}-{axes}-r{self.repeat}"

    @property
    def options(self) -> llama.BenchOptions:
        """What the program is given. Repacking would copy weights out of a budget's reach at load."""
        return dataclasses.replace(self.bench, repack=0) if self.mode == "stream" else self.bench


def _recorded(bench: llama.BenchOptions) -> RunBench:
    return RunBench.model_validate(dataclasses.asdict(bench))


def _slug(bench: llama.BenchOptions) -> str:
    """llama-bench's further options for a file name: readable, and told apart by a hash where it is cut."""
    threads = f"-t{bench.threads}" if bench.threads else ""
    further = _recorded(dataclasses.replace(bench, threads=0)).label
    if not further:
        return threads
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", further).strip("_")[:_SLUG]
    return f"{threads}-{readable}-{hashlib.sha256(further.encode()).hexdigest()[:6]}"


def described_as(known: RunCell, model: ModelFile, timeout_seconds: float) -> Cell:
    """The cell that was described elsewhere, with the model as it lies here. HbfError or ValueError for what
    no cell can be.
    """
    layout = known.layout
    return Cell(
        model=model,
        spec=known.tier,
        repeat=known.repeat,
        mode=known.mode,
        engine=known.engine,
        bench=llama.BenchOptions(**{**known.bench.model_dump(), "extra": tuple(known.bench.extra)}),
        layout=Layout(layout.resident_bytes, layout.policy, tuple(layout.place), dict(layout.tiers)),
        timeout_seconds=timeout_seconds,
        serve=_serve(known.serve) if known.serve else None,
        readahead_kib=layout.readahead_kib,
    )


def _serve(known: RunServe) -> ServeOptions:
    return ServeOptions(**{**known.model_dump(), "concurrency": tuple(known.concurrency)})


def describe(cell: Cell) -> RunCell:
    """The cell as a run holds it: what a finished run is recognised by."""
    layout = cell.layout
    return RunCell(
        name=cell.name,
        mode=cell.mode,
        engine=cell.engine,
        repeat=cell.repeat,
        tier_mbps=cell.spec.bandwidth_mbps,
        tier_lat_ms=cell.spec.latency_ms,
        tier=cell.spec,
        tier_sha256=hashlib.sha256(json.dumps(cell.spec.to_dict(), sort_keys=True).encode()).hexdigest(),
        model=RunModel(name=cell.model.path.name, size=cell.model.size, sha256=cell.model.sha256),
        bench=_recorded(cell.bench),
        serve=RunServe.model_validate(dataclasses.asdict(cell.serve)) if cell.serve else None,
        layout=RunLayout(
            resident_bytes=layout.resident_bytes,
            policy=layout.policy,
            place=list(layout.place),
            tiers=dict(layout.tiers),
            readahead_kib=cell.readahead_kib,
        ),
    )
