"""`hbf report`: what people read of a sweep, or of two."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hbf_fuse.cli.common import Json, print_json, tell
from hbf_fuse.cli.paths import found
from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    from hbf_fuse.runs.results import Results

TargetSeconds = Annotated[
    float | None,
    typer.Option(
        "--target-seconds", help="Say which bandwidth would bring the first run down to this.", min=0
    ),
]


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="One results folder, or two to compare.", parser=found)
    ],
    target_seconds: TargetSeconds = None,
    as_json: Json = False,
) -> None:
    """Make a sweep's report.md, report.html and plots/ anew, or compare two sweeps.

    Example: [bold]hbf report results/sweep --target-seconds 30[/bold]
    """
    from hbf_fuse.cli import tables
    from hbf_fuse.report import compare, summary
    from hbf_fuse.runs.results import Results

    if len(folders) > 2:
        raise typer.BadParameter("give one results folder, or two to compare")
    sweeps = [Results(folder.absolute()) for folder in folders]
    for known in sweeps:
        if not known.all():
            raise HbfError(f"{known.folder} holds no runs", "name the folder that `hbf sweep -o` was given")
    if len(sweeps) == 2:
        rows = compare.rows(*(known.all() for known in sweeps))
        for difference in compare.differences(*(known.all() for known in sweeps)):
            tell(f"unlike things are compared: {difference}")
        if as_json:
            print_json(rows)
        else:
            print(compare.markdown(rows, *(str(folder) for folder in folders)))
        return
    path = write_report(sweeps[0], target_seconds)
    if as_json:
        print_json(summary.summarize(sweeps[0].all()))
    else:
        tables.show(sweeps[0].all(), target_seconds)
    tell(f"report: {path}")


def write_report(results: "Results", target_seconds: float | None) -> Path:
    """report.md, and report.html with plots/ where the libraries for them are; returns the better one."""
    from hbf_fuse.documents import write_in
    from hbf_fuse.report import page

    runs = results.all()
    path = results.folder / "report.md"
    write_in(results.opened, path.name, page.markdown(runs, target_seconds))
    try:
        from hbf_fuse.report import html
    except ImportError as error:
        tell(f"no report.html and plots: {error.name} is missing; `pip install 'hbf-fuse[report]'` brings it")
        return path
    text, drawn = html.render(runs, target_seconds)
    plots = results.opened.below("plots") if drawn else results.opened
    for plot in drawn:
        write_in(plots, f"{plot.name}.svg", plot.svg + "\n")
    path = results.folder / "report.html"
    write_in(results.opened, path.name, text)
    return path
