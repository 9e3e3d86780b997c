"""Results as they are printed: a table that fits 80 columns in a terminal, Markdown where it is piped."""

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from hbf_fuse.cli.common import console, printable
from hbf_fuse.documents import Row

if TYPE_CHECKING:
    from hbf_fuse.runs.run import Run

_COLUMNS = {
    "tier_lat_ms": "ms",
    "stage_seconds_median": "stage s",
    "stage_eff_median": "MB/s",
    "model_mbps_median": "model",
    "pp_median": "pp",
    "tg_median": "tg",
    "predicted_tg_median": "predicted",
    "bytes_per_token_median": "MB/token",
    "total_first_run_median": "first run s",
    "verdict": "verdict",
}
"""Of a summary's columns, those that a terminal has room for, and their names there."""
_NARROW = {"stream": ("stage_eff_median", "model_mbps_median", "pp_median", "total_first_run_median")}
"""Of them, those that say little in a mode."""
_SERVED = {
    "tier_lat_ms": "ms",
    "cold_ttft_median": "cold TTFT s",
    "stage_seconds_median": "stage s",
    "memory_ttft_median": "from memory",
    "warm_ttft_median": "warm TTFT s",
    "verdict": "verdict",
}
_LEVELS = {
    "tier_lat_ms": "ms",
    "users": "users",
    "tokens_per_second": "tokens/s",
    "decode_tps": "decode",
    "predicted_tps": "predicted",
    "ttft_p50": "TTFT s",
    "tpot_p50": "TPOT s",
    "failed": "failed",
    "verdict": "verdict",
}
"""The same of the workload serve, and of its levels."""
_STYLES = {"off": "red", "failed": "red", "unsure": "yellow", "agrees": "green"}


def show(runs: "list[Run]", target_seconds: float | None = None) -> None:
    """Tables, what they mean, and what is not to be believed."""
    from hbf_fuse.report import page, summary

    screen = console()
    if screen.is_terminal:
        for series in summary.series_of(runs):
            title, rows = printable(series.title), [point.row() for point in series.points]
            if series.serves:
                screen.print(_table(title, _SERVED, rows))
                screen.print(_table("by users", _LEVELS, series.levels))
            else:
                narrow = _NARROW.get(series.mode, ())
                columns = {name: short for name, short in _COLUMNS.items() if name not in narrow}
                screen.print(_table(title, columns, rows))
    else:
        print(summary.markdown(runs))
    for section in page.sections(runs, target_seconds):
        for sentence in section.meaning[:3]:
            print(f"- {printable(sentence)}")
    for line in page.remarks(runs):
        print(f"- {printable(line)}")


def _table(title: str, columns: dict[str, str], rows: list[Row]) -> Table:
    """columns: which, and what they are called here; those that the rows do not have are left out."""
    from hbf_fuse.report.tables import cell_text

    shown = [name for name in columns if rows and name in rows[0]]
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for name in ("tier_mbps", *shown):
        table.add_column(columns.get(name, "tier"), justify="left" if name == "verdict" else "right")
    for row in rows:
        style = next((style for state, style in _STYLES.items() if state in row["verdict"]), "")
        values = [_figure(row[name], name) for name in shown[:-1]]
        verdict = Text(printable(row["verdict"]), style=style)
        table.add_row(cell_text(row["tier_mbps"], "tier_mbps"), *values, verdict)
    return table


def _figure(value: Any, name: str) -> str:
    """Three digits are enough for a first look."""
    if value is None:
        return "-"
    value = value / 1e6 if name == "bytes_per_token_median" else value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
