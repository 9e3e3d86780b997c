"""`hbf bench`: one cell."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hbf_fuse.cli.common import Json, print_json, tell, warn_of_others
from hbf_fuse.cli.options import (
    Depth,
    EngineName,
    Jitter,
    Lat,
    Mbps,
    Page,
    Place,
    Planes,
    Policy,
    ProfileName,
    Seed,
    Tiers,
    TRead,
    checked_engine,
    layout_of,
    named,
    tier_spec,
)
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import Folder

DEFAULT_RESIDENT = "50%"
Model = Annotated[
    Path | None, typer.Option("-m", "--model", help="A GGUF. \\[default: as for hbf-mount]", readable=False)
]
NPrompt = Annotated[int, typer.Option("-p", "--n-prompt", help="llama-bench's -p.", min=0)]
NGen = Annotated[int, typer.Option("-n", "--n-gen", help="llama-bench's -n.", min=0)]
Threads = Annotated[
    int, typer.Option("-t", "--threads", help="llama-bench's -t; 0 leaves it to llama-bench.", min=0)
]
Timeout = Annotated[
    float, typer.Option("--timeout", help="Seconds after which a llama-bench counts as hung.", min=1)
]


def bench(
    mbps: Mbps = None,
    lat: Lat = None,
    profile: ProfileName = None,
    jitter: Jitter = None,
    seed: Seed = None,
    planes: Planes = None,
    page: Page = None,
    t_read: TRead = None,
    depth: Depth = None,
    model: Model = None,
    n_prompt: NPrompt = 256,
    n_gen: NGen = 256,
    threads: Threads = 0,
    timeout: Timeout = 3600.0,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="mmap: from the mount; stage: from a copy made through it; stream: tokens read the tier; "
            "cgroup: from the file itself, under the kernel's io.max.",
        ),
    ] = "mmap",
    resident: Annotated[
        str | None,
        typer.Option(
            "--resident",
            help="Of mode stream: the DRAM, as 256M or 25% of the model. \\[default: 50%]",
            rich_help_panel="Emulated DRAM",
            show_default=False,
        ),
    ] = None,
    policy: Policy = None,
    place: Place = None,
    tiers: Tiers = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Keep every read in this file; see `hbf trace`.")
    ] = None,
    engine: EngineName = "kernel",
    output: Annotated[Path, typer.Option("-o", "--output", help="Results folder.", parser=named)] = Path(
        "results/bench"
    ),
    as_json: Json = False,
) -> None:
    """Measure one cell: mount, run llama-bench on the mount, unmount.

    Example: [bold]hbf bench --mbps 500 --lat 1 -p 64 -n 16[/bold]
    """
    from hbf_fuse.sweep import loop, measuring, workspace
    from hbf_fuse.sweep.cell import Cell, ModelFile, checked_mode
    from hbf_fuse.sweep.grid import budget
    from hbf_fuse.traces.trace import may_be_written
    from hbf_fuse.workload.llama import BenchOptions

    tier = tier_spec(
        profile,
        mbps=mbps,
        lat=lat,
        jitter=jitter,
        seed=seed,
        planes=planes,
        page=page,
        t_read=t_read,
        depth=depth,
    )
    if trace and mode == "cgroup":
        raise typer.BadParameter("--trace records the reads of a mount; mode cgroup has none")
    known = ModelFile.of(gguf_source(model))
    share = resident or (DEFAULT_RESIDENT if mode == "stream" else None)
    cell = Cell(
        model=known,
        spec=tier,
        mode=checked_mode(mode),
        engine=checked_engine(engine),
        bench=BenchOptions(n_prompt, n_gen, threads),
        layout=layout_of(budget(share, known.size) if share else None, policy, place, tiers),
        timeout_seconds=timeout,
    )
    folder = output.absolute()
    if (folder / loop.SWEEP_FILE).exists():
        raise HbfError(f"{folder} holds a sweep; use another folder (-o)")
    if trace and not (may_be_written(trace) and trace.absolute().parent.is_dir()):
        raise HbfError(f"{trace} is no trace, or in no folder; name another file (--trace)")
    with loop.locked(folder) as results, workspace.lent() as lent:
        warn_of_others(results.opened)
        lent.traced = trace is not None
        run = measuring.run(cell, lent)
        try:
            tell(f"stored as {results.store(run)}")
            if trace:
                Folder.at(trace.absolute().parent).write(trace.name, lent.trace.read_bytes())
        finally:
            # Also when the disk is full: it was measured, after all.
            _show(run.to_dict(), as_json)


def _show(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    for name, value in document["metrics"].items():
        if isinstance(value, dict):
            continue  # for the report
        print(f"{name:26}{value:.3f}" if isinstance(value, float) else f"{name:26}{value}")


def gguf_source(model: Path | None) -> Path:
    """The model to measure with, made sure to be a GGUF."""
    from hbf_fuse import gguf
    from hbf_fuse.models import choice

    path = choice.resolve(model, tell)
    if path.is_dir():
        raise HbfError(f"{path} is a directory; name one GGUF with -m")
    gguf.read(path)
    return path
