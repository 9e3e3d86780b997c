"""`hbf kv replay`: a spilled context, read from a live mount, and written to it."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse.cli.bench import ModelByOption
from hbf_fuse.cli.common import Json, print_json, tell
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.kv.options import ServedModel, SpillOptions, Tokens
from hbf_fuse.cli.kv.rows import print_rows
from hbf_fuse.cli.paths import named
from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

if TYPE_CHECKING:
    from hbf_fuse.kv.replay import Replayed
    from hbf_fuse.kv.sim import Simulated

_SILENT_SECONDS = 2.0
"""What takes no longer needs no words."""


@flattened
def replay(
    mountpoint: Annotated[Path, typer.Argument(help="A live mount.", parser=named)],
    context: Annotated[int, typer.Option("--context", help="Tokens.", min=1)],
    model: ServedModel,
    spilled: SpillOptions,
    tokens: Tokens = 8,
    way: Annotated[
        str, typer.Option("--way", help="read: past the page cache; mmap: through a mapping.")
    ] = "read",
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Read from a file in the mount's kv/, and write each token's keys and values to it, in "
            "whole pages. The file is removed at the end.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read a spilled context from a live mount as decode would, beside the simulation of the same.

    Example: [bold]hbf kv replay /mnt/hbf --context 4096 --resident 2048 --compute-ms 20[/bold]
    """
    from hbf_fuse.kv import replay as kv_replay
    from hbf_fuse.kv import sim as kv_sim
    from hbf_fuse.mount import client
    from hbf_fuse.mount import mountpoint as points
    from hbf_fuse.tier import TierSpec

    path = points.absolute(mountpoint)
    known = client.read_spec(path)
    (spill,) = spilled.spills(ModelByOption(model.model or Path(known["source"])), [context])
    if spill.unspilled:
        raise HbfError(f"{spill.unspilled}: nothing would be read")
    spec = TierSpec.from_dict(known["tier"])
    if not write:
        spill = dataclasses.replace(spill, write_unit=0)
        simulated = kv_sim.simulate(spill, spec, tokens)
        measured = kv_replay.replay(spill, path / "model.gguf", tokens, way)
    elif way != "read":
        raise HbfError(f"--write reads past the page cache, and not by {way}", "leave out --way")
    else:
        spill = dataclasses.replace(spill, write_unit=kv_replay.PAGE)
        room_bytes = _room(path, kv_replay.file_bytes(spill))
        simulated = kv_sim.simulate(spill, spec, tokens, room_bytes)
        measured = kv_replay.replay_writing(spill, path / "kv", tokens, _progress())
    _print(simulated, measured, as_json)


def _room(mountpoint: Path, needed: int) -> int:
    """Size of a mount's kv/. HbfError if it has none, or if what is needed would never fit."""
    from hbf_fuse.mount import client

    found = client.read_stats(mountpoint).get("kv")
    if found is None:
        raise HbfError(f"{mountpoint} has no kv/ to write to", f"mount with --kv {needed} or more")
    if found["size_bytes"] < needed:
        raise HbfError(
            f"{mountpoint}/kv has no room for a spilled context of {needed} bytes: "
            f"its size is {found['size_bytes']}",
            f"mount with --kv {needed} or more, or take a smaller --context",
        )
    return found["size_bytes"]


def _progress() -> Callable[[int, int], None]:
    """Says on stderr how far writing the context is, every now and then."""
    told = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _SILENT_SECONDS:
            told = time.monotonic()
            tell(f"writing the spilled context: {format_size(done)} of {format_size(total)}")

    return advance


def _print(simulated: "Simulated", measured: "Replayed", as_json: bool) -> None:
    mean = sum(simulated.seconds) / len(simulated.seconds)
    document: dict[str, Any] = {
        "bytes_per_token": simulated.spill.token_bytes,
        "measured_tps": 1 / measured.mean_seconds,
        "simulated_tps": 1 / mean,
        "error_pct": (mean / measured.mean_seconds - 1) * 100,
        "bound": simulated.bound,
        "token_seconds": list(measured.seconds),
    }
    if simulated.spill.written_bytes:
        document["written_bytes_per_token"] = simulated.spill.written_bytes
    if as_json:
        print_json(document)
    else:
        print_rows([{key: value for key, value in document.items() if key != "token_seconds"}], as_json)
