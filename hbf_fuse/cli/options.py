"""Options that several commands share, and what they describe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse import documents
from hbf_fuse.cli.common import tell
from hbf_fuse.cli.paths import found
from hbf_fuse.cli.profiles import load
from hbf_fuse.errors import HbfError
from hbf_fuse.tier import TierSpec, profiles
from hbf_fuse.tier.spec import NAMES
from hbf_fuse.units import parse_size

# Within functions, else: a command that is only asked for its help is there at once.
if TYPE_CHECKING:
    from hbf_fuse.fs.placement import Layout
    from hbf_fuse.limits.files import Limits

_PANEL = "Tier"


def _tier(help_text: str, *names: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        *names, help=help_text, rich_help_panel=_PANEL, show_default=False
    )
    return option


def _memory(
    help_text: str, *names: str, parser: Callable[[str], Path] | None = None
) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        *names, help=help_text, rich_help_panel="Emulated DRAM", show_default=False, parser=parser
    )
    return option


def bandwidth(left_out: str) -> typer.models.OptionInfo:
    """--mbps, and what it means to leave it out."""
    return _tier(f"Bandwidth in decimal MB/s. Left out: {left_out}.", "--mbps")


Seed = Annotated[int | None, _tier("Seed of the jitter.", "--seed")]
Place = Annotated[
    list[str] | None,
    _memory(
        "REGEX=TIER: these tensors come from hbf (the mount's tier), dram, or one that --tiers defines. The "
        "first that fits counts.",
        "--place",
    ),
]
Tiers = Annotated[
    Path | None,
    _memory(
        "TOML: a table [NAME] for each tier that --place names, with TierSpec's keys or `profile`.",
        "--tiers",
        parser=found,
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="How reads come from the kernel: kernel or fusepy; memory: mappings at the speed of memory, see "
        "`hbf exec`.",
    ),
]


class _Given:
    def given(self) -> dict[str, Any]:
        """What was given of a tier, by the names in tier.spec.NAMES."""
        values = {name: getattr(self, name, None) for name in NAMES}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class _Link:
    mbps: Annotated[float | None, bandwidth("unlimited")] = None
    lat: Annotated[float | None, _tier("Latency in ms of each read; reads in flight overlap.", "--lat")] = (
        None
    )


@dataclass(frozen=True)
class _Jitter:
    jitter: Annotated[
        str | None,
        _tier(
            "How latency varies, in ms: uniform:W normal:S lognormal:M,S exponential:M tail:P,X, "
            "joined by +. Of each read; tail, with --planes, of each page that is sensed.",
            "--jitter",
        ),
    ] = None
    seed: Seed = None


@dataclass(frozen=True)
class FlashOptions(_Given):
    """What a tier has beside a link and jitter."""

    planes: Annotated[int | None, _tier("Flash planes that read pages at the same time.", "--planes")] = None
    page: Annotated[int | None, _tier("Bytes in a flash page.", "--page")] = None
    t_read: Annotated[float | None, _tier("Time in us that a plane needs for a page.", "--t-read")] = None
    depth: Annotated[int | None, _tier("Reads that the device works on at once.", "--depth")] = None
    interleave: Annotated[
        str | None,
        _tier(
            "How pages lie on planes: hashed, so that no stride falls on few of them, or modulo.",
            "--interleave",
        ),
    ] = None
    write_mbps: Annotated[
        float | None,
        _tier(
            "What the device takes of writes, in decimal MB/s. Left out: as much as the link.", "--write-mbps"
        ),
    ] = None
    t_prog: Annotated[float | None, _tier("Time in us that a plane needs to program a page.", "--t-prog")] = (
        None
    )
    t_erase: Annotated[
        float | None, _tier("Time in us that a plane needs to erase a block.", "--t-erase")
    ] = None
    block: Annotated[int | None, _tier("Pages in an erase block. \\[default: 256]", "--block")] = None
    spare: Annotated[
        float | None, _tier("Over-provisioning of kv/ in percent. \\[default: 7]", "--spare")
    ] = None
    suspend: Annotated[
        float | None,
        _tier(
            "Time in us after which a read interrupts a program or an erase. Left out: it waits.", "--suspend"
        ),
    ] = None
    endurance: Annotated[int | None, _tier("Program and erase cycles that a block bears.", "--endurance")] = (
        None
    )
    seek: Annotated[
        float | None,
        _tier("Time in ms that one arm needs for a read that does not go on where the last ended.", "--seek"),
    ] = None


# The last base's fields come first: this is the order in --help.
@dataclass(frozen=True)
class _Detail(FlashOptions, _Jitter):
    pass


@dataclass(frozen=True)
class _Chunk:
    chunk: Annotated[
        int | None,
        _tier(
            "With --engine memory: bytes that one fault of a mapping brings, from 4096 to 2097152. "
            "\\[default: 262144]",
            "--chunk",
        ),
    ] = None


@dataclass(frozen=True)
class _Profile(_Given):
    profile: Annotated[
        str | None,
        _tier("A known device; `hbf profile list` shows them. Other options override it.", "--profile"),
    ] = None

    def spec(self) -> TierSpec:
        """The tier: a profile's values, overridden one by one, which is said aloud."""
        if self.profile is None:
            return TierSpec().changed(self.given())
        base = load(self.profile).spec()
        for name, value in self.given().items():
            key = NAMES[name]
            if (known := getattr(base, key)) != value:
                tell(
                    f"{key} {value:g} instead of the {known} of profile {self.profile}"
                    if isinstance(value, int | float)
                    else f"{key} {value} instead of the profile's"
                )
        return base.changed(self.given())


