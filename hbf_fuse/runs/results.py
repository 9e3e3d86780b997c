"""A results folder. `runs/*.json`, one per finished cell, are the truth; the CSV is derived from them."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.documents import Row
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import ENCODING_ERRORS, Folder
from hbf_fuse.runs.metrics import (
    Decoding,
    Percentiles,
    Running,
    Served,
    ServeLevel,
    Shares,
    Staging,
    Waiting,
)
from hbf_fuse.runs.run import Finished, Run
from hbf_fuse.runs.schema import checked
from hbf_fuse.units import format_size

CSV, LEVELS_CSV, RUNS = "cells.csv", "levels.csv", "runs"

MOST_RUNS, MOST_BYTES = 20_000, 512 << 20
"""Of a folder: all of it is held in memory."""

MAX_CSV_BYTES = 64 << 20
"""A row takes about 1 KB."""

_AXES = ("tier_mbps", "tier_lat_ms", "repeat", "mode")
_LAYOUT = ("resident_bytes", "policy")
_BENCH = ("n_prompt", "n_gen", "threads")
_FURTHER = ("load_mode", "llama")
_SERVED = tuple(Served.model_fields)
_LISTS = ("errors", "reasons")
_METRICS = (*Staging.model_fields, *Running.model_fields, *Shares.model_fields)
_STREAM, _STALLS = tuple(Decoding.model_fields), tuple(Waiting.model_fields)


class Unstorable(HbfError):
    """A run that would be refused when it is read again."""


class Results:
    """One folder. Every file in it appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.csv_path = folder / CSV
        self._known: dict[str, Run] | None = None

    @cached_property
    def opened(self) -> Folder:
        """The folder itself, open; made if it is not there."""
        return Folder.at(self.folder)

    def path_of(self, name: str) -> Path:
        """Where the run of a cell is kept."""
        return self.folder / RUNS / f"{name}.json"

    def store(self, run: Run) -> Path:
        """Keep one run, and bring the CSV up to date. Unstorable if it would be refused when read again."""
        known = self._all()
        path = self.path_of(run.cell.name)
        text = json.dumps(run.to_dict(), indent=1) + "\n"
        if len(text) > documents.MAX_JSON_BYTES:
            raise Unstorable(
                f"the run {path.stem} takes {format_size(len(text))}, too much to be read again",
                "use a model with fewer layers",
            )
        documents.write_in(self._runs(), path.name, text)
        known[run.cell.name] = run
        self.write_csv()
        return path

    def _runs(self) -> Folder:
        try:
            return self.opened.below(RUNS)
        except OSError as error:
            raise self._no_folder(error) from error

    def _existing_runs(self) -> Folder | None:
        try:
            return self.opened.existing(RUNS) if self.folder.exists() else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._no_folder(error) from error

    def _no_folder(self, error: OSError) -> HbfError:
        return HbfError(f"{self.folder / RUNS} is no folder ({error.strerror})", "use another results folder")

    def has(self, name: str) -> bool:
        """Whether a cell was measured; one that failed was not."""
        return isinstance(self.load(name), Finished)

    def load(self, name: str) -> Run | None:
        """A run by its cell's name, or None. HbfError if a file in runs/ is no run of ours."""
        return self._all().get(name)

    def all(self) -> list[Run]:
        """Every run, in the order of the CSV."""
        return in_order(self._all().values())

    def write_csv(self) -> Path:
        """See the function."""
        write_csv(self.opened, self.all())
        return self.csv_path

    def set_aside_edited_csv(self) -> Path | None:
        """Keep a CSV that says what no run says under a name that is free, which is returned; else None.

        A CSV that lacks rows is nobody's edit: that is how a crash leaves it.
        """
        if not self.folder.exists() or not self.opened.has(CSV):
            return None
        derived = [_as_text(row(document)) for document in self.all()]
        try:
            text = self.opened.read(CSV, MAX_CSV_BYTES).decode()
            edited = any(
                not _is_among(found, derived) for found in csv.DictReader(io.StringIO(text, newline=""))
            )
        except (csv.Error, ValueError, OSError):
            edited = True
        if not edited:
            return None
        name = self._free_name()
        self.opened.rename(CSV, name)
        return self.folder / name

    def _free_name(self) -> str:
        numbers, name = itertools.count(2), "cells.edited.csv"
        while self.opened.has(name):
            name = f"cells.edited.{next(numbers)}.csv"
        return name

    def _all(self) -> dict[str, Run]:
        if self._known is None:
            self._known = {}
            runs = self._existing_runs()
            if runs:
                names = [name for name in runs.names() if name.endswith(".json") and not name.startswith(".")]
                if len(names) > MOST_RUNS or runs.nbytes(names) > MOST_BYTES:
                    raise HbfError(
                        f"{runs.path} holds more than {MOST_RUNS} runs, or {format_size(MOST_BYTES)} of them",
                        "move some to another folder",
                    )
                self._known = {name.removesuffix(".json"): _read(runs, name) for name in names}
        return self._known


