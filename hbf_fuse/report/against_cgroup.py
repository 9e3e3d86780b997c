"""FUSE and the kernel's io.max side by side, where both were the same tier: a bandwidth without latency."""

from collections.abc import Sequence

from hbf_fuse.documents import Row
from hbf_fuse.report.summary import Point, series_of
from hbf_fuse.runs.run import Run

TITLE = "FUSE against cgroup"
LEGEND = (
    "The same model and llama-bench: through a FUSE mount, and from the file itself under the kernel's "
    "io.max. Medians; stage_eff in MB/s, error against the model in %, pp and tg in tokens/s. Mode cgroup "
    "reads the disk, the mounts have their source in memory."
)
_FUSE = ("mmap", "stage")
_FIGURES = {
    "stage_eff": "stage_effective_mbps",
    "error_pct": "tier_error_pct",
    "pp": "pp",
    "tg": "tg",
}
_SIDES = tuple(f"{side}_{name}" for name in [*_FIGURES, "valid"] for side in ("fuse", "cgroup"))
COLUMNS = ("tier_mbps", "fuse_mode", "llama_bench", *_SIDES)


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row, under the names of COLUMNS, for each point of a FUSE mode that mode cgroup has, too."""
    series = series_of(runs)
    kernel = {
        (each.bench, point.spec): point
        for each in series
        if each.mode == "cgroup"
        for point in each.points
        if point.metrics
    }
    return [
        _row(each.bench, point, kernel[each.bench, point.spec])
        for each in series
        if each.mode in _FUSE
        for point in each.points
        if point.metrics and (each.bench, point.spec) in kernel
    ]


def _row(bench: str, fuse: Point, cgroup: Point) -> Row:
    row: Row = {
        "tier_mbps": fuse.spec.bandwidth_mbps,
        "fuse_mode": fuse.mode,
        "llama_bench": bench,
    }
    for side, point in (("fuse", fuse), ("cgroup", cgroup)):
        row |= {f"{side}_{name}": point.median(metric) for name, metric in _FIGURES.items()}
        row[f"{side}_valid"] = f"{point.valid_count}/{len(point.runs)}"
    return row
