"""What the plots have in common: how they look, their axes, and how they become SVG.

Each is drawn about as wide as a telephone's screen, so that its text can be read there.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from hbf_fuse.report.statistics import Spread
from hbf_fuse.report.summary import Point

WIDTH_INCHES = 4.6
HEIGHT_INCHES = 3.4
INK = "#010203"
"""Replaced by currentColor: matplotlib knows colours only."""

COLOURS = ("#3b82c4", "#d9822b", "#2f9e6e", "#b5599c", "#8a7a2f", "#6f6fc9")
"""Readable on white and on black."""

_FONT = "DejaVu Sans"
"""What matplotlib measures text with; the drawing asks for any font without serifs."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hbf",
    "font.family": "sans-serif",
    "font.sans-serif": [_FONT],
    "font.size": 9,
    # A layer's name is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def figure_of(height: float = HEIGHT_INCHES) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height))
    return figure, figure.subplots()


def with_range(
    axes: Axes,
    places: Sequence[float],
    spreads: Sequence[Spread | None],
    colour: str,
    label: str,
    joined: bool = True,
) -> None:
    """Medians, with bars from the least to the most."""
    known = [(x, spread) for x, spread in zip(places, spreads, strict=True) if spread]
    if not known:
        return
    below = [spread.median - spread.least for _, spread in known]
    above = [spread.most - spread.median for _, spread in known]
    axes.errorbar(
        [x for x, _ in known],
        [spread.median for _, spread in known],
        yerr=[below, above],
        color=colour,
        label=label,
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=1,
        linestyle="" if not joined else ":",
    )


def log_axis(axes: Axes, points: list[Point]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({mbps_of(point) for point in points})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())


def from_zero(axes: Axes) -> None:
    """Let the axis begin at 0, with room above the highest mark."""
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)


def by_latency(points: list[Point]) -> Iterator[tuple[float, list[Point]]]:
    for latency in sorted({point.spec.latency_ms for point in points}):
        yield latency, [point for point in points if point.spec.latency_ms == latency]


def colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def mbps_of(point: Point) -> float:
    return point.spec.bandwidth_mbps or 0.0


def svg_of(figure: Figure, title: str) -> str:
    """The drawing alone, to stand in a page or a file; the title is for those who cannot see it."""
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    drawn = written.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor").replace(f"'{_FONT}'", "sans-serif")
    return drawn.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
