"""What a sweep measures: every combination of some lists, from the command line or a TOML file."""

import itertools
import math
import random
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import DEFAULT_POLICY, POLICIES, Layout
from hbf_fuse.runs.run import Mode
from hbf_fuse.sweep.cell import Cell, ModelFile
from hbf_fuse.sweep.modes import cgroup
from hbf_fuse.tier import TierSpec, expect, profiles
from hbf_fuse.units import parse_size
from hbf_fuse.workload.llama import BenchOptions

MAX_CELLS = 100_000
MAX_TIMEOUT = 1e6
"""Eleven days."""

_AXES = ("mode", "mbps", "lat", "resident", "policy", "n_prompt", "n_gen", "threads")
_GRID_OF_ITS_OWN = {"bandwidth_mbps": "mbps", "latency_ms": "lat"}

Count = Annotated[int, Field(ge=0, le=1 << 20)]


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
    """Every combination of mode, mbps, lat, n_prompt, n_gen and threads, `repeats` times; in mode stream of
    resident and policy, too.

    mbps in decimal MB/s, "max" for unthrottled; lat in ms; n_prompt, n_gen and threads as llama-bench has
    them (threads 0 leaves it to llama-bench); timeout in seconds for each llama-bench. tier: what all tiers
    of the grid have in common, with the names of TierSpec, and `profile` to begin with a profile's values.
    resident: the emulated DRAM as "256M" or as "25%" of the model; policy: what stays in it. place and
    tiers: which tensors come from where, see fs.placement.Layout. An unknown key is an error.
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
    repeats: Annotated[int, Field(ge=1)] = 3
    seed: int = 0
    engine: Annotated[str, AfterValidator(_known)] = "kernel"
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
        layout = self._layout()
        if "cgroup" in self.mode:
            for mbps, lat in itertools.product(self.mbps, self.lat):
                if why := cgroup.refusal(self.spec(mbps, lat), layout):
                    raise ValueError(why)
        return self

    @property
    def size(self) -> int:
        """How many cells there are at most."""
        return math.prod(len(getattr(self, axis)) for axis in _AXES) * self.repeats

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
        every = itertools.product(*(getattr(self, axis) for axis in _AXES))
        # Only mode stream has a budget: elsewhere its values are no points of their own.
        points = list(
            dict.fromkeys(
                point if point[0] == "stream" else (*point[:3], None, None, *point[5:]) for point in every
            )
        )
        order = random.Random(self.seed)  # noqa: S311 - an order, not a secret
        ordered = []
        for repeat in range(1, self.repeats + 1):
            order.shuffle(points)
            points.sort(key=lambda point: self.mode.index(point[0]))  # stable: the order within stays
            ordered += [
                Cell(
                    model=model,
                    spec=self.spec(mbps, lat),
                    repeat=repeat,
                    mode=mode,
                    engine=self.engine,
                    bench=BenchOptions(n_prompt, n_gen, threads),
                    layout=self._layout(budget(resident, model.size), policy) if resident else self._layout(),
                    timeout_seconds=self.timeout,
                )
                for mode, mbps, lat, resident, policy, n_prompt, n_gen, threads in points
            ]
        _check_names(ordered)
        return ordered


def _check_names(cells: list[Cell]) -> None:
    """A run is kept by its cell's name, which has six digits of a figure and the MiB of a budget."""
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen:
            raise HbfError(
                f"two cells of the grid would be called {cell.name}; move their values further apart"
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
