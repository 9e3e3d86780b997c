"""The tables and checks of tools/bench reads: several runs are merged, judged, and written as Markdown."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.units import format_size, parse_size

BEGIN, END = "<!-- written by tools/bench reads -->", "<!-- end -->"
SUBJECT = "compiled"
"""The peer that the checks are about."""

_ORDER = ("limit", SUBJECT, "uncompiled", "fusepy")
_THROTTLED = {"500": 1.0, "1000": 1.0, "2000": 2.0}
"""Largest error of a tier's cells, in percent."""

_P50_US = {"20us": 8.0, "50us": 5.0, "100us": 5.0, "200us": 5.0, "1ms": 5.0}
"""Largest difference between the median wait of 4 KiB x 1 and the latency, in us."""

_MEDIANS = ("reads_per_s", "p50_us", "p99_us", "cpu")
_UNITS = {"us": 1.0, "ms": 1000.0}
_HOW = {
    "": "Compared with the tier's model. Each cell: MB/s, error in percent of the model, the server's CPU in cores.",
    "unthrottled": "Each cell: MB/s, the server's CPU in cores.",
    "latency": "Time of a read as its reader sees it, in us. Each cell: median / 99th percentile.",
    "mmap": "Each cell: MB/s, the server's CPU in cores.",
}


@dataclass(frozen=True)
class Check:
    """A target. passed: None if a required figure was not measured."""

    target: str
    passed: bool | None
    found: str


class Cells:
    """Cells by peer, tier, block size ("mmap" for the stream) and readers; all with the same cores busy."""

    def __init__(self, cells: list[dict[str, Any]]) -> None:
        self._cells = {(each["peer"], each["tier"], each["bs"], each["numjobs"]): each for each in cells}
        found = dict.fromkeys(each["peer"] for each in cells)
        self.peers = [*(name for name in _ORDER if name in found), *(n for n in found if n not in _ORDER)]
        self.rows = sorted({key[1:] for key in self._cells}, key=_rank)

    def get(self, peer: str, tier: str, bs: str, readers: int) -> dict[str, Any] | None:
        return self._cells.get((peer, tier, bs, readers))

    def value(self, peer: str, tier: str, bs: str, readers: int, figure: str = "mbps") -> float | None:
        """A median. None if it was not measured."""
        cell = self.get(peer, tier, bs, readers) or {}
        return cell[figure]["median"] if figure == "mbps" and cell else cell.get(figure)


