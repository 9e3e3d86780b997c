"""`hbf kv ceiling`: arithmetic."""

from typing import Annotated, Any

import typer

from hbf_fuse.cli.bench import ModelOption
from hbf_fuse.cli.common import Json
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.kv.numbers import contexts, floats, within
from hbf_fuse.cli.kv.options import CacheTypeK, CacheTypeV
from hbf_fuse.cli.kv.rows import print_rows


@flattened
def ceiling(
    *,
    kv_kb_per_token: Annotated[
        float | None, typer.Option("--kv-kb-per-token", help="KB (1000 bytes) moved a token.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option("--context", help="Instead: what a token moves of a model's cache at so many tokens."),
    ] = None,
    model: ModelOption,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    profile: Annotated[
        str | None, typer.Option("--profile", help="A known device, flash detail and all.")
    ] = None,
    mbps: Annotated[
        str | None, typer.Option("--mbps", help="Bandwidths with commas. \\[default: the profile's]")
    ] = None,
    op_lat_ms: Annotated[
        float | None,
        typer.Option("--op-lat-ms", help="Latency of an operation. \\[default: 0, or the profile's]"),
    ] = None,
    ops_per_token: Annotated[float, typer.Option("--ops-per-token", help="Operations a token.")] = 1.0,
    as_json: Json = False,
) -> None:
    """The first-order ceiling: tokens/s = 1 / (operations x latency + bytes / bandwidth).

    With planes, sensing a page is part of the latency, and the bandwidth is at most what the planes sense.

    Example: [bold]hbf kv ceiling --kv-kb-per-token 256 --mbps 500,1000 --op-lat-ms 0.05[/bold]
    """
    from hbf_fuse.cli.kv.cached import of_contexts
    from hbf_fuse.cli.profiles import load
    from hbf_fuse.kv.spill import ceiling_tps
    from hbf_fuse.tier import TierSpec

    base = load(profile).spec() if profile else TierSpec()
    if mbps is None and base.most_mbps is None:
        raise typer.BadParameter("give --mbps, or a --profile that has a bandwidth")
    links = [base.most_mbps] if mbps is None else floats(mbps, "--mbps")
    latency_ms = base.mean_latency_ms + base.t_read_us / 1e3 if op_lat_ms is None else op_lat_ms
    if (kv_kb_per_token is None) == (context is None):
        raise typer.BadParameter("give either --kv-kb-per-token, or --context for a model's")
    within(ops_per_token, "--ops-per-token", 0, 1e12)
    moved: list[tuple[dict[str, Any], float]] = []
    if context is None:
        kilobytes = within(kv_kb_per_token or 0.0, "--kv-kb-per-token", 0, 1e12)
        moved.append(({}, kilobytes * 1e3))
    else:
        for cache in of_contexts(model.source(), contexts(context), cache_type_k, cache_type_v):
            about = {"context": cache.context, "kv_kb_per_token": cache.moved_bytes / 1e3}
            moved.append((about, cache.moved_bytes))
    rows = [
        {**about, "mbps": link, "ceiling_tps": ceiling_tps(nbytes, TierSpec(link, latency_ms), ops_per_token)}
        for about, nbytes in moved
        for link in links
    ]
    print_rows(rows, as_json)
