"""A grid of cells and the loop over it. Finished cells are never measured again, so it can be resumed."""

import dataclasses
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.sweep import cell as cells
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.llama import BenchOptions
from hbf_fuse.sweep.results import Results, write_whole
from hbf_fuse.tier import TierSpec

MAX_CELLS = 100_000


@dataclass(frozen=True)
class Grid:
    """Every combination of these, `repeats` times. mbps None is unthrottled."""

    model: Path
    mbps: tuple[float | None, ...]
    lat_ms: tuple[float, ...]
    repeats: int = 3
    seed: int = 0
    engine: str = "kernel"
    bench: BenchOptions = dataclasses.field(default_factory=BenchOptions)

    def cells(self) -> list[Cell]:
        """All cells in the order of measuring: a repeat of everything, then the next, each shuffled by the
        seed, so that a machine that drifts does not look like an effect of the tier.
        """
        points = list(dict.fromkeys(itertools.product(self.mbps, self.lat_ms)))
        if not points or self.repeats < 1:
            raise HbfError("the grid is empty; give at least one --mbps, one --lat and one repeat")
        if len(points) * self.repeats > MAX_CELLS:
            raise HbfError(f"the grid has {len(points) * self.repeats} cells; at most {MAX_CELLS} make sense")
        order = random.Random(self.seed)  # noqa: S311 - an order, not a secret
        ordered = []
        for repeat in range(1, self.repeats + 1):
            order.shuffle(points)
            ordered += [
                Cell(self.model, TierSpec(mbps, lat), repeat, "mmap", self.engine, self.bench)
                for mbps, lat in points
            ]
        return ordered


def run(grid: Grid, results: Results, done: Callable[[dict[str, Any], bool], None]) -> tuple[int, int]:
    """Measure what is missing. Returns (cells measured now, cells that failed).

    done: called after each cell with its document and whether it was there before. A cell that fails
    keeps its reason and is tried again by the next run. HbfError if the folder holds another sweep.
    """
    planned = grid.cells()
    _claim(results, grid)
    measured = failed = 0
    for cell in planned:
        document = results.load(cell.name)
        known = document is not None and "error" not in document
        if document is None or not known:
            document = _measure(cell, results)
            measured += 1
        failed += "error" in document
        done(document, known)
    results.write_csv()
    return measured, failed


def _measure(cell: Cell, results: Results) -> dict[str, Any]:
    try:
        document = cells.run(cell, results.folder / "tmp")
    except HbfError as error:
        document = {"schema": cells.SCHEMA, "cell": cells.describe(cell), "error": str(error)}
    results.store(document)
    results.write_csv()
    return document


def _claim(results: Results, grid: Grid) -> None:
    """Note what this folder holds, or make sure that it is the same sweep."""
    first = cells.describe(grid.cells()[0])
    identity = {key: first[key] for key in ("model", "bench", "engine")}
    path = results.folder / "sweep.json"
    if not path.exists():
        write_whole(path, json.dumps(identity, indent=1) + "\n")
        return
    try:
        known = json.loads(path.read_text())
    except ValueError as error:
        raise HbfError(f"{path} is damaged; use another results folder") from error
    if known != identity:
        raise HbfError(
            f"{results.folder} holds another sweep (other model, llama-bench options or engine); "
            "use another folder (-o)"
        )
