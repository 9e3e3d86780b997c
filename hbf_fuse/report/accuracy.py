"""The map of hbf calibrate: as Markdown, and as a heat map for terminals and SVG."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from hbf_fuse.calibrate.envelope import Envelope, EnvelopeCell
from hbf_fuse.report.tables import cell_text

_COLUMNS = (
    "tier_mbps",
    "lat_ms",
    "size KiB",
    "readers",
    "model_mbps",
    "client_mbps",
    "server_mbps",
    "error_pct",
    "worst run",
    "p50_us",
    "valid",
)


def markdown(envelope: Envelope, engine: str) -> str:
    """Every cell of one engine as a Markdown table."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " ---: |" * len(_COLUMNS)]
    for cell in _cells(envelope, engine):
        worst = max(cell["error_pct_runs"], key=abs)
        figures = [
            cell["mbps"] or "-",
            cell["lat_ms"],
            cell["size"] // 1024,
            cell["readers"],
            round(cell["model_mbps"], 1),
            round(cell["client_mbps"], 1),
            round(cell["server_mbps"], 1),
            f"{cell['error_pct']:+.2f}",
            f"{worst:+.2f}",
            round(cell["p50_us"]),
            "yes" if cell["valid"] else f"no: {' '.join(cell['reasons'])}",
        ]
        lines.append("| " + " | ".join(cell_text(figure) for figure in figures) + " |")
    return "\n".join(lines) + "\n"


def heat_map(envelope: Envelope, engine: str) -> Table:
    """Errors in percent: rows are bandwidth and latency, columns are request size and readers."""
    cells = [cell for cell in _cells(envelope, engine) if cell["mbps"]]
    shapes = sorted({(cell["size"], cell["readers"]) for cell in cells})
    table = Table(title=f"error in percent of the model, engine {engine}")
    table.add_column("MB/s + ms")
    for size, readers in shapes:
        table.add_column(f"{size // 1024} KiB x {readers}", justify="right")
    for mbps, lat in sorted({(cell["mbps"], cell["lat_ms"]) for cell in cells}):
        row = {(c["size"], c["readers"]): c for c in cells if (c["mbps"], c["lat_ms"]) == (mbps, lat)}
        table.add_row(f"{mbps:g} + {lat:g}", *(_heat(row[shape]) if shape in row else "" for shape in shapes))
    return table


def findings(envelope: Envelope) -> Iterator[str]:
    """A line per engine: the share of cells within tolerance, ceiling and floor."""
    for engine, facts in envelope["engines"].items():
        cells = list(_cells(envelope, engine))
        inside = sum(cell["valid"] for cell in cells)
        yield (
            f"{engine}: {inside} of {len(cells)} cells within tolerance ({facts['share_valid']:.0%}); "
            f"ceiling {facts['ceiling_mbps']:.0f} MB/s, floor {facts['floor_ns'] / 1000:.0f} us"
        )


def _cells(envelope: Envelope, engine: str) -> list[EnvelopeCell]:
    return [cell for cell in envelope["cells"] if cell["engine"] == engine]


def _heat(cell: EnvelopeCell) -> Text:
    size = abs(cell["error_pct"])
    colour = "green" if cell["valid"] else "yellow" if size < 5 else "red"
    return Text(f"{cell['error_pct']:+.2f}", style=f"bold {colour}")