def merged(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge several documents into one. The runs of a cell that is in several documents are put together."""
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell in (cell for document in documents for cell in document["cells"]):
        key = tuple(cell[name] for name in ("busy", "peer", "tier", "bs", "numjobs"))
        runs = [*(cells[key]["runs"] if key in cells else []), *cell["runs"]]
        cells[key] = _summary({**cell, "runs": runs})
    conditions = [each for document in documents for each in document["conditions"]]
    busy = sorted({cell["busy"] for cell in cells.values()})
    groups = {number: Cells([cell for cell in cells.values() if cell["busy"] == number]) for number in busy}
    return {
        "conditions": conditions,
        "checks": [
            {"busy": number, **vars(each)} for number, group in groups.items() for each in checks(group)
        ],
        "cells": list(cells.values()),
    }


def checks(cells: Cells) -> Iterator[Check]:
    """The targets, with the measured figures."""
    for tier, percent in _THROTTLED.items():
        yield _within(cells, tier, percent)
    pairs: tuple[tuple[str, str, str, int, float], ...] = (
        ("limit", "4 KiB x 1", "4k", 1, 0.7),
        ("limit", "4 KiB x 8", "4k", 8, 0.7),
        ("limit", "the mmap stream", "mmap", 1, 0.85),
        ("before", "4 KiB x 8", "4k", 8, 12),
    )
    for other, what, bs, readers, least in pairs:
        words = f"{least:.0%} of" if least < 1 else f"{least:g} times"
        ratio = _ratio(cells, other, "unthrottled", bs, readers, "mbps")
        yield _judged(f"unthrottled, {what}: at least {words} {other}", ratio, (least, math.inf))
    for other, most in (("limit", 2.0), ("fusepy", 0.2)):
        ratio = _ratio(cells, other, "1000", "128k", 4, "cpu")
        target = f"server CPU, 1000 MB/s, 128 KiB x 4: at most {most:g} times that of {other}"
        yield _judged(target, ratio, (0, most))
    for tier, most in _P50_US.items():
        p50, of_limit = (cells.value(peer, tier, "4k", 1, "p50_us") for peer in (SUBJECT, "limit"))
        if p50 is not None or tier not in ("50us", "200us"):
            off = None if p50 is None else p50 - _latency_us(tier)
            beside = "" if of_limit is None else f", the limit {of_limit - _latency_us(tier):+.1f} us"
            target = f"median of 4 KiB x 1 at {tier}: within {most:g} us"
            yield _judged(target, off, (-most, most), f"{{:+.1f}} us{beside}")
    p99, of_limit = (cells.value(peer, "100us", "4k", 8, "p99_us") for peer in (SUBJECT, "limit"))
    beside = "" if of_limit is None else f", the limit {of_limit:.0f} us"
    target = "99th percentile of 4 KiB x 8 at 100us: below 300 us"
    yield _judged(target, p99, (0, 300), f"{{:.0f}} us{beside}")


def update(page: Path, document: dict[str, Any]) -> None:
    """Put the tables between the page's marks, or make a new page. HbfError for a page without marks."""
    tables = f"{BEGIN}\n\n{markdown(document)}\n{END}\n"
    if not page.exists():
        page.write_text(tables)
        return
    before, begun, rest = page.read_text().partition(BEGIN)
    _, ended, after = rest.partition(f"{END}\n")
    if not begun or not ended:
        raise HbfError(f"{page} has no lines {BEGIN} and {END} to write between")
    page.write_text(before + tables + after)


def markdown(document: dict[str, Any]) -> str:
    """Conditions, checks and tables."""
    lines = [
        "Medians, measured on:",
        "",
        *dict.fromkeys(_conditions(each) for each in document["conditions"]),
    ]
    for busy in sorted({cell["busy"] for cell in document["cells"]}):
        cells = Cells([cell for cell in document["cells"] if cell["busy"] == busy])
        also = f", {busy} {'core' if busy == 1 else 'cores'} kept busy" if busy else ""
        lines += ["", f"## Targets{also}", ""]
        for check in checks(cells):
            word = {True: "pass", False: "**fail**", None: "not measured"}[check.passed]
            lines.append(f"- {word}: {check.target}{f' ({check.found})' if check.found else ''}")
        for kind, title in (
            ("", "Throttled"),
            ("unthrottled", "Unthrottled"),
            ("latency", "Latency alone"),
            ("mmap", "A mapping read once with a cold page cache"),
        ):
            rows = [row for row in cells.rows if _kind(row) == kind]
            if rows:
                lines += ["", f"## {title}{also}", "", _HOW[kind], "", *_table(cells, kind, rows)]
    return "\n".join(lines) + "\n"


def _conditions(each: dict[str, Any]) -> str:
    commits = ", ".join(f"{name} {peer['commit']}" for name, peer in each["peers"].items() if peer["commit"])
    cut = "" if each["complete"] else ", stopped early"
    return (
        f"- {machine.described(each)}, {each['fio']}, {each['time'][:10]}: {each['rounds']} round{'s' if each['rounds'] > 1 else ''}{cut}, "
        f"{each['runtime']:g} s a cell, a source of {format_size(each['size'])}; {commits}."
    )


def _table(cells: Cells, kind: str, rows: list[tuple[str, str, int]]) -> list[str]:
    names = {"": ["MB/s", "block", "readers", "model"], "unthrottled": ["block", "readers"]}
    names |= {"latency": ["latency", "block", "readers"], "mmap": ["tier"]}
    lines = [f"| {' | '.join([*names[kind], *cells.peers])} |"]
    lines.append("|" + "---:|" * (len(names[kind]) + len(cells.peers)))
    for tier, bs, readers in rows:
        found = [cells.get(peer, tier, bs, readers) for peer in cells.peers]
        model = next(cell["model_mbps"] for cell in found if cell)
        first: dict[str, list[str]] = {
            "": [tier, bs, str(readers), f"{model or 0:.1f}"],
            "unthrottled": [bs, str(readers)],
            "latency": [tier, bs, str(readers)],
            "mmap": [tier],
        }
        lines.append(f"| {' | '.join([*first[kind], *(_shown(cell, kind) for cell in found)])} |")
    return lines


def _shown(cell: dict[str, Any] | None, kind: str) -> str:
    if cell is None:
        return ""
    if kind == "latency":
        return f"{cell['p50_us']:.0f} / {cell['p99_us']:.0f}"
    error = f", {cell['error_pct']:+.1f}%" if cell["error_pct"] is not None else ""
    return f"{cell['mbps']['median']:.0f}{error}, {cell['cpu']:.2f}"


def _summary(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell with medians of its runs."""
    rates = [run["mbps"] for run in cell["runs"]]
    median = statistics.median(rates)
    model = cell["model_mbps"]
    figures = {name: [run[name] for run in cell["runs"] if name in run] for name in _MEDIANS}
    return {
        **cell,
        "mbps": {"median": median, "min": min(rates), "max": max(rates)},
        "error_pct": (median / model - 1) * 100 if model else None,
        **{name: statistics.median(values) for name, values in figures.items() if values},
    }


def _within(cells: Cells, tier: str, percent: float) -> Check:
    """Checks the cells of a throttled tier that the limit serves within 1% (all, if the limit was not measured)."""
    errors: dict[str, float] = {}
    spared = 0
    for row in (row for row in cells.rows if row[0] == tier and row[1] != "mmap"):
        error, of_limit = (cells.value(peer, *row, "error_pct") for peer in (SUBJECT, "limit"))
        if of_limit is not None and abs(of_limit) > 1:
            spared += 1
        elif error is not None:
            errors[f"{row[1]} x {row[2]}"] = error
    target = f"{tier} MB/s: within {percent:g}% of the model where the limit is within 1%"
    if not errors:
        return Check(target, None, f"the limit misses all {spared} cells" if spared else "")
    bad = {name: error for name, error in errors.items() if abs(error) > percent}
    worst = max(errors, key=lambda name: abs(errors[name]))
    found = f"{len(errors) - len(bad)} of {len(errors)} cells, the worst {errors[worst]:+.1f}% ({worst})"
    if len(bad) > 1:
        found += f"; missed: {', '.join(f'{name} {error:+.1f}%' for name, error in bad.items())}"
    return Check(target, not bad, f"{found}; the limit misses {spared} more" if spared else found)


def _ratio(cells: Cells, other: str, tier: str, bs: str, readers: int, figure: str) -> float | None:
    """The subject's figure divided by another peer's."""
    ours, theirs = (cells.value(peer, tier, bs, readers, figure) for peer in (SUBJECT, other))
    return ours / theirs if ours is not None and theirs else None


def _judged(
    target: str, value: float | None, wanted: tuple[float, float], form: str = "{:.2f} times"
) -> Check:
    """wanted: the least and the most that the value may be."""
    if value is None:
        return Check(target, None, "")
    return Check(target, wanted[0] <= value <= wanted[1], form.format(value))


def _latency_us(tier: str) -> float:
    """Microseconds of a tier's name, 0 for one of bandwidth."""
    return next((float(tier[:-2]) * us for unit, us in _UNITS.items() if tier.endswith(unit)), 0.0)


def _kind(row: tuple[str, str, int]) -> str:
    tier, bs, _ = row
    if bs == "mmap" or tier == "unthrottled":
        return "mmap" if bs == "mmap" else tier
    return "latency" if _latency_us(tier) else ""


def _rank(row: tuple[str, str, int]) -> tuple[float, float, float, int]:
    tier, bs, readers = row
    latency = _latency_us(tier)
    bandwidth = 0.0 if latency or tier == "unthrottled" else float(tier)
    return latency, bandwidth, 0 if bs == "mmap" else parse_size(bs), readers
