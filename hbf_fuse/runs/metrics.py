"""The figures of a run; docs/definitions.md says what each means."""

from typing import Annotated, Any

from pydantic import (
    Field,
    model_validator,
)

from hbf_fuse.observe.status import State
from hbf_fuse.runs.fields import Document, Figure, Number, Positive, Text, Whole
from hbf_fuse.verdict import AGREES, UNSURE


class Heat(Document):
    layers: list[Text]
    seconds: list[Figure]
    bytes: list[list[Figure]]

    @model_validator(mode="after")
    def _is_a_table(self) -> "Heat":
        if len(self.bytes) != len(self.layers) or {len(row) for row in self.bytes} - {len(self.seconds)}:
            raise ValueError("it has a row for each layer, and in it a figure for each second")
        return self


class Attribution(Document):
    """What was read of what, by phase, layer, tier and tensor: bytes, reads, stall_seconds."""

    phases: dict[Text, dict[Text, Any]] = {}
    layers: dict[Text, dict[Text, Any]] = {}
    tiers: list[dict[Text, Any]] = []
    heat: Heat
    read_sizes: dict[Number, Whole]
    queue_depths: dict[Number, Whole]


# The fields of the next classes, in their order, are columns of cells.csv.


class Staging(Document):
    stage_seconds: Figure
    stage_effective_mbps: Figure | None = None
    model_mbps: Figure | None = None
    tier_error_pct: Figure | None = None
    tier_bound_pct: Figure | None = None
    verdict: State | None = None
    reasons: list[Text] = []
    valid: Annotated[bool, Field(strict=True)]
    why: Text

    @property
    def state(self) -> str:
        """How it was judged. Runs of older versions knew valid or not, and nothing between."""
        return self.verdict or (AGREES if self.valid else UNSURE)


class Throttled(Staging):
    """Of mode cgroup."""

    io_max_in_force_mbps: Figure | None = None


class Running(Document):
    pp: Positive | None
    tg: Positive | None
    bench_wall_seconds: Figure
    total_first_run_seconds: Figure
    tier_bytes_read: Whole | None = None
    stall_seconds: Figure | None = None
    major_faults: Whole | None = None
    load_seconds: Figure
    prefill_seconds: Figure
    decode_seconds: Figure
    lateness_p50_us: Figure | None = None
    lateness_p99_us: Figure | None = None
    in_flight_max: Whole | None = None
    resident_before_bytes: Whole | None = None
    harness_seconds: Figure | None = None
    other_cpu_seconds: Figure | None = None


class Shares(Document):
    busy_share: Figure | None = None
    window_share: Figure | None = None
    pause_share: Figure | None = None


class Decoding(Document):
    """Of mode stream; without any figure where llama-bench does not say when it decoded."""

    compute_tg: Positive | None = None
    bytes_per_token: Figure | None = None
    tier_seconds_per_token: Figure | None = None
    predicted_tg: Figure | None = None
    overlapped_tg: Figure | None = None
    hiding_bytes: Figure | None = None
    tg_error_pct: Figure | None = None
    tg_bound_pct: Figure | None = None
    bound: Text | None = None
    break_even_mbps: Figure | None = None


class Percentiles(Document):
    """Of seconds; those that too few values lie beyond are missing."""

    p50: Figure
    p95: Figure | None = None
    p99: Figure | None = None


class ServeLevel(Document):
    """So many users at once. The second part where weights stay in the tier."""

    concurrency: Whole
    requests: Whole = 0
    failed: Whole = 0
    errors: list[Text] = []
    seconds: Figure | None = None
    ttft: Percentiles | None = None
    tpot: Percentiles | None = None
    itl: Percentiles | None = None
    tokens_per_second: Figure | None = None
    tokens_per_second_per_user: Figure | None = None
    decode_tokens_per_second: Figure | None = None
    client_cpu_share: Figure | None = None
    tier_bytes_read: Whole | None = None
    output_sha256: Text = ""

    compute_step_seconds: Figure | None = None
    tier_step_seconds: Figure | None = None
    bytes_per_step: Figure | None = None
    bytes_per_token: Figure | None = None
    predicted_tokens_per_second: Figure | None = None
    error_pct: Figure | None = None
    bound_pct: Figure | None = None
    bound: Text | None = None
    verdict: State | None = None
    reasons: list[Text] = []
    experts_per_step: Figure | None = None
    predicted_experts_per_step: Figure | None = None
    predicted_bytes_per_token: Figure | None = None


class Served(Document):
    """Of the workload serve: its cold start, and what follows from all levels."""

    cold_ttft_seconds: Figure | None = None
    mount_seconds: Figure | None = None
    ready_seconds: Figure | None = None
    first_prefill_seconds: Figure | None = None
    memory_ttft_seconds: Figure | None = None
    predicted_ttft_seconds: Figure | None = None
    warm_ttft_seconds: Figure | None = None
    same_output: Annotated[bool, Field(strict=True)] | None = None
    break_even_batch: Figure | None = None


class Serving(Served):
    bytes_by_phase: dict[Text, Whole] = {}
    output_sha256: Text = ""
    levels: list[ServeLevel] = []


class Waiting(Document):
    delay_blkio_seconds: Figure | None = None
    delay_swapin_seconds: Figure | None = None
    delay_reclaim_seconds: Figure | None = None
    delay_thrashing_seconds: Figure | None = None
    delays: Text | None = None
    psi_io_some_seconds: Figure | None = None
    psi_io_full_seconds: Figure | None = None
    psi_memory_some_seconds: Figure | None = None
    peak_rss_bytes: Whole | None = None
    bench_cpu_seconds: Figure | None = None


class Streamed(Decoding):
    bytes_per_token_by_tier: dict[Text, Figure] = {}
    attribution: Attribution | None = None


class Metrics(Throttled, Running, Shares, Streamed, Serving, Waiting):
    """Every figure of a finished cell."""

    @classmethod
    def of(cls, *parts: Document) -> "Metrics":
        """All that the parts say."""
        said = {name: value for part in parts for name, value in part if name in part.model_fields_set}
        return cls.model_validate(said)
