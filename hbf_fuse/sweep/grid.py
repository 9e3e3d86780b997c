"""What a sweep measures: every combination of some lists, from the command line or a TOML file."""

import dataclasses
import itertools
import math
import random
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import DEFAULT_POLICY, POLICIES, Layout
from hbf_fuse.runs.run import Mode, Workload
from hbf_fuse.sweep.cell import Cell, ModelFile
from hbf_fuse.sweep.modes import cgroup
from hbf_fuse.tier import TierSpec, expect, profiles
from hbf_fuse.units import parse_size
from hbf_fuse.workload.llama import MMAP, BenchOptions
from hbf_fuse.workload.serve import INPUT_TOKENS, OUTPUT_TOKENS, ServeOptions

MAX_CELLS = 100_000
MAX_TIMEOUT = 1e6
"""Eleven days."""

_GRID_OF_ITS_OWN = {"bandwidth_mbps": "mbps", "latency_ms": "lat"}

ONLY_MAPPED = "mode stream decodes from a mapping: its load mode is mmap"

Count = Annotated[int, Field(ge=0, le=1 << 20)]
Users = Annotated[int, Field(ge=1, le=1024)]


class Point(NamedTuple):
    """A combination of the axes"""

    workload: Workload
    mode: Mode
    mbps: float | Literal["max"]
    lat: float
    resident: str | None
    policy: str
    n_prompt: int
    n_gen: int
    threads: int
    load_mode: str
    llama: str


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list of an axis: not empty, each value once."""
    if not values:
        raise ValueError("the list is empty, so the grid would be; give at least one value")
    return tuple(dict.fromkeys(values))


def _known(engine: str) -> str:
    from hbf_fuse.engine import ENGINES

    if engine not in ENGINES:
        raise ValueError(f"must be {' or '.join(ENGINES)}")
    return engine


class Grid(BaseModel):
    """Every combination of workload, mode, mbps, lat, n_prompt, n_gen, threads, load_mode and llama,
    `repeats` times. In mode stream of resident and policy, too. The workload serve has input_tokens and
    output_tokens for n_prompt and n_gen.

    mbps in decimal MB/s, "max" for unthrottled; lat in ms; n_prompt, n_gen and threads as llama-bench has
    them (threads 0 leaves it to llama-bench); timeout in seconds for each llama-bench. tier: what all tiers
    of the grid have in common, with the names of TierSpec, and `profile` to begin with a profile's values.
    resident: the emulated DRAM as "256M" or as "25%" of the model; policy: what stays in it. place and
    tiers: which tensors come from where, see fs.placement.Layout. readahead: of the mounts, in KiB.
    load_mode: llama-bench's -lm; llama: its further options, a command line each. concurrency, requests,
    ctx_size, parallel and request_timeout: of the workload serve, see workload/serve.py. An unknown key is an
    error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    mode: Annotated[tuple[Mode, ...], AfterValidator(_unique)] = ("mmap",)
    mbps: Annotated[tuple[float | Literal["max"], ...], AfterValidator(_unique)] = (250, 500, 1000, 2000)
    lat: Annotated[tuple[float, ...], AfterValidator(_unique)] = (0, 1, 5)
    resident: Annotated[tuple[str, ...], AfterValidator(_unique)] = ("25%", "50%", "75%")
    policy: Annotated[tuple[str, ...], AfterValidator(_unique)] = (DEFAULT_POLICY,)
    n_prompt: Annotated[tuple[Count, ...], AfterValidator(_unique)] = (256,)
    n_gen: Annotated[tuple[Count, ...], AfterValidator(_unique)] = (256,)
    threads: Annotated[tuple[Count, ...], AfterValidator(_unique)] = (0,)
    load_mode: Annotated[tuple[str, ...], AfterValidator(_unique)] = (MMAP,)
    llama: Annotated[tuple[str, ...], AfterValidator(_unique)] = ("",)
    workload: Annotated[tuple[Workload, ...], AfterValidator(_unique)] = ("bench",)
    concurrency: Annotated[tuple[Users, ...], AfterValidator(_unique)] = (1, 4, 8)
    requests: Users = 8
    input_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = INPUT_TOKENS
    output_tokens: Annotated[int, Field(ge=2, le=1 << 20)] = OUTPUT_TOKENS
    ctx_size: Count = 0
    parallel: Count = 0
    request_timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT)] = 600.0
    repeats: Annotated[int, Field(ge=1)] = 3
    seed: int = 0
    engine: Annotated[str, AfterValidator(_known)] = "kernel"
    readahead: Annotated[int, Field(ge=4, le=1 << 20)] | None = None
    timeout: Annotated[float, Field(ge=1, le=MAX_TIMEOUT)] = 3600.0
    tier: dict[str, Any] = {}
    place: tuple[str, ...] = ()
    tiers: dict[str, dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _profile_gives_the_axes(cls, fields: Any) -> Any:
        """A profile's bandwidth and latency, where the grid does not say others."""
        tier = fields.get("tier", {}) if isinstance(fields, dict) else {}
        if not isinstance(tier, dict) or "profile" not in tier:
            return fields
        spec = profiles.load(str(tier["profile"])).spec().to_dict()
        axes = {"mbps": [spec.pop("bandwidth_mbps") or "max"], "lat": [spec.pop("latency_ms")]}
        rest = {key: value for key, value in tier.items() if key != "profile"}
        return {**axes, **fields, "tier": {**spec, **rest}}

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for key, axis in _GRID_OF_ITS_OWN.items():
            if key in self.tier:
                raise ValueError(f"tier.{key} is the axis {axis} of the grid")
        if self.size > MAX_CELLS:
            raise ValueError(f"the grid has {self.size} cells; at most {MAX_CELLS} make sense")
        if 0 in self.n_prompt and 0 in self.n_gen:
            raise ValueError("-p 0 and -n 0 together would measure nothing")
        for mbps, lat in itertools.product(self.mbps, self.lat):
            self.spec(mbps, lat)
        for text in self.resident:
            budget(text, 1 << 30)
        for policy in self.policy:
            if policy not in POLICIES:
                raise ValueError(f"unknown policy {policy!r}; there are: {', '.join(POLICIES)}")
        if self.engine == "memory" and not {"mmap", "stream"}.issuperset(self.mode):
            raise ValueError("engine memory serves mappings: mode mmap or stream")
        layout = self._layout()
        if "cgroup" in self.mode:
            for mbps, lat in itertools.product(self.mbps, self.lat):
                if why := cgroup.refusal(self.spec(mbps, lat), layout):
                    raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _llama_bench_can(self) -> Self:
        for text in self.llama:
            shlex.split(text)
        if "stream" in self.mode and set(self.load_mode) != {MMAP}:
            raise ValueError(ONLY_MAPPED)
        return self

    @model_validator(mode="after")
    def _fits_into_the_context(self) -> Self:
        if "serve" in self.workload:
            self._served().context(self.input_tokens + self.output_tokens)
        return self

    def _served(self) -> ServeOptions:
        names = [field.name for field in dataclasses.fields(ServeOptions)]
        return ServeOptions(**{name: getattr(self, name) for name in names})

    @property
    def size(self) -> int:
        """How many cells there are at most."""
        return math.prod(len(getattr(self, axis)) for axis in Point._fields) * self.repeats

    def _layout(self, resident_bytes: int | None = None, policy: str = DEFAULT_POLICY) -> Layout:
        specs = {name: profiles.tier_of(fields) for name, fields in self.tiers.items()}
        return Layout(resident_bytes, policy, self.place, specs)

    def spec(self, mbps: float | Literal["max"], lat: float) -> TierSpec:
        """The tier of a point. SpecError for what no tier can be."""
        link = None if mbps == "max" else mbps
        return TierSpec.from_dict({**self.tier, "bandwidth_mbps": link, "latency_ms": lat})

    def cells(self, model: ModelFile) -> list[Cell]:
        """All cells in the order of measuring: a repeat of everything, then the next, each shuffled by the
        seed, so that a machine that drifts does not look like an effect of the tier.

        Within a repeat the modes follow each other. They need different memory, and a virtual machine that
        gives free memory back to its host gets it again slowly: a cell after a change of mode would be
        measuring that.
        """
        every = itertools.product(*(getattr(self, axis) for axis in Point._fields))
        points = list(dict.fromkeys(self._only_what_counts(Point(*values)) for values in every))
        order = random.Random(self.seed)  # noqa: S311 - an order, not a secret
        ordered = []
        for repeat in range(1, self.repeats + 1):
            order.shuffle(points)
            # Stable: the order within stays.
            points.sort(key=lambda point: (self.mode.index(point.mode), self.workload.index(point.workload)))
            ordered += [self._cell(model, point, repeat) for point in points]
        _check_names(ordered)
        return ordered

    def _only_what_counts(self, point: Point) -> Point:
        """Only mode stream has a budget, and the tokens of the workload serve are no axes: elsewhere such
        values are no points of their own.
        """
        if point.mode != "stream":
            point = point._replace(resident=None, policy=DEFAULT_POLICY)
        if point.workload == "serve":
            point = point._replace(n_prompt=self.input_tokens, n_gen=self.output_tokens)
        return point

    def _cell(self, model: ModelFile, point: Point, repeat: int) -> Cell:
        extra = tuple(shlex.split(point.llama))
        bench = BenchOptions(point.n_prompt, point.n_gen, point.threads, None, point.load_mode, extra)
        resident = budget(point.resident, model.size) if point.resident else None
        return Cell(
            model=model,
            spec=self.spec(point.mbps, point.lat),
            repeat=repeat,
            mode=point.mode,
            engine=self.engine,
            bench=bench,
            layout=self._layout(resident, point.policy),
            timeout_seconds=self.timeout,
            serve=self._served() if point.workload == "serve" else None,
            readahead_kib=self.readahead,
        )


def _check_names(cells: list[Cell]) -> None:
    """A run is kept by its cell's name, which has six digits of a figure and the MiB of a budget."""
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen:
            raise HbfError(
                f"two cells of the grid would be called {cell.name}", "move their values further apart"
            )
        seen.add(cell.name)


def budget(text: str, model_bytes: int) -> int:
    """A resident budget in bytes: "256M", or a share of the model such as "25%". ValueError for others."""
    if not text.endswith("%"):
        return parse_size(text)
    try:
        share = float(text[:-1])
    except ValueError:
        share = -1.0
    if not 0 < share <= 100:
        raise ValueError(f"{text!r} is no share of the model; write it like 25% or 256M")
    return int(model_bytes * share / 100)


def from_fields(fields: dict[str, Any], file: Path | None = None) -> Grid:
    """A grid of what a TOML file says, overridden by `fields`. HbfError names what is wrong and where."""
    known = documents.read_toml(file) if file else {}
    if isinstance(known.get("tier"), dict) and "tier" in fields:
        fields = {**fields, "tier": {**known["tier"], **fields["tier"]}}
    try:
        return Grid.model_validate({**known, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2]) or "grid"
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = f"unknown key; known: {', '.join(Grid.model_fields)}"
        raise HbfError(f"{f'{file}: ' if file else ''}{where}: {what}") from error


def staging_seconds(cells: list[Cell]) -> float:
    """What staging alone takes in all these cells by the tier model."""
    return sum(_staging_seconds(cell) for cell in cells)


def _staging_seconds(cell: Cell) -> float:
    if cell.mode == "stream":
        return 0.0  # decode reads the tier, and how much of it nobody knows before
    rate = expect.staging_mbps(cell.spec, chunked=cell.mode == "stage")
    return cell.model.size / (rate * 1e6) if rate else 0.0
