"""`hbf kv sim`: decode in virtual time."""

import dataclasses
import itertools
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from hbf_fuse.cli.bench import ModelOption
from hbf_fuse.cli.common import Json, tell
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.kv.numbers import contexts, floats
from hbf_fuse.cli.kv.options import (
    Context,
    EnduranceOptions,
    Kept,
    SpillOptions,
    StreamOptions,
    Tokens,
)
from hbf_fuse.cli.kv.rows import print_rows
from hbf_fuse.cli.options import FlashOptions, Seed
from hbf_fuse.cli.spreading import Spread
from hbf_fuse.documents import Row
from hbf_fuse.units import format_size

if TYPE_CHECKING:
    from hbf_fuse.kv.spill import Spill
    from hbf_fuse.tier import TierSpec


WELL_FILLED_PCT = 95.0


@flattened
def sim(
    *,
    context: Context,
    model: ModelOption,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="A known device, flash detail and all."),
    ] = None,
    mbps: Annotated[
        str | None, typer.Option("--mbps", help="Bandwidths with commas. \\[default: 1000, or the profile's]")
    ] = None,
    lat: Annotated[
        str | None,
        typer.Option("--lat", help="In ms, with commas. \\[default: 0, or the profile's]"),
    ] = None,
    jitter: Annotated[
        list[str] | None, typer.Option("--jitter", help="As for hbf-mount; give it again for another.")
    ] = None,
    seed: Seed = None,
    flash: FlashOptions,
    spilled: SpillOptions,
    streams: StreamOptions,
    wear: EnduranceOptions,
    tokens: Tokens = 64,
    spread: Spread,
    kept: Kept,
    as_json: Json = False,
) -> None:
    """Decode in virtual time: speed at percentiles, the ceiling, and what bounds it.

    Each token is written to the tier behind its back. With --write-mbps or --t-prog rows say at what cost.

    Example: [bold]hbf kv sim model.gguf --context 32768 --mbps 1000,4000 --lat 0.02 --compute-ms 50[/bold]
    """
    from hbf_fuse.cli.profiles import load
    from hbf_fuse.kv import sim as kv_sim
    from hbf_fuse.tier import TierSpec

    spills = [streams.of(spill) for spill in spilled.spills(model, contexts(context))]
    base = (load(profile).spec() if profile else TierSpec(1000)).changed(flash.given())
    links = [base.bandwidth_mbps] if mbps is None else floats(mbps, "--mbps")
    latencies = [base.latency_ms] if lat is None else floats(lat, "--lat")
    for spill in spills:
        if spill.unspilled:
            tell(f"{spill.unspilled}: nothing is spilled")
    specs = [
        dataclasses.replace(
            base,
            bandwidth_mbps=link,
            latency_ms=latency,
            jitter=form,
            seed=base.seed if seed is None else seed,
        )
        for link, latency, form in itertools.product(links, latencies, jitter or [base.jitter])
    ]
    points = list(itertools.product(spills, specs))
    simulated = spread.over(
        partial(kv_sim.row, tokens=tokens, capacity_gb=wear.capacity(profile)), points, "simulating"
    )
    rows = []
    for (spill, spec), row in zip(points, simulated, strict=True):
        _tell_unfilled(spill, spec, row)
        _tell_scaled(spill, kv_sim.round_bytes_of(spill, spec))
        rows.append({**row, **wear.lifetime(profile, row)})
    kept.keep(rows, "speeds")
    print_rows(rows, as_json)


def _tell_unfilled(spill: "Spill", spec: "TierSpec", row: Row) -> None:
    """A word where too little is in flight for the link."""
    filled = row["filled_pct"]
    if spill.spilled_tokens and filled is not None and filled < WELL_FILLED_PCT:
        tell(
            f"{spill.depth} reads of {format_size(spill.chunk_bytes)} at once have {filled:.0f}% of {spec}; "
            "more of them (--queue-depth) or larger ones (--chunk) would have more of it"
        )


def _tell_scaled(spill: "Spill", round_bytes: int) -> None:
    """A word where only a part of the context is written, round and round."""
    if 0 < round_bytes < spill.cache_bytes:
        tell(
            f"tokens are written round and round in {format_size(round_bytes)} of the "
            f"{format_size(spill.cache_bytes)} that are spilled: the whole would take long to fill"
        )
