"""What a sweep of the workload serve shows: the wait for the first token, and what a batch buys."""

import statistics

from hbf_fuse.report.finding import Finding
from hbf_fuse.report.levels import median, users
from hbf_fuse.report.summary import Point
from hbf_fuse.runs.metrics import ServeLevel

NEAR_PCT = 10.0
"""So near a level must be to its prediction to be counted as near."""


def meaning(points: list[Point]) -> list[Finding]:
    """The wait for the first token at the ends of the grid, and what a batch buys there."""
    known = [point for point in points if point.median("cold_ttft_seconds") is not None]
    if not known:
        return []
    ends = list(dict.fromkeys((known[0], known[-1])))
    return [
        Finding("cold-ttft", " ".join(map(_cold, ends))),
        *(Finding("batch", sentence) for point in ends if (sentence := _batch(point))),
        *(Finding("break-even-batch", sentence) for point in known if (sentence := _break_even(point))),
        *(Finding("experts", sentence) for point in ends if (sentence := _experts(point))),
    ]


def _cold(point: Point) -> str:
    cold, warm = point.median("cold_ttft_seconds"), point.median("warm_ttft_seconds")
    after = f", once loaded after {warm:.3g} s" if warm is not None else ""
    return (
        f"At {point.label} the first token comes {cold:.3g} s after the server's start{after} (from memory "
        f"the start takes {point.median('memory_ttft_seconds') or 0.0:.3g} s)."
    )


def _batch(point: Point) -> str:
    counts = users(point.metrics)
    ends = (
        [(count, median(point.metrics, count, "decode_tps")) for count in (counts[0], counts[-1])]
        if counts
        else []
    )
    if len(counts) < 2 or None in [rate for _, rate in ends]:
        return ""
    (few, slow), (many, fast) = ends
    return (
        f"At {point.label} decode gives {slow:.3g} tokens/s with {_users(few)} and {fast:.3g} with "
        f"{_users(many)}, {(fast or 0.0) / (slow or 1.0):.2g} times as many."
    )


def _users(count: int) -> str:
    return f"{count} user{'s' if count > 1 else ''}"


def _break_even(point: Point) -> str:
    batch = point.median("break_even_batch")
    if batch is None:
        return ""
    return f"At {point.label} compute takes as long as the tier from a batch of {batch:.3g} on."


def _experts(point: Point) -> str:
    told = []
    for count in users(point.metrics):
        seen = median(point.metrics, count, "experts")
        foreseen = median(point.metrics, count, "predicted_experts")
        if seen is not None:
            nbytes = (median(point.metrics, count, "bytes_per_token") or 0.0) / 1e6
            predicted = "" if foreseen is None or count == 1 else f" ({foreseen:.3g} predicted)"
            told.append(f"{_users(count)}: {seen:.3g} experts{predicted}, {nbytes:.3g} MB a token")
    return f"At {point.label} a step reads, with {'; '.join(told)}." if told else ""


def checks(points: list[Point]) -> list[Finding]:
    """Whether it was the same model, whether the cold start and the levels follow their models, and what the
    measuring itself took.
    """
    found = [
        Finding("same-output", _same_output(points)),
        Finding("cold-ttft-against-model", _cold_against_model(points)),
        Finding("levels-against-model", _levels_against_model(points)),
        Finding("failed-requests", _failed(points)),
        Finding("client-cpu", _client(points)),
    ]
    return [finding for finding in found if finding]


def _same_output(points: list[Point]) -> str:
    told = [run.same_output for point in points for run in point.metrics if run.same_output is not None]
    if not told:
        return ""
    return (
        f"The first answer was the same as from memory, token by token, in {sum(told)} of {len(told)} runs."
    )


def _cold_against_model(points: list[Point]) -> str:
    errors = {
        point: (cold / predicted - 1) * 100
        for point in points
        if (cold := point.median("cold_ttft_seconds"))
        and (predicted := point.median("predicted_ttft_seconds"))
    }
    if not errors:
        return ""
    worst = max(errors, key=lambda point: abs(errors[point]))
    return (
        f"The cold start takes what staging by the tier model and the same start from memory take together, "
        f"within {abs(errors[worst]):.2g}% ({worst.label} is the furthest, {errors[worst]:+.1f}%)."
    )


def _levels_against_model(points: list[Point]) -> str:
    told = {
        f"{point.label} with {_users(count)}": error
        for point in points
        for count in users(point.metrics)
        if (error := median(point.metrics, count, "error_pct")) is not None
    }
    if not told:
        return ""
    near = [name for name, error in told.items() if abs(error) <= NEAR_PCT]
    far = [f"{name} ({error:+.1f}%)" for name, error in told.items() if abs(error) > NEAR_PCT]
    text = (
        f"Decode follows batch / (compute + tier) within {NEAR_PCT:g}% in {len(near)} of {len(told)} levels."
    )
    return text + (f" Further off: {', '.join(far)}." if far else "")


def _levels(point: Point) -> list[ServeLevel]:
    return [level for run in point.metrics for level in run.levels]


def _failed(points: list[Point]) -> str:
    found = [level for point in points for level in _levels(point)]
    failed = sum(level.failed for level in found)
    if not failed:
        return ""
    reasons = dict.fromkeys(error for level in found for error in level.errors)
    return f"{failed} of {sum(level.requests for level in found)} requests failed: {'; '.join(reasons)}."


def _client(points: list[Point]) -> str:
    shares = [level.client_cpu_share for point in points for level in _levels(point)]
    known = [share for share in shares if share is not None]
    if not known:
        return ""
    return f"Sending requests took {statistics.median(known):.1%} of a core, {max(known):.1%} at most."
