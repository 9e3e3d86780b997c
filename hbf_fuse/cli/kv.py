"""`hbf kv`: KV spill, simulated and measured."""

import csv
import dataclasses
import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse.cli.bench import ModelOption
from hbf_fuse.cli.common import Json, new_app, print_json, tell
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import ProfileFirst, Seed, bandwidth
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

WELL_FILLED_PCT = 95.0

Context = Annotated[str, typer.Option("--context", help="Tokens, with commas.")]
WriteMbps = Annotated[
    float | None, typer.Option("--write-mbps", help="The tier's rate for writes. Left out: unlimited.")
]
Tokens = Annotated[int, typer.Option("--tokens", help="Tokens to decode.", min=2, max=1_000_000)]
Percentile = Annotated[float, typer.Option("--percentile", help="Share of the tokens, in %.", min=1, max=99)]


@dataclass(frozen=True)
class SpillOptions:
    """What DRAM does not hold of a context, and how decode reads it."""

    resident: Annotated[
        int, typer.Option("--resident", help="Tokens whose keys and values DRAM holds.", min=0)
    ] = 0
    compute_ms: Annotated[
        float | None, typer.Option("--compute-ms", help="Of a token with everything in DRAM.")
    ] = None
    bench: Annotated[
        Path | None,
        typer.Option("--bench", help="runs/NAME.json of a llama-bench: its tg gives --compute-ms."),
    ] = None
    cache_type_k: Annotated[str, typer.Option("-ctk", "--cache-type-k", help="llama.cpp's -ctk.")] = "f16"
    cache_type_v: Annotated[str, typer.Option("-ctv", "--cache-type-v", help="llama.cpp's -ctv.")] = "f16"
    chunk: Annotated[str, typer.Option("--chunk", help="Size of a read.")] = "1M"
    queue_depth: Annotated[int, typer.Option("--queue-depth", help="Reads in flight.")] = 8
    prefetch: Annotated[
        int, typer.Option("--prefetch", help="Layers that reading is ahead of computing.")
    ] = 0

    def spills(
        self, model: ModelOption, contexts: list[int], write_mbps: float | None = None
    ) -> "list[Spill]":
        """The spill of each context of a model. One beyond the model's is a warning."""
        from hbf_fuse import gguf
        from hbf_fuse.gguf import kv
        from hbf_fuse.kv.spill import Spill

        compute_seconds = self._compute_seconds()
        described = gguf.read(model.source())
        trained = described.field("context_length")
        for context in contexts:
            if isinstance(trained, int) and context > trained:
                tell(f"a context of {context} is beyond the model's {trained}")
        return [
            Spill(
                kv_bytes=kv.bytes_per_token(described, self.cache_type_k, self.cache_type_v),
                layers=kv.cached_layers(described),
                context=context,
                resident=self.resident,
                compute_seconds=compute_seconds,
                chunk_bytes=parse_size(self.chunk),
                depth=self.queue_depth,
                prefetch=self.prefetch,
                write_mbps=write_mbps,
            )
            for context in contexts
        ]

    def _compute_seconds(self) -> float:
        if self.compute_ms is not None:
            return self.compute_ms / 1e3
        if self.bench is None:
            tell("no --compute-ms and no --bench: computing counts as nothing")
            return 0.0
        from hbf_fuse.runs.run import Finished
        from hbf_fuse.runs.schema import read_run

        try:
            run = read_run(self.bench)
            metrics = run.metrics if isinstance(run, Finished) else None
            return 1 / ((metrics and (metrics.compute_tg or metrics.tg)) or 0)
        except (HbfError, ZeroDivisionError) as error:
            raise HbfError(
                f"{self.bench} is no run with a tg; name a runs/NAME.json of hbf bench or sweep"
            ) from error


@dataclass(frozen=True)
class StreamOptions:
    """Streams that decode together, and what else a step takes."""

    batch: Annotated[int, typer.Option("--batch", help="Streams that decode together.", min=1)] = 1
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Of weights that lie in the tier, too, as 2G: read once a step."),
    ] = None
    dram_mbps: Annotated[
        float | None,
        typer.Option("--dram-mbps", help="Attention reads the context at this rate. Left out: in no time."),
    ] = None

    def of(self, spill: "Spill") -> "Spill":
        """The same spill for these streams."""
        return dataclasses.replace(
            spill,
            batch=self.batch,
            weight_bytes=parse_size(self.weights) if self.weights else 0,
            dram_mbps=self.dram_mbps,
        )


@dataclass(frozen=True)
class EnduranceOptions:
    """How much writing the tier's flash bears."""

    capacity_gb: Annotated[
        float | None, typer.Option("--capacity-gb", help="Of the tier. \\[default: the profile's]", min=0)
    ] = None
    pe_cycles: Annotated[
        float | None, typer.Option("--pe-cycles", help="Program and erase cycles of a cell.", min=0)
    ] = None
    amplification: Annotated[
        float, typer.Option("--write-amplification", help="Bytes programmed for each one written.", min=1)
    ] = 1.0

    def lifetime(self, profile: str | None, row: dict[str, Any]) -> dict[str, Any]:
        """A column for how long the flash lasts, where that can be told."""
        from hbf_fuse.kv import endurance
        from hbf_fuse.tier import profiles

        known = profiles.load(profile).values.get("capacity_gb") if profile else None
        capacity = self.capacity_gb or (known.value if known else None)
        if capacity is None or self.pe_cycles is None:
            return {}
        written = row["written_gb_per_day"]
        return {"lifetime_years": endurance.years(capacity, self.pe_cycles, written, self.amplification)}


