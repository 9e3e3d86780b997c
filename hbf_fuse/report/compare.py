"""Two sweeps side by side, where they measured the same tier in the same way."""

from typing import Any

from hbf_fuse.report.statistics import Spread
from hbf_fuse.report.summary import Point, Series, series_of, table

METRICS = ("stage_seconds", "total_first_run_seconds", "pp", "tg")


def rows(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per point that both have: medians of both, and second against first in percent.

    `<metric>_differs` is whether the 95% intervals of the medians are apart.
    """
    here, there = _points(first), _points(second)
    return [_row(*key, here[key], there[key]) for key in here if key in there]


def markdown(compared: list[dict[str, Any]], first: str, second: str) -> str:
    """The rows as a Markdown table; an asterisk marks differences beyond chance."""
    if not compared:
        return f"{first} and {second} have no point in common.\n"
    columns = ("mode", "tier", *METRICS)
    shown = [{**row, **{metric: _change(row, metric) for metric in METRICS}} for row in compared]
    return (
        f"# {second} against {first}\n\n{table(columns, shown)}\n"
        "Medians, first -> second, and the change; `*`: the 95% intervals of the medians are apart.\n"
    )


def _points(documents: list[dict[str, Any]]) -> dict[tuple[str, str], Point]:
    return {(_name(series), point.label): point for series in series_of(documents) for point in series.points}


def _name(series: Series) -> str:
    return series.title


def _row(mode: str, tier: str, here: Point, there: Point) -> dict[str, Any]:
    row: dict[str, Any] = {"mode": mode, "tier": tier}
    for metric in METRICS:
        before, after = here.spread(metric), there.spread(metric)
        row[f"{metric}_first"] = before and before.median
        row[f"{metric}_second"] = after and after.median
        row[f"{metric}_change_pct"] = (
            (after.median / before.median - 1) * 100 if before and after and before.median else None
        )
        row[f"{metric}_differs"] = _apart(before, after)
    return row


def _apart(one: Spread | None, other: Spread | None) -> bool:
    return bool(one and other and (one.high < other.low or other.high < one.low))


def _change(row: dict[str, Any], metric: str) -> str:
    if row[f"{metric}_change_pct"] is None:
        return "-"
    mark = " *" if row[f"{metric}_differs"] else ""
    first, second = row[f"{metric}_first"], row[f"{metric}_second"]
    return f"{first:.4g} -> {second:.4g} ({row[f'{metric}_change_pct']:+.1f}%){mark}"
