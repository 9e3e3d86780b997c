"""What a sweep shows, in sentences written from its data: checks first, then what it means.

A sentence says how many points it holds for, and names those that it does not hold for.
"""

import statistics
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from hbf_fuse.report import decode
from hbf_fuse.report.statistics import Spread
from hbf_fuse.report.summary import Point, Series
from hbf_fuse.runs.run import Metrics
from hbf_fuse.tier.expect import CHUNK_BYTES
from hbf_fuse.verdict import tolerance_pct

OTHERS_SHARE = 0.05
"""Of a cell's time: more than this used by other processes is worth naming."""

CHANCE_FACTOR = 3.0
CHANCE_PCT = 2.0
"""pp and tg of tiers may lie this much further apart than repeats do, or this far, and be called equal."""

_WATCHED = {
    "stage_seconds": "stage time",
    "bench_wall_seconds": "wall time",
    "pp": "pp",
    "tg": "tg",
}


def checks(series: Series) -> list[str]:
    """Whether the figures can be believed."""
    points = [point for point in series.points if point.metrics]
    if not points:
        return ["No cell was finished."]
    found = [_against_model(points)]
    if series.mode == "stream":
        found += decode.checks(points)
    elif series.mode == "cgroup":
        found += [_ordered(points)]  # io.max is the ideal itself
    else:
        found += [_against_ideal(series, points), _ordered(points)]
    return [sentence for sentence in found if sentence]


def details(series: Series) -> list[str]:
    """What whoever doubts the figures looks at next: repeats, outliers, the cache, other processes."""
    points = [point for point in series.points if point.metrics]
    if not points:
        return []
    found = [_repeats(points), *_outliers(points), _cold(points), _overhead(points), *_disturbed(points)]
    return [sentence for sentence in found if sentence]


_NO_ONE_RATE = "No bandwidth for the target is reckoned with a placement, jitter, planes or a queue depth."


def meaning(series: Series, target_seconds: float | None = None) -> list[str]:
    """What dominates the first run, where the knee is, and what a target needs: of points that are valid."""
    points = [point for point in series.points if point.metrics and point.valid]
    if not points:
        return []
    if series.mode == "stream":
        return decode.meaning(points)
    # Of what lies in several tiers, or where jitter, planes or depth cost time, one bandwidth says little.
    placed = any(run.cell.layout.place for run in points[0].runs)
    one_rate = not placed and all(point.spec.plain for point in points)
    found = [*_dominant(points), _knee(series, points) if one_rate else "", *_speed_once_loaded(points)]
    if target_seconds is not None:
        found += _break_even(series, points, target_seconds) if one_rate else [_NO_ONE_RATE]
    return [sentence for sentence in found if sentence]


def rest_seconds(point: Point) -> float:
    """What the first run takes beside staging, median over the repeats."""
    rests = [run.total_first_run_seconds - run.stage_seconds for run in point.metrics]
    return statistics.median(rests)


# Checks


def _against_model(points: list[Point]) -> str:
    judged = [point for point in points if point.median("tier_error_pct") is not None]
    if not judged:
        return ""
    good = [point for point in judged if point.valid]
    worst = max((abs(point.median("tier_error_pct") or 0.0) for point in good), default=0.0)
    text = f"Stage time follows the tier model within {worst:.2g}% in {len(good)} of {len(judged)} points."
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


# Meaning


def _dominant(points: list[Point]) -> Iterator[str]:
    """The share of each part of the first run, at the slowest tier and the fastest."""
    slowest = max(points, key=lambda point: point.median("stage_seconds") or 0)
    fastest = min(points, key=lambda point: point.median("stage_seconds") or 0)
    for point in dict.fromkeys((slowest, fastest)):
        parts = parts_of(point)
        total = sum(parts.values())
        if not total:
            continue
        first = max(parts, key=lambda name: parts[name])
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())
        yield f"At {point.label} the first run takes {total:.3g} s, most of it {first} ({shares})."


def parts_of(point: Point) -> dict[str, float]:
    """The first run in parts, medians in seconds. Through mmap staging is a part of loading: it is taken off.

    load also holds starting and ending llama-bench.
    """
    if not point.metrics:
        return {}
    staged_inside = point.mode in ("mmap", "cgroup")

    def load(run: Metrics) -> float:
        return max(0.0, run.load_seconds - (run.stage_seconds if staged_inside else 0.0))

    return {
        "staging": statistics.median(run.stage_seconds for run in point.metrics),
        "load": statistics.median(load(run) for run in point.metrics),
        "prefill": statistics.median(run.prefill_seconds for run in point.metrics),
        "decode": statistics.median(run.decode_seconds for run in point.metrics),
    }


