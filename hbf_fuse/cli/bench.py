"""`hbf bench`: one cell."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hbf_fuse.cli.common import Json, print_json, tell, warn_of_others
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import EngineName, MemoryOptions, TierOptions, checked_engine, named
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import Folder

DEFAULT_RESIDENT = "50%"


@dataclass(frozen=True)
class ModelOption:
    """The model to measure with."""

    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help="A GGUF. \\[default: as for hbf-mount]", readable=False),
    ] = None

    def source(self, otherwise: Path | None = None) -> Path:
        """Where it is, or what hbf-mount would take; made sure to be a GGUF."""
        from hbf_fuse import gguf
        from hbf_fuse.models import choice

        path = choice.resolve(self.model or otherwise, tell)
        if path.is_dir():
            raise HbfError(f"{path} is a directory; name one GGUF with -m")
        gguf.read(path)
        return path


@dataclass(frozen=True)
class LlamaOptions:
    """What llama-bench is asked for."""

    n_prompt: Annotated[int, typer.Option("-p", "--n-prompt", help="llama-bench's -p.", min=0)] = 256
    n_gen: Annotated[int, typer.Option("-n", "--n-gen", help="llama-bench's -n.", min=0)] = 256
    threads: Annotated[
        int, typer.Option("-t", "--threads", help="llama-bench's -t; 0 leaves it to llama-bench.", min=0)
    ] = 0
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds after which a llama-bench counts as hung.", min=1)
    ] = 3600.0


@dataclass(frozen=True)
class StreamMemory(MemoryOptions):
    """As for a mount; --resident is mode stream's and may be a share."""

    resident: Annotated[
        str | None,
        typer.Option(
            "--resident",
            help="Of mode stream: the DRAM, as 256M or 25% of the model. \\[default: 50%]",
            rich_help_panel="Emulated DRAM",
            show_default=False,
        ),
    ] = None


@flattened
def bench(
    *,
    tier: TierOptions,
    model: ModelOption,
    llama: LlamaOptions,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="mmap: from the mount; stage: from a copy made through it; stream: tokens read the tier; "
            "cgroup: from the file itself, under the kernel's io.max.",
        ),
    ] = "mmap",
    memory: StreamMemory,
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

    spec = tier.spec()
    if trace and mode == "cgroup":
        raise typer.BadParameter("--trace records the reads of a mount; mode cgroup has none")
    known = ModelFile.of(model.source())
    share = memory.resident or (DEFAULT_RESIDENT if mode == "stream" else None)
    cell = Cell(
        model=known,
        spec=spec,
        mode=checked_mode(mode),
        engine=checked_engine(engine),
        bench=BenchOptions(llama.n_prompt, llama.n_gen, llama.threads),
        layout=memory.layout(budget(share, known.size) if share else None),
        timeout_seconds=llama.timeout,
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
