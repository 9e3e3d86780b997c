"""`hbf sweep` and `hbf-sweep`: the grid."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hbf_fuse.cli.bench import Model, NGen, NPrompt, Threads, Timeout, gguf_source
from hbf_fuse.cli.common import Json, print_json, single, tell
from hbf_fuse.cli.options import EngineName, checked_engine
from hbf_fuse.errors import HbfError


def sweep(
    mbps: Annotated[
        str, typer.Option("--mbps", help="Bandwidths in MB/s with commas; `max` is unthrottled.")
    ] = "250,500,1000,2000",
    lat: Annotated[str, typer.Option("--lat", help="Latencies in ms with commas.")] = "0,1,5",
    repeats: Annotated[int, typer.Option("--repeats", help="How often each point is measured.", min=1)] = 3,
    model: Model = None,
    n_prompt: NPrompt = 256,
    n_gen: NGen = 256,
    threads: Threads = 0,
    timeout: Timeout = 3600.0,
    engine: EngineName = "kernel",
    seed: Annotated[int, typer.Option("--seed", help="Order of the cells.")] = 0,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Results folder; an unfinished sweep in it goes on.")
    ] = Path("results/sweep"),
    as_json: Json = False,
) -> None:
    """Measure a grid of tiers: cells.csv, one JSON per run, and report.md with the summary table.

    Example: [bold]hbf sweep --mbps 250,500,1000 --lat 0,1 --repeats 3 -p 64 -n 16[/bold]

    Stop it with Ctrl-C whenever you like: the same command goes on where it stopped.
    """
    from hbf_fuse.report import page, summary
    from hbf_fuse.sweep import grid as grids
    from hbf_fuse.sweep import llama
    from hbf_fuse.sweep.results import Results, write_whole

    links = tuple(None if text == "max" else number(text, "--mbps") for text in listed(mbps))
    latencies = tuple(number(text, "--lat") for text in listed(lat))
    checked_engine(engine)
    llama.find()
    grid = grids.Grid(
        model=gguf_source(model),
        mbps=links,
        lat_ms=latencies,
        repeats=repeats,
        seed=seed,
        engine=engine,
        bench=llama.BenchOptions(n_prompt, n_gen, threads, timeout),
    )
    results = Results(output.absolute())
    total = len(grid.cells())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("sweep", total=total)

        def done(document: dict[str, Any], known: bool) -> None:
            progress.update(
                task, advance=1, description=_last(document) if not known else "found finished cells"
            )

        measured, failed = grids.run(grid, results, done)
    documents = results.all()
    report = output.absolute() / "report.md"
    write_whole(report, page.markdown(documents))
    rows = summary.summarize(documents)
    if as_json:
        print_json(rows)
    else:
        print(summary.markdown(rows))
    tell(f"{measured} of {total} cells measured now; report: {report}")
    if failed:
        raise HbfError(
            f"{failed} of {total} cells failed; {report} has the reasons, the same command tries them again"
        )


def listed(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def number(text: str, option: str) -> float:
    """A number, or wrong usage."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is not a number; write it like 250,500,1000") from None


def _last(document: dict[str, Any]) -> str:
    name = document["cell"]["name"]
    metrics = document.get("metrics")
    if metrics is None:
        return f"{name}: failed"
    achieved = metrics["stage_effective_mbps"]
    return f"{name}: {achieved:.0f} MB/s" if achieved else name


main = single(sweep)
