"""The loop over a grid's cells. Finished cells are never measured again, so it can be resumed."""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.host import answers
from hbf_fuse.runs.results import Results, Unstorable
from hbf_fuse.runs.run import SCHEMA, Conditions, Finished, Run
from hbf_fuse.sweep import measuring, workspace
from hbf_fuse.sweep.cell import Cell, describe
from hbf_fuse.sweep.conditions import Concern, git_state
from hbf_fuse.sweep.workspace import Workspace

SWEEP_FILE = "sweep.json"
"""What the cells of a folder have in common; a folder of single cells has none."""

_OVERWRITTEN = ("report.md", "report.html", "plots")
"""What the end of a sweep makes anew."""


def run(
    planned: list[Cell],
    results: Results,
    concerns: list[Concern],
    done: Callable[[Run, bool], None],
) -> tuple[int, int]:
    """Measure what is missing in a folder that is `locked`. Returns (cells measured now, cells that failed).

    concerns: what was wrong with the machine before; kept with each run.
    done: called after each cell with its run and whether it was there before. A cell that fails
    keeps its reason and is tried again by the next run. HbfError if the folder holds something else.
    """
    measured = failed = 0
    mode = ""
    _claim(results, planned[0])
    conditions = Conditions.model_validate({"concerns": [str(one) for one in concerns], "git": git_state()})
    with workspace.lent() as lent:
        for cell in planned:
            found = results.load(cell.name)
            known = isinstance(found, Finished)
            if found is None or not known:
                if cell.mode != mode:
                    # The first cell of a mode needs memory that the last one of another did not have.
                    lent.warm(2 * cell.model.size)
                    mode = cell.mode
                found = _measured(cell, lent, conditions, results)
                measured += 1
            elif found.cell != describe(cell):
                raise _another_sweep(results, "a run of another kind with the same name")
            failed += not isinstance(found, Finished)
            done(found, known)
    results.write_csv()
    return measured, failed


def _measured(cell: Cell, lent: Workspace, conditions: Conditions, results: Results) -> Run:
    """The run of a cell, stored; with its reason if it failed."""

    def failed(why: HbfError) -> Run:
        return Run(schema=SCHEMA, cell=describe(cell), error=str(why), conditions=conditions)

    try:
        found: Run = measuring.run(cell, lent)
        found.conditions = conditions
    except HbfError as error:
        found = failed(error)
    try:
        results.store(found)
    except Unstorable as error:
        found = failed(error)
        results.store(found)
    return found


@contextmanager
def locked(folder: Path) -> Iterator[Results]:
    """A results folder that nobody else measures into meanwhile, made if it is not there. What is in it is
    read under the lock, so whatever another process finished before is known.

    HbfError if another process holds it.
    """
    answers.require(folder)
    results = Results(folder)
    try:
        fcntl.flock(results.opened.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HbfError(f"another process measures into {folder}", "use another folder (-o)") from error
    try:
        yield results
    finally:
        # Whoever still holds on to the results holds no lock.
        fcntl.flock(results.opened.fd, fcntl.LOCK_UN)


def require_same(results: Results, first: Cell) -> None:
    """HbfError if this folder holds anything but runs of the sweep that `first` is of. Changes nothing."""
    path = results.folder / SWEEP_FILE
    if not results.opened.has(SWEEP_FILE):
        if results.all():
            raise _another_sweep(results, "runs of hbf bench")
        if foreign := next(filter(results.opened.has, _OVERWRITTEN), None):
            raise HbfError(f"{results.folder} has a {foreign} of something else", "use another folder (-o)")
        return
    try:
        known = documents.read_json_in(results.opened, SWEEP_FILE)
    except (HbfError, OSError) as error:
        raise HbfError(f"{path} is damaged", "use another results folder") from error
    for key, value in _identity(first).items():
        if not isinstance(known, dict) or known.get(key) != value:
            raise _another_sweep(results, f"another {key}")
    for run in results.all():
        if isinstance(run, Finished) and (what := run.outdated):
            raise _another_sweep(results, f"hbf 0.1.0 computed {what} in another way")


def _claim(results: Results, first: Cell) -> None:
    """Note what this folder holds before anything is measured, or make sure that it is the same sweep."""
    require_same(results, first)
    if not results.opened.has(SWEEP_FILE):
        documents.write_in(results.opened, SWEEP_FILE, json.dumps(_identity(first), indent=1) + "\n")


def _identity(cell: Cell) -> dict[str, Any]:
    """What all cells of a sweep share; the rest is in their names."""
    described = describe(cell).model_dump()
    tier = {
        key: value for key, value in described["tier"].items() if key not in ("bandwidth_mbps", "latency_ms")
    }
    layout = {key: described["layout"][key] for key in ("place", "tiers")}
    model = {key: described["model"][key] for key in ("size", "sha256")}
    return {"model": model, "engine": cell.engine, "tier": tier, "layout": layout}


def _another_sweep(results: Results, what: str) -> HbfError:
    return HbfError(f"{results.folder} holds another sweep ({what})", "use another folder (-o)")