@dataclass(frozen=True)
class Kept:
    """Where rows go beside stdout."""

    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write a CSV.")] = None
    svg: Annotated[Path | None, typer.Option("--svg", help="Also draw it.")] = None

    def keep(self, rows: list[dict[str, Any]], drawing: str) -> None:
        """Write rows as CSV and as a drawing of report/spill_plots.py, where wanted."""
        if self.output:
            write_whole(self.output, _csv(rows))
            tell(f"stored as {self.output}")
        if self.svg:
            try:
                from hbf_fuse.report import spill_plots
            except ImportError as error:
                raise HbfError(
                    f"--svg needs {error.name}; `pip install 'hbf-fuse[report]'` brings it"
                ) from error
            write_whole(self.svg, getattr(spill_plots, drawing)(rows) + "\n")
            tell(f"drawn as {self.svg}")


@dataclass(frozen=True)
class SolvedTier(ProfileFirst):
    """Of a tier, what is known already."""

    mbps: Annotated[float | None, bandwidth("what is solved for")] = None


@dataclass(frozen=True)
class ServedModel(ModelOption):
    """A model whose default is that of a live mount."""

    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help="The GGUF whose KV geometry counts. \\[default: what is served]"),
    ] = None


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
    spilled: SpillOptions,
    streams: StreamOptions,
    write_mbps: WriteMbps = None,
    endurance: EnduranceOptions,
    tokens: Tokens = 64,
    kept: Kept,
    as_json: Json = False,
) -> None:
    """Decode in virtual time: speed at percentiles, the ceiling, and what bounds it.

    Example: [bold]hbf kv sim -m model.gguf --context 32768 --mbps 1000,4000 --lat 0.02 --compute-ms 50[/bold]
    """
    from hbf_fuse.kv import sim as kv_sim
    from hbf_fuse.tier import TierSpec, profiles

    spills = [streams.of(spill) for spill in spilled.spills(model, _contexts(context), write_mbps)]
    base = profiles.load(profile).spec() if profile else TierSpec(1000)
    links = [base.bandwidth_mbps] if mbps is None else _floats(mbps, "--mbps")
    latencies = [base.latency_ms] if lat is None else _floats(lat, "--lat")
    for spill in spills:
        if not spill.spilled_tokens:
            tell(
                f"{spilled.resident} tokens in DRAM hold the whole context of {spill.context}: "
                "nothing is spilled"
            )
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
    rows = []
    for spill, spec in itertools.product(spills, specs):
        row = kv_sim.simulate(spill, spec, tokens).to_dict()
        _tell_unfilled(spill, spec, row)
        rows.append({**row, **endurance.lifetime(profile, row)})
    kept.keep(rows, "speeds")
    _print_rows(rows, as_json)


@app.command()
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
    write_mbps: WriteMbps = None,
    kept: Kept,
    as_json: Json = False,
) -> None:
    """The least bandwidth that meets a target; with --mbps, the greatest latency instead.

    Example: [bold]hbf kv solve --tps 2,8 --context 32768,131072 --lat 0.02 --compute-ms 50[/bold]
    """
    from hbf_fuse.kv import requirements

    spills = [streams.of(spill) for spill in spilled.spills(model, _contexts(context), write_mbps)]
    spec = tier.spec()
    targets = [_within(target, "--tps", 1e-6, 1e9) for target in _floats(tps, "--tps")]
    rows = requirements.table(spills, spec, targets, percentile)
    if all(row["why"] for row in rows):
        raise HbfError(rows[0]["why"])
    if kept.svg and spec.bandwidth_mbps is not None:
        raise HbfError("--svg draws bandwidths; leave out --mbps")
    kept.keep(rows, "requirements")
    _print_rows([{key: row.get(key) for key in {**rows[0], **rows[-1]}} for row in rows], as_json)


@app.command()
@flattened
def replay(
    mountpoint: Annotated[Path, typer.Argument(help="A live mount.")],
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
    known = client.read_hidden(path, "spec.json")
    (spill,) = spilled.spills(ModelOption(model.model or Path(known["source"])), [context])
    if not spill.spilled_tokens:
        raise HbfError(
            f"{spilled.resident} tokens in DRAM hold the whole context of {context}: nothing would be read"
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


def _tell_unfilled(spill: "Spill", spec: "TierSpec", row: dict[str, Any]) -> None:
    """A word where too little is in flight for the link."""
    filled = row["filled_pct"]
    if spill.spilled_tokens and filled is not None and filled < WELL_FILLED_PCT:
        tell(
            f"{spill.depth} reads of {format_size(spill.chunk_bytes)} at once have {filled:.0f}% of {spec}; "
            "more of them (--queue-depth) or larger ones (--chunk) would have more of it"
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
