"""A cell: which model, from which tier, read in which way."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.filesystem import NO_LAYOUT
from hbf_fuse.fs.placement import Layout
from hbf_fuse.runs.run import Mode, RunBench, RunCell, RunLayout, RunModel
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import llama


def checked_mode(name: str) -> Mode:
    """A mode by its name, or an HbfError."""
    for mode in get_args(Mode):
        if name == mode:
            return mode  # type: ignore[no-any-return]
    raise HbfError(f"unknown mode {name!r} (--mode); there are: {', '.join(get_args(Mode))}")


@dataclass(frozen=True)
class ModelFile:
    """A GGUF on the machine that runs the cell, and what it is recognised by elsewhere.

    state: size and time of the file when its hash was taken, the same on every machine that has a copy;
    None if nobody looked.
    """

    path: Path
    size: int
    sha256: str
    state: tuple[int, ...] | None = None

    @classmethod
    def of(cls, path: Path) -> "ModelFile":
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

    model: ModelFile
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
        bench=RunBench(**dataclasses.asdict(cell.bench)),
        layout=RunLayout(
            resident_bytes=layout.resident_bytes,
            policy=layout.policy,
            place=list(layout.place),
            tiers=dict(layout.tiers),
        ),
    )
