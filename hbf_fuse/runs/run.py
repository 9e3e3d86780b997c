"""What a run holds: a cell produces it, a results folder keeps it as JSON, tables and reports are made of it.

docs/definitions.md says what each figure means. Fields that nobody here knows are kept.
"""

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)

from hbf_fuse.fs.placement import POLICIES
from hbf_fuse.runs.fields import Document, Figure, Positive, Text, Whole
from hbf_fuse.runs.metrics import (
    Metrics,
)
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload.llama import MMAP

SCHEMA = 2
Mode = Literal["mmap", "stage", "stream", "cgroup"]
"""Where llama-bench has the weights from: mapped from the mount; from a copy that was made through it first;
mapped from a mount with a resident budget, so that every token reads the tier; mapped from the real file,
with the kernel's io.max in the place of the tier.
"""
Workload = Literal["bench", "serve"]
"""What runs on them: llama-bench, or llama-server under load."""


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


Tier = Annotated[TierSpec, PlainValidator(_tier), PlainSerializer(TierSpec.to_dict)]


class RunModel(Document):
    name: Text
    size: Annotated[int, Field(ge=1, le=1 << 62, strict=True)]
    sha256: Text


class RunBench(Document):
    n_prompt: Whole
    n_gen: Whole
    threads: Whole
    repack: Whole | None = None
    load_mode: Text = MMAP
    extra: list[Text] = []

    @property
    def label(self) -> str:
        """Threads, load mode and further options where they are not the usual ones, as a command line."""
        threads = ["-t", str(self.threads)] if self.threads else []
        load = ["-lm", self.load_mode] if self.load_mode != MMAP else []
        return shlex.join([*threads, *load, *self.extra])

    @property
    def llama(self) -> str:
        """The further options as a command line."""
        return shlex.join(self.extra)


class RunServe(Document):
    """How llama-server was loaded; see workload/serve.py."""

    concurrency: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    requests: Whole
    ctx_size: Whole
    parallel: Whole
    seed: Figure
    request_timeout: Figure

    @field_validator("concurrency", mode="before")
    @classmethod
    def _as_json_has_it(cls, value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    @property
    def label(self) -> str:
        """What it was asked for, as options."""
        slots = f" --parallel {self.parallel}" if self.parallel else ""
        context = f" --ctx-size {self.ctx_size}" if self.ctx_size else ""
        users = ",".join(map(str, self.concurrency))
        return f"--concurrency {users} --requests {self.requests}{slots}{context}"


class RunLayout(Document):
    resident_bytes: Whole | None = None
    policy: Annotated[str, AfterValidator(_known_policy)] = ""
    place: list[Text] = []
    tiers: dict[Text, Tier] = {}
    readahead_kib: Whole | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "RunLayout":
        if self.resident_bytes is not None and not self.policy:
            raise ValueError("a resident budget has a policy")
        return self


class RunCell(Document):
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
    serve: RunServe | None = None
    layout: RunLayout = RunLayout()

    @property
    def workload(self) -> Workload:
        """What ran."""
        return "serve" if self.serve else "bench"

    @model_validator(mode="after")
    def _has_a_budget(self) -> "RunCell":
        if self.mode == "stream" and not {"resident_bytes", "policy"} <= self.layout.model_fields_set:
            raise ValueError("a cell of mode stream has a resident budget and its policy")
        return self


class RunPhase(Document):
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


class LlamaBench(Document):
    """flags: those that it knows; records: what it printed."""

    version: Text
    flags: list[Text] = []
    records: list[dict[str, Any]] = []
    phases: list[RunPhase] = []


class Moment(Document):
    time: Text
    throttle_count: Whole | None
    stolen_seconds: Figure


class Environment(Document):
    """compiled: whether the tier's modules were; None of hbf 0.1.0, which had no such modules."""

    cpu: Text
    virtual: bool
    cores: Whole | None
    memory_bytes: Whole
    kernel: Text
    python: Text
    hbf_fuse: Text
    compiled: Annotated[bool, Field(strict=True)] | None = None
    before: Moment
    after: Moment


class Git(Document):
    commit: Text
    changed: bool


class Conditions(Document):
    """machine: what the worker that measured is called; "" for the machine of the sweep itself."""

    concerns: list[Text] = []
    git: Git | None = None
    machine: Text = ""


class Run(Document):
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
    tier_stats: Mapping[str, Any] | None = None

    @property
    def outdated(self) -> str:
        """What hbf 0.1.0 computed in another way, so that the run cannot be mixed with today's; "" if
        nothing.
        """
        if self.environment.compiled is not None:
            return ""
        if any(tier.planes for tier in (self.cell.tier, *self.cell.layout.tiers.values())):
            return "deadlines of flash planes"
        return "predictions of tokens/s" if self.cell.mode == "stream" else ""
