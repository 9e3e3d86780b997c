"""The plots of a sweep, as SVG that takes its text colour from the page around it."""

import re
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from hbf_fuse.report import serving_plots
from hbf_fuse.report.drawing import (
    COLOURS,
    HEIGHT_INCHES,
    INK,
    STYLE,
    WIDTH_INCHES,
    by_latency,
    colours,
    figure_of,
    from_zero,
    log_axis,
    mbps_of,
    svg_of,
    with_range,
)
from hbf_fuse.report.findings import parts_of
from hbf_fuse.report.summary import Point, Series
from hbf_fuse.runs.metrics import Attribution
from hbf_fuse.verdict import tolerance_pct

MOST_BARS = 20
MOST_ROWS = 256
"""Of the heat map."""

_LONGEST_NAME = 40
_GOOD, _BAD, _TEXT_ON_THEM = "#b7dfc5", "#f2b8ae", "#111111"


@dataclass(frozen=True)
class Plot:
    """name: fit for a file; title: for people; svg: the drawing."""

    name: str
    title: str
    svg: str


def of_series(series: Series) -> list[Plot]:
    """All plots of a series that its points allow."""
    points = [point for point in series.points if point.metrics]
    if not points:
        return []
    options = f"-{re.sub(r'[^A-Za-z0-9.]+', '-', series.options).strip('-')}" if series.options else ""
    memory = f"-{re.sub(r'[, ]+', '-', series.memory)}" if series.memory else ""
    served = "serve-" if series.serves else ""
    suffix = f"{served}{series.mode}{memory}-p{series.n_prompt}-n{series.n_gen}{options}"
    linked = [point for point in points if point.spec.bandwidth_mbps]
    if series.serves:
        drawings = [
            ("ttft", "Time to first token, cold, against bandwidth", serving_plots.ttft, linked),
            ("batch", "Decode against users", serving_plots.batch, points),
            ("itl", "Time between tokens against users", serving_plots.between_tokens, points),
        ]
    elif series.mode == "stream":
        traced = [point for point in points if point.metrics[-1].attribution]
        # The slowest comes first: its reads are shown.
        traced.sort(key=lambda point: point.median("tg") or 0.0)
        shown_one = f"{traced[0].label}, the slowest tier, last repeat" if traced else ""
        drawings = [
            ("decode", "Decode speed against bandwidth", _decode, linked if traced else []),
            ("heat", f"What was read when ({shown_one})", _heat, traced),
            ("sizes", f"Sizes of reads ({shown_one})", _read_sizes, traced),
            ("depths", f"Reads in flight ({shown_one})", _queue_depths, traced),
        ]
    else:
        drawings = [
            ("stage-time", "Stage time against bandwidth", _stage_time, linked),
            ("requested-achieved", "Requested against achieved", _requested_achieved, linked),
            ("first-run", "The first run in parts", _first_run, points),
            ("pp-tg", "Speed once loaded", _speeds, points),
            ("error", "Error against the tier model, %", _errors, linked),
        ]
    with mpl.rc_context(STYLE):
        return [
            Plot(f"{name}-{suffix}", title, svg_of(draw(shown), title))
            for name, title, draw, shown in drawings
            if shown
        ]


def _stage_time(points: list[Point]) -> Figure:
    figure, axes = figure_of()
    for colour, (latency, line) in zip(colours(), by_latency(points), strict=False):
        ideal = [(mbps_of(p), _size(p) / p.ideal_mbps / 1e6) for p in line if p.ideal_mbps]
        axes.plot(*zip(*ideal, strict=True), color=colour, linewidth=1, linestyle="--")
        spreads = [point.spread("stage_seconds") for point in line]
        with_range(axes, [mbps_of(point) for point in line], spreads, colour, f"{latency:g} ms")
    log_axis(axes, points)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.set_xlabel("bandwidth asked for, MB/s")
    axes.set_ylabel("stage time, s")
    axes.legend(title="latency (dashed: the model)", ncols=3, fontsize=8)
    return figure


def _requested_achieved(points: list[Point]) -> Figure:
    figure, axes = figure_of()
    ends = [min(p.ideal_mbps or 0 for p in points) * 0.8, max(p.ideal_mbps or 0 for p in points) * 1.25]
    axes.plot(ends, ends, color=INK, linewidth=0.7, linestyle="--")
    for colour, (latency, line) in zip(colours(), by_latency(points), strict=False):
        spreads = [point.spread("stage_effective_mbps") for point in line]
        with_range(axes, [p.ideal_mbps or 0 for p in line], spreads, colour, f"{latency:g} ms", joined=False)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(sorted({mbps_of(point) for point in points})))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("what the tier comes to, MB/s")
    axes.set_ylabel("achieved, MB/s")
    axes.legend(title="latency", fontsize=8)
    return figure


