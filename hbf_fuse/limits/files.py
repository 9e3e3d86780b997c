"""The cgroup file and text for each limit, in v1 and v2, and how to read a group's files back.

Formats: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/blkio-controller.rst of Linux.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, Self

from hbf_fuse.errors import HbfError
from hbf_fuse.limits.devices import Disk
from hbf_fuse.units import format_size

LEAST_MBPS, MOST_MBPS = 0.001, 1e9
"""From 1 kB/s to 1 PB/s: a figure outside has a wrong unit."""

MOST_IOPS = 10**9
LEAST_MEMORY, MOST_MEMORY = 1 << 20, 1 << 50
"""No program runs in less than 1 MiB; no machine has 1 PiB."""

OPTIONS = {
    "io_mbps": "--io-max",
    "riops": "--riops",
    "memory_bytes": "--mem",
    "memory_high_bytes": "--mem-high",
}
"""The command-line option of each limit."""

_UNLIMITED_V1 = 1 << 62
_PAGE_SLACK = 1 << 16
"""The kernel rounds memory limits to whole pages, of up to 64 KiB."""


@dataclass(frozen=True)
class Limits:
    """What the kernel should enforce, or does; None for no limit.

    io_mbps: reads of one disk in decimal MB/s; riops: reads of it per second, as the disk counts them.
    memory_bytes: beyond it the kernel reclaims memory, else kills. memory_high_bytes: from there on it
    reclaims memory and slows the processes down.
    """

    io_mbps: float | None = None
    riops: int | None = None
    memory_bytes: int | None = None
    memory_high_bytes: int | None = None

    @classmethod
    def asked(
        cls,
        io_mbps: float | None = None,
        riops: int | None = None,
        memory_bytes: int | None = None,
        memory_high_bytes: int | None = None,
    ) -> Self:
        """Limits from the command line. ValueError names the option with an impossible figure."""
        _check("--io-max", io_mbps, LEAST_MBPS, MOST_MBPS, "{:g} MB/s".format)
        _check("--riops", riops, 1, MOST_IOPS, "{:g} reads per second".format)
        _check("--mem", memory_bytes, LEAST_MEMORY, MOST_MEMORY, format_size)
        _check("--mem-high", memory_high_bytes, LEAST_MEMORY, MOST_MEMORY, format_size)
        if memory_bytes and memory_high_bytes and memory_high_bytes > memory_bytes:
            raise ValueError("--mem-high above --mem would never be reached; give a smaller one")
        return cls(io_mbps, riops, memory_bytes, memory_high_bytes)

    @property
    def io(self) -> bool:
        """Whether a disk is limited."""
        return self.io_mbps is not None or self.riops is not None

    @property
    def controllers(self) -> list[str]:
        """The controllers that enforce them; empty for no limit at all."""
        memory = self.memory_bytes is not None or self.memory_high_bytes is not None
        return ["io"] * self.io + ["memory"] * memory

    def __str__(self) -> str:
        parts = [
            self.io_mbps is not None and f"reads at most {self.io_mbps:g} MB/s",
            self.riops is not None and f"at most {self.riops} reads per second",
            self.memory_bytes is not None and f"memory at most {format_size(self.memory_bytes)}",
            self.memory_high_bytes is not None and f"reclaim from {format_size(self.memory_high_bytes)} on",
        ]
        return ", ".join(part for part in parts if part) or "no limit"


class Setting(NamedTuple):
    """A line of text for a file of the group, and the controller of that file."""

    controller: str
    file: str
    text: str


def settings(limits: Limits, disk: Disk | None, versions: Mapping[str, int]) -> list[Setting]:
    """What to write for these limits. versions: cgroup version (1 or 2) by controller.

    HbfError for a limit that the version does not support.
    """
    return [*_io(limits, disk, versions.get("io", 2)), *_memory(limits, versions.get("memory", 2))]


def in_force(group: Path, disk: Disk | None) -> Limits:
    """The limits in the files of one group, for any version and controllers."""
    number = disk.number if disk else ""
    v2 = dict(pair.split("=") for pair in _of_device(group / "io.max", number))
    rate = _number(v2.get("rbps") or "".join(_of_device(group / "blkio.throttle.read_bps_device", number)))
    return Limits(
        io_mbps=None if rate is None else rate / 1e6,
        riops=_number(
            v2.get("riops") or "".join(_of_device(group / "blkio.throttle.read_iops_device", number))
        ),
        memory_bytes=_number(_text(group / "memory.max") or _text(group / "memory.limit_in_bytes")),
        memory_high_bytes=_number(_text(group / "memory.high")),
    )


def tightest(found: list[Limits]) -> Limits:
    """The effective limits of several groups: of a group and those above it."""
    least = {}
    for field in fields(Limits):
        values = [value for one in found if (value := getattr(one, field.name)) is not None]
        least[field.name] = min(values, default=None)
    return Limits(**least)


def missing(wanted: Limits, found: Limits) -> list[str]:
    """The options whose limits are not in force, or only looser ones."""
    loose = []
    for field, option in OPTIONS.items():
        asked, got = getattr(wanted, field), getattr(found, field)
        slack = _PAGE_SLACK if field.startswith("memory") else 1e-6
        if asked is not None and (got is None or got > asked + slack):
            loose.append(option)
    return loose


def _io(limits: Limits, disk: Disk | None, version: int) -> list[Setting]:
    if disk is None or not limits.io:
        return []
    rate = None if limits.io_mbps is None else round(limits.io_mbps * 1e6)
    if version == 2:
        known = {"rbps": rate, "riops": limits.riops}
        pairs = [f"{key}={value}" for key, value in known.items() if value is not None]
        return [Setting("io", "io.max", " ".join([disk.number, *pairs]))]
    known = {"blkio.throttle.read_bps_device": rate, "blkio.throttle.read_iops_device": limits.riops}
    return [
        Setting("io", file, f"{disk.number} {value}") for file, value in known.items() if value is not None
    ]


def _memory(limits: Limits, version: int) -> list[Setting]:
    if version == 1 and limits.memory_high_bytes is not None:
        raise HbfError(
            "--mem-high is memory.high of cgroup v2, and this machine has memory in v1, which has no such "
            "limit",
            "use --mem",
        )
    hard = "memory.max" if version == 2 else "memory.limit_in_bytes"
    known = {"memory.high": limits.memory_high_bytes, hard: limits.memory_bytes}
    return [Setting("memory", file, str(value)) for file, value in known.items() if value is not None]


def _check(
    option: str, value: float | None, least: float, most: float, shown: Callable[[float], str]
) -> None:
    if value is not None and not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{option} must be from {shown(least)} to {shown(most)}, got {shown(value)}")


def _text(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


def _of_device(file: Path, number: str) -> list[str]:
    """The line for this device in a file with one line per device."""
    for line in _text(file).splitlines():
        device, *rest = line.split()
        if device == number:
            return rest
    return []


def _number(text: str | None) -> int | None:
    """A limit as a number; None for the kernel's ways to say "no limit"."""
    if not text or text == "max" or int(text) >= _UNLIMITED_V1:
        return None
    return int(text)
