"""`hbf exec`: any command with the tier under its mappings of the model."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hbf_fuse.cli.common import tell
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import MemoryOptions, TierOptions
from hbf_fuse.cli.paths import named
from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    from hbf_fuse.observe.status import Stats


@flattened
def execute(
    line: Annotated[
        list[str],
        typer.Argument(metavar="CMD", help="The command with its arguments, after --.", show_default=False),
    ],
    tier: TierOptions,
    memory: MemoryOptions,
    on: Annotated[
        Path | None,
        typer.Option(
            "--on", help="A mount of --engine memory, instead of one for this command.", parser=named
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            help="The model. \\[default: CMD's first argument that is a GGUF]",
            parser=named,
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Write every read to this file; see `hbf trace`.")
    ] = None,
    inject: Annotated[
        bool,
        typer.Option("--inject", help="Trace CMD instead of preloading a library: for static programs."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say what came of it as JSON: one line on stderr, after CMD's own.")
    ] = False,
) -> None:
    """Run a command with the tier under its mappings of the model, at the speed of memory. Exits as CMD does.

    Example: [bold]hbf exec --mbps 7000 --lat 0.06 -- llama-bench -m model.gguf[/bold]

    A preloaded library replaces CMD's mmap of the model, whether CMD names it in the mount or where it is.
    A static program preloads nothing. --inject reaches it by ptrace(2): a fault then takes up to 50 us more
    than its tier.

    Only mappings have this speed: what CMD reads with read(2) comes through FUSE, or from the file itself.
    """
    from hbf_fuse.engine.memory import library, reach
    from hbf_fuse.limits import process
    from hbf_fuse.mount import client

    try:
        process.check(line[0])
        if why := reach.why_not(line[0], inject):
            raise HbfError(why, "use --inject, a dynamic build of it, or a mount of --engine kernel")
        if inject and (on is not None or memory.resident is not None):
            raise typer.BadParameter("it goes neither with --on nor with --resident", param_hint="--inject")
        with _mounted(line, tier, memory, on, model, trace, inject) as mountpoint:
            wanted = client.reaching(mountpoint, inject)
            if not wanted:
                raise HbfError(f"{mountpoint} is not of the memory engine", "mount it with --engine memory")
            before = client.read_stats(mountpoint)
            before_it = [str(library.injector())] if inject else []
            with process.started([*before_it, *line], lambda: None, environment=wanted) as command:
                code = process.passed_through(command)
            _report(client.read_stats(mountpoint), before, as_json)
    except process.CannotStart as error:
        tell(str(error))
        code = error.exit_code
    raise typer.Exit(code)


@contextmanager
def _mounted(
    line: list[str],
    tier: TierOptions,
    memory: MemoryOptions,
    on: Path | None,
    model: Path | None,
    trace: Path | None,
    inject: bool,
) -> Iterator[Path]:
    """The mount of --on, or one for this command alone."""
    from hbf_fuse.engine import MEMORY
    from hbf_fuse.mount import child
    from hbf_fuse.mount.server import MountConfig
    from hbf_fuse.units import parse_size

    if on is not None:
        if tier.given() or tier.profile or memory != MemoryOptions() or model or trace:
            raise typer.BadParameter(
                "with --on, the tier, the model and the trace are the mount's: leave them out"
            )
        yield on.absolute()
        return
    config = MountConfig(
        source=model.absolute() if model else _model_in(line),
        mountpoint=Path(),
        spec=tier.spec(),
        engine=MEMORY,
        layout=memory.layout(None if memory.resident is None else parse_size(memory.resident)),
        trace=trace.absolute() if trace else None,
        inject=inject,
    )
    with tempfile.TemporaryDirectory(prefix="hbf-exec-") as folder:
        point = Path(folder).resolve() / "mnt"
        point.mkdir()
        from dataclasses import replace

        with child.mounted(replace(config, mountpoint=point)) as mountpoint:
            yield mountpoint


def _model_in(line: list[str]) -> Path:
    """The first argument that is a GGUF."""
    for word in line[1:]:
        path = word.partition("=")[2] if word.startswith("-") and "=" in word else word
        if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for what is too long
            with open(path, "rb") as file:
                if file.read(4) == b"GGUF":
                    return Path(path).absolute()
    raise HbfError(f"no argument of {line[0]} is a GGUF", "name the model (-m), or a mount (--on)")


def _report(stats: "Stats", before: "Stats", as_json: bool) -> None:
    if as_json:
        print(json.dumps(stats), file=sys.stderr, flush=True)
        return
    mapped, was = stats.get("mapped"), before.get("mapped")
    if mapped and was and mapped["given"] == was["given"]:
        tell("the command mapped nothing of the model: it read it in another way, or from another file")
        return
    for name, file in stats["files"].items():
        staging = file["staging"]
        rate = f"{file['arrived_bytes'] / 1e6:.1f} MB at {staging['achieved_mbps']:.0f} MB/s"
        due = f", {staging['model_mbps']:.0f} due" if staging["model_mbps"] else ""
        why = f" ({staging['why']})" if staging["why"] else ""
        tell(f"{name}: {rate}{due}: {staging['verdict']}{why}")
