"""What this machine adds to a read, in ns: reckoned with, so that the tier does not pay for it."""

from dataclasses import dataclass
from typing import Any

from hbf_fuse.fs.estimate import Estimate

_MIB = 1 << 20
_LARGE = _MIB // 8

CROWD = 4
"""Readers at once for which the floor is measured as well."""

_UNSURE_NS = 50_000
_UNSURE_NS_PER_MIB = 50_000


@dataclass(frozen=True)
class Floor:
    """What a reader waits beyond what the server can see: entering the kernel, and waking up at the end.

    Measured at mount time by readers outside the server (mount/probe.py). `fixed_ns` for a read of 4 KiB,
    growing to fixed_ns + per_mib_ns for 1 MiB, of a reader that is alone; crowd_ns more among CROWD
    readers, who share the cores with each other and with the server. NVMeVirt subtracts such floors too.
    """

    fixed_ns: int = 0
    per_mib_ns: int = 0
    crowd_ns: int = 0
    known: bool = True
    """Whether it could be measured. If not, reads come late by what nobody knows."""

    def of(self, nbytes: int, others: int) -> int:
        """For a read of this size, with `others` in flight."""
        crowd_ns = self.crowd_ns * min(others, CROWD - 1) // (CROWD - 1)
        return self.fixed_ns + self.per_mib_ns * nbytes // _MIB + crowd_ns


def unsure_ns(nbytes: int) -> int:
    """How well the floor of a read of this size is known: it is not the same for every reader, nor under
    every load. With an idle core, and from 0.5 ms on, nearly all runs of tools/bench_small_reads are within
    this (docs/accuracy.md).
    """
    return _UNSURE_NS + _UNSURE_NS_PER_MIB * nbytes // _MIB


class Costs:
    """Running estimates of waking up and of copying, and the floor."""

    def __init__(self) -> None:
        self.floor = Floor()
        self.wake = Estimate(50_000, most=1_000_000)
        self._reply = Estimate(15_000, most=1_000_000)
        self._copy_per_mib = Estimate(200_000, most=5_000_000)

    def copy(self, nbytes: int) -> int:
        """What it takes to hand a reply of this size to the kernel."""
        return self._reply.value + self._copy_per_mib.value * nbytes // _MIB

    def copied(self, nbytes: int, duration_ns: int) -> None:
        """It took this long."""
        if nbytes >= _LARGE:
            self._copy_per_mib.add((duration_ns - self._reply.value) * _MIB // nbytes)
        else:
            self._reply.add(duration_ns)

    @property
    def copy_per_mib_ns(self) -> int:
        """What 1 MiB takes lately."""
        return self._copy_per_mib.value

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it."""
        return {
            "wake_ns": self.wake.value,
            "reply_ns": self._reply.value,
            "copy_ns_per_mib": self._copy_per_mib.value,
            "floor_ns": self.floor.fixed_ns,
            "floor_ns_per_mib": self.floor.per_mib_ns,
            "floor_crowd_ns": self.floor.crowd_ns,
            "floor_known": self.floor.known,
        }
