"""`hbf trace summary`: what was read."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hbf_fuse.cli.common import Json, console, new_app, print_json, tell
from hbf_fuse.cli.dram import DramOptions, model_of
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import ProfileFirst
from hbf_fuse.cli.paths import found
from hbf_fuse.cli.spreading import Spread
from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

if TYPE_CHECKING:
    from hbf_fuse.runs.run import Finished
    from hbf_fuse.tier import TierSpec
    from hbf_fuse.traces.attribution import Attribution, Phase, Share
    from hbf_fuse.traces.trace import Read, Trace

app = new_app(
    help="Look into traces: every read of a mount.\n\n"
    "Example: [bold]hbf trace summary run.trace --model model.gguf[/bold]",
    no_args_is_help=True,
)
MOST_ROWS = 20
_MOSTLY = 0.5


@app.callback()
def _group() -> None:
    pass


@app.command()
def summary(
    trace: Annotated[Path, typer.Argument(help="A file from --trace, or a live mount.", parser=found)],
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help="The GGUF. \\[default: what was served]", parser=found),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="runs/NAME.json of the llama-bench that read it: tells the phases.", parser=found
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which tensors, layers and experts were read in which phase, and how often.

    Example: [bold]hbf trace summary run.trace --run results/bench/runs/NAME.json[/bold]
    """
    from hbf_fuse.traces import attribution

    recorded = _read(trace)
    described = model_of(recorded, model)
    reads = attribution.of_model(recorded, described)
    shares = attribution.attribute(reads, list(recorded.header["tiers"]), described.tensors, _phases(run))
    sizes = {tensor.name: tensor.nbytes for tensor in described.tensors}
    if as_json:
        print_json(_document(shares, sizes, attribution.sizes(reads), attribution.depths(reads)))
        return
    screen = console()
    count = sum(share.reads for share in shares.phases.values())
    screen.print(f"{count} reads, {format_size(sum(read.nbytes for read in reads))}")
    if kv := list(recorded.of_kv()):
        written = [read.nbytes for read in kv if read.writes]
        asked = sum(read.nbytes for read in kv) - sum(written)
        screen.print(
            f"kv/: {len(kv) - len(written)} reads, {format_size(asked)}; "
            f"{len(written)} writes, {format_size(sum(written))}"
        )
    screen.print(_table("phase", shares.phases.items()))
    if len(shares.tokens) > 1:
        each = [share.nbytes for share in shares.tokens.values()]
        screen.print(f"decoded tokens: {len(each)}, {format_size(sum(each) / len(each))} each")
    screen.print(_table("layer", _most(shares.layers.items())))
    screen.print(_table("tensor", _most(shares.tensors.items()), sizes))
    if shares.experts:
        named = ((f"{layer} expert {expert}", share) for (layer, expert), share in shares.experts.items())
        screen.print(_table("expert", _most(named)))
    screen.print(_counts("bytes of a read", attribution.sizes(reads)))
    screen.print(_counts("reads in flight", attribution.depths(reads)))


@app.command()
@flattened
def replay(
    trace: Annotated[Path, typer.Argument(help="A file from --trace, or a live mount.", parser=found)],
    *,
    tier: ProfileFirst,
    memory: DramOptions,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            help="runs/NAME.json of the llama-bench that read it: gives first run and tok/s.",
            parser=found,
        ),
    ] = None,
    spread: Spread,
    as_json: Json = False,
) -> None:
    """Say what a recorded llama-bench would have cost on another tier: its reads, with the same think times.

    With --resident: what a decoded token would have cost with so much DRAM in front of the tier. Record for
    it with as little as can be: hbf bench --mode stream --resident 20M --policy fifo --trace run.trace.

    Example: [bold]hbf trace replay run.trace --profile hbf-gen1 --run results/bench/runs/NAME.json[/bold]
    """
    from hbf_fuse.traces import chains

    spec = tier.spec()
    recorded = _read(trace)
    reads = list(recorded)
    if any(recorded.of_kv()):
        tell("what was read and written in kv/ is left out")
    if not reads:
        raise HbfError(f"{trace} holds no reads")
    if run is not None:
        _require_run_of(run, reads)
    if memory.given():
        other = spec if tier.profile or tier.given() else None
        memory.show(recorded, _finished(run) if run else None, _phases(run), other, spread, as_json)
        return
    if spread.given():
        raise typer.BadParameter("--jobs and --on are of --resident; one replay is one piece of work")
    if len({read.tier for read in reads}) > 1:
        tell("these reads came from several tiers; all of them are replayed on the one")
    document: dict[str, Any] = {"tier": str(spec), **chains.elsewhere(reads, _phases(run), spec)}
    told = document["readahead_share"]
    if told is not None and told < _MOSTLY and _is_slower(spec, recorded):
        tell(
            f"only {told:.0%} of the reads can be told to be readahead: with more latency than was recorded "
            "this is the longest that it can take"
        )
    if run is not None and "longer_seconds" in document:
        document["first_run_seconds"] = _first_run_seconds(run) + document.pop("longer_seconds")
    if as_json:
        print_json(document)
        return
    tell("think times and what the machine adds to a read are those of the recording")
    if "bracket" in document:
        tell("this trace does not tell whether its threads waited for each other: both answers are shown")
    for name, value in document.items():
        if name != "bracket":
            print(f"{name:26}{_shown(document.get('bracket', {}).get(name, value))}")


