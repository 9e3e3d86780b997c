"""The summary table: the reference experiment's columns by name, then ours."""

import statistics
from collections import defaultdict
from typing import Any

COLUMNS = (
    "tier_mbps",
    "tier_lat_ms",
    "repeats",
    "stage_seconds_median",
    "stage_eff_median",
    "pp_median",
    "tg_median",
    "stage_seconds_min",
    "stage_seconds_max",
    "bench_wall_median",
    "total_first_run_median",
    "model_mbps_median",
    "tier_error_pct_median",
    "valid",
)


def summarize(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per tier point, ordered by tier; failed runs are left out of the figures, not of `valid`.

    valid counts the repeats that agree with the tier model, as in "3/3".
    """
    points: dict[tuple[float, float], list[dict[str, Any]]] = defaultdict(list)
    for document in documents:
        cell = document["cell"]
        points[cell["tier_mbps"] or float("inf"), cell["tier_lat_ms"]].append(document)
    return [_row(mbps, lat, points[mbps, lat]) for mbps, lat in sorted(points)]


def _row(mbps: float, lat_ms: float, documents: list[dict[str, Any]]) -> dict[str, Any]:
    runs = [document["metrics"] for document in documents if "metrics" in document]
    stage = [run["stage_seconds"] for run in runs]
    return {
        "tier_mbps": mbps,
        "tier_lat_ms": lat_ms,
        "repeats": len(documents),
        "stage_seconds_median": _median(runs, "stage_seconds"),
        "stage_eff_median": _median(runs, "stage_effective_mbps"),
        "pp_median": _median(runs, "pp"),
        "tg_median": _median(runs, "tg"),
        "stage_seconds_min": min(stage, default=None),
        "stage_seconds_max": max(stage, default=None),
        "bench_wall_median": _median(runs, "bench_wall_seconds"),
        "total_first_run_median": _median(runs, "total_first_run_seconds"),
        "model_mbps_median": _median(runs, "model_mbps"),
        "tier_error_pct_median": _median(runs, "tier_error_pct"),
        "valid": f"{sum(run['valid'] for run in runs)}/{len(documents)}",
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " ---: |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell_text(row[column]) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell_text(value: Any) -> str:
    """A figure as tables show it: at most three decimals, a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return str(value)


def _median(runs: list[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run[key] is not None]
    return statistics.median(values) if values else None
