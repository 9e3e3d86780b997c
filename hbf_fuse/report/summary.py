"""Runs, sorted into series and points; and the summary table: the reference's columns by name, then ours."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hbf_fuse.documents import Row
from hbf_fuse.report import alike, levels
from hbf_fuse.report.statistics import Spread
from hbf_fuse.report.tables import inert, table
from hbf_fuse.runs.metrics import Metrics
from hbf_fuse.runs.run import Finished, Run, RunLayout
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.units import format_size
from hbf_fuse.verdict import AGREES

COLUMNS = (
    "tier_mbps",
    "tier_lat_ms",
    "repeats",
    "stage_seconds_median",
    "stage_eff_median",
    "pp_median",
    "tg_median",
    "stage_seconds_min",
    "stage_seconds_max",
    "bench_wall_median",
    "total_first_run_median",
    "model_mbps_median",
    "tier_error_pct_median",
    "verdict",
)
STREAM_COLUMNS = (
    "tier_mbps",
    "tier_lat_ms",
    "repeats",
    "tg_median",
    "predicted_tg_median",
    "tg_error_pct_median",
    "bound",
    "bytes_per_token_median",
    "compute_tg_median",
    "break_even_mbps_median",
    "tg_min",
    "tg_max",
    "stage_seconds_median",
    "verdict",
)
"""Of mode stream: what decode comes to with the weights in the tier."""

_SERIES = ("workload", "mode", "memory", "n_prompt", "n_gen", "options", "setting")


@dataclass(frozen=True, eq=False)
class Point:
    """A tier as one series measured it. spec: the tier; runs: one per repeat, failed ones too."""

    spec: TierSpec
    mode: str
    runs: tuple[Run, ...]

    @property
    def serves(self) -> bool:
        """Whether llama-server was measured, not llama-bench."""
        return self.runs[0].cell.workload == "serve"

    @property
    def label(self) -> str:
        """Bandwidth and latency as "500/1"."""
        link = "max" if self.spec.bandwidth_mbps is None else f"{self.spec.bandwidth_mbps:g}"
        return f"{link}/{self.spec.latency_ms:g}"

    @cached_property
    def metrics(self) -> list[Metrics]:
        """Of the repeats that were finished."""
        return [run.metrics for run in self.runs if isinstance(run, Finished)]

    @property
    def repeats(self) -> list[int]:
        """The numbers of those repeats."""
        return [run.cell.repeat for run in self.runs if isinstance(run, Finished)]

    @property
    def valid_count(self) -> int:
        """How many repeats agree with the tier model."""
        return sum(run.valid for run in self.metrics)

    @property
    def valid(self) -> bool:
        """Whether most repeats do, so that the median is one that does."""
        return self.valid_count * 2 > len(self.runs)

    @property
    def state(self) -> str:
        """How most repeats were judged."""
        return Counter(run.state for run in self.metrics).most_common(1)[0][0] if self.metrics else "failed"

    @property
    def verdict(self) -> str:
        """How the repeats were judged, and the largest bound of those that agree: "agrees ±0.4%", or with
        their numbers if not all are alike.
        """
        states = Counter(run.state for run in self.metrics)
        states.update({"failed": len(self.runs) - len(self.metrics)})
        states = +states
        bound = self._bound_pct()
        told = [
            (state if len(states) == 1 else f"{count} {state}")
            + (f" ±{bound:.1f}%" if state == AGREES and bound is not None else "")
            for state, count in states.most_common()
        ]
        return ", ".join(told)

    def _bound_pct(self) -> float | None:
        name = "tg_bound_pct" if self.mode == "stream" else "tier_bound_pct"
        bounds = [getattr(run, name) for run in self.metrics if run.state == AGREES]
        # 0.1.0 knew no bound: of such a run nobody can tell.
        return None if None in bounds else max(bounds, default=None)

    @property
    def ideal_mbps(self) -> float | None:
        """What the tier's bandwidth and latency come to in this mode; see expect.staging_mbps."""
        return expect.staging_mbps(self.spec, chunked=self.mode == "stage")

    def spread(self, metric: str) -> Spread | None:
        """A metric over the repeats; None if none has it."""
        values = [getattr(run, metric) for run in self.metrics]
        return Spread.of([value for value in values if value is not None])

    def median(self, metric: str) -> float | None:
        """The median of a metric over the repeats."""
        spread = self.spread(metric)
        return spread.median if spread else None

    @property
    def tier_columns(self) -> Row:
        """The tier, as in every table."""
        return {"tier_mbps": self.spec.bandwidth_mbps, "tier_lat_ms": self.spec.latency_ms}

    def row(self) -> Row:
        """The point under the names of COLUMNS."""
        stage = self.spread("stage_seconds")
        return {
            **self.tier_columns,
            "repeats": len(self.runs),
            "stage_seconds_median": stage and stage.median,
            "stage_eff_median": self.median("stage_effective_mbps"),
            "pp_median": self.median("pp"),
            "tg_median": self.median("tg"),
            "stage_seconds_min": stage and stage.least,
            "stage_seconds_max": stage and stage.most,
            "bench_wall_median": self.median("bench_wall_seconds"),
            "total_first_run_median": self.median("total_first_run_seconds"),
            "model_mbps_median": self.median("model_mbps"),
            "tier_error_pct_median": self.median("tier_error_pct"),
            "tier_bound_pct_median": self.median("tier_bound_pct"),
            "verdict": self.verdict,
            "valid": f"{self.valid_count}/{len(self.runs)}",
            "stage_seconds_interval": stage and [stage.low, stage.high],
            **(levels.row(self.metrics) if self.serves else self._decode() if self.mode == "stream" else {}),
        }

    def _decode(self) -> Row:
        tg = self.spread("tg")
        return {
            "predicted_tg_median": self.median("predicted_tg"),
            "tg_error_pct_median": self.median("tg_error_pct"),
            "tg_bound_pct_median": self.median("tg_bound_pct"),
            "bound": next((run.bound for run in self.metrics), None),
            "bytes_per_token_median": self.median("bytes_per_token"),
            "compute_tg_median": self.median("compute_tg"),
            "break_even_mbps_median": self.median("break_even_mbps"),
            "tg_min": tg and tg.least,
            "tg_max": tg and tg.most,
        }