def _knee(series: Series, points: list[Point]) -> str:
    """Where staging takes as long as all the rest, at the least latency."""
    rest = _rest(points)
    if rest <= 0:
        return ""
    latency = min(map(_latency, points))
    knee, _ = _needed_mbps(series, points, latency, rest)
    if knee is None:
        return ""
    rests = [rest_seconds(point) for point in points]
    varies = f" in the median ({min(rests):.3g} to {max(rests):.3g} s)" if len(rests) > 1 else ""
    at = f" and {latency:g} ms" if latency else ""
    beyond = (
        ""
        if latency
        else f" From {_short(4 * knee)} MB/s on, twice the bandwidth saves less than 10% of the first run."
    )
    return (
        f"The rest of the first run takes {rest:.3g} s{varies}, so the knee is at "
        f"{_short(knee)} MB/s{at}: there staging takes as long as the rest.{beyond}"
    )


def _break_even(series: Series, points: list[Point], target_seconds: float) -> Iterator[str]:
    rest = _rest(points)
    for latency in dict.fromkeys(map(_latency, points)):
        needed, why = _needed_mbps(series, points, latency, target_seconds - rest)
        at = f" at {latency:g} ms"
        if needed is not None:
            yield f"A first run of {target_seconds:g} s needs {_short(needed)} MB/s{at}."
        else:
            yield (
                f"No bandwidth brings the first run down to {target_seconds:g} s{at}: the rest takes "
                f"{rest:.3g} s{why}."
            )


def _needed_mbps(
    series: Series, points: list[Point], latency: float, seconds: float
) -> tuple[float | None, str]:
    """The bandwidth with which staging takes so long at a latency; or None, and what else is in its way."""
    size = _size(points)
    waiting = -(-size // CHUNK_BYTES) * latency / 1e3 if series.mode == "stage" else 0.0
    if seconds <= waiting:
        return None, f" and {waiting:.3g} s of latency" if waiting else ""
    needed = size / (seconds - waiting) / 1e6
    window = _window_mbps(points, latency)
    if series.mode != "stage" and needed > window:
        return None, f", and with what is in flight staging reaches {_short(window)} MB/s at most"
    return needed, ""


def _window_mbps(points: list[Point], latency: float) -> float:
    """What readahead can have of a tier of this latency, where a point shows it: one whose tier has more
    bandwidth than the model could use.
    """
    bound = [
        model
        for point in points
        if _latency(point) == latency
        and (model := point.median("model_mbps"))
        and model < _bandwidth(point) * (1 - tolerance_pct(point.spec) / 100)
    ]
    return max(bound, default=float("inf"))


def _speed_once_loaded(points: list[Point]) -> Iterator[str]:
    """Whether pp and tg depend on the tier more than on chance."""
    for metric in ("pp", "tg"):
        spreads = [spread for point in points if (spread := point.spread(metric))]
        medians = Spread.of([spread.median for spread in spreads])
        if medians is None or len(spreads) < 2 or min(len(spread.values) for spread in spreads) < 2:
            continue
        within = statistics.median(spread.width_pct for spread in spreads)
        least = max(CHANCE_FACTOR * within, CHANCE_PCT)
        chance = medians.width_pct <= least
        yield (
            f"Once loaded, {metric} {'does not depend' if chance else 'depends'} on the tier beyond chance: "
            f"{medians.median:.4g} tokens/s, medians {medians.width_pct:.2g}% apart between tiers, repeats "
            f"{within:.2g}% apart within one. An effect of less than {least + within:.2g}% may pass unseen."
        )


# Of points


def _short(figure: float) -> str:
    """Three digits, never as a power of ten."""
    return f"{float(f'{figure:.3g}'):,.15g}"


def _rest(points: list[Point]) -> float:
    return statistics.median(rest_seconds(point) for point in points)


def _size(points: list[Point]) -> int:
    return points[0].runs[0].cell.model.size


def _stage(point: Point) -> Spread | None:
    return point.spread("stage_seconds")


def _bandwidth(point: Point) -> float:
    return point.spec.bandwidth_mbps or float("inf")


def _latency(point: Point) -> float:
    return point.spec.latency_ms


def _negative_latency(point: Point) -> float:
    return -point.spec.latency_ms
