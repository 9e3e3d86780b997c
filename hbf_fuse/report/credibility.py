"""Whether a sweep's figures can be believed, in sentences written from its data.

A sentence says how many points it holds for, and names those that it does not hold for.
"""

import statistics
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from hbf_fuse.report import decode, serving
from hbf_fuse.report.finding import Finding
from hbf_fuse.report.statistics import Spread
from hbf_fuse.report.summary import Point, Series
from hbf_fuse.tier.expect import CHUNK_BYTES
from hbf_fuse.verdict import tolerance_pct

OTHERS_SHARE = 0.05
"""Of a cell's time: more than this used by other processes is worth naming."""

_WATCHED = {
    "stage_seconds": "stage time",
    "bench_wall_seconds": "wall time",
    "pp": "pp",
    "tg": "tg",
}


def checks(series: Series) -> list[Finding]:
    """Whether the figures can be believed."""
    points = [point for point in series.points if point.metrics]
    if not points:
        return [Finding("nothing-finished", "No cell was finished.")]
    found = [Finding("stage-against-model", _against_model(points))]
    if series.serves:
        found += serving.checks(points)
    elif series.mode == "stream":
        found += decode.checks(points)
    else:
        if series.mode != "cgroup":  # there io.max is the ideal itself
            found.append(Finding("stage-against-ideal", _against_ideal(series, points)))
        found.append(Finding("stage-order", _ordered(points)))
    return [finding for finding in found if finding]


def details(series: Series) -> list[Finding]:
    """What whoever doubts the figures looks at next: repeats, outliers, the cache, other processes."""
    points = [point for point in series.points if point.metrics]
    if not points:
        return []
    found = [
        Finding("repeats", _repeats(points)),
        *(Finding("outliers", sentence) for sentence in _outliers(points)),
        Finding("cold-cache", _cold(points)),
        Finding("harness-time", _overhead(points)),
        *(Finding("other-processes", sentence) for sentence in _disturbed(points)),
    ]
    return [finding for finding in found if finding]


def _against_model(points: list[Point]) -> str:
    judged = [point for point in points if point.median("tier_error_pct") is not None]
    if not judged:
        return ""
    good = [point for point in judged if point.valid]
    worst = max((abs(point.median("tier_error_pct") or 0.0) for point in good), default=0.0)
    text = (
        f"Stage time follows the tier model within {worst:.2g}% in {len(good)} of {len(judged)} points."
        if good
        else f"In none of {len(judged)} points is the stage time known to follow the tier model."
    )
    for point in judged:
        if point not in good:
            text += f" {point.label}: {point.verdict}."
    return text


def _against_ideal(series: Series, points: list[Point]) -> str:
    """The measured stage time against what bandwidth and latency come to on the back of an envelope."""
    formula = f"{CHUNK_BYTES >> 20} MiB chunks at bandwidth and latency"
    if series.mode == "mmap":
        formula = "size / bandwidth"
    errors = {
        point: (rate / point.ideal_mbps - 1) * 100
        for point in points
        if point.ideal_mbps and (rate := point.median("stage_effective_mbps"))
    }
    if not errors:
        return ""
    near = {point: error for point, error in errors.items() if abs(error) <= tolerance_pct(point.spec)}
    worst = max((abs(error) for error in near.values()), default=0.0)
    text = (
        f"Stage time follows {formula} within {worst:.2g}% in {len(near)} of {len(errors)} points."
        if near
        else f"Stage time follows {formula} in none of {len(errors)} points."
    )
    bound = [
        f"{point.label} ({error:+.1f}%)"
        for point, error in errors.items()
        if point not in near and point.valid and error < 0
    ]
    if bound:
        plain = all(point.spec.plain for point in points)
        by = "what was in flight" if plain else "what was in flight, jitter, planes or depth"
        text += f" Bound by {by}, as the model says: {', '.join(bound)}."
    return text


