"""`hbf predict`: one answer for a model and a tier, by arithmetic."""

import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hbf_fuse.cli.bench import ModelOption
from hbf_fuse.cli.common import Json, print_json, printable
from hbf_fuse.cli.dram import resident_bytes
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.kv.numbers import within
from hbf_fuse.cli.kv.options import ComputeOptions
from hbf_fuse.cli.options import ProfileFirst
from hbf_fuse.units import format_size, parse_size

if TYPE_CHECKING:
    from hbf_fuse.predict.answer import Line

_WIDTH, _COLUMN, _VALUE = 100, 26, 18
_NAMES = {
    "weights": "weights",
    "bytes_per_token": "read by a token",
    "bytes_read": "  with readahead",
    "tier_rate": "rate of the tier",
    "first_load": "first load",
    "first_run": "first token",
    "tg_all_resident": "decode, all resident",
    "tg_none_resident": "decode, none resident",
    "tg_none_resident_overlapped": "  with prefetch",
    "bytes_from_tier": "of the tier by a token",
    "tg_part_resident": "decode, part resident",
    "tg_part_resident_overlapped": "  with prefetch",
    "break_even": "break-even bandwidth",
    "streams_beside_weights": "streams beside weights",
    "streams_weights_in_tier": "  with weights in the tier",
}


@flattened
def predict(
    *,
    model: ModelOption,
    tier: ProfileFirst,
    resident: Annotated[
        str | None,
        typer.Option("--resident", help="DRAM in front of the tier, as 16G, or 50% of the model."),
    ] = None,
    compute: ComputeOptions,
    dram_mbps: Annotated[
        float | None,
        typer.Option(
            "--dram-mbps",
            help="Without --compute-ms or --bench: computing a token takes its weights at this rate of "
            "memory. \\[default: 20000, assumed]",
            min=1,
        ),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", help="Tokens of a stream's cache.", min=1, max=100_000_000)
    ] = 8192,
    chunk: Annotated[str, typer.Option("--chunk", help="Size of a read.")] = "1M",
    queue_depth: Annotated[
        int | None,
        typer.Option(
            "--queue-depth", help="Reads in flight. \\[default: 2 in decode, 8 in a load]", min=1, max=65_536
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a model would do with its weights in a tier: one screen, from the GGUF alone.

    Each line says how it was got, and how well lines of its kind have held against measurement.

    Example: [bold]hbf predict model.gguf --profile nvme-gen4 --resident 16G[/bold]
    """
    from hbf_fuse.models import split
    from hbf_fuse.predict import answer

    path = model.source()
    described = split.read_model(path)
    size = sum(part.stat().st_size for part in split.parts_of(path))
    spec = tier.spec()
    if not spec.throttled:
        raise typer.BadParameter("say which tier: --profile NAME, or --mbps and --lat")
    memory = None if resident is None else resident_bytes(resident, size)
    chunk_bytes = _chunk(chunk)
    answer.require_decoder(described)
    seconds, how = compute.compute_seconds(), "as --compute-ms or --bench says"
    if seconds is not None and dram_mbps:
        raise typer.BadParameter("--dram-mbps is for where neither --compute-ms nor --bench is given")
    if seconds is None:
        rate = within(dram_mbps or answer.DRAM_MBPS, "--dram-mbps", 1, 1e9)
        seconds = answer.computed_in_dram(described, rate)
        guess = "" if dram_mbps else " (assumed)"
        how = f"active weights at {rate:g} MB/s of memory{guess}"
    depth, load_depth = (queue_depth,) * 2 if queue_depth else (answer.DEPTH, answer.LOAD_DEPTH)
    question = answer.Question(spec, memory, seconds, how, context, chunk_bytes, depth, load_depth)
    lines = list(answer.lines(described, size, question))
    binding = answer.binds(described, question)
    if as_json:
        about = {"model": str(path), "tier": spec.to_dict(), "resident_bytes": memory, "binds": binding}
        print_json({**about, "lines": [asdict(line) for line in lines]})
        return
    where = "" if memory is None else f", {format_size(memory)} of DRAM in front of it"
    print(printable(f"{path.name} from {spec}{where}")[:_WIDTH])
    _print(lines, binding)


def _chunk(text: str) -> int:
    try:
        return round(within(parse_size(text), "--chunk", 512, 1 << 40))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _print(lines: "Iterable[Line]", binding: str) -> None:
    notes: list[str] = []
    for line in lines:
        if line.held not in notes:
            notes.append(line.held)
        note = f"[{notes.index(line.held) + 1}]"
        print(f"{_NAMES[line.name]:{_COLUMN}}{_shown(line):{_VALUE}}{note:5}{line.how}"[:_WIDTH])
    print(f"{'what binds':{_COLUMN}}{binding}")
    print("\nhow well such lines have held:")
    for number, held in enumerate(notes, start=1):
        print(textwrap.fill(held, _WIDTH, initial_indent=f"[{number}] ", subsequent_indent="    "))


def _shown(line: "Line") -> str:
    """Three digits: it is worked out, not measured."""
    if line.value is None:
        return "unlimited"
    if line.unit == "bytes":
        return format_size(line.value)
    figure = f"{line.value:.0f}" if line.value >= 100 else f"{line.value:.3g}"
    return f"{figure} {line.unit}"