def _first_run(points: list[Point]) -> Figure:
    figure, axes = figure_of(height=max(HEIGHT_INCHES, 0.9 + 0.24 * len(points)))
    left = [0.0] * len(points)
    labels = [point.label for point in points]
    parts = [parts_of(point) for point in points]
    for colour, name in zip(colours(), parts[0], strict=False):
        widths = [each[name] for each in parts]
        axes.barh(labels, widths, left=left, color=colour, label=name, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_ylabel("MB/s / ms")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8)
    return figure


def _speeds(points: list[Point]) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
    upper, lower = figure.subplots(2, 1, sharex=True)
    places = list(range(len(points)))
    for axes, metric, colour in ((upper, "pp", COLOURS[0]), (lower, "tg", COLOURS[1])):
        with_range(axes, places, [point.spread(metric) for point in points], colour, metric, joined=False)
        axes.set_ylabel(f"{metric}, tokens/s")
        from_zero(axes)
    lower.set_xticks(places, [point.label for point in points], rotation=60)
    lower.set_xlabel("MB/s / ms")
    return figure


def _errors(points: list[Point]) -> Figure:
    columns = sorted({mbps_of(point) for point in points})
    rows = sorted({point.spec.latency_ms for point in points})
    figure, axes = figure_of(height=1.1 + 0.42 * len(rows))
    for point in points:
        error = point.median("tier_error_pct")
        if error is None:
            continue
        column, row = columns.index(mbps_of(point)), rows.index(point.spec.latency_ms)
        good = point.valid and abs(error) <= tolerance_pct(point.spec)
        axes.add_patch(_square(column, row, _GOOD if good else _BAD))
        text = f"{error:+.2f}" + ("" if point.valid else f"\n{point.state}")
        axes.text(column, row, text, ha="center", va="center", color=_TEXT_ON_THEM, fontsize=8)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xticks(range(len(columns)), [f"{mbps:g}" for mbps in columns])
    axes.set_yticks(range(len(rows)), [f"{latency:g}" for latency in rows])
    axes.set_xlabel("bandwidth, MB/s")
    axes.set_ylabel("latency, ms")
    return figure


def _decode(points: list[Point]) -> Figure:
    """Measured tokens/s, what the model predicts, and what memory alone would give."""
    figure, axes = figure_of()
    for colour, (latency, line) in zip(colours(), by_latency(points), strict=False):
        places = [mbps_of(point) for point in line]
        predicted = [point.median("predicted_tg") or 0.0 for point in line]
        axes.plot(places, predicted, color=colour, linewidth=1, linestyle="--")
        spreads = [point.spread("tg") for point in line]
        with_range(axes, places, spreads, colour, f"{latency:g} ms", joined=False)
    ceiling = [point.median("compute_tg") or 0.0 for point in points]
    axes.axhline(max(ceiling), color=INK, linewidth=0.7, linestyle=":")
    log_axis(axes, points)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("bandwidth, MB/s")
    axes.set_ylabel("decode, tokens/s")
    axes.legend(title="latency (dashed: 1 / (compute + tier); dotted: compute)", ncols=3, fontsize=8)
    return figure


def _heat(points: list[Point]) -> Figure:
    """Bytes by layer and time, of the slowest tier's last repeat."""
    heat = _attribution(points).heat
    layers = [name[:_LONGEST_NAME] for name in heat.layers[:MOST_ROWS]]
    rows = heat.bytes[:MOST_ROWS]
    figure, axes = figure_of(height=max(HEIGHT_INCHES, 0.9 + 0.16 * len(layers)))
    if heat.seconds:
        extent = (0, heat.seconds[-1], len(layers) - 0.5, -0.5)
        axes.imshow(rows, aspect="auto", interpolation="nearest", cmap="viridis", extent=extent)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_xlabel("seconds")
    axes.set_ylabel("layer")
    return figure


def _read_sizes(points: list[Point]) -> Figure:
    counts = sorted(_attribution(points).read_sizes.items())
    return _bars({f"{size >> 10}": count for size, count in counts}, "KiB of a read")


def _queue_depths(points: list[Point]) -> Figure:
    counts = sorted(_attribution(points).queue_depths.items())
    return _bars({str(depth): count for depth, count in counts}, "reads in flight")


def _attribution(points: list[Point]) -> Attribution:
    """Of the first point that has one, its last repeat's."""
    return next(found for point in points if (found := point.metrics[-1].attribution))


def _bars(counts: dict[str, int], label: str) -> Figure:
    """The most frequent values, in their order."""
    kept = sorted(counts, key=lambda value: -counts[value])[:MOST_BARS]
    shown = [value for value in counts if value in kept]
    figure, axes = figure_of(height=2.6)
    axes.bar(shown, [counts[value] for value in shown], color=COLOURS[0])
    axes.set_xticks(range(len(shown)), shown, rotation=60, fontsize=7)
    axes.set_xlabel(label)
    axes.set_ylabel("reads")
    return figure


def _square(column: int, row: int, colour: str) -> mpl.patches.Rectangle:
    return mpl.patches.Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=colour, linewidth=0)


def _size(point: Point) -> int:
    return point.runs[0].cell.model.size
