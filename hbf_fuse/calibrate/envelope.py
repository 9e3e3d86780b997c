"""The results of hbf calibrate on this machine, and what a mount can conclude from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

# As pydantic needs it before Python 3.12.
from typing_extensions import TypedDict

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.models.places import cache_dir
from hbf_fuse.tier import TierSpec


class EngineFacts(TypedDict):
    """Of one engine: the fastest it served, what the machine adds to a read, the share of valid cells."""

    ceiling_mbps: float
    floor_ns: float
    floor_ns_per_mib: float
    share_valid: float


class EnvelopeCell(TypedDict):
    """One tier with its readers. size: bytes of a read. Rates are decimal MB/s, medians over the runs."""

    engine: str
    mbps: float | None
    lat_ms: float
    size: int
    readers: int
    model_mbps: float
    client_mbps: float
    server_mbps: float
    error_pct: float
    error_pct_runs: list[float]
    p50_us: float
    lateness_p99_us: float
    valid: bool
    reasons: list[str]


class Envelope(TypedDict):
    """What was measured on a machine. complete: whether all of the plan was. engines: by name."""

    machine: machine.Facts
    measured: machine.State
    complete: bool
    runs: int
    engines: dict[str, EngineFacts]
    cells: list[EnvelopeCell]


_SAME = {
    "hbf_fuse": "version of hbf-fuse",
    "kernel": "kernel",
    "machine": "kind of machine",
    "cpu": "CPU",
    "cores": "number of cores",
    "memory_bytes": "size of memory",
    "compiled": "build of hbf-fuse (compiled or not)",
}
"""Facts that must be the same now, and their names in a message."""


def path() -> Path:
    """Where the envelope is kept."""
    return cache_dir() / "envelope.json"


def load(file: Path | None = None) -> tuple[Envelope | None, HbfError | None]:
    """The stored envelope, if this version measured it on this machine; else None and why not.

    file: another than `path()`. There is no reason if there is no envelope at all: that is not an error.
    """
    try:
        file = file or path()
    except HbfError:
        return None, None  # no home, no envelope
    if not file.exists():
        return None, None
    try:
        known = documents.read_json(file)
        differing = _differing(known)
        if not differing:
            _check(known)
    except (HbfError, ValueError, KeyError, TypeError, AttributeError, OSError):
        return None, HbfError(f"ignoring {file}: it is damaged", "`hbf calibrate` makes a new one")
    if differing:
        return None, HbfError(
            f"ignoring {file}: it was measured with another {differing}", "run `hbf calibrate` again"
        )
    return cast(Envelope, known), None


def _differing(known: Any) -> str:
    """The first fact that is not the same here, or "". Raises what Python has for what is not there."""
    measured: dict[str, object] = known["machine"]
    here: Mapping[str, object] = machine.facts()
    for key, name in _SAME.items():
        if measured.get(key) != here[key]:
            # 0.1.0 did not store every fact, and it has the same number.
            return name if key in measured else _SAME["hbf_fuse"]
    return ""


def _check(known: object) -> None:
    """Whether every value has the type that it is declared with; ValueError if not."""
    # Not at the top: most mounts have no envelope, and this takes a tenth of a second.
    from pydantic import TypeAdapter

    TypeAdapter(Envelope).validate_python(known)


def merged(document: Envelope, file: Path) -> Envelope:
    """With what `file` knows of engines that were not measured now, if it is of this version and machine."""
    known, _ = load(file)
    if known is None:
        return document
    others = {name: facts for name, facts in known["engines"].items() if name not in document["engines"]}
    cells = [cell for cell in known["cells"] if cell["engine"] in others]
    return {**document, "engines": others | document["engines"], "cells": cells + document["cells"]}


def doubt(spec: TierSpec, known: Envelope, engine: str) -> str:
    """Why this machine may not serve a tier within tolerance, or ""."""
    facts = known["engines"].get(engine)
    if facts is None or spec.bandwidth_mbps is None:
        return ""
    ceiling = facts["ceiling_mbps"]
    if spec.bandwidth_mbps > ceiling:
        return f"{spec.bandwidth_mbps:g} MB/s is above this machine's ceiling of {ceiling:.0f} MB/s"
    cells = [cell for cell in known["cells"] if cell["engine"] == engine]
    reached = max((cell["mbps"] or 0 for cell in cells if cell["valid"]), default=0)
    if spec.bandwidth_mbps > reached:
        return f"{spec.bandwidth_mbps:g} MB/s is above what was within tolerance here, {reached:g} MB/s"
    return ""


def store(document: Envelope, file: Path) -> None:
    """Write an envelope. HbfError if it cannot be written."""
    documents.write_whole(file, json.dumps(document, indent=1) + "\n")