@dataclass(frozen=True)
class Series:
    """All tiers measured in one mode with one workload and its axes. memory: the emulated DRAM. options:
    those of llama-bench or llama-server that are not usual. setting: what its runs have in common and others
    do not, such as a kernel; see alike.py. No figure is averaged over runs of which that differs.
    """

    workload: str
    mode: str
    memory: str
    n_prompt: int
    n_gen: int
    options: str
    setting: str
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """As headings have it."""
        memory = f", {self.memory}" if self.memory else ""
        served = "serve, " if self.serves else ""
        setting = f"; {self.setting}" if self.setting else ""
        return f"{served}{self.mode}{memory}, {self.bench}{setting}"

    @property
    def serves(self) -> bool:
        """Whether it is of llama-server."""
        return self.workload == "serve"

    @property
    def bench(self) -> str:
        """The options of the workload."""
        tokens = f"-p {self.n_prompt} -n {self.n_gen}"
        if self.serves:
            tokens = f"--input-tokens {self.n_prompt} --output-tokens {self.n_gen}"
        return " ".join(filter(None, (tokens, self.options)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of its table."""
        if self.serves:
            return levels.COLUMNS
        return STREAM_COLUMNS if self.mode == "stream" else COLUMNS

    @property
    def levels(self) -> list[Row]:
        """Of the workload serve: the second table, by users."""
        if not self.serves:
            return []
        return [row for point in self.points for row in levels.rows(point.metrics, point.tier_columns)]


def series_of(runs: Sequence[Run]) -> list[Series]:
    """The runs of a sweep, sorted: series by mode and axes, points by tier, repeats by number."""
    sorted_in: dict[tuple[Any, ...], dict[tuple[float, float], list[Run]]] = defaultdict(dict)
    ordered = sorted(runs, key=lambda each: each.cell.repeat)
    for run, setting in zip(ordered, alike.titles(ordered), strict=True):
        cell = run.cell
        bench = cell.bench
        options = " ".join(filter(None, (cell.serve.label if cell.serve else "", bench.label)))
        series = cell.workload, cell.mode, _memory(cell.layout), bench.n_prompt, bench.n_gen, options, setting
        tier = cell.tier_mbps or float("inf"), cell.tier_lat_ms
        sorted_in[series].setdefault(tier, []).append(run)
    return [
        Series(workload, mode, memory, n_prompt, n_gen, options, setting, _points(mode, tiers))
        for (workload, mode, memory, n_prompt, n_gen, options, setting), tiers in sorted(
            sorted_in.items(), key=lambda item: item[0]
        )
    ]


def _memory(layout: RunLayout) -> str:
    budget = layout.resident_bytes
    memory = [f"{format_size(budget)} {layout.policy}"] if budget is not None else []
    ahead = [f"readahead {layout.readahead_kib} KiB"] if layout.readahead_kib is not None else []
    return ", ".join(memory + ahead)


def _points(mode: str, tiers: dict[tuple[float, float], list[Run]]) -> tuple[Point, ...]:
    return tuple(Point(tiers[tier][0].cell.tier, mode, tuple(tiers[tier])) for tier in sorted(tiers))


def summarize(runs: Sequence[Run]) -> list[Row]:
    """One row per point of every series; failed runs count in `valid`, as in "2/3", and in no figure."""
    return [
        {**point.row(), **{axis: getattr(series, axis) for axis in _SERIES}}
        for series in series_of(runs)
        for point in series.points
    ]


def markdown(runs: Sequence[Run]) -> str:
    """A Markdown table per series."""
    tables = [
        f"### {inert(series.title)}\n\n{table(series.columns, [point.row() for point in series.points])}"
        + (f"\n{table(levels.columns(rows), rows)}" if (rows := series.levels) else "")
        for series in series_of(runs)
    ]
    return "\n".join(tables)