def write_csv(folder: Folder, runs: Sequence[Run]) -> None:
    """cells.csv: one row per run, in order. Of the workload serve also levels.csv: one row for each number of
    users in each run.
    """
    documents.write_in(folder, CSV, _as_csv([row(run) for run in runs]))
    if levels := [each for run in runs for each in level_rows(run)]:
        documents.write_in(folder, LEVELS_CSV, _as_csv(levels))


def in_order(runs: Iterable[Run]) -> list[Run]:
    """By mode, tier, llama-bench's axes and repeat."""
    return sorted(runs, key=_order)


def _read(runs: Folder, name: str) -> Run:
    path = runs.path / name
    try:
        run = checked(documents.read_json_in(runs, name), path)
    except HbfError as error:
        raise HbfError(str(error), "move it away to measure this cell again") from error
    except OSError as error:
        raise HbfError(f"cannot read {path}: {error.strerror}", "move it away") from error
    if run.cell.name != path.stem:
        raise HbfError(f"{path} holds the run of another cell", "move it away to measure this one again")
    return run


def _as_text(values: Row) -> dict[str, str]:
    texts = {key: "" if value is None else str(value) for key, value in values.items()}
    return {key: text.encode(errors=ENCODING_ERRORS).decode() for key, text in texts.items()}


def _is_among(found: dict[Any, Any], derived: list[dict[str, str]]) -> bool:
    return any(all(known.get(key, "") == value for key, value in found.items()) for known in derived)


def row(run: Run) -> Row:
    """A run as a row of cells.csv. pp and tg carry their token counts in their names, as in pp256."""
    cell, metrics = run.cell, run.metrics if isinstance(run, Finished) else None
    names = {"pp": f"pp{cell.bench.n_prompt}", "tg": f"tg{cell.bench.n_gen}"}
    every = (*_METRICS, *_STREAM, *_STALLS, *_SERVED)
    figures = {key: _short(getattr(metrics, key, None)) for key in every}
    figures["reasons"] = " ".join(metrics.reasons if metrics else ())
    figures["valid"], figures["why"] = (metrics.valid, metrics.why) if metrics else (False, run.error)
    serves = cell.workload == "serve"
    streams = cell.mode == "stream" and not serves
    values = {
        **{key: getattr(cell, key) for key in _AXES},
        **{names.get(key, key): figures[key] for key in _METRICS if not (serves and key in names)},
        **{key: getattr(cell.bench, key) for key in _BENCH},
        **({key: getattr(cell.layout, key) for key in _LAYOUT} if cell.mode == "stream" else {}),
        **{key: figures[key] for key in (*(_STREAM if streams else ()), *_STALLS)},
        **{key: getattr(cell.bench, key) for key in _FURTHER},
        "workload": cell.workload,
        **({key: figures[key] for key in _SERVED} if serves else {}),
        **({"machine": run.conditions.machine} if run.conditions.machine else {}),
    }
    return {key: documents.inert_cell(value) for key, value in values.items()}


def level_rows(run: Run) -> list[Row]:
    """Of the workload serve, a row for each number of users."""
    if not isinstance(run, Finished):
        return []
    return [_level_row(run, level) for level in run.metrics.levels]


def _level_row(run: Finished, level: ServeLevel) -> Row:
    cell = run.cell
    values: Row = {key: getattr(cell, key) for key in _AXES}
    values |= {key: getattr(cell.layout, key) for key in _LAYOUT}
    for name in ServeLevel.model_fields:
        value = getattr(level, name)
        if isinstance(value, Percentiles):
            values |= {f"{name}_{key}": _short(figure) for key, figure in value}
        elif name in _LISTS:
            values[name] = " ".join(value)
        else:
            values[name] = _short(value)
    return {key: documents.inert_cell(value) for key, value in values.items()}


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def columns(rows: list[Row]) -> list[str]:
    """The columns of all rows, in order."""
    return list(dict.fromkeys(key for each in rows for key in each))


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _order(run: Run) -> tuple[Any, ...]:
    cell = run.cell
    tier = cell.tier_mbps or float("inf"), cell.tier_lat_ms
    memory = cell.layout.resident_bytes or 0, cell.layout.policy
    return cell.mode, *memory, *tier, *(getattr(cell.bench, key) for key in (*_BENCH, *_FURTHER)), cell.repeat
