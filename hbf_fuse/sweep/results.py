"""A results folder. `runs/*.json`, one per finished cell, are the truth; the CSV is derived from them."""

import csv
import json
import os
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError

_METRICS = (
    "stage_seconds",
    "stage_effective_mbps",
    "model_mbps",
    "tier_error_pct",
    "valid",
    "why",
    "pp",
    "tg",
    "bench_wall_seconds",
    "total_first_run_seconds",
    "tier_bytes_read",
    "stall_seconds",
    "major_faults",
    "load_seconds",
    "lateness_p50_us",
    "lateness_p99_us",
    "in_flight_max",
)


class Results:
    """One folder. Every file in it appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs = folder / "runs"

    def path_of(self, name: str) -> Path:
        """Where the run of a cell is kept."""
        return self._runs / f"{name}.json"

    def store(self, document: dict[str, Any]) -> Path:
        """Keep one run."""
        path = self.path_of(document["cell"]["name"])
        write_whole(path, json.dumps(document, indent=1) + "\n")
        return path

    def load(self, name: str) -> dict[str, Any] | None:
        """A finished run by its cell's name, or None. HbfError if the file is no run of ours."""
        path = self.path_of(name)
        if not path.exists():
            return None
        try:
            document: dict[str, Any] = json.loads(path.read_text())
            if not isinstance(document["cell"], dict):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise HbfError(f"{path} is not a run of hbf; move it away to measure this cell again") from error
        return document

    def all(self) -> list[dict[str, Any]]:
        """Every finished run, by name."""
        found = (self.load(path.stem) for path in sorted(self._runs.glob("*.json")))
        return [document for document in found if document is not None]

    def write_csv(self) -> Path:
        """cells.csv: one row per finished run, ordered by tier and repeat."""
        rows = sorted((row(document) for document in self.all()), key=_order)
        path = self.folder / "cells.csv"
        lines = _Lines()
        writer = csv.DictWriter(lines, columns(rows), restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, "".join(lines.kept))
        return path


class _Lines:
    """Where csv writes to."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def write(self, text: str) -> None:
        self.kept.append(text)


def row(document: dict[str, Any]) -> dict[str, Any]:
    """A run as a row of cells.csv. pp and tg carry their token counts in their names, as in pp256."""
    cell, metrics = document["cell"], dict(document.get("metrics", {}))
    metrics.setdefault("valid", False)
    metrics.setdefault("why", document.get("error", ""))
    start = {key: cell[key] for key in ("tier_mbps", "tier_lat_ms", "repeat", "mode")}
    names = {"pp": f"pp{cell['bench']['n_prompt']}", "tg": f"tg{cell['bench']['n_gen']}"}
    return {**start, **{names.get(key, key): _short(metrics.get(key)) for key in _METRICS}}


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """The columns of all rows, in order."""
    return list(dict.fromkeys(key for each in rows for key in each))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all, and outlives a crash. Makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _order(values: dict[str, Any]) -> tuple[Any, ...]:
    return values["mode"], values["tier_mbps"] or float("inf"), values["tier_lat_ms"], values["repeat"]
