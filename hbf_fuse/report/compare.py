"""Two sweeps side by side, where they measured the same tier in the same way."""

from collections.abc import Sequence

from hbf_fuse.documents import Row
from hbf_fuse.report import alike
from hbf_fuse.report.statistics import Spread
from hbf_fuse.report.summary import Point, Series, series_of
from hbf_fuse.report.tables import table
from hbf_fuse.runs.run import Run

METRICS = ("stage_seconds", "total_first_run_seconds", "pp", "tg")
LEAST_VALUES = 3
"""Of one value or two nobody knows how far chance carries them."""


def rows(first: Sequence[Run], second: Sequence[Run]) -> list[Row]:
    """One row per point that both have: medians of both, and second against first in percent.

    `<metric>_differs` is whether the intervals of the medians are apart; see Spread.
    """
    here, there = _points(first), _points(second)
    return [_row(*key, here[key], there[key]) for key in here if key in there]


def markdown(compared: list[Row], first: str, second: str) -> str:
    """The rows as a Markdown table; an asterisk marks differences beyond chance."""
    if not compared:
        return f"{first} and {second} have no point in common.\n"
    columns = ("mode", "tier", "valid", *METRICS)
    shown = [{**row, **{metric: _change(row, metric) for metric in METRICS}} for row in compared]
    return (
        f"# {second} against {first}\n\n{table(columns, shown)}\n"
        "Medians, first -> second, and the change; `*`: the intervals of the medians are apart, of at least "
        f"{LEAST_VALUES} repeats each. Of three repeats that is the range: chance alone parts two of "
        "them 1 time in 10; of five 1 time in 126. valid: repeats that agree with the tier model.\n"
    )


def differences(first: Sequence[Run], second: Sequence[Run]) -> list[str]:
    """What else is not the same in the two, such as the model or the kernel; see alike.py."""
    known = [
        {what: {setting.get(what, "") for setting in alike.settings(each)} for what in alike.WHAT}
        for each in (first, second)
    ]
    return [f"not the same {what}" for what in alike.WHAT if known[0][what] != known[1][what]]


def _points(runs: Sequence[Run]) -> dict[tuple[str, str], Point]:
    return {(_name(series), point.label): point for series in series_of(runs) for point in series.points}


def _name(series: Series) -> str:
    return series.title


def _row(mode: str, tier: str, here: Point, there: Point) -> Row:
    valid = " -> ".join(f"{point.valid_count}/{len(point.runs)}" for point in (here, there))
    row: Row = {"mode": mode, "tier": tier, "valid": valid}
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
    if not one or not other or min(len(one.values), len(other.values)) < LEAST_VALUES:
        return False
    return one.high < other.low or other.high < one.low


def _change(row: Row, metric: str) -> str:
    if row[f"{metric}_change_pct"] is None:
        return "-"
    mark = " *" if row[f"{metric}_differs"] else ""
    first, second = row[f"{metric}_first"], row[f"{metric}_second"]
    return f"{first:.4g} -> {second:.4g} ({row[f'{metric}_change_pct']:+.1f}%){mark}"
