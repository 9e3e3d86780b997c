"""What a run holds: a cell produces it, a results folder keeps it as JSON, tables and reports are made of it.

docs/definitions.md says what each figure means. Fields that nobody here knows are kept.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WrapValidator,
    model_validator,
)
from pydantic import ValidatorFunctionWrapHandler as Check

from hbf_fuse.fs.placement import POLICIES
from hbf_fuse.tier import TierSpec
from hbf_fuse.verdict import AGREES, UNSURE

SCHEMA = 2
Mode = Literal["mmap", "stage", "stream", "cgroup"]
"""Where llama-bench has the weights from: mapped from the mount; from a copy that was made through it first;
mapped from a mount with a resident budget, so that every token reads the tier; mapped from the real file,
with the kernel's io.max in the place of the tier.
"""

MAX_FIGURE = 1e18


def _as_written(value: Any, check: Check) -> Any:
    """Checked, and kept as it is: 5 does not become 5.0."""
    check(value)
    return value


def _tier(value: Any) -> TierSpec:
    if isinstance(value, TierSpec):
        return value
    if not isinstance(value, dict):
        raise ValueError("a tier is a table")
    return TierSpec.from_dict(value)


def _known_policy(name: str) -> str:
    # It becomes part of a file's name.
    if name not in ("", *POLICIES):
        raise ValueError(f"unknown policy {name!r}")
    return name


Figure = Annotated[float, Field(ge=-MAX_FIGURE, le=MAX_FIGURE, strict=True), WrapValidator(_as_written)]
Positive = Annotated[float, Field(gt=0, le=MAX_FIGURE, strict=True), WrapValidator(_as_written)]
Whole = Annotated[int, Field(ge=0, le=1 << 62, strict=True)]
Number = Annotated[int, Field(ge=0, lt=10**18)]
"""A key of a JSON object, which is a text there."""
Text = Annotated[str, Field(max_length=1 << 16)]
State = Literal["agrees", "unsure", "off"]
Tier = Annotated[TierSpec, PlainValidator(_tier), PlainSerializer(TierSpec.to_dict)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class RunModel(_Part):
    name: Text
    size: Annotated[int, Field(ge=1, le=1 << 62, strict=True)]
    sha256: Text


class RunBench(_Part):
    n_prompt: Whole
    n_gen: Whole
    threads: Whole
    repack: Whole | None = None


class RunLayout(_Part):
    resident_bytes: Whole | None = None
    policy: Annotated[str, AfterValidator(_known_policy)] = ""
    place: list[Text] = []
    tiers: dict[Text, Tier] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> "RunLayout":
        if self.resident_bytes is not None and not self.policy:
            raise ValueError("a resident budget has a policy")
        return self


class RunCell(_Part):
    """What was measured, as far as it can be told on another machine."""

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/\x00]+$")]
    mode: Mode
    engine: Text
    repeat: Whole
    tier_mbps: Positive | None
    tier_lat_ms: Figure
    tier: Tier
    tier_sha256: Text = ""
    model: RunModel
    bench: RunBench
    layout: RunLayout = RunLayout()

    @model_validator(mode="after")
    def _has_a_budget(self) -> "RunCell":
        if self.mode == "stream" and not {"resident_bytes", "policy"} <= self.layout.model_fields_set:
            raise ValueError("a cell of mode stream has a resident budget and its policy")
        return self


class Heat(_Part):
    layers: list[Text]
    seconds: list[Figure]
    bytes: list[list[Figure]]

    @model_validator(mode="after")
    def _is_a_table(self) -> "Heat":
        if len(self.bytes) != len(self.layers) or {len(row) for row in self.bytes} - {len(self.seconds)}:
            raise ValueError("it has a row for each layer, and in it a figure for each second")
        return self


class Attribution(_Part):
    """What was read of what, by phase, layer, tier and tensor: bytes, reads, stall_seconds."""

    phases: dict[Text, dict[Text, Any]] = {}
    layers: dict[Text, dict[Text, Any]] = {}
    tiers: list[dict[Text, Any]] = []
    heat: Heat
    read_sizes: dict[Number, Whole]
    queue_depths: dict[Number, Whole]


# The fields of the next classes, in their order, are columns of cells.csv.


class Staging(_Part):
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


class Running(_Part):
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


class Shares(_Part):
    busy_share: Figure | None = None
    window_share: Figure | None = None
    pause_share: Figure | None = None


class Decoding(_Part):
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


class Waiting(_Part):
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


class Metrics(Throttled, Running, Shares, Streamed, Waiting):
    """Every figure of a finished cell."""

    @classmethod
    def of(cls, *parts: _Part) -> "Metrics":
        """All that the parts say."""
        said = {name: value for part in parts for name, value in part if name in part.model_fields_set}
        return cls.model_validate(said)


class RunPhase(_Part):
    model_config = ConfigDict(extra="forbid")

    name: Text
    tokens: Whole
    start_ns: Whole
    end_ns: Whole

    @model_validator(mode="after")
    def _takes_time(self) -> "RunPhase":
        if self.end_ns < self.start_ns:
            raise ValueError("a phase ends before it begins")
        return self


class LlamaBench(_Part):
    """flags: those that it knows; records: what it printed."""

    version: Text
    flags: list[Text] = []
    records: list[dict[str, Any]] = []
    phases: list[RunPhase] = []


class Moment(_Part):
    time: Text
    throttle_count: Whole | None
    stolen_seconds: Figure


class Environment(_Part):
    cpu: Text
    virtual: bool
    cores: Whole | None
    memory_bytes: Whole
    kernel: Text
    python: Text
    hbf_fuse: Text
    before: Moment
    after: Moment


class Git(_Part):
    commit: Text
    changed: bool


class Conditions(_Part):
    concerns: list[Text] = []
    git: Git | None = None


class Run(_Part):
    """A cell that was measured: one with all its figures is Finished, the others have an error."""

    schema_number: Annotated[int, Field(ge=SCHEMA, le=SCHEMA, strict=True)] = Field(
        default=SCHEMA, alias="schema"
    )
    cell: RunCell
    error: Text = ""
    conditions: Conditions = Conditions()

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Finished(Run):
    """tier_stats: the stats.json of its mount, None where there was none."""

    metrics: Metrics
    command: list[Text]
    llama_bench: LlamaBench
    environment: Environment
    tier_stats: dict[str, Any] | None = None
