"""report.html: one file that asks nobody for anything."""

import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from hbf_fuse.report import against_cgroup, levels, machines, page, plots
from hbf_fuse.report.tables import cell_text
from hbf_fuse.runs.run import Run


def render(runs: Sequence[Run], target_seconds: float | None = None) -> tuple[str, list[plots.Plot]]:
    """The page, and the plots that stand in it."""
    sections = page.sections(runs, target_seconds)
    drawn = [plots.of_series(section.series) for section in sections]
    environment = Environment(
        loader=PackageLoader("hbf_fuse.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=cell_text, prose=_prose, verdict_first=_verdict_first)
    text = environment.get_template("report.html").render(
        legend=page.LEGEND,
        parts=[
            (section, [(plot.title, Markup(plot.svg)) for plot in plots])  # noqa: S704 - drawn by us
            for section, plots in zip(sections, drawn, strict=True)
        ],
        against_cgroup=against_cgroup,
        compared=against_cgroup.rows(runs),
        machines=machines,
        side_by_side=machines.rows(runs),
        differences=machines.findings(runs),
        level_columns=levels.columns,
        remarks=page.remarks(runs),
        environment=page.environment(runs),
    )
    return text, [plot for group in drawn for plot in group]


def _verdict_first(columns: Sequence[str]) -> list[str]:
    """Behind the tier: a screen has no room for all of them, and this one is to be seen."""
    others = [column for column in columns if column != "verdict"]
    return [*others[:2], "verdict", *others[2:]]


def _prose(text: str) -> Markup:
    """A sentence with its `commands` set as such."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before
