"""A results folder. `runs/*.json`, one per finished cell, are the truth; the CSV is derived from them."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.sweep.run import Run

_AXES = ("tier_mbps", "tier_lat_ms", "repeat", "mode")
_METRICS = (
    "stage_seconds",
    "stage_effective_mbps",
    "model_mbps",
    "tier_error_pct",
    "tier_bound_pct",
    "verdict",
    "reasons",
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
    "prefill_seconds",
    "decode_seconds",
    "lateness_p50_us",
    "lateness_p99_us",
    "in_flight_max",
    "resident_before_bytes",
    "harness_seconds",
    "other_cpu_seconds",
    "busy_share",
    "window_share",
    "pause_share",
)
_STREAM = (
    "compute_tg",
    "bytes_per_token",
    "tier_seconds_per_token",
    "predicted_tg",
    "tg_error_pct",
    "tg_bound_pct",
    "bound",
    "break_even_mbps",
)
_LAYOUT = ("resident_bytes", "policy")
_BENCH = ("n_prompt", "n_gen", "threads")
_STALLS = (
    "delay_blkio_seconds",
    "delay_swapin_seconds",
    "delay_reclaim_seconds",
    "delay_thrashing_seconds",
    "delays",
    "psi_io_some_seconds",
    "psi_io_full_seconds",
    "psi_memory_some_seconds",
    "peak_rss_bytes",
    "bench_cpu_seconds",
)


class Results:
    """One folder. Every file in it appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.csv_path = folder / "cells.csv"
        self._runs = folder / "runs"
        self._known: dict[str, dict[str, Any]] | None = None

    def path_of(self, name: str) -> Path:
        """Where the run of a cell is kept."""
        return self._runs / f"{name}.json"

    def store(self, document: dict[str, Any]) -> Path:
        """Keep one run, and bring the CSV up to date."""
        known = self._all()
        path = self.path_of(document["cell"]["name"])
        documents.write_whole(path, json.dumps(document, indent=1) + "\n")
        known[document["cell"]["name"]] = document
        self.write_csv()
        return path

    def has(self, name: str) -> bool:
        """Whether a cell was measured; one that failed was not."""
        return "metrics" in (self.load(name) or {})

    def load(self, name: str) -> dict[str, Any] | None:
        """A run by its cell's name, or None. HbfError if a file in runs/ is no run of ours."""
        return self._all().get(name)

    def all(self) -> list[dict[str, Any]]:
        """Every run, in the order of the CSV."""
        return sorted(self._all().values(), key=_order)

    def write_csv(self) -> Path:
        """cells.csv: one row per run, ordered by mode, tier, llama-bench's axes and repeat."""
        rows = [row(document) for document in self.all()]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns(rows), restval="")
        writer.writeheader()
        writer.writerows(rows)
        documents.write_whole(self.csv_path, text.getvalue())
        return self.csv_path

    def set_aside_edited_csv(self) -> Path | None:
        """Keep a CSV that says what no run says under a name that is free, which is returned; else None.

        A CSV that lacks rows is nobody's edit: that is how a crash leaves it.
        """
        if not self.csv_path.exists():
            return None
        derived = [_as_text(row(document)) for document in self.all()]
        try:
            with self.csv_path.open(newline="", encoding="utf-8") as file:
                edited = any(not _is_among(found, derived) for found in csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError):
            edited = True
        return self.csv_path.replace(self._free_name()) if edited else None

    def _free_name(self) -> Path:
        numbers = itertools.count(2)
        path = self.csv_path.with_name("cells.edited.csv")
        while path.exists():
            path = path.with_name(f"cells.edited.{next(numbers)}.csv")
        return path

    def _all(self) -> dict[str, dict[str, Any]]:
        if self._known is None:
            self._known = {path.stem: _read(path) for path in sorted(self._runs.glob("[!.]*.json"))}
        return self._known


def read_run(path: Path) -> dict[str, Any]:
    """A run from its file. HbfError for what is none of ours, OSError if it cannot be read."""
    document = documents.read_json(path)
    try:
        return Run.checked(document)
    except ValueError as error:
        raise HbfError(f"{path} is not a run of this hbf: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = read_run(path)
    except HbfError as error:
        raise HbfError(f"{error}; move it away to measure this cell again") from error
    if document["cell"]["name"] != path.stem:
        raise HbfError(f"{path} holds the run of another cell; move it away to measure this one again")
    return document


def _as_text(values: dict[str, Any]) -> dict[str, str]:
    texts = {key: "" if value is None else str(value) for key, value in values.items()}
    return {key: text.encode(errors=documents.ENCODING_ERRORS).decode() for key, text in texts.items()}


def _is_among(found: dict[Any, Any], derived: list[dict[str, str]]) -> bool:
    return any(all(known.get(key, "") == value for key, value in found.items()) for known in derived)


def row(document: dict[str, Any]) -> dict[str, Any]:
    """A run as a row of cells.csv. pp and tg carry their token counts in their names, as in pp256."""
    cell, metrics = document["cell"], dict(document.get("metrics", {}))
    metrics["reasons"] = " ".join(metrics.get("reasons", ()))
    metrics.setdefault("valid", False)
    metrics.setdefault("why", document.get("error", ""))
    names = {"pp": f"pp{cell['bench']['n_prompt']}", "tg": f"tg{cell['bench']['n_gen']}"}
    streams = cell["mode"] == "stream"
    return {
        **{key: cell[key] for key in _AXES},
        **{names.get(key, key): _short(metrics.get(key)) for key in _METRICS},
        **{key: cell["bench"][key] for key in _BENCH},
        **({key: cell["layout"][key] for key in _LAYOUT} if streams else {}),
        **({key: _short(metrics.get(key)) for key in _STREAM} if streams else {}),
        **{key: _short(metrics.get(key)) for key in _STALLS},
    }


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """The columns of all rows, in order."""
    return list(dict.fromkeys(key for each in rows for key in each))


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _order(document: dict[str, Any]) -> tuple[Any, ...]:
    cell, bench = document["cell"], document["cell"]["bench"]
    tier = cell["tier_mbps"] or float("inf"), cell["tier_lat_ms"]
    layout = cell.get("layout", {})
    memory = layout.get("resident_bytes") or 0, layout.get("policy", "")
    return cell["mode"], *memory, *tier, *(bench[key] for key in _BENCH), cell["repeat"]
