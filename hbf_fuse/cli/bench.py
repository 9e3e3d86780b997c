"""`hbf bench`: one cell."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse.cli.common import Json, print_json, tell, warn_of_others
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import EngineName, MemoryOptions, Readahead, TierOptions, checked_engine
from hbf_fuse.cli.passing import passed_on
from hbf_fuse.cli.paths import found
from hbf_fuse.cli.serving import ServeLoad
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import Folder

if TYPE_CHECKING:
    from hbf_fuse.workload.llama import BenchOptions

DEFAULT_RESIDENT = "50%"


@dataclass(frozen=True)
class ModelByOption:
    """The model to measure with."""

    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            help="A GGUF, hf:ORG/REPO:QUANT or ollama:NAME. \\[default: as for hbf-mount]",
            parser=found,
        ),
    ] = None

    @property
    def given(self) -> Path | None:
        """What the command line says."""
        return self.model

    def source(self, otherwise: Path | None = None) -> Path:
        """Where it is, or what hbf-mount would take; made sure to be a GGUF."""
        from hbf_fuse.models import choice, split

        path = choice.resolve(self.given or otherwise, tell)
        if path.is_dir():
            raise HbfError(f"{path} is a directory", "name one GGUF")
        split.read_model(path)
        return path

    def weights(self, otherwise: Path | None = None) -> Path:
        """The same for a model that llama.cpp is to run. What makes that doubtful is told."""
        from hbf_fuse.gguf import kinds
        from hbf_fuse.models import split

        path = self.source(otherwise)
        model = split.read_model(path)
        kinds.require_model(model)
        for part in split.parts_of(path):
            if doubt := kinds.doubt(model, part):
                tell(doubt)
        return path


@dataclass(frozen=True)
class ModelOption(ModelByOption):
    """The same, or the first argument of the command."""

    model_file: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A GGUF; the same as -m.", parser=found, show_default=False),
    ] = None

    @property
    def given(self) -> Path | None:
        """What the command line says. Wrong usage where it says it twice."""
        if self.model and self.model_file:
            raise typer.BadParameter(
                f"the model is given twice: {self.model_file}, and with -m {self.model}; leave out one"
            )
        return self.model_file or self.model


@dataclass(frozen=True)
class LlamaOptions:
    """What llama-bench is asked for, and llama-server as far as it has the same options."""

    n_prompt: Annotated[int, typer.Option("-p", "--n-prompt", help="llama-bench's -p.", min=0)] = 256
    n_gen: Annotated[int, typer.Option("-n", "--n-gen", help="llama-bench's -n.", min=0)] = 256
    threads: Annotated[
        int, typer.Option("-t", "--threads", help="llama-bench's -t; 0 leaves it to llama-bench.", min=0)
    ] = 0
    load_mode: Annotated[
        str, typer.Option("-lm", "--load-mode", help="llama-bench's -lm: mmap, none, dio and others.")
    ] = "mmap"
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds after which a llama-bench counts as hung.", min=1)
    ] = 3600.0

    def options(self, further: tuple[str, ...]) -> "BenchOptions":
        """With llama-bench's further options. HbfError for what it does not have."""
        from hbf_fuse.workload import llama
        from hbf_fuse.workload.program import BENCH

        options = self._options(self.n_prompt, self.n_gen, further)
        if further or self.load_mode != llama.MMAP:
            llama.check(options, BENCH.find())
        return options

    def served(self, load: ServeLoad, further: tuple[str, ...]) -> "BenchOptions":
        """The same for llama-server, with the tokens of a request."""
        from hbf_fuse.workload import serve

        options = self._options(*load.tokens(), further)
        serve.check(options)
        return options

    def _options(self, n_prompt: int, n_gen: int, further: tuple[str, ...]) -> "BenchOptions":
        from hbf_fuse.workload import llama

        options = llama.BenchOptions(n_prompt, n_gen, self.threads, None, self.load_mode, further)
        if self.load_mode in llama.LOAD_MODES:
            tell(f"-lm {self.load_mode}: {llama.LOAD_MODES[self.load_mode]}")
        return options


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
    ctx: typer.Context,
    tier: TierOptions,
    model: ModelOption,
    workload: Annotated[
        str,
        typer.Option(
            "--workload", help="bench: llama-bench; serve: llama-server under load, from a cold start."
        ),
    ] = "bench",
    llama: LlamaOptions,
    load: ServeLoad,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="mmap: from the mount; stage: from a copy made through it; stream: tokens read the tier; "
            "cgroup: from the file itself, under the kernel's io.max.",
        ),
    ] = "mmap",
    memory: StreamMemory,
    readahead: Readahead = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Keep every read in this file; see `hbf trace`.", parser=found),
    ] = None,
    engine: EngineName = "kernel",
    output: Annotated[Path, typer.Option("-o", "--output", help="Results folder.", parser=found)] = Path(
        "results/bench"
    ),
    as_json: Json = False,
) -> None:
    """Measure one cell: mount, run llama-bench (or llama-server) on the mount, unmount.

    Example: [bold]hbf bench model.gguf --mbps 500 --lat 1 -p 64 -n 16[/bold]

    What stands after -- goes to it as it is: [bold]hbf bench --mbps 500 -- -fa on -ctk q8_0[/bold]
    """
    from hbf_fuse.sweep import loop, measuring, workspace
    from hbf_fuse.sweep.cell import Cell, ModelFile, checked_mode, checked_workload
    from hbf_fuse.sweep.grid import ONLY_MAPPED, budget
    from hbf_fuse.traces.trace import may_be_written

    spec = tier.spec()
    if mode == "stream" and llama.load_mode != "mmap":
        raise typer.BadParameter(ONLY_MAPPED)
    if trace and mode == "cgroup":
        raise typer.BadParameter("--trace records the reads of a mount; mode cgroup has none")
    serves = checked_workload(workload) == "serve"
    if not serves and load.given():
        raise typer.BadParameter("users and requests are of a server: add --workload serve")
    further = passed_on(ctx)
    options = llama.served(load, further) if serves else llama.options(further)
    known = ModelFile.of(model.weights())
    share = memory.resident or (DEFAULT_RESIDENT if mode == "stream" else None)
    cell = Cell(
        model=known,
        spec=spec,
        mode=checked_mode(mode),
        engine=checked_engine(engine),
        bench=options,
        serve=load.options() if serves else None,
        readahead_kib=readahead,
        layout=memory.layout(budget(share, known.size) if share else None),
        timeout_seconds=llama.timeout,
    )
    folder = output.absolute()
    if (folder / loop.SWEEP_FILE).exists():
        raise HbfError(f"{folder} holds a sweep", "use another folder (-o)")
    if trace and not (may_be_written(trace) and trace.absolute().parent.is_dir()):
        raise HbfError(f"{trace} is no trace, or in no folder", "name another file (--trace)")
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
        if isinstance(value, dict) or name == "levels":
            continue  # for the report
        print(f"{name:26}{value:.3f}" if isinstance(value, float) else f"{name:26}{value}")
