"""From a run's JSON, of this version or an older one, to the model of it."""

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.runs.run import SCHEMA, Finished, Run
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.spec import MODULO
from hbf_fuse.verdict import UNSURE, words


def run_of(document: Any) -> Run:
    """The run that a JSON value is. ValueError names the first thing that is wrong."""
    known = _converted(document) if isinstance(document, dict) else {}
    if not {"metrics", "error"} & known.keys():
        raise ValueError("it has neither metrics nor an error")
    try:
        if "metrics" not in known:
            return Run.model_validate(known)
        run = Finished.model_validate(known)
    except ValidationError as error:
        raise ValueError(first_of(error)) from error
    if run.outdated:
        _mark(run)
    return run


def _mark(run: Finished) -> None:
    """State what 0.1.0 left out of an `outdated` run."""
    cell, metrics = run.cell, run.metrics
    cell.tier = _of_0_1_0(cell.tier)
    if cell.layout.tiers:
        cell.layout.tiers = {name: _of_0_1_0(tier) for name, tier in cell.layout.tiers.items()}
    if cell.mode == "stream" and metrics.valid:
        # It judged the first pass only.
        metrics.verdict, metrics.reasons = UNSURE, ["older-prediction"]
        metrics.valid, metrics.why = False, words.sentence(metrics.reasons)


def _of_0_1_0(tier: TierSpec) -> TierSpec:
    """Page N was always in plane N % planes."""
    return dataclasses.replace(tier, interleave=MODULO) if tier.planes else tier


def _converted(document: dict[str, Any]) -> dict[str, Any]:
    """A document of any schema in today's; one without a number is today's."""
    number = document.get("schema", SCHEMA)
    if isinstance(number, int) and number > SCHEMA:
        raise ValueError(f"its schema is newer than {SCHEMA}, which this version reads; update hbf-fuse")
    try:
        return _from_first(document) if number == 1 else document
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("a part of schema 1 is missing, or of another kind") from error


def _from_first(document: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 told the model by its path, and not the whole tier, nor how long prefill and decode took."""
    cell, metrics = document["cell"], document.get("metrics")
    model = {"name": Path(cell["model"]["path"]).name, "size": cell["model"]["size"], "sha256": ""}
    tier = {"bandwidth_mbps": cell["tier_mbps"], "latency_ms": cell["tier_lat_ms"]}
    known = {**document, "schema": SCHEMA, "cell": {**cell, "tier": tier, "model": model}}
    if metrics is None:
        return known
    seconds = {"prefill_seconds": 0.0, "decode_seconds": 0.0}
    for record in document["llama_bench"]["records"]:
        name = "decode_seconds" if record["n_gen"] else "prefill_seconds"
        seconds[name] += sum(record["samples_ns"]) / 1e9
    environment = {"virtual": False, **document["environment"]}
    for name in ("before", "after"):
        environment[name] = {"throttle_count": None, "stolen_seconds": 0.0, **environment[name]}
    return {**known, "metrics": {**metrics, **seconds}, "environment": environment}


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][:4]) or "it"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def read_run(path: Path) -> Run:
    """A run from its file. HbfError for what is none of ours, OSError if it cannot be read."""
    return checked(documents.read_json(path), path)


def checked(document: Any, path: Path) -> Run:
    """The run that a file holds; HbfError names the file."""
    try:
        return run_of(document)
    except ValueError as error:
        raise HbfError(f"{path} is not a run of this hbf: {error}") from error
