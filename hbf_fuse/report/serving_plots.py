"""The plots of the workload serve."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from hbf_fuse.report import levels
from hbf_fuse.report.drawing import by_latency, colours, figure_of, from_zero, log_axis, mbps_of, with_range
from hbf_fuse.report.summary import Point

_MOST_LINES = 6


def ttft(points: list[Point]) -> Figure:
    """Cold time to first token against bandwidth, a line for each latency; dashed: its model."""
    figure, axes = figure_of()
    for colour, (latency, line) in zip(colours(), by_latency(points), strict=False):
        foreseen = [
            (mbps_of(point), seconds)
            for point in line
            if (seconds := point.median("predicted_ttft_seconds")) is not None
        ]
        if foreseen:
            axes.plot(*zip(*foreseen, strict=True), color=colour, linewidth=1, linestyle="--")
        spreads = [point.spread("cold_ttft_seconds") for point in line]
        with_range(axes, [mbps_of(point) for point in line], spreads, colour, f"{latency:g} ms")
    log_axis(axes, points)
    from_zero(axes)
    axes.set_xlabel("bandwidth, MB/s")
    axes.set_ylabel("cold time to first token, s")
    axes.legend(title="latency (dashed: staging by the model + start from memory)", ncols=3, fontsize=8)
    return figure


def batch(points: list[Point]) -> Figure:
    """Decoded tokens/s of all users against their number, a line for each tier; dashed: the prediction."""
    figure, axes = figure_of()
    for colour, point in zip(colours(), points[:_MOST_LINES], strict=False):
        counts = levels.users(point.metrics)
        measured = [levels.median(point.metrics, count, "decode_tps") for count in counts]
        foreseen = [levels.median(point.metrics, count, "predicted_tps") for count in counts]
        axes.plot(
            *_known(counts, measured),
            color=colour,
            marker="o",
            markersize=4,
            linestyle=":",
            label=point.label,
        )
        axes.plot(*_known(counts, foreseen), color=colour, linewidth=1, linestyle="--")
    _users_axis(axes, points)
    from_zero(axes)
    axes.set_ylabel("decode, tokens/s of all users")
    axes.legend(title="MB/s / ms (dashed: batch / (compute + tier))", ncols=3, fontsize=8)
    return figure


def between_tokens(points: list[Point]) -> Figure:
    """Inter-token latency against users, its percentiles, of the slowest and the fastest tier."""
    figure, axes = figure_of()
    for colour, point in zip(colours(), dict.fromkeys((points[0], points[-1])), strict=False):
        counts = levels.users(point.metrics)
        for name, style in (("itl_p50", "-"), ("itl_p95", "--"), ("itl_p99", ":")):
            values = [levels.median(point.metrics, count, name) for count in counts]
            places, known = _known(counts, values)
            if known:
                label = f"{point.label} {name.removeprefix('itl_')}"
                axes.plot(places, known, color=colour, marker="o", markersize=3, linestyle=style, label=label)
    _users_axis(axes, points)
    from_zero(axes)
    axes.set_ylabel("time between tokens, s")
    axes.legend(fontsize=8)
    return figure


def _known(counts: list[int], values: list[float | None]) -> tuple[list[int], list[float]]:
    known = [(count, value) for count, value in zip(counts, values, strict=True) if value is not None]
    return [count for count, _ in known], [value for _, value in known]


def _users_axis(axes: Axes, points: list[Point]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(
        FixedLocator(levels.users([run for point in points for run in point.metrics]))
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("users at once")