@dataclass(frozen=True)
class TierChange(_Detail, _Link, _Given):
    """Another tier under a live mount."""

    mbps: Annotated[float | None, bandwidth("as it was")] = None


@dataclass(frozen=True)
class TierOptions(_Chunk, _Detail, _Profile, _Link):
    """A tier, by a known device, option by option, or both."""


@dataclass(frozen=True)
class ProfileFirst(_Detail, _Link, _Profile):
    """The same for commands that mostly take a known device."""


@dataclass(frozen=True)
class MemoryOptions:
    """What the emulated DRAM holds, and which tensors come from where."""

    resident: Annotated[
        str | None,
        _memory(
            "Size of the DRAM in front of the tier, such as 256M. Left out: as much as there is.",
            "--resident",
        ),
    ] = None
    policy: Annotated[
        str | None,
        _memory("What stays in it: pin keeps what came first, fifo drops that. \\[default: pin]", "--policy"),
    ] = None
    place: Place = None
    tiers: Tiers = None

    def layout(self, resident_bytes: int | None) -> "Layout":
        """Where the model lies with so much of --resident."""
        from hbf_fuse.fs.placement import DEFAULT_POLICY, Layout

        return Layout(
            resident_bytes=resident_bytes,
            policy=self.policy or DEFAULT_POLICY,
            place=tuple(self.place or ()),
            tiers={name: profiles.tier_of(table) for name, table in tier_tables(self.tiers).items()},
        )


Readahead = Annotated[
    int | None,
    typer.Option(
        "--readahead",
        help="Readahead of the mount in KiB (raising it needs root). \\[default: 4096, with --resident 1024]",
        min=4,
        max=1 << 20,
    ),
]


def tier_tables(file: Path | None) -> dict[str, dict[str, Any]]:
    """The tables of a --tiers file. HbfError for what is no TOML of tables."""
    if file is None:
        return {}
    tables = documents.read_toml(file)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise HbfError(
                f"{file}: {name} is no table", f"define a tier as [{name}] with bandwidth_mbps = ..."
            )
    return tables


def limits_of(
    io_max: float | None, riops: int | None = None, mem: str | None = None, mem_high: str | None = None
) -> "Limits":
    """The kernel limits of these options, or wrong usage."""
    from hbf_fuse.limits.files import Limits

    try:
        memory, memory_high = (None if size is None else parse_size(size) for size in (mem, mem_high))
        return Limits.asked(io_max, riops, memory, memory_high)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error)) from None


def checked_engine(name: str) -> str:
    """The engine's name, or wrong usage."""
    from hbf_fuse.engine import ENGINES

    if name not in ENGINES:
        raise typer.BadParameter(f"--engine must be {' or '.join(ENGINES)}")
    return name


def checked_links(way: str) -> str:
    """What becomes of links, or wrong usage."""
    from hbf_fuse.fs.links import WAYS

    if way not in WAYS:
        raise typer.BadParameter(f"--links must be {' or '.join(WAYS)}")
    return way
