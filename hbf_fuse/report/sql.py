"""llama-bench's own SQLite table, as `llama-bench -o sql` writes it, with the tier's columns.

llama.cpp's scripts/compare-llama-bench.py reads it. That script compares rows whose key properties are alike,
and it knows no tier. So the tier stands in `model_type`, which is such a property: rows of two tiers never
meet.
"""

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.runs.run import Finished, Run

TABLE = "llama_bench"
MARK = "hbf_cell"
"""A column that nobody else's table has."""

UNKNOWN_COMMIT = "unknown"
MAX_BYTES = 256 << 20
_NAME = re.compile("[a-z][a-z0-9_]{0,60}")
"""Of a column; llama-bench has no others."""

_TYPES = {bool: "INTEGER", int: "INTEGER", float: "REAL"}
_CELL = ("mode", "engine", "repeat", "tier_mbps", "tier_lat_ms")
_METRICS = (
    "tier_error_pct",
    "tier_bound_pct",
    "stage_seconds",
    "stage_effective_mbps",
    "model_mbps",
    "total_first_run_seconds",
    "predicted_tg",
)
_OTHERS = {
    MARK: "TEXT",
    "machine": "TEXT",
    "kernel": "TEXT",
    "hbf_fuse": "TEXT",
    "llama_model_type": "TEXT",
    "mode": "TEXT",
    "engine": "TEXT",
    "repeat": "INTEGER",
    "tier_mbps": "REAL",
    "tier_lat_ms": "REAL",
    "resident_bytes": "INTEGER",
    "policy": "TEXT",
    "verdict": "TEXT",
    **dict.fromkeys(_METRICS, "REAL"),
}


def database(runs: Sequence[Run]) -> bytes:
    """A SQLite file. HbfError if no run has a llama-bench.

    A column that a record lacks, because its llama-bench is older or newer, is empty or 0: with NULL, the
    script would find no rows to compare.
    """
    rows = list(_rows(runs))
    if not rows:
        raise HbfError("no run of llama-bench is there", "name a folder of hbf bench or sweep")
    columns = {key: _TYPES.get(type(value), "TEXT") for row, _ in rows for key, value in row.items()}
    with sqlite3.connect(":memory:") as connection:
        declared = ", ".join(f'"{name}" {kind}' for name, kind in {**columns, **_OTHERS}.items())
        connection.execute(f"CREATE TABLE {TABLE} ({declared})")
        places = ", ".join("?" * (len(columns) + len(_OTHERS)))
        for row, others in rows:
            values = [_storable(row.get(name, "" if kind == "TEXT" else 0)) for name, kind in columns.items()]
            connection.execute(
                f"INSERT INTO {TABLE} VALUES ({places})",  # noqa: S608 - our names, no values
                [*values, *(others[name] for name in _OTHERS)],
            )
        connection.commit()
        return connection.serialize()


def _storable(value: Any) -> Any:
    """SQLite has whole numbers of 64 bits."""
    return str(value) if isinstance(value, int) and abs(value) >= 1 << 63 else value


def is_ours(content: bytes) -> bool:
    """Whether a file's content is such a database."""
    try:
        with sqlite3.connect(":memory:") as connection:
            connection.deserialize(content)
            known = connection.execute(f"PRAGMA table_info({TABLE})").fetchall()
    except sqlite3.Error:
        return False
    return MARK in {column[1] for column in known}


def commits(runs: Sequence[Run]) -> list[str]:
    """Of llama.cpp, those that were measured."""
    return list(dict.fromkeys(str(row.get("build_commit", UNKNOWN_COMMIT)) for row, _ in _rows(runs)))


def _rows(runs: Sequence[Run]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """For each record of llama-bench its fields, and ours."""
    kernels = _has_several_kernels(runs)
    for run in runs:
        if not isinstance(run, Finished) or run.cell.workload != "bench":
            continue
        for record in run.llama_bench.records:
            fields = {
                key: value
                for key, value in record.items()
                if _NAME.fullmatch(key) and key not in _OTHERS and isinstance(value, str | int | float)
            }
            kind = str(fields.get("model_type", ""))
            yield (
                {
                    **fields,
                    "model_type": f"{kind}, {_tier(run, kernels)}",
                    "model_filename": run.cell.model.name,
                },
                {**_ours(run), "llama_model_type": kind},
            )


def _tier(run: Finished, kernels: bool) -> str:
    """Where the weights came from, in words. kernels: also of which Linux."""
    cell, layout = run.cell, run.cell.layout
    parts = [cell.mode, str(cell.tier)]
    parts += (
        [f"{layout.resident_bytes >> 20} MiB {layout.policy}"] if layout.resident_bytes is not None else []
    )
    parts += [*layout.place, *(f"{name}: {tier}" for name, tier in layout.tiers.items())]
    parts += [f"readahead {layout.readahead_kib} KiB"] if layout.readahead_kib is not None else []
    parts += [f"engine {cell.engine}"] if cell.engine != "kernel" else []
    parts += [f"Linux {run.environment.kernel}"] if kernels else []
    return ", ".join(parts)


def _has_several_kernels(runs: Sequence[Run]) -> bool:
    """Whether one build of llama.cpp ran on several, over which nothing may be averaged."""
    known: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        if isinstance(run, Finished):
            known[run.llama_bench.version].add(run.environment.kernel)
    return any(len(kernels) > 1 for kernels in known.values())


def _ours(run: Finished) -> dict[str, Any]:
    cell, metrics = run.cell, run.metrics
    return {
        MARK: cell.name,
        "machine": run.conditions.machine,
        "kernel": run.environment.kernel,
        "hbf_fuse": run.environment.hbf_fuse,
        **{name: getattr(cell, name) for name in _CELL},
        "resident_bytes": cell.layout.resident_bytes,
        "policy": cell.layout.policy if cell.layout.resident_bytes is not None else "",
        **{name: getattr(metrics, name) for name in _METRICS},
        "verdict": metrics.state,
    }
