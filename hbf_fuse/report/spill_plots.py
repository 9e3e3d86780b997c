"""KV spill, drawn: the speed that a tier leaves, and the tier that a speed needs."""

from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hbf_fuse.documents import Row
from hbf_fuse.report.drawing import HEIGHT_INCHES, STYLE, WIDTH_INCHES, colours, svg_of

_LINE: Any = {"marker": "o", "markersize": 4, "linewidth": 1}


def speeds(rows: list[Row]) -> str:
    """tokens/s against bandwidth, p50 with p5 to p95; a line per context, latency and jitter. As SVG.

    rows: of kv.sim.Simulated.to_dict.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        for colour, line in _lines(rows, ("context", "lat_ms", "jitter")):
            line.sort(key=lambda row: float(row["mbps"]))
            first = line[0]
            label = f"{first['context']:,} tokens, {first['lat_ms']:g} ms {first['jitter']}"
            links = [row["mbps"] for row in line]
            p5, p50, p95 = ([row[f"tps_p{share}"] for row in line] for share in (5, 50, 95))
            axes.plot(links, p50, color=colour, label=label, **_LINE)
            axes.fill_between(links, p5, p95, color=colour, alpha=0.2)
        axes.set_xlabel("bandwidth, MB/s")
        axes.set_ylabel("tokens/s (band: p5 to p95)")
        return _finished(figure, axes, "Decode speed against bandwidth")


def requirements(rows: list[Row]) -> str:
    """Bandwidth needed against context, a line per target. As SVG.

    rows: of kv.requirements.table.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        for colour, line in _lines([row for row in rows if row["least_mbps"]], ("tps",)):
            contexts, links = [row["context"] for row in line], [row["least_mbps"] for row in line]
            axes.plot(contexts, links, color=colour, label=f"{line[0]['tps']:g} tokens/s", **_LINE)
        axes.set_xlabel("context, tokens")
        axes.set_ylabel("bandwidth needed, MB/s")
        return _finished(figure, axes, "Bandwidth needed")


def _lines(rows: list[Row], keys: tuple[str, ...]) -> Iterable[tuple[str, list[Row]]]:
    """Rows that agree in these keys, each with a colour."""
    sorted_in: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        sorted_in.setdefault(tuple(row[key] for key in keys), []).append(row)
    return zip(colours(), sorted_in.values(), strict=False)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
    return figure, figure.subplots()


def _finished(figure: Figure, axes: Axes, title: str) -> str:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(fontsize=7)
    return svg_of(figure, title)
