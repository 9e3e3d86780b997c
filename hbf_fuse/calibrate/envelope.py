"""What hbf calibrate found out about this machine, and what a mount may conclude from it."""

import json
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.models.choice import cache_dir
from hbf_fuse.tier import TierSpec

_SAME = ("hbf_fuse", "kernel", "machine", "cpu", "cores", "memory_bytes", "compiled")


def path() -> Path:
    """Where the envelope is kept."""
    return cache_dir() / "envelope.json"


def load() -> tuple[dict[str, Any] | None, str]:
    """The stored envelope, if it was measured on this machine by this version; else None and why not.

    Where there is none at all, the reason is empty: nothing is wrong with that.
    """
    try:
        file = path()
    except HbfError:
        return None, ""  # no home, no envelope
    if not file.exists():
        return None, ""
    try:
        known: dict[str, Any] = documents.read_json(file)
        here = machine.facts()
        differing = [key for key in _SAME if known["machine"].get(key) != here[key]]
        _check(known)
    except (HbfError, ValueError, KeyError, TypeError, AttributeError, OSError):
        return None, f"ignoring {file}: it is damaged; `hbf calibrate` makes a new one"
    if differing:
        return (
            None,
            f"ignoring {file}: it was measured with another {differing[0]}; run `hbf calibrate` again",
        )
    return known, ""


def _check(known: dict[str, Any]) -> None:
    """Try what `doubt` reads. Raises one of the errors that Python has for what is not there or no number."""
    figures = [facts["ceiling_mbps"] for facts in known["engines"].values()]
    figures += [cell["mbps"] or 0 for cell in known["cells"]]
    if not all(isinstance(figure, int | float) for figure in figures):
        raise TypeError
    for cell in known["cells"]:
        str(cell["engine"]), bool(cell["valid"])


def doubt(spec: TierSpec, known: dict[str, Any], engine: str) -> str:
    """Why this machine may not serve a tier within tolerance, or nothing."""
    facts = known["engines"].get(engine)
    if facts is None or spec.bandwidth_mbps is None:
        return ""
    ceiling = facts["ceiling_mbps"]
    if spec.bandwidth_mbps > ceiling:
        return f"{spec.bandwidth_mbps:g} MB/s is above this machine's ceiling of {ceiling:.0f} MB/s"
    cells = [cell for cell in known["cells"] if cell["engine"] == engine and cell["mbps"]]
    reached = max((cell["mbps"] for cell in cells if cell["valid"]), default=0)
    if spec.bandwidth_mbps > reached:
        return f"{spec.bandwidth_mbps:g} MB/s is beyond what was within tolerance here, {reached:g} MB/s"
    return ""


def store(document: dict[str, Any], file: Path) -> None:
    """Keep an envelope; HbfError if it cannot be written."""
    documents.write_whole(file, json.dumps(document, indent=1) + "\n")
