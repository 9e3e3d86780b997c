"""Machines side by side, where several have measured: what is theirs, and what is the tier's."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations

from hbf_fuse.documents import Row
from hbf_fuse.host import machine as facts
from hbf_fuse.report import alike
from hbf_fuse.report.finding import Finding
from hbf_fuse.report.statistics import Spread
from hbf_fuse.runs.run import Finished, Run
from hbf_fuse.verdict import tolerance_pct

TITLE = "Machines"
LEGEND = (
    "Medians. A `_ratio` is a machine's figure against the median of all machines on the same cell, over "
    "the cells that more than one machine has measured. The tier is the same everywhere, so what differs "
    "there is the machine's, or chance."
)
COLUMNS = (
    "machine",
    "cells",
    "agrees",
    "tier_error_pct_median",
    "stage_seconds_ratio",
    "pp_ratio",
    "tg_ratio",
    "measured_on",
)
LEAST_CELLS = 3
"""With fewer, nobody knows how far chance carries a ratio."""

_METRICS = {"stage_seconds": "stage time", "pp": "pp", "tg": "tg"}


def rows(runs: Sequence[Run]) -> list[Row]:
    """One for each machine under the names of COLUMNS; none if there is only one machine."""
    known = _by_machine(runs)
    if len(known) < 2:
        return []
    ratios = {metric: _ratios(known, metric) for metric in _METRICS}
    return [
        {
            "machine": name,
            "cells": len(each),
            "agrees": f"{sum(run.metrics.valid for run in each)}/{len(each)}",
            "tier_error_pct_median": _median(each, "tier_error_pct"),
            **{f"{metric}_ratio": spread and spread.median for metric, spread in _of(ratios, name).items()},
            "measured_on": facts.described(each[0].environment.model_dump()),
        }
        for name, each in known.items()
    ]


def findings(runs: Sequence[Run]) -> list[Finding]:
    """What differs between machines, and whose difference it is; nothing if there is only one machine."""
    known = _by_machine(runs)
    if len(known) < 2:
        return []
    found = [
        Finding("unlike", f"Not the same everywhere: {what}: {' | '.join(values)}.")
        for what, values in alike.differing(runs).items()
    ]
    tolerance = max(tolerance_pct(run.cell.tier) for each in known.values() for run in each)
    for metric, name in _METRICS.items():
        ratios = {machine: spread for machine, spread in _ratios(known, metric).items() if spread}
        if len(ratios) > 1:
            found.append(Finding(f"machines-{metric}", _sentence(metric, name, ratios, tolerance)))
    if len(found) == len(alike.differing(runs)):
        found.append(
            Finding("nothing-shared", "No cell was measured by two machines: they cannot be compared.")
        )
    return found


def _sentence(metric: str, name: str, ratios: dict[str, Spread], tolerance: float) -> str:
    enough = {machine: spread for machine, spread in ratios.items() if len(spread.values) >= LEAST_CELLS}
    counted = enough if len(enough) > 1 else ratios
    spread_pct = _between(max(counted.values(), key=_median_of), min(counted.values(), key=_median_of))
    text = f"Between machines, {name} differs by {_pct(spread_pct)} on the same cells"
    if metric == "stage_seconds" and spread_pct <= tolerance:
        return f"{text}, which is within the tolerance of the tier model."
    if len(enough) < 2:
        return f"{text}; of so few cells nobody knows why."
    apart = [pair for pair in permutations(enough, 2) if enough[pair[0]].low > enough[pair[1]].high]
    if not apart:
        return f"{text}; chance can do as much."
    fast, slow = max(apart, key=lambda pair: _between(enough[pair[0]], enough[pair[1]]))
    return (
        f"{text} ({slow} {enough[slow].median:.3g}, {fast} {enough[fast].median:.3g} of the median), more "
        "than chance does: that is the machines'. So is a difference up to this between two tiers that were "
        "measured on different machines."
    )


def _pct(value: float) -> str:
    return f"{value:.0f}%" if value >= 10 else f"{value:.2g}%"


def _median_of(spread: Spread) -> float:
    return spread.median


def _between(more: Spread, less: Spread) -> float:
    """In percent."""
    return (more.median / less.median - 1) * 100


def _by_machine(runs: Sequence[Run]) -> dict[str, list[Finished]]:
    """Finished runs by what their machine is called, or by what it is."""
    known: dict[str, list[Finished]] = defaultdict(list)
    for run in runs:
        if isinstance(run, Finished):
            name = run.conditions.machine or facts.described(run.environment.model_dump())
            known[name].append(run)
    return dict(sorted(known.items()))


def _ratios(known: dict[str, list[Finished]], metric: str) -> dict[str, Spread | None]:
    """By machine: its figures against the median of all, over the cells that several have measured."""
    cells: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, runs in known.items():
        for run in runs:
            if (value := getattr(run.metrics, metric)) is not None:
                cells[_cell(run)][name].append(value)
    ratios: dict[str, list[float]] = defaultdict(list)
    for by_machine in cells.values():
        medians = {name: statistics.median(values) for name, values in by_machine.items()}
        usual = statistics.median(medians.values())
        if len(medians) > 1 and usual:
            for name, median in medians.items():
                ratios[name].append(median / usual)
    return {name: Spread.of(ratios[name]) for name in known}


def _cell(run: Finished) -> tuple[str, ...]:
    """What was measured, whichever repeat it is."""
    cell = run.cell
    serve = cell.serve.label if cell.serve else ""
    return cell.name.removesuffix(f"-r{cell.repeat}"), serve, *alike.measured(run).values()


def _of(ratios: dict[str, dict[str, Spread | None]], name: str) -> dict[str, Spread | None]:
    return {metric: by_machine[name] for metric, by_machine in ratios.items()}


def _median(runs: Sequence[Finished], metric: str) -> float | None:
    values = [value for run in runs if (value := getattr(run.metrics, metric)) is not None]
    return statistics.median(values) if values else None
