"""`hbf sweep` and `hbf-sweep`: the grid."""

import itertools
import shlex
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse.cli.bench import ModelOption
from hbf_fuse.cli.common import Json, print_json, progress_of, single, tell, warn_of_others
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import Place, Readahead, Tiers, checked_engine, tier_tables
from hbf_fuse.cli.passing import Passing, passed_on
from hbf_fuse.cli.paths import found
from hbf_fuse.cli.report import TargetSeconds, write_report
from hbf_fuse.cli.serving import ServeLoad
from hbf_fuse.cli.spreading import PANEL, Scheduler
from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    from hbf_fuse.runs.results import Results
    from hbf_fuse.runs.run import Run
    from hbf_fuse.sweep.cell import Cell
    from hbf_fuse.sweep.conditions import Concern
    from hbf_fuse.sweep.grid import Grid
    from hbf_fuse.sweep.loop import Crew

ASK_CELLS = 1000
ASK_SECONDS = 86_400
"""More than this by the tier model alone, and a person is asked."""

_GRID = "Grid (lists with commas)"


def _axis(*names: str, about: str) -> Any:
    return typer.Option(*names, help=about, rich_help_panel=_GRID, show_default=False)


@flattened
def sweep(
    *,
    ctx: typer.Context,
    model: ModelOption,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="GRID.toml", help="A grid; options override it.", show_default=False, parser=found
        ),
    ] = None,
    mode: Annotated[
        str | None,
        _axis("--mode", about="mmap, stage, stream or cgroup, see docs/definitions.md. \\[default: mmap]"),
    ] = None,
    mbps: Annotated[
        str | None,
        _axis("--mbps", about="Bandwidths in MB/s; max is unthrottled. \\[default: 250,500,1000,2000]"),
    ] = None,
    lat: Annotated[str | None, _axis("--lat", about="Latencies in ms. \\[default: 0,1,5]")] = None,
    workload: Annotated[
        str | None,
        _axis("--workload", about="bench (llama-bench), serve (llama-server under load). \\[default: bench]"),
    ] = None,
    n_prompt: Annotated[
        str | None, _axis("-p", "--n-prompt", about="llama-bench's -p. \\[default: 256]")
    ] = None,
    n_gen: Annotated[str | None, _axis("-n", "--n-gen", about="llama-bench's -n. \\[default: 256]")] = None,
    threads: Annotated[
        str | None,
        _axis("-t", "--threads", about="llama-bench's -t; 0 leaves it to llama-bench. \\[default: 0]"),
    ] = None,
    load_mode: Annotated[
        str | None, _axis("-lm", "--load-mode", about="llama-bench's -lm, as mmap,dio. \\[default: mmap]")
    ] = None,
    resident: Annotated[
        str | None,
        _axis(
            "--resident", about="Of mode stream: DRAM as 256M or 25% of the model. \\[default: 25%,50%,75%]"
        ),
    ] = None,
    policy: Annotated[
        str | None, _axis("--policy", about="Of mode stream: what stays in it, pin or fifo. \\[default: pin]")
    ] = None,
    load: ServeLoad,
    place: Place = None,
    tiers: Tiers = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="How often each point is measured. \\[default: 3]", min=1)
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="A known device's values for what is not given.")
    ] = None,
    readahead: Readahead = None,
    jitter: Annotated[str | None, typer.Option("--jitter", help="As for hbf-mount.")] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="kernel, fusepy or memory. \\[default: kernel]", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Order of the cells. \\[default: 0]")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", help="Seconds after which a llama-bench counts as hung. \\[default: 3600]", min=1
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse to measure on a machine that is not quiet.")
    ] = False,
    on: Scheduler = None,
    model_path: Annotated[
        str | None,
        typer.Option(
            "--model-path",
            help="With --on: the model on the workers, a file or its folder. \\[default: where it is here]",
            rich_help_panel=PANEL,
            metavar="PATH",
        ),
    ] = None,
    target_seconds: TargetSeconds = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask before a very long sweep.")] = False,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Results folder; an unfinished sweep in it goes on.", parser=found
        ),
    ] = Path("results/sweep"),
    as_json: Json = False,
) -> None:
    """Measure a grid of tiers: cells.csv, one JSON per run, report.md and report.html.

    Example: [bold]hbf sweep model.gguf --mbps 250,500,1000 --lat 0,1 -p 64 -n 16[/bold]

    What stands after -- goes to llama-bench or llama-server; a grid file has `llama = ["-fa on"]` for it.

    Stop it with Ctrl-C whenever you like: the same command goes on where it stopped.

    With --on, each cell is measured by a machine of its own: [bold]hbf sweep --on tcp://head:8786 ...[/bold]
    """
    from hbf_fuse.cli import tables
    from hbf_fuse.cluster import sweeping
    from hbf_fuse.report import summary
    from hbf_fuse.sweep import grid as grids
    from hbf_fuse.sweep import loop
    from hbf_fuse.sweep.cell import ModelFile

    model, file = _apart(model, file)
    given: dict[str, Any] = {
        "workload": None if workload is None else listed(workload),
        "mode": None if mode is None else listed(mode),
        "mbps": numbers(mbps, "--mbps", or_word="max"),
        "lat": numbers(lat, "--lat"),
        "resident": None if resident is None else listed(resident),
        "policy": None if policy is None else listed(policy),
        "place": place,
        "tiers": tier_tables(tiers) or None,
        "n_prompt": numbers(n_prompt, "-p"),
        "n_gen": numbers(n_gen, "-n"),
        "threads": numbers(threads, "-t"),
        "load_mode": None if load_mode is None else listed(load_mode),
        "llama": [shlex.join(further)] if (further := passed_on(ctx)) else None,
        "repeats": repeats,
        "seed": seed,
        "timeout": timeout,
        "readahead": readahead,
        "engine": engine and checked_engine(engine),
        **load.given(),
        "tier": {key: value for key, value in (("profile", profile), ("jitter", jitter)) if value} or None,
    }
    if model_path and not on:
        raise typer.BadParameter("--model-path is of the workers; it needs --on")
    if model_path and not Path(model_path).is_absolute():
        raise typer.BadParameter("--model-path is a path on the workers; write the whole path, from / on")
    grid = grids.from_fields({key: value for key, value in given.items() if value is not None}, file)
    crew: Crew
    if on:
        source = model.weights(_named_in(file, grid))
        crew = sweeping.Sweep(on, model_path or str(source.parent), strict, tell).runs
    else:
        _check_programs(grid)
        source = model.weights(_named_in(file, grid))
        crew = loop.here(_concerns(grid, source, strict))
    with loop.locked(output.absolute()) as folder:
        warn_of_others(folder.opened)
        planned = grid.cells(ModelFile.of(source, lambda: tell("reading the model once for its hash")))
        loop.require_same(folder, planned[0])
        if edited := folder.set_aside_edited_csv():
            tell(f"cells.csv was edited: kept as {edited.name}; a new one is made from runs/")
        failed = _measure(planned, folder, crew, sure=yes)
        runs = folder.all()
        report = write_report(folder.opened, runs, target_seconds)
    rows = summary.summarize(runs)
    if as_json:
        print_json(rows)
    else:
        tables.show(runs, target_seconds)
    tell(f"report: {report}")
    if failed:
        raise HbfError(
            f"{failed} of {len(planned)} cells failed",
            f"{report} has the reasons, the same command tries them again",
        )


