"""`hbf report`: what people read of a sweep, of two side by side, or of several as one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hbf_fuse.cli.common import Json, print_json, tell
from hbf_fuse.cli.paths import found
from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    from hbf_fuse.folder import Folder
    from hbf_fuse.runs.results import Results
    from hbf_fuse.runs.run import Run

MERGED = Path("results/merged")
MERGED_FILE = "merged.txt"
"""Marks a folder whose report was made of several others."""

TargetSeconds = Annotated[
    float | None,
    typer.Option(
        "--target-seconds", help="Say which bandwidth would bring the first run down to this.", min=0
    ),
]


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="A results folder; two to compare; or any number to merge.", parser=found),
    ],
    target_seconds: TargetSeconds = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Merge the folders into one report, in this folder. \\[default, of three and more: "
            f"{MERGED}]",
            parser=found,
            show_default=False,
        ),
    ] = None,
    sql: Annotated[
        Path | None,
        typer.Option(
            "--sql",
            help="Also write llama-bench's own SQLite table, which llama.cpp's compare-llama-bench.py reads.",
            parser=found,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a sweep's report.md, report.html and plots/ anew; compare two sweeps; or merge several.

    Example: [bold]hbf report results/sweep --target-seconds 30[/bold]

    Merged: [bold]hbf report results/monday results/tuesday -o results/both[/bold]. Figures are averaged only
    over runs with the same model, tier, CPU, kernel and llama.cpp.
    """
    from hbf_fuse.runs.results import Results

    sweeps = [Results(folder.absolute()) for folder in folders]
    for known in sweeps:
        if not known.all():
            raise HbfError(f"{known.folder} holds no runs", "name the folder that `hbf sweep -o` was given")
    if sql or output or len(sweeps) > 2:
        _require_no_copies(sweeps, [str(folder) for folder in folders])
    if sql:
        _write_sql(sql, [run for known in sweeps for run in known.all()])
    if len(sweeps) == 1 and output is None:
        path = write_report(sweeps[0].opened, sweeps[0].all(), target_seconds)
        _show(sweeps[0].all(), path, target_seconds, as_json)
    elif len(sweeps) == 2 and output is None:
        _compare(sweeps, [str(folder) for folder in folders], as_json)
    else:
        runs = _merged(sweeps, [str(folder) for folder in folders])
        path = _write_merged((output or MERGED).absolute(), runs, target_seconds)
        _show(runs, path, target_seconds, as_json)


def _show(runs: "list[Run]", path: Path, target_seconds: float | None, as_json: bool) -> None:
    from hbf_fuse.cli import tables
    from hbf_fuse.report import summary

    if as_json:
        print_json(summary.summarize(runs))
    else:
        tables.show(runs, target_seconds)
    tell(f"report: {path}")


def _compare(sweeps: "list[Results]", names: list[str], as_json: bool) -> None:
    from hbf_fuse.report import compare

    first, second = (known.all() for known in sweeps)
    rows = compare.rows(first, second)
    for difference in compare.differences(first, second):
        tell(f"unlike things are compared: {difference}")
    if as_json:
        print_json(rows)
    else:
        print(compare.markdown(rows, *names))


def _require_no_copies(sweeps: "list[Results]", names: list[str]) -> None:
    """HbfError if a run is there twice: chance would look smaller than it is."""
    from hbf_fuse.runs.run import Finished

    seen: dict[str, str] = {}
    for known, name in zip(sweeps, names, strict=True):
        for run in known.all():
            if not isinstance(run, Finished):
                continue
            content = str(run.to_dict())
            if content in seen:
                raise HbfError(
                    f"{seen[content]} and {name} both hold one run, {run.cell.name}", "a copy is no repeat"
                )
            seen[content] = name


def _merged(sweeps: "list[Results]", names: list[str]) -> "list[Run]":
    """All runs. Those that do not say on which machine they were made are named after their folder, or after
    all folders of such a machine.
    """
    from hbf_fuse.report import alike
    from hbf_fuse.runs.results import in_order

    machines = [alike.machine_of(known.all()) for known in sweeps]
    for known, machine in zip(sweeps, machines, strict=True):
        folders = [name for name, other in zip(names, machines, strict=True) if other == machine]
        for run in known.all():
            run.conditions.machine = run.conditions.machine or " and ".join(folders)
    runs = in_order(run for known in sweeps for run in known.all())
    for what, values in alike.differing(runs).items():
        tell(f"not averaged over different values of {what}: {' | '.join(values)}")
    return runs


def _write_merged(folder: Path, runs: "list[Run]", target_seconds: float | None) -> Path:
    """The report and cells.csv in a folder that has no runs of its own."""
    from hbf_fuse.documents import write_in
    from hbf_fuse.folder import Folder
    from hbf_fuse.runs.results import CSV, RUNS, write_csv
    from hbf_fuse.sweep.loop import OVERWRITTEN

    opened = Folder.at(folder)
    if opened.has(RUNS):
        raise HbfError(f"{folder} holds runs of its own", "name another folder (-o)")
    if not opened.has(MERGED_FILE):
        if foreign := next(filter(opened.has, (CSV, *OVERWRITTEN)), None):
            raise HbfError(f"{folder} has a {foreign} of something else", "use another folder (-o)")
        write_in(opened, MERGED_FILE, "Made by `hbf report`; what is beside this file is written anew.\n")
    write_csv(opened, runs)
    return write_report(opened, runs, target_seconds)


def _write_sql(path: Path, runs: "list[Run]") -> None:
    """The database, complete or not at all. Only one of ours is replaced."""
    from hbf_fuse.folder import Folder
    from hbf_fuse.report import sql

    if not path.absolute().parent.is_dir():
        raise HbfError(f"{path.absolute().parent} is no directory", "make it with `mkdir -p`")
    content = sql.database(runs)
    folder = Folder.at(path.absolute().parent)
    if folder.has(path.name):
        try:
            ours = sql.is_ours(folder.read(path.name, sql.MAX_BYTES))
        except ValueError:
            ours = False
        if not ours:
            raise HbfError(f"{path} is no table of hbf's", "name another file (--sql)")
    folder.write(path.name, content)
    commits = sql.commits(runs)
    tell(f"llama-bench's table is in {path}; commits of llama.cpp: {', '.join(commits)}")
    if sql.UNKNOWN_COMMIT in commits:
        tell("a llama-bench built outside of git does not know its commit: such builds cannot be told apart")


def write_report(folder: "Folder", runs: "list[Run]", target_seconds: float | None) -> Path:
    """report.md, and report.html with plots/ where the libraries for them are; returns the better one."""
    from hbf_fuse.documents import write_in
    from hbf_fuse.report import page

    path = folder.path / "report.md"
    write_in(folder, path.name, page.markdown(runs, target_seconds))
    try:
        from hbf_fuse.report import html
    except ImportError as error:
        tell(f"no report.html and plots: {error.name} is missing; `pip install 'hbf-fuse[report]'` brings it")
        return path
    text, drawn = html.render(runs, target_seconds)
    plots = folder.below("plots") if drawn else folder
    for plot in drawn:
        write_in(plots, f"{plot.name}.svg", plot.svg + "\n")
    path = folder.path / "report.html"
    write_in(folder, path.name, text)
    return path
