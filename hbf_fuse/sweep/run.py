"""What a run's document must hold, so that tables and reports can be made of it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hbf_fuse.fs.placement import POLICIES
from hbf_fuse.sweep.cell import Mode
from hbf_fuse.tier import TierSpec

MAX_FIGURE = 1e18
Figure = Annotated[float, Field(ge=-MAX_FIGURE, le=MAX_FIGURE, strict=True)]
Positive = Annotated[float, Field(gt=0, le=MAX_FIGURE, strict=True)]
Whole = Annotated[int, Field(ge=0, le=1 << 62, strict=True)]
Text = Annotated[str, Field(max_length=1 << 16)]
State = Literal["agrees", "unsure", "off"]


def _known_tier(fields: dict[str, Any]) -> dict[str, Any]:
    TierSpec.from_dict(fields)
    return fields


def _known_policy(name: str) -> str:
    # It becomes part of a file's name.
    if name not in ("", *POLICIES):
        raise ValueError(f"unknown policy {name!r}")
    return name


class _Part(BaseModel):
    """Runs get new fields with time; those that nobody here reads are let through."""

    model_config = ConfigDict(extra="allow")


class _Model(_Part):
    name: Text
    size: Annotated[int, Field(ge=1, le=1 << 62, strict=True)]
    sha256: Text


class _Bench(_Part):
    n_prompt: Whole
    n_gen: Whole
    threads: Whole


class _Layout(_Part):
    resident_bytes: Whole | None = None
    policy: Annotated[str, AfterValidator(_known_policy)] = ""
    place: list[Text] = []
    tiers: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> "_Layout":
        if self.resident_bytes is not None and not self.policy:
            raise ValueError("a resident budget has a policy")
        return self


class _Cell(_Part):
    name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/\x00]+$")]
    mode: Mode
    engine: Text
    repeat: Whole
    tier_mbps: Positive | None
    tier_lat_ms: Figure
    tier: Annotated[dict[str, Any], AfterValidator(_known_tier)]
    model: _Model
    bench: _Bench
    layout: _Layout = _Layout()

    @model_validator(mode="after")
    def _has_a_budget(self) -> "_Cell":
        if self.mode == "stream" and not {"resident_bytes", "policy"} <= self.layout.model_fields_set:
            raise ValueError("a cell of mode stream has a resident budget and its policy")
        return self


class _Heat(_Part):
    layers: list[Text]
    seconds: list[Figure]
    bytes: list[list[Figure]]

    @model_validator(mode="after")
    def _is_a_table(self) -> "_Heat":
        if len(self.bytes) != len(self.layers) or {len(row) for row in self.bytes} - {len(self.seconds)}:
            raise ValueError("it has a row for each layer, and in it a figure for each second")
        return self


class _Attribution(_Part):
    heat: _Heat
    read_sizes: dict[Annotated[str, Field(pattern=r"^\d{1,18}$")], Whole]
    queue_depths: dict[Annotated[str, Field(pattern=r"^\d{1,18}$")], Whole]


class _Metrics(_Part):
    valid: Annotated[bool, Field(strict=True)]
    why: Text
    verdict: State | None = None
    reasons: list[Text] = []
    tier_bound_pct: Figure | None = None
    tg_bound_pct: Figure | None = None
    stage_seconds: Figure
    bench_wall_seconds: Figure
    total_first_run_seconds: Figure
    load_seconds: Figure
    prefill_seconds: Figure
    decode_seconds: Figure
    pp: Positive | None
    tg: Positive | None
    stage_effective_mbps: Figure | None = None
    model_mbps: Figure | None = None
    tier_error_pct: Figure | None = None
    resident_before_bytes: Whole | None = None
    harness_seconds: Figure = 0
    other_cpu_seconds: Figure = 0
    compute_tg: Positive | None = None
    predicted_tg: Figure | None = None
    tg_error_pct: Figure | None = None
    bytes_per_token: Figure | None = None
    break_even_mbps: Figure | None = None
    bound: Text | None = None
    attribution: _Attribution | None = None


class _Phase(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Text
    tokens: Whole
    start_ns: Whole
    end_ns: Whole

    @model_validator(mode="after")
    def _takes_time(self) -> "_Phase":
        if self.end_ns < self.start_ns:
            raise ValueError("a phase ends before it begins")
        return self


class _LlamaBench(_Part):
    version: Text
    phases: list[_Phase] = []


class _Moment(_Part):
    time: Text
    throttle_count: Whole | None
    stolen_seconds: Figure


class _Environment(_Part):
    cpu: Text
    virtual: bool
    cores: Whole | None
    memory_bytes: Whole
    kernel: Text
    python: Text
    hbf_fuse: Text
    before: _Moment
    after: _Moment


class _Git(_Part):
    commit: Text
    changed: bool


class _Conditions(_Part):
    concerns: list[Text] = []
    git: _Git | None = None


class Run(_Part):
    """A finished cell with all its figures, or one that failed with its error; see docs/definitions.md."""

    cell: _Cell
    error: Text = ""
    metrics: _Metrics | None = None
    command: list[Text] = []
    llama_bench: _LlamaBench | None = None
    environment: _Environment | None = None
    tier_stats: dict[str, Any] | None = None
    conditions: _Conditions = _Conditions()

    @model_validator(mode="after")
    def _is_whole(self) -> "Run":
        if not {"metrics", "error"} & self.model_fields_set:
            raise ValueError("it has neither metrics nor an error")
        missing = {"command", "llama_bench", "environment"} - self.model_fields_set
        if "metrics" in self.model_fields_set and missing:
            raise ValueError(f"it has metrics and no {sorted(missing)[0]}")
        # Not `null` either: whoever asks whether a run has them asks for the name.
        if any(
            getattr(self, name) is None
            for name in ("metrics", "llama_bench", "environment")
            if name in self.model_fields_set
        ):
            raise ValueError("a part of it is null")
        if (
            self.metrics
            and self.metrics.attribution is None
            and "attribution" in self.metrics.model_fields_set
        ):
            raise ValueError("metrics.attribution is null")
        return self

    @classmethod
    def checked(cls, document: Any) -> dict[str, Any]:
        """The document as it is, if it is a run. ValueError names the first thing that is not."""
        try:
            cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][:4]) or "it"
            raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        known: dict[str, Any] = document
        return known
