"""`hbf status`: what is mounted and how it is doing."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse.cli.common import Json, print_json, printable
from hbf_fuse.cli.paths import named
from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

if TYPE_CHECKING:
    from hbf_fuse.observe.status import FileStatus, KvStatus, StagingStatus, Stats

MOST_FILES = 5
"""Of a directory, whose verdicts are shown."""

MOST_READERS = 3


def status(
    mountpoint: Annotated[
        Path | None, typer.Argument(help="One mount; left out: all of them.", parser=named)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show live mounts: their tier, what was read, how late it was.

    Example: [bold]hbf status /mnt/hbf --json[/bold]
    """
    from hbf_fuse.mount import client
    from hbf_fuse.mount import mountpoint as points

    mounts = [points.absolute(mountpoint)] if mountpoint else client.all_mounts()
    # Side by side: one that does not answer is waited for, and there may be more.
    with ThreadPoolExecutor() as pool:
        documents = list(pool.map(partial(_describe, must_answer=mountpoint is not None), mounts))
    if as_json:
        print_json(documents[0] if mountpoint else documents)
        return
    if not documents:
        print("nothing is mounted; begin with: hbf-mount --mbps 500 --lat 1 MOUNTPOINT")
    for document in documents:
        for line in _line(document).splitlines():
            print(printable(line))


def _describe(path: Path, must_answer: bool) -> dict[str, Any]:
    from hbf_fuse.mount import client

    try:
        return {
            "mountpoint": str(path),
            "spec": client.read_spec(path),
            "stats": client.read_stats(path),
        }
    except HbfError as error:
        if must_answer:
            raise
        return {"mountpoint": str(path), "error": str(error)}


def _line(document: dict[str, Any]) -> str:
    if "error" in document:
        return str(document["error"])  # begins with the mountpoint
    from hbf_fuse.tier import TierSpec

    spec, stats = document["spec"], document["stats"]
    lateness = stats["lateness_ns"]
    held = stats.get("resident")
    resident = f", {format_size(held['resident_bytes'])} resident" if held else ""
    backlog = f", backlog {shown_backlog(stats)}" if stats["backlog_ns"]["p99"] else ""
    return (
        f"{document['mountpoint']}: {spec['source']} at {TierSpec.from_dict(spec['tier'])}, "
        f"{stats['reads']} reads, {format_size(stats['bytes_read'])}, {stats['in_flight']} in flight"
        f"{resident}, lateness p50 {lateness['p50'] / 1000:.0f} us p99 {lateness['p99'] / 1000:.0f} us"
        f"{backlog}{', read by ' if stats['readers'] else ''}{shown_readers(stats)}"
        + "".join(f"\n  {name}: {_judged(file['staging'])}" for name, file in _read_files(stats))
        + (f"\n  {shown_kv(stats['kv'])}" if "kv" in stats else "")
        + "".join(f"\n  a thread of the server has ended: {each}" for each in stats.get("broken", []))
    )


def shown_kv(kv: "KvStatus") -> str:
    """`kv/: 3 files, 33.00 MiB of 1.00 GiB, 512.00 MiB written, amplification 1.31, ...`."""
    parts = [
        f"{kv['files']} files, {format_size(kv['used_bytes'])} of {format_size(kv['size_bytes'])}",
        f"{format_size(kv['bytes_written'])} written, {format_size(kv['bytes_read'])} read",
    ]
    if wear := kv.get("wear"):
        if kv["write_amplification"] is not None:
            parts.append(f"write amplification {kv['write_amplification']:.2f}")
        parts.append(f"{wear['erases']} erases, {wear['least']} to {wear['most']} of a block")
        if kv["reads_behind"]:
            mean_ms = kv["reads_behind_seconds"] / kv["reads_behind"] * 1e3
            parts.append(f"{kv['reads_behind']} reads waited for a program, {mean_ms:.3g} ms each")
    if kv["days_left"] is not None:
        parts.append(f"worn out in {kv['days_left']:.3g} days at this rate")
    judged = f": {_judged(kv['staging'])}" if "staging" in kv else ""
    return f"kv/: {', '.join(parts)}{judged}"


def shown_backlog(stats: "Stats") -> str:
    """`p50 0 us p99 327000 us`: by how much reads were behind the tier when they arrived."""
    return " ".join(f"{name} {stats['backlog_ns'][name] / 1000:.0f} us" for name in ("p50", "p99"))


def shown_readers(stats: "Stats", before: "Stats | None" = None) -> str:
    """`llama-bench 1.2 GiB, updatedb 3.0 MiB`: the first few, of those that read since `before`."""
    known = {each["comm"]: each["bytes"] for each in before["readers"]} if before else {}
    sizes = {each["comm"]: each["bytes"] - known.get(each["comm"], 0) for each in stats["readers"]}
    most = sorted(((size, comm) for comm, size in sizes.items() if size > 0), reverse=True)[:MOST_READERS]
    return ", ".join(f"{comm} {format_size(size)}" for size, comm in most)


def _read_files(stats: "Stats") -> "list[tuple[str, FileStatus]]":
    """Those of which something has come, the first few."""
    return list(stats["files"].items())[:MOST_FILES]


def _judged(staging: "StagingStatus") -> str:
    """`358.1 MB/s, model 358.2, error -0.01%, bound 0.4%: agrees`."""
    parts = [f"{staging['achieved_mbps']:.1f} MB/s"]
    if staging["model_mbps"] is not None:
        parts.append(f"model {staging['model_mbps']:.1f}")
    if staging["error_pct"] is not None:
        parts.append(f"error {staging['error_pct']:+.2f}%")
    if staging["bound_pct"] is not None:
        parts.append(f"bound {staging['bound_pct']:.2g}%")
    why = f" ({staging['why']})" if staging["why"] else ""
    return f"{', '.join(parts)}: {staging['verdict']}{why}"
