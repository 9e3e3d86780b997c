"""What a sweep shows, in sentences written from its data: what it means.

A sentence says how many points it holds for, and names those that it does not hold for.
"""

import statistics
from collections.abc import Iterator

from hbf_fuse.report import decode, serving
from hbf_fuse.report.finding import Finding
from hbf_fuse.report.statistics import Spread
from hbf_fuse.report.summary import Point, Series
from hbf_fuse.runs.metrics import Metrics
from hbf_fuse.tier.expect import CHUNK_BYTES
from hbf_fuse.verdict import tolerance_pct

CHANCE_FACTOR = 3.0
CHANCE_PCT = 2.0
"""pp and tg of tiers may lie this much further apart than repeats do, or this far, and be called equal."""

_NO_ONE_RATE = Finding(
    "target", "No bandwidth for the target is reckoned with a placement, jitter, planes or a queue depth."
)


def meaning(series: Series, target_seconds: float | None = None) -> list[Finding]:
    """What dominates the first run, where the knee is, and what a target needs: of points that are valid."""
    points = [point for point in series.points if point.metrics and point.valid]
    if not points:
        return []
    if series.serves:
        return serving.meaning(points)
    if series.mode == "stream":
        return decode.meaning(points)
    # Of what lies in several tiers, or where jitter, planes or depth cost time, one bandwidth says little.
    placed = any(run.cell.layout.place for run in points[0].runs)
    one_rate = not placed and all(point.spec.plain for point in points)
    found = [Finding("dominant-part", sentence) for sentence in _dominant(points)]
    if one_rate:
        found.append(Finding("knee", _knee(series, points)))
    found += [Finding("speed-once-loaded", sentence) for sentence in _speed_once_loaded(points)]
    if target_seconds is not None and one_rate:
        found += [Finding("target", sentence) for sentence in _break_even(series, points, target_seconds)]
    elif target_seconds is not None:
        found.append(_NO_ONE_RATE)
    return [finding for finding in found if finding]


def rest_seconds(point: Point) -> float:
    """What the first run takes beside staging, median over the repeats."""
    rests = [run.total_first_run_seconds - run.stage_seconds for run in point.metrics]
    return statistics.median(rests)


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


def _short(figure: float) -> str:
    """Three digits, never as a power of ten."""
    return f"{float(f'{figure:.3g}'):,.15g}"


def _rest(points: list[Point]) -> float:
    return statistics.median(rest_seconds(point) for point in points)


def _size(points: list[Point]) -> int:
    return points[0].runs[0].cell.model.size


def _bandwidth(point: Point) -> float:
    return point.spec.bandwidth_mbps or float("inf")


def _latency(point: Point) -> float:
    return point.spec.latency_ms
