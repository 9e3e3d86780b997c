"""Sweeps: the TOML of a grid, a results folder, and the files that resuming reads."""

import functools
import json
from pathlib import Path
from typing import Any

from fuzzing.edits import edits, text_of, toml, with_edits
from fuzzing.promise import Target, accepted, file_of, scratch
from fuzzing.tiers import SLOW_SPEC
from hbf_fuse.cli import trace as cli_trace
from hbf_fuse.cli.kv.options import SpillOptions
from hbf_fuse.models import choice
from hbf_fuse.report import compare, page, summary
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.schema import run_of
from hbf_fuse.sweep import grid as grids
from hbf_fuse.sweep import loop
from hbf_fuse.sweep.cell import Cell, ModelFile

DATA = Path(__file__).parent.with_name("data")
_TIERS = {"fast": {"bandwidth_mbps": 1000, "latency_ms": 0.1}, "gen1": {"profile": "hbf-gen1", "depth": 4}}

_GRID = {
    "model": "model.gguf",
    "mode": ["mmap", "stage", "stream"],
    "mbps": [500, "max"],
    "lat": [0, 1.5],
    "resident": ["25%", "256M"],
    "policy": ["pin", "fifo"],
    "n_prompt": [8],
    "n_gen": [4],
    "threads": [0],
    "repeats": 2,
    "seed": 3,
    "engine": "kernel",
    "timeout": 60.0,
    "tier": {"jitter": "exponential:0.1", "depth": 4},
    "place": ["_exps=fast", ".=hbf"],
    "tiers": _TIERS,
}
_MODEL = ModelFile((Path("model.gguf"),), 1 << 30, "0" * 64)
_MAX_MADE = 500


def grid(data: bytes) -> None:
    """A sweep's TOML, and its cells."""
    file = file_of("grid.toml", text_of(_GRID, data, toml))
    known = accepted(grids.from_fields, {}, file)
    if known is None:
        return
    if known.model is not None:
        accepted(choice.named_in, file, known.model)
    if known.size > _MAX_MADE:
        return
    cells = accepted(known.cells, _MODEL)
    if cells is not None:
        names = [cell.name for cell in cells]
        assert names and len(set(names)) == len(names) and all(Path(name).name == name for name in names)
        assert grids.staging_seconds(cells) >= 0


def runs(data: bytes) -> None:
    """A results folder with one valid run and one damaged run: CSV, tables, report, and --run."""
    sound, spoilt = _real_run("mmap"), _real_run("stream")
    folder = scratch() / "results"
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    (folder / "runs" / f"{sound['cell']['name']}.json").write_text(json.dumps(sound))
    run = folder / "runs" / f"{spoilt['cell']['name']}.json"
    run.write_bytes(text_of(spoilt, data, json.dumps))
    accepted(SpillOptions(bench=run).compute_seconds)
    accepted(cli_trace._phases, run)
    accepted(cli_trace._first_run_seconds, run)
    results = Results(folder)
    known = accepted(results.all)
    if known is not None:
        results.write_csv()
        assert not results.set_aside_edited_csv()
        json.dumps(summary.summarize(known))
        assert summary.markdown(known) and page.markdown(known, 30.0)
        assert compare.markdown(compare.rows(known, [run_of(_real_run("mmap"))]), "first", "second")


@functools.cache
def _real_run(mode: str) -> dict[str, Any]:
    return dict(json.loads((DATA / f"run-{mode}.json").read_text()))


def _run_seeds() -> list[bytes]:
    return [edits([]), *((DATA / f"run-{mode}.json").read_bytes() for mode in ("mmap", "stream"))]


_CELL = Cell(_MODEL, SLOW_SPEC)


def resume(data: bytes) -> None:
    """The files of an earlier sweep: sweep.json, and a cells.csv that somebody may have edited."""
    folder = scratch() / "resumed"
    sound = _real_run("mmap")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    (folder / "runs" / f"{sound['cell']['name']}.json").write_text(json.dumps(sound))
    results = Results(folder)
    (folder / "sweep.json").write_bytes(text_of(loop._identity(_CELL), data, json.dumps))
    accepted(loop._claim, results, _CELL)
    results.csv_path.write_bytes(data)
    accepted(results.set_aside_edited_csv)


def _resume_seeds() -> list[bytes]:
    folder = scratch() / "resumed"
    resume(b"")
    return [json.dumps(loop._identity(_CELL)).encode(), Results(folder).write_csv().read_bytes()]


TARGETS = (
    Target("grid", grid, with_edits(lambda: toml(_GRID).encode())),
    Target("runs", runs, _run_seeds),
    Target("resume", resume, _resume_seeds),
)
