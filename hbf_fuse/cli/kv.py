"""`hbf kv`: KV spill, simulated and measured."""

import csv
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse.cli.bench import Model, gguf_source
from hbf_fuse.cli.common import Json, new_app, print_json, tell
from hbf_fuse.cli.options import Jitter, Lat, ProfileName, Seed, bandwidth, tier_spec
from hbf_fuse.cli.sweep import numbers
from hbf_fuse.documents import inert_cell, write_whole
from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size, parse_size

if TYPE_CHECKING:
    from hbf_fuse.kv.spill import Spill
    from hbf_fuse.tier import TierSpec

app = new_app(
    help="KV spill: decode with a context longer than DRAM holds.\n\n"
    "Example: [bold]hbf kv sim -m model.gguf --context 32768 --resident 4096 --mbps 4000[/bold]",
    no_args_is_help=True,
)

CacheK = Annotated[str, typer.Option("-ctk", "--cache-type-k", help="llama.cpp's -ctk.")]
CacheV = Annotated[str, typer.Option("-ctv", "--cache-type-v", help="llama.cpp's -ctv.")]
Context = Annotated[str, typer.Option("--context", help="Tokens, with commas.")]
Resident = Annotated[int, typer.Option("--resident", help="Tokens whose keys and values DRAM holds.", min=0)]
Chunk = Annotated[str, typer.Option("--chunk", help="Size of a read.")]
Depth = Annotated[int, typer.Option("--queue-depth", help="Reads in flight.")]
Prefetch = Annotated[int, typer.Option("--prefetch", help="Layers that reading is ahead of computing.")]
WriteMbps = Annotated[
    float | None, typer.Option("--write-mbps", help="The tier's rate for writes. Left out: unlimited.")
]
Compute = Annotated[float | None, typer.Option("--compute-ms", help="Of a token with everything in DRAM.")]
Bench = Annotated[
    Path | None, typer.Option("--bench", help="runs/NAME.json of a llama-bench: its tg gives --compute-ms.")
]
Tokens = Annotated[int, typer.Option("--tokens", help="Tokens to decode.", min=2, max=1_000_000)]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Also write a CSV.")]
Svg = Annotated[Path | None, typer.Option("--svg", help="Also draw it.")]
Percentile = Annotated[float, typer.Option("--percentile", help="Share of the tokens, in %.", min=1, max=99)]


@app.command()
def info(
    model: Annotated[Path, typer.Argument(help="A GGUF.", readable=False)], as_json: Json = False
) -> None:
    """Show KV cache bytes per token for every cache type of llama.cpp.

    Example: [bold]hbf kv info model.gguf[/bold]
    """
    from hbf_fuse import gguf
    from hbf_fuse.gguf import kv

    described = gguf.read(model)
    context = described.field("context_length")
    rows = {}
    for name in kv.CACHE_TYPES:
        try:
            rows[name] = kv.bytes_per_token(described, name, name)
        except gguf.GgufError as error:
            if name == "f16":
                raise
            tell(str(error))
    if as_json:
        print_json({"bytes_per_token": rows, "context": context})
        return
    print(f"{'cache type':12}{'bytes/token':>12}{f'at {context} tokens':>20}")
    for name, nbytes in rows.items():
        whole = format_size(nbytes * context) if isinstance(context, int) else "-"
        print(f"{name:12}{nbytes:12}{whole:>20}")


@app.command()
def ceiling(
    kv_kb_per_token: Annotated[
        float, typer.Option("--kv-kb-per-token", help="KB (1000 bytes) moved a token.")
    ],
    mbps: Annotated[str, typer.Option("--mbps", help="Bandwidths with commas.")],
    op_lat_ms: Annotated[float, typer.Option("--op-lat-ms", help="Latency of an operation.")] = 0.0,
    ops_per_token: Annotated[float, typer.Option("--ops-per-token", help="Operations a token.")] = 1.0,
    as_json: Json = False,
) -> None:
    """The first-order ceiling: tokens/s = 1 / (operations x latency + bytes / bandwidth).

    Example: [bold]hbf kv ceiling --kv-kb-per-token 256 --mbps 500,1000 --op-lat-ms 0.05[/bold]
    """
    from hbf_fuse.kv.spill import ceiling_tps
    from hbf_fuse.tier import TierSpec

    _within(kv_kb_per_token, "--kv-kb-per-token", 0, 1e12)
    _within(ops_per_token, "--ops-per-token", 0, 1e12)
    rows = [
        {
            "mbps": link,
            "ceiling_tps": ceiling_tps(kv_kb_per_token * 1e3, TierSpec(link, op_lat_ms), ops_per_token),
        }
        for link in _floats(mbps, "--mbps")
    ]
    _print_rows(rows, as_json)


