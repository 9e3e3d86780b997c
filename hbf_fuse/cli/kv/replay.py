"""`hbf kv replay`: a spilled context, read from a live mount."""

from pathlib import Path
from typing import Annotated

import typer

from hbf_fuse.cli.bench import ModelByOption
from hbf_fuse.cli.common import Json, print_json
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.kv.options import ServedModel, SpillOptions, Tokens
from hbf_fuse.cli.kv.rows import print_rows
from hbf_fuse.cli.paths import named
from hbf_fuse.errors import HbfError


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
    simulated = kv_sim.simulate(spill, TierSpec.from_dict(known["tier"]), tokens)
    measured = kv_replay.replay(spill, path / "model.gguf", tokens, way)
    mean = sum(simulated.seconds) / len(simulated.seconds)
    document = {
        "bytes_per_token": spill.token_bytes,
        "measured_tps": 1 / measured.mean_seconds,
        "simulated_tps": 1 / mean,
        "error_pct": (mean / measured.mean_seconds - 1) * 100,
        "bound": simulated.bound,
        "token_seconds": list(measured.seconds),
    }
    if as_json:
        print_json(document)
    else:
        print_rows([{key: value for key, value in document.items() if key != "token_seconds"}], as_json)
