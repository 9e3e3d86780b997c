"""`hbf kv solve`: what a target needs."""

import itertools
from functools import partial
from typing import Annotated

import typer

from hbf_fuse.cli.bench import ModelOption
from hbf_fuse.cli.common import Json
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.kv.numbers import contexts, floats, within
from hbf_fuse.cli.kv.options import (
    Context,
    Kept,
    Percentile,
    SolvedTier,
    SpillOptions,
    StreamOptions,
)
from hbf_fuse.cli.kv.rows import print_rows
from hbf_fuse.cli.spreading import Spread
from hbf_fuse.errors import HbfError


@flattened
def solve(
    *,
    context: Context,
    tps: Annotated[str, typer.Option("--tps", help="Tokens/s to reach, with commas.")],
    model: ModelOption,
    tier: SolvedTier,
    percentile: Percentile = 50,
    spilled: SpillOptions,
    streams: StreamOptions,
    spread: Spread,
    kept: Kept,
    as_json: Json = False,
) -> None:
    """The least bandwidth that meets a target; with --mbps, the greatest latency instead.

    Example: [bold]hbf kv solve model.gguf --tps 2,8 --context 32768,131072 --lat 0.02 --compute-ms 50[/bold]
    """
    from hbf_fuse.kv import requirements

    spills = [streams.of(spill) for spill in spilled.spills(model, contexts(context))]
    spec = tier.spec()
    targets = [within(target, "--tps", 1e-6, 1e9) for target in floats(tps, "--tps")]
    solved = partial(requirements.row, spec=spec, percentile=percentile)
    rows = spread.over(solved, list(itertools.product(spills, targets)), "solving")
    if all(row["why"] for row in rows):
        raise HbfError(rows[0]["why"])
    if kept.svg and spec.bandwidth_mbps is not None:
        raise HbfError("--svg draws bandwidths", "leave out --mbps")
    kept.keep(rows, "requirements")
    print_rows([{key: row.get(key) for key in {**rows[0], **rows[-1]}} for row in rows], as_json)
