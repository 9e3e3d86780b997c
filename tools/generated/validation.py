"""docs/validation.md: published values, ours, and a reason for every miss."""

from pathlib import Path

from hbf_fuse.validate import computing, values
from hbf_fuse.validate.computing import MISSED, NOT_REPRODUCED, Result

PAGE = Path(__file__).parent.parent.parent / "docs/validation.md"

_INTRO = """# Held against what others published

`hbf validate` computes published results with the code that users call: the device in virtual time,
`hbf kv sim`, the translation layer of flash, the sizes of caches, and the arithmetic of `hbf predict`. This
page is its output (`tools/pages`). A value that we miss stays here, with the reason.

The values are files in [hbf_fuse/validate/published](../hbf_fuse/validate/published), one for each source,
with all inputs, and with how each value was read: "second-hand" means in somebody's notes or transcription,
not in the paper.

A forecast has at least one input from another measurement than the value: the disk rate of another run, a
disk benchmark, a geometry. All others test formulas and units: their inputs and their result belong to one
run, or to one specification. The tolerance is 5%, or 0.1 to 0.5% where the value is an exact size.
"""

_MISSES = """## What the misses say

- At the knee between latency and bandwidth a real device is round: reads in flight begin to wait for each
  other long before the link is full. A tier of bandwidth and latency has a corner there, and is up to a third
  too fast. Planes (`--planes`) make it rounder; their number is rarely published.
- A disk benchmark says more than decode gets: scattered experts are read at 70 to 90% of the rate that large
  reads reach.
- What computes beside reading is missing where nobody published it. Then reading alone is too fast.
"""


def page() -> str:
    """The page's text."""
    results = [computing.result(value) for value in values.load()]
    parts = [_INTRO, *(f"- {line}." for line in computing.summary(results)), ""]
    for source in dict.fromkeys(result.value.source for result in results):
        parts += _section(source, [result for result in results if result.value.source == source])
    return "\n".join(parts) + _MISSES


def _section(source: str, results: list[Result]) -> list[str]:
    lines = [f"## {source}", ""]
    lines += [
        "| value | published | ours | error | within | verdict | |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for result in results:
        value = result.value
        ours = "" if result.ours is None else f"{result.ours:.4g}"
        error = "" if result.error_pct is None else f"{result.error_pct:+.1f}%"
        about = f"{value.what} ({value.section})" + ("; forecast" if value.forecast else "")
        published = " ".join(filter(None, (value.bound, f"{value.published:g}", value.unit)))
        within = "" if value.bound or result.ours is None else f"{value.tolerance_pct:g}%"
        figures = f"{published} | {ours} | {error} | {within} | {result.verdict}"
        lines.append(f"| {value.name} | {figures} | {about} |")
    lines.append("")
    for read in dict.fromkeys(result.value.read for result in results):
        of_those = [result.value.name for result in results if result.value.read == read]
        which = "" if len(of_those) == len(results) else f" ({len(of_those)} of {len(results)})"
        lines.append(f"Read{which}: {read}.")
    lines.append("")
    for verdict in (MISSED, NOT_REPRODUCED):
        for result in results:
            why = result.value.not_reproduced or result.value.remark
            if result.verdict == verdict:
                lines.append(f"- {verdict}: {result.value.name}: {why}.")
    if lines[-1]:
        lines.append("")
    return lines
