"""`hbf top`: a live mount, watched."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from hbf_fuse.cli.common import console, printable
from hbf_fuse.cli.paths import named
from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

if TYPE_CHECKING:
    from hbf_fuse.observe.status import Spec, Stats

MOST_LAYERS = 8


def top(
    mountpoint: Annotated[Path, typer.Argument(help="A live mount.", parser=named)],
    interval: Annotated[
        float, typer.Option("--interval", help="Seconds between looks.", min=0.1, max=86_400)
    ] = 1.0,
    count: Annotated[int | None, typer.Option("--count", help="End after so many looks.", min=1)] = None,
) -> None:
    """Watch a live mount: throughput, reads in flight, lateness, readers, what is resident, hottest layers.

    Example: [bold]hbf top /mnt/hbf[/bold], and Ctrl-C to end.
    """
    from hbf_fuse.mount import client
    from hbf_fuse.mount import mountpoint as points

    path = points.absolute(mountpoint)
    tensors = _tensors(Path(client.read_spec(path)["source"]))
    before = client.read_stats(path)
    with Live(console=console(), auto_refresh=False) as screen:
        while count is None or count > 0:
            time.sleep(interval)
            spec, now = client.read_spec(path), client.read_stats(path)
            layers = _layers(path, before["now_ns"], tensors)
            figures = _figures(path, spec, before, now)
            screen.update(Group(figures, _hottest(layers)), refresh=True)
            before = now
            count = None if count is None else count - 1


def _tensors(source: Path) -> list[Any]:
    """The tensor map of what is served, or nothing if it has none that can be read from here."""
    from hbf_fuse.models import split

    try:
        return split.read_model(source).tensors
    except (OSError, HbfError):
        return []


def _layers(path: Path, since_ns: int, tensors: list[Any]) -> dict[str, float]:
    """Bytes read by layer since then, as far as the mount remembers its reads."""
    from hbf_fuse.mount import client
    from hbf_fuse.traces import attribution

    if not tensors:
        return {}
    trace = client.read_trace(path)
    recent = [read for read in trace if read.done_ns >= since_ns]
    shares = attribution.attribute(recent, list(trace.header["tiers"]), tensors, [])
    return {name: share.nbytes for name, share in shares.layers.items()}


def _figures(path: Path, spec: "Spec", before: "Stats", now: "Stats") -> Table:
    from hbf_fuse.cli.status import shown_backlog, shown_kv, shown_readers
    from hbf_fuse.tier import TierSpec

    seconds = (now["now_ns"] - before["now_ns"]) / 1e9
    if seconds <= 0:
        raise HbfError(f"{path} was mounted anew", "begin again")
    table = Table(title=printable(f"{path}: {TierSpec.from_dict(spec['tier'])}"), show_header=False)
    late = now["lateness_ns"]
    table.add_row("throughput", f"{(now['bytes_read'] - before['bytes_read']) / seconds / 1e6:.1f} MB/s")
    table.add_row(
        "reads", f"{(now['reads'] - before['reads']) / seconds:.0f} /s, {now['in_flight']} in flight"
    )
    table.add_row("lateness", f"p50 {late['p50'] / 1e3:.0f} us, p99 {late['p99'] / 1e3:.0f} us")
    if now["backlog_ns"]["p99"]:
        table.add_row("backlog", shown_backlog(now))
    table.add_row("read by", printable(shown_readers(now, before)))
    table.add_row("served", format_size(now["bytes_read"]))
    if "kv" in now:
        written = (now["bytes_written"] - before["bytes_written"]) / seconds / 1e6
        table.add_row("writes", f"{written:.1f} MB/s, {(now['writes'] - before['writes']) / seconds:.0f} /s")
        table.add_row("kv", printable(shown_kv(now["kv"])))
    for name, phase in now.get("phases", {}).items():
        then = before.get("phases", {}).get(name, {"seconds": 0.0, "bytes_read": 0})
        rate = (phase["bytes_read"] - then["bytes_read"]) / seconds / 1e6
        live = f", {rate:.1f} MB/s now" if name == now.get("phase") else ""
        took = f"{format_size(phase['bytes_read'])} in {phase['seconds']:.1f} s"
        table.add_row(printable(f"phase {name}"), f"{took}{live}")
    if resident := now.get("resident"):
        table.add_row(
            "resident",
            f"{format_size(resident['resident_bytes'])} of {format_size(resident['budget_bytes'])} "
            f"({printable(str(resident['policy']))}), {format_size(resident['evicted_bytes'])} dropped",
        )
    return table


def _hottest(layers: dict[str, float]) -> Table:
    table = Table("hottest layers", "read")
    for name, nbytes in sorted(layers.items(), key=lambda item: -item[1])[:MOST_LAYERS]:
        table.add_row(printable(name), format_size(nbytes))
    return table