def _ordered(points: list[Point]) -> str:
    """More bandwidth must not stage slower, more latency not faster."""
    points = [point for point in points if point.valid]
    axes = [
        f"{change} with {name}"
        for change, name, key in (("falls", "bandwidth", _bandwidth), ("rises", "latency", _latency))
        if len({key(point) for point in points}) > 1
    ]
    if not axes:
        return ""
    wrong = []
    for key, other in ((_latency, _bandwidth), (_bandwidth, _negative_latency)):
        for value in dict.fromkeys(key(point) for point in points):
            line = sorted((point for point in points if key(point) == value), key=other)
            wrong += [
                f"{slow.label} and {fast.label}" for slow, fast in pairwise(line) if _slower(fast, slow)
            ]
    if wrong:
        return f"Not in the order of the tiers, beyond tolerance: {'; '.join(wrong)}."
    rates = [(point.median("model_mbps"), point.median("stage_effective_mbps")) for point in points]
    model, achieved = np.array([pair for pair in rates if None not in pair], dtype=float).reshape(-1, 2).T
    text = f"Stage time {' and '.join(axes)}, everywhere within tolerance."
    if len(model) > 2 and model.std() > 0:
        text += f" Achieved and model rate correlate with r = {np.corrcoef(model, achieved)[0, 1]:.5f}."
    return text


def _slower(fast: Point, slow: Point) -> bool:
    """Whether the tier that cannot be slower took longer, by more than tolerance."""
    quick, long = fast.median("stage_seconds"), slow.median("stage_seconds")
    if quick is None or long is None:
        return False
    return quick > long * (1 + max(tolerance_pct(fast.spec), tolerance_pct(slow.spec)) / 100)


def _repeats(points: list[Point]) -> str:
    widths = [spread.width_pct for point in points if (spread := _stage(point)) and len(spread.values) > 1]
    if not widths:
        return "One repeat a point: nothing is known about the spread."
    copied = [point.label for point in points if _all_alike(point)]
    text = (
        "Each repeat is a mount and a process of its own; stage times of a point lie "
        f"{statistics.median(widths):.2g}% apart in the median, {max(widths):.2g}% at most."
    )
    return text + (f" Repeats of {', '.join(copied)} are alike in every figure." if copied else "")


def _all_alike(point: Point) -> bool:
    figures = {(run.stage_seconds, run.bench_wall_seconds, run.pp, run.tg) for run in point.metrics}
    return len(point.metrics) > 1 and len(figures) == 1


def _outliers(points: list[Point]) -> Iterator[str]:
    named = [
        f"{point.label} repeat {point.repeats[place]}: {name} {spread.values[place]:.3g} "
        f"against {spread.median:.3g}"
        for point in points
        for metric, name in _WATCHED.items()
        if (spread := point.spread(metric))
        for place in spread.outliers()
    ]
    if named:
        yield f"Outliers: {'; '.join(named)}."


def _cold(points: list[Point]) -> str:
    known = [run.resident_before_bytes for point in points for run in point.metrics]
    if None in known:
        return "Whether the cache was cold is not known: the kernel tells the owner of the model only."
    warm = sum(bool(resident) for resident in known)
    return f"No byte of the model was resident before {len(known) - warm} of {len(known)} runs."


def _overhead(points: list[Point]) -> str:
    spent = [
        run.harness_seconds for point in points for run in point.metrics if run.harness_seconds is not None
    ]
    return f"Mounting, checking and unmounting took {statistics.median(spent):.2f} s a cell." if spent else ""


def _disturbed(points: list[Point]) -> Iterator[str]:
    named = [
        f"{point.label} repeat {point.repeats[place]} ({run.other_cpu_seconds:.1f} s)"
        for point in points
        for place, run in enumerate(point.metrics)
        if (run.other_cpu_seconds or 0) > OTHERS_SHARE * run.total_first_run_seconds
    ]
    if named:
        yield f"Other processes used the CPU during {', '.join(named)}."


def _stage(point: Point) -> Spread | None:
    return point.spread("stage_seconds")


def _bandwidth(point: Point) -> float:
    return point.spec.bandwidth_mbps or float("inf")


def _latency(point: Point) -> float:
    return point.spec.latency_ms


def _negative_latency(point: Point) -> float:
    return -point.spec.latency_ms
