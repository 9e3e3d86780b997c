"""What a sweep of mode stream shows: the decode speed that is left when the weights live in the tier."""

import statistics

from hbf_fuse.report.finding import Finding
from hbf_fuse.report.summary import Point
from hbf_fuse.verdict import DECODE_TOLERANCE_PCT


def checks(points: list[Point]) -> list[Finding]:
    """Whether decode follows its model."""
    known = {point: error for point in points if (error := point.median("tg_error_pct")) is not None}
    errors = {point: error for point, error in known.items() if point.valid}
    if not known:
        sentence = (
            "llama-bench does not say when it decodes (--progress): there is nothing to hold tg against."
        )
        return [Finding("decode-unknown", sentence)]
    bound = {point: error for point, error in errors.items() if is_tier_bound(point)}
    near = [error for error in bound.values() if abs(error) <= DECODE_TOLERANCE_PCT]
    worst = max(map(abs, near), default=0.0)
    text = (
        f"Decode follows 1 / (compute + tier) within {worst:.2g}% in {len(near)} of {len(bound)} valid "
        "points that the tier binds."
    )
    far = [
        f"{point.label} ({error:+.1f}%)"
        for point, error in bound.items()
        if abs(error) > DECODE_TOLERANCE_PCT
    ]
    if far:
        text += f" Further off: {', '.join(far)}."
    rest = [f"{point.label} ({error:+.1f}%)" for point, error in errors.items() if point not in bound]
    if rest:
        text += f" Bound by compute, where readahead hides part of the tier: {', '.join(rest)}."
    return [Finding("decode-against-model", text)]


def meaning(points: list[Point]) -> list[Finding]:
    """Bytes per token, the speed at the ends of the grid, and where the tier stops mattering."""
    known = [point for point in points if None not in (point.median("predicted_tg"), point.median("tg"))]
    if not known:
        return []
    ends = dict.fromkeys((known[0], known[-1]))
    left = [f"at {point.label} {point.median('tg'):.3g} tokens/s remain" for point in ends]
    compute = statistics.median(point.median("compute_tg") or 0.0 for point in known)
    nbytes = statistics.median(point.median("bytes_per_token") or 0.0 for point in known)
    sentence = (
        f"Every decoded token reads {nbytes / 1e6:.4g} MB from the tier. From memory alone decode runs at "
        f"{compute:.3g} tokens/s; {', '.join(left)}."
    )
    by_latency = {
        latency: [point for point in known if point.spec.latency_ms == latency]
        for latency in sorted({point.spec.latency_ms for point in known})
    }
    return [
        Finding("decode-speed", sentence),
        *(Finding("break-even", _break_even(group, latency)) for latency, group in by_latency.items()),
    ]


def _break_even(points: list[Point], latency_ms: float) -> str:
    """Where the tier takes as long as compute does, of points of one latency."""
    at = f" with {latency_ms:g} ms" if latency_ms else ""
    values = [even for point in points if (even := point.median("break_even_mbps")) is not None]
    if not values:
        return f"No bandwidth breaks even{at}: latency alone takes longer than compute does."
    even = statistics.median(values)
    most = "" if latency_ms else f"; at {19 * even:,.0f} MB/s 95% of it does"
    return (
        f"Break-even{at}: at {even:,.0f} MB/s the tier takes as long as compute, and half the speed "
        f"remains{most}."
    )


def is_tier_bound(point: Point) -> bool:
    """Whether the tier takes longer than compute in most repeats."""
    bound = [run.bound == "tier" for run in point.metrics]
    return sum(bound) * 2 > len(bound)