def _shown(value: Any) -> str:
    """Three digits: it is worked out, not measured."""
    if isinstance(value, list):
        return " to ".join(map(_shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> "Trace":
    from hbf_fuse.mount import client
    from hbf_fuse.observe.bounds import RING_RECORDS
    from hbf_fuse.traces.trace import Trace, is_being_written

    if path.is_dir():
        trace = client.read_trace(path)
        if len(trace) >= RING_RECORDS - 1:
            tell(f"only the newest {RING_RECORDS} reads are known; `hbf-mount --trace FILE` keeps all")
        return trace
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no file that can be read again")
        if is_being_written(path):
            tell(f"a mount still writes {path}: its newest reads are not in it before `hbf-umount`")
        return Trace.read(path)
    except ValueError as error:
        raise HbfError(f"{path}: {error}", "a trace is what `hbf-mount --trace FILE` writes") from error


def _phases(run: Path | None) -> "list[Phase]":
    from hbf_fuse.traces.attribution import Phase

    if run is None:
        return []
    return [Phase(**phase.model_dump()) for phase in _finished(run).llama_bench.phases]


def _require_run_of(run: Path, reads: "list[Read]") -> None:
    """HbfError if a run's mount did not serve when the first of these reads came: another run's trace.

    The last one says nothing: readahead goes on after the counters of a run were looked at.
    """
    stats = _finished(run).tier_stats or {}
    begin_ns, end_ns = (stats.get(f"{name}_ns") for name in ("first_arrival", "last_done"))
    first_ns = min(read.arrival_ns for read in reads)
    if isinstance(begin_ns, int) and isinstance(end_ns, int) and not begin_ns <= first_ns <= end_ns:
        raise HbfError(f"{run} is not the run that this trace is of", "name the one that was stored with it")


def _first_run_seconds(run: Path) -> float:
    return _finished(run).metrics.total_first_run_seconds


def _finished(path: Path) -> "Finished":
    """A run that came to its end and says when llama-bench did what."""
    from hbf_fuse.runs.run import Finished
    from hbf_fuse.runs.schema import read_run

    try:
        run = read_run(path)
    except HbfError as error:
        raise _no_phases(path) from error
    if not isinstance(run, Finished) or "phases" not in run.llama_bench.model_fields_set:
        raise _no_phases(path)
    return run


def _no_phases(run: Path) -> HbfError:
    return HbfError(f"{run} is no run with phases", "name one that `hbf bench --trace` stored")


def _is_slower(spec: "TierSpec", recorded: "Trace") -> bool:
    """Whether a tier answers later than all that was recorded from; a header that does not say has none."""
    known = [tier.get("latency_ms", 0.0) for tier in recorded.header["tiers"].values()]
    return spec.latency_ms > max((each for each in known if isinstance(each, int | float)), default=0.0)


def _most(shares: "Iterable[tuple[str, Share]]") -> "list[tuple[str, Share]]":
    return sorted(shares, key=lambda item: -item[1].nbytes)[:MOST_ROWS]


def _table(what: str, shares: "Iterable[tuple[str, Share]]", sizes: dict[str, int] | None = None) -> Table:
    table = Table(what, "read", "reads", "stall s", *(["times read"] if sizes else []))
    for name, share in shares:
        row = [name, format_size(share.nbytes), str(share.reads), f"{share.stall_ns / 1e9:.3f}"]
        if sizes:
            row.append(f"{share.nbytes / sizes[name]:.2f}" if sizes.get(name) else "-")
        table.add_row(*row)
    return table


def _counts(what: str, counts: dict[int, int]) -> Table:
    table = Table(what, "reads")
    for value, count in sorted(counts.items(), key=lambda item: -item[1])[:MOST_ROWS]:
        table.add_row(str(value), str(count))
    return table


def _document(
    shares: "Attribution", sizes: dict[str, int], read_sizes: dict[int, int], depths: dict[int, int]
) -> dict[str, Any]:
    return {
        "phases": {name: share.to_dict() for name, share in shares.phases.items()},
        "tokens": [share.to_dict() for _, share in sorted(shares.tokens.items())],
        "layers": {name: share.to_dict() for name, share in shares.layers.items()},
        "tensors": {name: share.to_dict(sizes.get(name, 0)) for name, share in shares.tensors.items()},
        "experts": [
            {"layer": layer, "expert": expert, **share.to_dict()}
            for (layer, expert), share in shares.experts.items()
        ],
        "tiers": [
            {"tier": tier, "tensor": name, **share.to_dict()} for (tier, name), share in shares.tiers.items()
        ],
        "read_sizes": read_sizes,
        "queue_depths": depths,
    }