@app.command()
def sim(
    context: Context,
    model: Model = None,
    mbps: Annotated[str, typer.Option("--mbps", help="Bandwidths with commas.")] = "1000",
    lat: Annotated[str, typer.Option("--lat", help="Latencies in ms with commas.")] = "0",
    jitter: Annotated[
        list[str] | None, typer.Option("--jitter", help="As for hbf-mount; give it again for another.")
    ] = None,
    seed: Seed = None,
    resident: Resident = 0,
    compute_ms: Compute = None,
    bench: Bench = None,
    cache_type_k: CacheK = "f16",
    cache_type_v: CacheV = "f16",
    chunk: Chunk = "1M",
    queue_depth: Depth = 8,
    prefetch: Prefetch = 0,
    write_mbps: WriteMbps = None,
    tokens: Tokens = 64,
    output: Output = None,
    svg: Svg = None,
    as_json: Json = False,
) -> None:
    """Decode in virtual time: speed at percentiles, the ceiling, and what bounds it.

    Example: [bold]hbf kv sim -m model.gguf --context 32768 --mbps 1000,4000 --lat 0.02 --compute-ms 50[/bold]
    """
    from hbf_fuse.kv import sim as kv_sim
    from hbf_fuse.tier import TierSpec

    compute = _compute_seconds(compute_ms, bench)
    shared = (resident, compute, cache_type_k, cache_type_v, chunk, queue_depth, prefetch, write_mbps)
    spills = _spills(model, _contexts(context), *shared)
    for spill in spills:
        if not spill.spilled_tokens:
            tell(f"{resident} tokens in DRAM hold the whole context of {spill.context}: nothing is spilled")
    rows = [
        kv_sim.simulate(spill, TierSpec(link, latency, form, seed or 0), tokens).to_dict()
        for spill, link, latency, form in itertools.product(
            spills, _floats(mbps, "--mbps"), _floats(lat, "--lat"), jitter or [""]
        )
    ]
    _keep(rows, output, svg, "speeds")
    _print_rows(rows, as_json)


@app.command()
def solve(
    context: Context,
    tps: Annotated[str, typer.Option("--tps", help="Tokens/s to reach, with commas.")],
    model: Model = None,
    profile: ProfileName = None,
    mbps: Annotated[float | None, bandwidth("what is solved for")] = None,
    lat: Lat = None,
    jitter: Jitter = None,
    seed: Seed = None,
    percentile: Percentile = 50,
    resident: Resident = 0,
    compute_ms: Compute = None,
    bench: Bench = None,
    cache_type_k: CacheK = "f16",
    cache_type_v: CacheV = "f16",
    chunk: Chunk = "1M",
    queue_depth: Depth = 8,
    prefetch: Prefetch = 0,
    write_mbps: WriteMbps = None,
    output: Output = None,
    svg: Svg = None,
    as_json: Json = False,
) -> None:
    """The least bandwidth that meets a target; with --mbps, the greatest latency instead.

    Example: [bold]hbf kv solve --tps 2,8 --context 32768,131072 --lat 0.02 --compute-ms 50[/bold]
    """
    from hbf_fuse.kv import requirements

    compute = _compute_seconds(compute_ms, bench)
    shared = (resident, compute, cache_type_k, cache_type_v, chunk, queue_depth, prefetch, write_mbps)
    spills = _spills(model, _contexts(context), *shared)
    spec = _spec(profile, mbps, lat, jitter, seed)
    targets = [_within(target, "--tps", 1e-6, 1e9) for target in _floats(tps, "--tps")]
    rows = requirements.table(spills, spec, targets, percentile)
    if all(row["why"] for row in rows):
        raise HbfError(rows[0]["why"])
    if svg and spec.bandwidth_mbps is not None:
        raise HbfError("--svg draws bandwidths; leave out --mbps")
    _keep(rows, output, svg, "requirements")
    _print_rows([{key: row.get(key) for key in {**rows[0], **rows[-1]}} for row in rows], as_json)


