"""`hbf status`: what is mounted and how it is doing."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hbf_fuse.cli.common import Json, print_json, printable
from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

MOST_FILES = 5
"""Of a directory, whose verdicts are shown."""


def status(
    mountpoint: Annotated[Path | None, typer.Argument(help="One mount; left out: all of them.")] = None,
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
        document = {
            "mountpoint": str(path),
            "spec": client.read_hidden(path, "spec.json"),
            "stats": client.read_hidden(path, "stats.json"),
        }
        try:
            _line(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HbfError(f"{path} has an unreadable status: another version of hbf?") from error
        return document
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
    return (
        f"{document['mountpoint']}: {spec['source']} at {TierSpec.from_dict(spec['tier'])}, "
        f"{stats['reads']} reads, {format_size(stats['bytes_read'])}, {stats['in_flight']} in flight"
        f"{resident}, lateness p50 {lateness['p50'] / 1000:.0f} us p99 {lateness['p99'] / 1000:.0f} us"
        + "".join(f"\n  {name}: {_judged(file['staging'])}" for name, file in _read_files(stats))
    )


def _read_files(stats: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Those of which something has come, the first few."""
    return list(stats["files"].items())[:MOST_FILES]


def _judged(staging: dict[str, Any]) -> str:
    """`358.1 MB/s, model 358.2, error -0.01%, bound 0.4%: agrees`."""
    parts = [f"{staging['achieved_mbps']:.1f} MB/s"]
    for name, key, form in (
        ("model", "model_mbps", ".1f"),
        ("error", "error_pct", "+.2f"),
        ("bound", "bound_pct", ".2g"),
    ):
        if staging[key] is not None:
            parts.append(f"{name} {staging[key]:{form}}{'%' if key.endswith('pct') else ''}")
    why = f" ({staging['why']})" if staging["why"] else ""
    return f"{', '.join(parts)}: {staging['verdict']}{why}"
