"""A served point in figures: its own, and one row for each number of users. Medians over the repeats."""

import statistics
from collections.abc import Sequence
from operator import attrgetter

from hbf_fuse.documents import Row
from hbf_fuse.runs.metrics import Metrics, ServeLevel

COLUMNS = (
    "tier_mbps",
    "tier_lat_ms",
    "repeats",
    "cold_ttft_median",
    "predicted_ttft_median",
    "memory_ttft_median",
    "stage_seconds_median",
    "ready_median",
    "first_prefill_median",
    "warm_ttft_median",
    "break_even_batch_median",
    "tier_error_pct_median",
    "verdict",
)
LEVEL_COLUMNS = (
    "tier_mbps",
    "tier_lat_ms",
    "users",
    "tokens_per_second",
    "decode_tps",
    "predicted_tps",
    "error_pct",
    "ttft_p50",
    "tpot_p50",
    "itl_p50",
    "itl_p95",
    "itl_p99",
    "MB_per_token",
    "failed",
    "client_cpu",
    "verdict",
)
"""Of the second table: a row for each tier and number of users."""

_FIGURES = {
    "tokens_per_second": "tokens_per_second",
    "decode_tps": "decode_tokens_per_second",
    "predicted_tps": "predicted_tokens_per_second",
    "error_pct": "error_pct",
    "ttft_p50": "ttft.p50",
    "tpot_p50": "tpot.p50",
    "itl_p50": "itl.p50",
    "itl_p95": "itl.p95",
    "itl_p99": "itl.p99",
    "client_cpu": "client_cpu_share",
    "experts": "experts_per_step",
    "predicted_experts": "predicted_experts_per_step",
    "bytes_per_token": "bytes_per_token",
}
_OF_POINT = {
    "cold_ttft_median": "cold_ttft_seconds",
    "predicted_ttft_median": "predicted_ttft_seconds",
    "memory_ttft_median": "memory_ttft_seconds",
    "ready_median": "ready_seconds",
    "first_prefill_median": "first_prefill_seconds",
    "warm_ttft_median": "warm_ttft_seconds",
    "break_even_batch_median": "break_even_batch",
}


def row(runs: Sequence[Metrics]) -> Row:
    """A point's own columns."""
    return {column: _median(runs, name) for column, name in _OF_POINT.items()}


def users(runs: Sequence[Metrics]) -> list[int]:
    """Every number of users that was measured."""
    return sorted({level.concurrency for run in runs for level in run.levels})


def rows(runs: Sequence[Metrics], tier: Row) -> list[Row]:
    """The rows of LEVEL_COLUMNS. tier: its columns."""
    return [{**tier, **_row(of(runs, count), count)} for count in users(runs)]


def columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """Those of LEVEL_COLUMNS that some row has a figure for, and the tier's."""
    return tuple(
        name
        for name in LEVEL_COLUMNS
        if name.startswith("tier_") or any(row[name] not in (None, "-") for row in rows)
    )


def _row(levels: Sequence[ServeLevel], count: int) -> Row:
    nbytes = _median(levels, "bytes_per_token")
    verdicts = dict.fromkeys(level.verdict for level in levels if level.verdict)
    return {
        "users": count,
        **{name: _median(levels, path) for name, path in _FIGURES.items() if name in LEVEL_COLUMNS},
        "MB_per_token": nbytes and nbytes / 1e6,
        "failed": sum(level.failed for level in levels),
        "verdict": ", ".join(verdicts) or "-",
    }


def of(runs: Sequence[Metrics], count: int) -> list[ServeLevel]:
    """A level in every repeat."""
    return [level for run in runs for level in run.levels if level.concurrency == count]


def median(runs: Sequence[Metrics], count: int, column: str) -> float | None:
    """A figure of LEVEL_COLUMNS."""
    return _median(of(runs, count), _FIGURES[column])


def _median(of_these: Sequence[Metrics | ServeLevel], path: str) -> float | None:
    """path: names with dots between them, of which the first may be None."""
    first = path.partition(".")[0]
    values = [attrgetter(path)(each) for each in of_these if getattr(each, first) is not None]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
