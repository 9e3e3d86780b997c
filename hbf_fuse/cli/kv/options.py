"""Options that the commands of `hbf kv` share."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse.cli.bench import ModelByOption
from hbf_fuse.cli.common import tell
from hbf_fuse.cli.kv.numbers import within
from hbf_fuse.cli.kv.rows import as_csv
from hbf_fuse.cli.options import ProfileFirst, bandwidth
from hbf_fuse.cli.paths import found
from hbf_fuse.documents import Row, write_whole
from hbf_fuse.errors import HbfError
from hbf_fuse.units import parse_size

if TYPE_CHECKING:
    from hbf_fuse.kv.spill import Spill


Context = Annotated[str, typer.Option("--context", help="Tokens, with commas.")]
Tokens = Annotated[int, typer.Option("--tokens", help="Tokens to decode.", min=2, max=1_000_000)]
CacheTypeK = Annotated[str, typer.Option("-ctk", "--cache-type-k", help="llama.cpp's -ctk.")]
CacheTypeV = Annotated[str, typer.Option("-ctv", "--cache-type-v", help="llama.cpp's -ctv.")]
Percentile = Annotated[float, typer.Option("--percentile", help="Share of the tokens, in %.", min=1, max=99)]


@dataclass(frozen=True)
class ComputeOptions:
    """How long a token computes."""

    compute_ms: Annotated[
        float | None, typer.Option("--compute-ms", help="Of a token with everything in DRAM.")
    ] = None
    bench: Annotated[
        Path | None,
        typer.Option(
            "--bench", help="runs/NAME.json of a llama-bench: its tg gives --compute-ms.", parser=found
        ),
    ] = None

    def compute_seconds(self) -> float | None:
        """Of a token; None if nothing says it. HbfError for a run without a tg."""
        if self.compute_ms is not None:
            return within(self.compute_ms, "--compute-ms", 0, 3_600_000) / 1e3
        if self.bench is None:
            return None
        from hbf_fuse.runs.run import Finished
        from hbf_fuse.runs.schema import read_run

        try:
            run = read_run(self.bench)
            metrics = run.metrics if isinstance(run, Finished) else None
            return 1 / ((metrics and (metrics.compute_tg or metrics.tg)) or 0)
        except (HbfError, ZeroDivisionError) as error:
            raise HbfError(
                f"{self.bench} is no run with a tg", "name a runs/NAME.json of hbf bench or sweep"
            ) from error


@dataclass(frozen=True)
class _Resident:
    resident: Annotated[
        int, typer.Option("--resident", help="Tokens whose keys and values DRAM holds.", min=0)
    ] = 0


# The last base's fields come first: this is the order in --help.
@dataclass(frozen=True)
class SpillOptions(ComputeOptions, _Resident):
    """What DRAM does not hold of a context, and how decode reads it."""

    cache_type_k: CacheTypeK = "f16"
    cache_type_v: CacheTypeV = "f16"
    chunk: Annotated[str, typer.Option("--chunk", help="Size of a read.")] = "1M"
    queue_depth: Annotated[int, typer.Option("--queue-depth", help="Reads in flight.")] = 8
    prefetch: Annotated[
        int, typer.Option("--prefetch", help="Layers that reading is ahead of computing.")
    ] = 0

    def spills(self, model: ModelByOption, contexts: list[int]) -> "list[Spill]":
        """The spill of each context of a model. One beyond the model's is a warning."""
        from hbf_fuse.cli.kv.cached import of_contexts
        from hbf_fuse.kv.spill import Spill

        compute_seconds = self.compute_seconds()
        if compute_seconds is None:
            tell("no --compute-ms and no --bench: computing counts as nothing")
        return [
            Spill(
                kv_bytes=cache.growing_bytes,
                layers=cache.layers,
                context=cache.context,
                resident=self.resident,
                compute_seconds=compute_seconds or 0.0,
                chunk_bytes=parse_size(self.chunk),
                depth=self.queue_depth,
                prefetch=self.prefetch,
                constant_bytes=cache.constant_bytes,
                touched_bytes=cache.touched_bytes,
            )
            for cache in of_contexts(model.source(), contexts, self.cache_type_k, self.cache_type_v)
        ]


@dataclass(frozen=True)
class StreamOptions:
    """Streams that decode together, and what else a step takes."""

    batch: Annotated[
        int,
        typer.Option("--batch", help="Streams that decode together; days_left: day and night.", min=1),
    ] = 1
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
        float | None,
        typer.Option(
            "--write-amplification",
            help="Bytes programmed for each one written. \\[default: as simulated, or 1]",
            min=1,
        ),
    ] = None

    def capacity(self, profile: str | None) -> float | None:
        """Of the tier in GB, if it is known."""
        from hbf_fuse.cli.profiles import load

        known = load(profile).values.get("capacity_gb") if profile else None
        return self.capacity_gb or (known.value if known else None)

    def lifetime(self, profile: str | None, row: Row) -> dict[str, Any]:
        """A column for how long the flash lasts with so many --pe-cycles, where that can be told."""
        from hbf_fuse.kv import endurance

        capacity = self.capacity(profile)
        if capacity is None or self.pe_cycles is None:
            return {}
        written = row["written_gb_per_day"]
        amplification = self.amplification or row.get("write_amplification", 1.0)
        return {"lifetime_years": endurance.years(capacity, self.pe_cycles, written, amplification)}


@dataclass(frozen=True)
class Kept:
    """Where rows go beside stdout."""

    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write a CSV.", parser=found)] = (
        None
    )
    svg: Annotated[Path | None, typer.Option("--svg", help="Also draw it.", parser=found)] = None

    def keep(self, rows: list[Row], drawing: str) -> None:
        """Write rows as CSV and as a drawing of report/spill_plots.py, where wanted."""
        if self.output:
            write_whole(self.output, as_csv(rows))
            tell(f"stored as {self.output}")
        if self.svg:
            try:
                from hbf_fuse.report import spill_plots
            except ImportError as error:
                raise HbfError(
                    f"--svg needs {error.name}", "`pip install 'hbf-fuse[report]'` brings it"
                ) from error
            write_whole(self.svg, getattr(spill_plots, drawing)(rows) + "\n")
            tell(f"drawn as {self.svg}")


@dataclass(frozen=True)
class SolvedTier(ProfileFirst):
    """Of a tier, what is known already."""

    mbps: Annotated[float | None, bandwidth("what is solved for")] = None


@dataclass(frozen=True)
class ServedModel(ModelByOption):
    """A model whose default is that of a live mount."""

    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            help="The GGUF whose KV geometry counts. \\[default: what is served]",
            parser=found,
        ),
    ] = None