@app.command()
def replay(
    mountpoint: Annotated[Path, typer.Argument(help="A live mount.")],
    context: Annotated[int, typer.Option("--context", help="Tokens.", min=1)],
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help="The GGUF whose KV geometry counts. \\[default: what is served]"),
    ] = None,
    resident: Resident = 0,
    compute_ms: Compute = None,
    bench: Bench = None,
    cache_type_k: CacheK = "f16",
    cache_type_v: CacheV = "f16",
    chunk: Chunk = "1M",
    queue_depth: Depth = 8,
    prefetch: Prefetch = 0,
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
    known = client.read_hidden(path, "spec.json")
    compute = _compute_seconds(compute_ms, bench)
    (spill,) = _spills(
        model or Path(known["source"]),
        [context],
        resident,
        compute,
        cache_type_k,
        cache_type_v,
        chunk,
        queue_depth,
        prefetch,
        None,
    )
    if not spill.spilled_tokens:
        raise HbfError(
            f"{resident} tokens in DRAM hold the whole context of {context}: nothing would be read"
        )
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
        _print_rows([{key: value for key, value in document.items() if key != "token_seconds"}], as_json)


def _spills(
    model: Path | None,
    contexts: list[int],
    resident: int,
    compute_seconds: float,
    cache_type_k: str,
    cache_type_v: str,
    chunk: str,
    depth: int,
    prefetch: int,
    write_mbps: float | None,
) -> "list[Spill]":
    """The spill of each context of a model. One beyond the model's is a warning."""
    from hbf_fuse import gguf
    from hbf_fuse.gguf import kv
    from hbf_fuse.kv.spill import Spill

    described = gguf.read(gguf_source(model))
    trained = described.field("context_length")
    for context in contexts:
        if isinstance(trained, int) and context > trained:
            tell(f"a context of {context} is beyond the model's {trained}")
    return [
        Spill(
            kv_bytes=kv.bytes_per_token(described, cache_type_k, cache_type_v),
            layers=kv.cached_layers(described),
            context=context,
            resident=resident,
            compute_seconds=compute_seconds,
            chunk_bytes=parse_size(chunk),
            depth=depth,
            prefetch=prefetch,
            write_mbps=write_mbps,
        )
        for context in contexts
    ]


def _compute_seconds(compute_ms: float | None, bench: Path | None) -> float:
    if compute_ms is not None:
        return compute_ms / 1e3
    if bench is None:
        tell("no --compute-ms and no --bench: computing counts as nothing")
        return 0.0
    from hbf_fuse.runs.run import Finished
    from hbf_fuse.runs.schema import read_run

    try:
        run = read_run(bench)
        metrics = run.metrics if isinstance(run, Finished) else None
        return 1 / ((metrics and (metrics.compute_tg or metrics.tg)) or 0)
    except (HbfError, ZeroDivisionError) as error:
        raise HbfError(f"{bench} is no run with a tg; name a runs/NAME.json of hbf bench or sweep") from error


def _spec(
    profile: str | None, mbps: float | None, lat: float | None, jitter: str | None, seed: int | None
) -> "TierSpec":
    return tier_spec(
        profile, mbps=mbps, lat=lat, jitter=jitter, seed=seed, planes=None, page=None, t_read=None, depth=None
    )


def _floats(text: str, option: str) -> list[float]:
    found = [float(value) for value in numbers(text, option) or []]
    if not found:
        raise typer.BadParameter(f"{option}: the list is empty")
    return found


def _contexts(text: str) -> list[int]:
    counts = [_within(tokens, "--context", 1, 100_000_000) for tokens in _floats(text, "--context")]
    if any(count % 1 for count in counts):
        raise typer.BadParameter("--context counts tokens: whole numbers")
    return [int(count) for count in counts]


def _within(value: float, option: str, least: float, most: float) -> float:
    """A number within its bounds, which NaN never is, or wrong usage."""
    if not least <= value <= most:
        raise typer.BadParameter(f"{option} must be from {least:g} to {most:g}, got {value:g}")
    return value


def _keep(rows: list[dict[str, Any]], output: Path | None, svg: Path | None, drawing: str) -> None:
    """Write rows as CSV and as a drawing of report/spill_plots.py, where wanted."""
    if output:
        write_whole(output, _csv(rows))
        tell(f"stored as {output}")
    if svg:
        try:
            from hbf_fuse.report import spill_plots
        except ImportError as error:
            raise HbfError(f"--svg needs {error.name}; `pip install 'hbf-fuse[report]'` brings it") from error
        write_whole(svg, getattr(spill_plots, drawing)(rows) + "\n")
        tell(f"drawn as {svg}")


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    from hbf_fuse.report.summary import table

    if as_json:
        print_json(rows)
    else:
        print(table(tuple(rows[0]), rows))


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="")
    writer.writeheader()
    writer.writerows({key: inert_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()
