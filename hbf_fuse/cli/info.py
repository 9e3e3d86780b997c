"""`hbf model info`: a model on one screen."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hbf_fuse.cli.common import Json, console, print_json, printable, tell
from hbf_fuse.cli.paths import found
from hbf_fuse.units import format_size

_WIDTH, _COLUMN = 100, 17
_MOST_TYPES = 8
_GROUPS = {
    "embedding": "embedding",
    "attention": "attention",
    "recurrent": "recurrent",
    "dense_ffn": "dense FFN",
    "experts": "experts",
    "output_and_norms": "output, norms",
    "prediction": "prediction (MTP)",
    "other": "other",
}


def info(
    file: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A GGUF, hf:ORG/REPO:QUANT or ollama:NAME.", parser=found),
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Show a model on one screen: sizes, experts, KV cache, and what a slow and a fast tier would give.

    Example: [bold]hbf model info model.gguf[/bold]
    """
    from hbf_fuse.models import summary

    document = summary.describe(file)
    if as_json:
        print_json(document)
        return
    if document["doubt"]:
        tell(document["doubt"])
    for line in _screen(document):
        print(printable(line)[:_WIDTH].rstrip())
    if tensors:
        _print_tensors(document["tensors"])


def _screen(document: dict[str, Any]) -> Iterator[str]:
    yield from _about(document)
    yield ""
    yield from _shares("type", _few(document["bytes_by_type"]))
    yield ""
    yield from _shares("group", {_GROUPS[name]: group["bytes"] for name, group in document["groups"].items()})
    yield ""
    yield from _per_token(document)
    yield ""
    yield from _tiers(document)


def _row(title: str, text: str) -> str:
    return f"{title:{_COLUMN}}{text}"


def _about(document: dict[str, Any]) -> Iterator[str]:
    yield _row("name", document["name"] or document["parts"][0]["file"])
    yield _row("kind", document["kind"])
    yield _row("architecture", document["architecture"])
    layers, context = document["layers"], document["context"]
    yield _row("layers", f"{_or_unknown(layers)}; context of {_or_unknown(context)} tokens")
    parts = f", in {len(document['parts'])} files" if len(document["parts"]) > 1 else ""
    yield _row("size", f"{format_size(document['size_bytes'])} ({document['size_bytes']} bytes){parts}")
    yield _row("parameters", f"{_count(document['parameters'])} in {document['tensor_count']} tensors")


def _shares(title: str, sizes: dict[str, int]) -> Iterator[str]:
    """Rows of bytes and their shares in the sum."""
    whole = sum(sizes.values())
    yield f"{title:{_COLUMN}}{'size':>12}{'share':>9}"
    for name, size in sizes.items():
        yield f"{name:{_COLUMN}}{format_size(size):>12}{size / whole if whole else 0:9.1%}"


def _few(sizes: dict[str, int]) -> dict[str, int]:
    """The largest, and the others as one."""
    if len(sizes) <= _MOST_TYPES:
        return sizes
    names = list(sizes)
    others = names[_MOST_TYPES - 1 :]
    shown = {name: sizes[name] for name in names[: _MOST_TYPES - 1]}
    return {**shown, f"{len(others)} others": sum(sizes[name] for name in others)}


def _per_token(document: dict[str, Any]) -> Iterator[str]:
    if experts := document["experts"]:
        used = f"{_or_unknown(experts['used'])} used by a token"
        sizes = f"{format_size(experts['used_bytes_per_token'])} of {format_size(experts['bytes'])}"
        yield _row("experts", f"{experts['count']} a layer, {used}: {sizes}")
    if (active := document["active_bytes_per_token"]) is None:
        yield _row("active", f"does not decode: {document['no_decode']}")
    else:
        embedding = "with" if document["output_is_embedding"] else "without"
        what = f"all weights but unused experts; {embedding} token_embd"
        yield _row("active", f"{format_size(active)} a token ({what})")
    if document["kv_f16"]:
        contexts = (
            f"{format_size(each['bytes'])} at {each['context'] >> 10}k" for each in document["kv_f16"]
        )
        yield _row("KV cache in f16", ", ".join(contexts))
        if document["context"] is not None and document["context"] < document["kv_f16"][-1]["context"]:
            yield _row("", f"contexts above {document['context']} are beyond the model's")
    if document["kv_remark"]:
        title = "" if document["kv_f16"] else "KV cache"
        for line in textwrap.wrap(document["kv_remark"], _WIDTH - _COLUMN, max_lines=3, placeholder=" ..."):
            yield _row(title, line)
            title = ""


def _tiers(document: dict[str, Any]) -> Iterator[str]:
    yield "weights in the tier, by arithmetic alone; decode with nothing resident:"
    yield f"{'tier':{_COLUMN}}{'staging':>12}{'decode ceiling':>20}"
    for tier in document["tiers"]:
        mbps, ceiling = tier["mbps"], tier["decode_ceiling_tps"]
        rate = f"{mbps / 1e6:g} TB/s" if mbps >= 1e6 else f"{mbps:g} MB/s"
        decode = "-" if ceiling is None else f"{_figure(ceiling)} tokens/s"
        yield f"{rate:{_COLUMN}}{_duration(tier['staging_seconds']):>12}{decode:>20}"


def _print_tensors(tensors: list[dict[str, Any]]) -> None:
    table = Table("tensor", "type", "shape", "bytes", "offset")
    for tensor in tensors:
        shape = " x ".join(map(str, tensor["shape"]))
        table.add_row(tensor["name"], tensor["type"], shape, str(tensor["nbytes"]), str(tensor["offset"]))
    console().print(table)


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _count(number: int) -> str:
    for unit, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return str(number)


def _figure(value: float) -> str:
    """Three digits, never as a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_figure(seconds / size)} {unit}"
    return f"{_figure(seconds * 1e6)} us"
