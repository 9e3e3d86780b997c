"""The loop over a grid's cells. Finished cells are never measured again, so it can be resumed."""

import fcntl
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.host import answers
from hbf_fuse.runs.results import Results, Unstorable
from hbf_fuse.runs.run import SCHEMA, Conditions, Finished, Run, RunCell
from hbf_fuse.sweep import measuring, workspace
from hbf_fuse.sweep.cell import Cell, describe
from hbf_fuse.sweep.conditions import Concern, git_state
from hbf_fuse.sweep.workspace import Workspace

Crew = Callable[[Sequence[Cell]], Generator[Run, None, None]]
"""Who measures: yields a run for each of the cells, in any order."""

SWEEP_FILE = "sweep.json"
"""What the cells of a folder have in common; a folder of single cells has none."""

OVERWRITTEN = ("report.md", "report.html", "plots")
"""What the end of a sweep makes anew."""


def run(
    planned: list[Cell],
    results: Results,
    crew: Crew,
    done: Callable[[Run], None],
) -> tuple[int, int]:
    """Measure what is missing in a folder that is `locked`. Returns (cells measured now, cells that failed).

    done: called after each cell that was measured. A cell that fails keeps its reason and is tried again by
    the next run. HbfError if the folder holds something else.
    """
    measured = failures = 0
    _claim(results, planned[0])
    missing = []
    for cell in planned:
        known = results.load(cell.name)
        if not isinstance(known, Finished):
            missing.append(cell)
        elif known.cell != describe(cell):
            raise _another_sweep(results, "a run of another kind with the same name")
    with closing(crew(missing)) as runs:
        for run in runs:
            stored = _stored(run, results)
            measured += 1
            failures += not isinstance(stored, Finished)
            done(stored)
    results.write_csv()
    return measured, failures


def here(concerns: list[Concern]) -> Crew:
    """This machine. concerns: what was wrong with it before; kept with each run."""

    def measure(cells: Sequence[Cell]) -> Generator[Run, None, None]:
        conditions = conditions_of(concerns)
        mode = ""
        with workspace.lent() as lent:
            for cell in cells:
                if cell.mode != mode:
                    # The first cell of a mode needs memory that the last one of another did not have.
                    lent.warm(2 * cell.model.size)
                    mode = cell.mode
                yield outcome(cell, lent, conditions)

    return measure


def conditions_of(concerns: Iterable[object], **further: Any) -> Conditions:
    """As runs keep them."""
    known = {"concerns": [str(one) for one in concerns], "git": git_state(), **further}
    return Conditions.model_validate(known)


def outcome(cell: Cell, lent: Workspace, conditions: Conditions) -> Run:
    """The run of a cell, measured now; with its reason if it failed."""
    try:
        run: Run = measuring.run(cell, lent)
        run.conditions = conditions
    except HbfError as error:
        return failed(describe(cell), error, conditions)
    return run


def failed(cell: RunCell, why: HbfError, conditions: Conditions) -> Run:
    """The run of a cell that could not be measured."""
    return Run(schema=SCHEMA, cell=cell, error=str(why), conditions=conditions)


def _stored(run: Run, results: Results) -> Run:
    """The run as it could be stored: without its figures if they would be refused."""
    try:
        results.store(run)
    except Unstorable as error:
        run = failed(run.cell, error, run.conditions)
        results.store(run)
    return run


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
        if foreign := next(filter(results.opened.has, OVERWRITTEN), None):
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
