"""The findings page: compares a sweep over the reference experiment's points with the reference's own figures.

Reads docs/reference-v2.csv and the results folder of a sweep over its 12 points. Writes docs/findings-v3.md and .csv.
Further folders hold sweeps of real models, which are added to the page.

    hbf sweep -m qwen2.5-3b-q4_k_m.gguf --mode mmap,stage -o results/v3 && tools/bench findings results/v3
"""

import csv
import statistics
import sys
from pathlib import Path
from typing import Any

from pages import mark

from hbf_fuse.report import page, summary, tables
from hbf_fuse.report.summary import Point, Series
from hbf_fuse.runs.results import Results

DOCS = Path(__file__).parents[2] / "docs"
TARGET_SECONDS = 60.0

_BESIDE = (
    "tier_mbps",
    "tier_lat_ms",
    "4 MiB chunks, MB/s",
    "reference",
    "error",
    "stage",
    "error ",
    "valid",
    "mmap",
    "its model",
    "error  ",
    "valid ",
)

_INTRO = """# Findings v3

The reference experiment copied Qwen2.5-3B Q4_K_M (1.95 GiB) through a throttled script and benchmarked the
copy, at 12 tiers. Its rates missed its own model, 4 MiB / (4 MiB / bandwidth + latency), by {missed:.0f}% in the
median. This page has the same 12 points, {repeats} repeats each, with a synthetic model of the same geometry. Weights
were loaded in two ways. Mode `stage`: copied through the emulated tier in 4 MiB chunks, one in flight, as in the
reference. Mode `mmap`: mapped straight from the tier, where readahead keeps enough in flight to hide the latency.

[findings-v3.csv](findings-v3.csv) has every figure, a row per repeat; [definitions.md](definitions.md) says
what each column means. pp and tg cannot be compared with the reference's: CPU and weights differ. Decode is
{n_gen} tokens, the reference had 256. tg is a rate, and staging does not depend on it, so the sweep takes
minutes instead of over an hour. Decode therefore has a smaller share of the first run below. The modes were
measured one after the other, with tiers shuffled within each.
"""

_HOW = """## Repeat it

```
hbf model make qwen2.5-3b-q4_k_m -o model.gguf
hbf sweep -m model.gguf --mode mmap,stage {axes} -o results/v3
hbf sweep -m "$(hbf model get gemma3-270m)" --mbps 250,500,1000 --lat 0,1,5 -p 8 -n 4 -o results/gemma3
tools/bench findings results/v3 results/gemma3
```
"""


def main(results: Path, *others: Path, docs: Path = DOCS) -> None:
    """See the module. others: results of sweeps of real models."""
    runs = Results(results).all()
    series = {each.mode: each for each in summary.series_of(runs)}
    with (docs / "reference-v2.csv").open() as file:
        reference = {
            (float(row["tier_mbps"]), float(row["tier_lat_ms"])): row for row in csv.DictReader(file)
        }
    rows = [_beside(reference[key], _at(series["stage"], key), _at(series["mmap"], key)) for key in reference]
    repeats = max(len(point.runs) for each in series.values() for point in each.points)
    missed = statistics.median(abs(row["error %"]) for row in rows)
    text = [
        mark("findings") + _INTRO.format(missed=missed, repeats=repeats, n_gen=runs[0].cell.bench.n_gen),
        "## Stage rate compared with the reference\n",
    ]
    text += [tables.table(_BESIDE, [_shown(row) for row in rows])]
    text += [
        "MB/s are medians. Errors are in percent: of the reference and of `stage` against 4 MiB chunks, of"
    ]
    text += ["`mmap` against the tier model for the actual reads. `valid` counts repeats.\n"]
    for section in page.sections(runs, TARGET_SECONDS):
        text += [f"## {section.title}\n", tables.table(section.series.columns, section.rows)]
        text += [*(f"- {line}" for line in section.meaning), "", "Checks:\n"]
        text += [*(f"- {line}" for line in section.checks), ""]
    for other in others:
        beside = Results(other).all()
        for one in summary.series_of(beside):
            text += [f"## A real model: {beside[0].cell.model.name} ({one.title})\n"]
            text += [tables.table(one.columns, [point.row() for point in one.points])]
    text += ["## Notable runs\n", *(f"- {line}" for line in page.remarks(runs) or ["None."]), ""]
    text += ["## Measured on\n", *(f"- {line}" for line in page.environment(runs)), ""]
    first = runs[0].cell.bench
    axes = f"-p {first.n_prompt} -n {first.n_gen} --repeats {repeats}"
    (docs / "findings-v3.md").write_text("\n".join([*text, _HOW.format(axes=axes)]))
    (docs / "findings-v3.csv").write_text((results / "cells.csv").read_text())


def _at(series: Series, tier: tuple[float, float]) -> Point:
    return next(
        point for point in series.points if (point.spec.bandwidth_mbps, point.spec.latency_ms) == tier
    )


def _beside(reference: dict[str, str], stage: Point, mapped: Point) -> dict[str, Any]:
    chunked = stage.ideal_mbps or 0.0
    measured = float(reference["stage_eff_median"])
    staged = stage.median("stage_effective_mbps") or 0.0
    return {
        "tier_mbps": reference["tier_mbps"],
        "tier_lat_ms": reference["tier_lat_ms"],
        "chunked": chunked,
        "reference": measured,
        "error %": (measured / chunked - 1) * 100,
        "stage": staged,
        "stage error %": (staged / chunked - 1) * 100,
        "stage valid": f"{stage.valid_count}/{len(stage.runs)}",
        "mmap": mapped.median("stage_effective_mbps"),
        "mmap model": mapped.median("model_mbps"),
        "mmap error %": mapped.median("tier_error_pct"),
        "mmap valid": f"{mapped.valid_count}/{len(mapped.runs)}",
    }


def _shown(row: dict[str, Any]) -> dict[str, str]:
    figures = [
        f"{value:+.2f}" if "error" in name else f"{value:.1f}" if isinstance(value, float) else str(value)
        for name, value in row.items()
    ]
    return dict(zip(_BESIDE, figures, strict=True))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("name the results folder of a sweep")
    main(*map(Path, sys.argv[1:]))