def _check_programs(grid: "Grid") -> None:
    """HbfError if a program is missing, or does not have an option that the grid asks for."""
    from hbf_fuse.sweep import workloads
    from hbf_fuse.workload.llama import BenchOptions

    for load_mode, words in itertools.product(grid.load_mode, grid.llama):
        for workload in grid.workload:
            options = BenchOptions(load_mode=load_mode, extra=tuple(shlex.split(words)))
            workloads.check(options, serves=workload == "serve")


def _concerns(grid: "Grid", source: Path, strict: bool) -> "list[Concern]":
    """What is wrong with this machine, told. HbfError if it cannot measure such a grid, or not strictly."""
    from hbf_fuse.sweep import conditions

    if "cgroup" in grid.mode:
        from hbf_fuse.limits import devices

        devices.of(source)  # refuses a model that no disk is read for, before anything is measured
    concerns = conditions.judge(source.stat().st_size, copied=not set(grid.mode) <= {"mmap", "cgroup"})
    for concern in concerns:
        tell(str(concern))
    if strict and concerns:
        names = ", ".join(concern.name for concern in concerns)
        raise HbfError(f"--strict: this machine is not fit to measure on ({names})", "nothing was measured")
    return concerns


def _measure(planned: "list[Cell]", folder: "Results", crew: "Crew", sure: bool) -> int:
    """Measure what is missing, with a bar; returns how many cells failed."""
    from hbf_fuse.sweep import grid as grids
    from hbf_fuse.sweep import loop

    missing = [cell for cell in planned if not folder.has(cell.name)]
    if len(missing) < len(planned):
        tell(f"{len(planned) - len(missing)} of {len(planned)} cells are there already")
    staging = grids.staging_seconds(missing)
    if not sure and (len(missing) > ASK_CELLS or staging > ASK_SECONDS):
        took = timedelta(seconds=round(staging))
        _ask(f"{len(missing)} cells: staging alone takes {took}, and llama-bench comes on top")
    with progress_of("sweep", len(missing)) as advance:
        try:
            measured, failed = loop.run(planned, folder, crew, lambda run: advance(_last(run)))
        except (KeyboardInterrupt, SystemExit):
            tell(f"stopped; finished cells are kept in {folder.folder}, the same command goes on")
            raise
    tell(f"{measured} of {len(planned)} cells measured now")
    return failed


def _ask(what: str) -> None:
    """Go on only if a person says so."""
    import sys

    if sys.stdin is None or not sys.stdin.isatty():
        raise HbfError(what, "say --yes if that is what you want")
    if not typer.confirm(f"hbf: {what}. Go on?", err=True):
        raise HbfError("nothing was measured")


def _apart(model: ModelOption, grid: Path | None) -> tuple[ModelOption, Path | None]:
    """The model and the grid: a grid alone is the first argument, and known by its suffix."""
    if model.model_file is None or model.model_file.suffix != ".toml":
        return model, grid
    if grid is not None:
        raise typer.BadParameter(f"{model.model_file} is not a model; give the model first, then one grid")
    return ModelOption(model.model), model.model_file


def _named_in(file: Path | None, grid: "Grid") -> Path | None:
    """The model that a TOML file names, relative to that file."""
    from hbf_fuse.models import choice

    if file is None or grid.model is None:
        return None
    return choice.named_in(file, grid.model)


def listed(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str | None, option: str, or_word: str = "") -> list[float | str] | None:
    """The numbers of a list with commas, or wrong usage; None if it was not given."""
    if text is None:
        return None
    try:
        return [part if part == or_word else float(part) for part in listed(text)]
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is no list of numbers; write it like 8,16") from None


def _last(run: "Run") -> str:
    from hbf_fuse.runs.run import Finished

    where = f" on {run.conditions.machine}" if run.conditions.machine else ""
    if not isinstance(run, Finished):
        return f"{run.cell.name}{where}: failed"
    achieved = run.metrics.stage_effective_mbps
    return f"{run.cell.name}{where}" + (f": {achieved:.0f} MB/s" if achieved else "")


main = single(sweep, Passing)
