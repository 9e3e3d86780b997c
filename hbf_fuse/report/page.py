"""A sweep as a page: tables, findings, environment. The same parts make report.md and report.html."""

from collections.abc import Sequence
from dataclasses import dataclass

from hbf_fuse.documents import Row
from hbf_fuse.host import machine
from hbf_fuse.report import against_cgroup, credibility, findings, levels, machines, summary, tables
from hbf_fuse.report.finding import Finding
from hbf_fuse.report.summary import Series
from hbf_fuse.report.tables import inert
from hbf_fuse.runs.run import Finished, Git, Run
from hbf_fuse.units import format_size
from hbf_fuse.verdict import words

LEGEND = (
    "Times are seconds, medians over the repeats; stage_eff and model_mbps are decimal MB/s; pp and tg are "
    "llama-bench's tokens/s. `agrees ±0.4%`: error and bound (the most that the emulator may have done, "
    "0.4%) are within tolerance together; `unsure`: the error is, they together are not; `off`: the error is "
    "not."
)
MOST_NAMED = 6
"""Cells behind one reason."""

_TITLES = {
    "mmap": "Weights mapped from the tier",
    "stage": "Weights copied through the tier, then mapped from the copy",
    "stream": "Weights that stay in the tier",
    "cgroup": "Weights mapped from the real file, throttled by the kernel",
}
_SERVED = ", served by llama-server"


@dataclass(frozen=True)
class Section:
    """What there is to say of a series."""

    title: str
    series: Series
    rows: list[Row]
    meaning: list[Finding]
    checks: list[Finding]
    details: list[Finding]


def sections(runs: Sequence[Run], target_seconds: float | None = None) -> list[Section]:
    """One per series."""
    return [
        Section(
            title=f"{_TITLES[series.mode]}{_SERVED if series.serves else ''} ({series.title})",
            series=series,
            rows=[point.row() for point in series.points],
            meaning=findings.meaning(series, target_seconds),
            checks=credibility.checks(series),
            details=credibility.details(series),
        )
        for series in summary.series_of(runs)
    ]


def markdown(runs: Sequence[Run], target_seconds: float | None = None) -> str:
    """report.md."""
    parts = ["# Sweep", "", LEGEND, ""]
    for section in sections(runs, target_seconds):
        parts += [f"## {inert(section.title)}", "", *map(inert, section.meaning[:1]), ""]
        parts += [tables.table(section.series.columns, section.rows)]
        if section.series.levels:
            parts += [
                "### By users",
                "",
                tables.table(levels.columns(section.series.levels), section.series.levels),
            ]
        if section.meaning[1:]:
            parts += ["### What it means", "", *_list(section.meaning[1:]), ""]
        parts += ["### Whether to believe it", "", *_list(section.checks), ""]
        parts += ["<details><summary>Repeats, outliers, other processes</summary>", ""]
        parts += [*_list(section.details), "", "</details>", ""]
    if compared := against_cgroup.rows(runs):
        parts += [f"## {against_cgroup.TITLE}", "", against_cgroup.LEGEND, ""]
        parts += [tables.table(against_cgroup.COLUMNS, compared)]
    if side_by_side := machines.rows(runs):
        parts += [f"## {machines.TITLE}", "", machines.LEGEND, ""]
        parts += [tables.table(machines.COLUMNS, side_by_side), *_list(machines.findings(runs)), ""]
    parts += ["## Notable runs", "", *_list(remarks(runs) or ["None."]), ""]
    parts += ["## Measured on", "", *_list(environment(runs)), ""]
    return "\n".join(parts)


def remarks(runs: Sequence[Run]) -> list[str]:
    """Why runs failed, or do not agree: a line for each reason, with the cells that it holds for."""
    cells: dict[str, list[str]] = {}
    for run in runs:
        for remark in _remarks(run):
            where = f" on {run.conditions.machine}" if run.conditions.machine else ""
            cells.setdefault(remark, []).append(f"{run.cell.name}{where}")
    return [f"{remark} ({_named(names)})" for remark, names in cells.items()]


def environment(runs: Sequence[Run]) -> list[str]:
    """What it was measured on, and what was not as it should be."""
    finished = [run for run in runs if isinstance(run, Finished)]
    if not finished:
        return ["No cell was finished."]
    times = sorted(each.environment.before.time for each in finished)
    facts = (_machine, _program, _model, _placement)
    parts = [list(dict.fromkeys(part(each) for each in finished)) for part in facts]
    lines = [
        *(line for part in parts for line in part if line),
        *(f"Not the same in all runs: {' | '.join(part)}" for part in parts if len(part) > 1),
        f"`{' '.join(finished[0].command)}`",
        f"from {times[0]} to {times[-1]}",
    ]
    return [*lines, *_concerns(finished), *_drift(finished)]


def _concerns(runs: Sequence[Run]) -> list[str]:
    """Each once, with the machines that it is of."""
    known: dict[str, dict[str, None]] = {}
    for run in runs:
        for concern in run.conditions.concerns:
            known.setdefault(concern, {})[run.conditions.machine] = None
    return [
        f"Not controlled{f' on {named}' if (named := _named(sorted(filter(None, names)))) else ''}: {concern}"
        for concern, names in known.items()
    ]


def _machine(run: Finished) -> str:
    return machine.described(run.environment.model_dump())


def _program(run: Finished) -> str:
    ours = f"hbf-fuse {run.environment.hbf_fuse}{_commit(run.conditions.git)}"
    program = "llama-server" if run.cell.serve else "llama-bench"
    return f"{ours}, engine {run.cell.engine}, {program} {run.llama_bench.version}"


def _placement(run: Run) -> str:
    place = run.cell.layout.place
    return f"placed: {', '.join(place)}" if place else ""


def _model(run: Run) -> str:
    model = run.cell.model
    return f"{model.name}, {format_size(model.size)}, SHA-256 {model.sha256[:16]}..."


def _remarks(run: Run) -> list[str]:
    if not isinstance(run, Finished):
        return [f"failed: {run.error}"]
    metrics = run.metrics
    if metrics.valid:
        return []
    return [f"{metrics.state}: {words.of(reason)}" for reason in metrics.reasons or [metrics.why]]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _commit(git: Git | None) -> str:
    return f" at {git.commit[:12]}{', changed' if git.changed else ''}" if git else ""


def _drift(runs: list[Finished]) -> list[str]:
    """What the machine did meanwhile: heat, and time that the host took."""
    lines = []
    throttled = [
        run.cell.name
        for run in runs
        if run.environment.before.throttle_count != run.environment.after.throttle_count
    ]
    if throttled:
        lines.append(f"Cores were slowed down for heat during {', '.join(throttled)}")
    stolen = sum(run.environment.after.stolen_seconds - run.environment.before.stolen_seconds for run in runs)
    if stolen >= 1:
        lines.append(f"The host took {stolen:.1f} CPU seconds for others during the cells")
    return lines


def _list(lines: Sequence[str]) -> list[str]:
    return [f"- {inert(line)}" for line in lines]
