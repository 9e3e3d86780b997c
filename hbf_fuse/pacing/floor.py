"""What this machine adds to a read, in ns: reckoned with, so that the tier does not pay for it."""

from array import array
from collections.abc import Sequence
from typing import Any

_MIB = 1 << 20
_UNSURE_NS = 50_000
_UNSURE_NS_PER_MIB = 50_000


class Floor:
    """What a reader waits beyond what the server can see: entering the kernel, and waking up at the end.

    Measured before the mount begins, by a reader outside the server (mount/floor.py). after: for a read of 4
    KiB, by how long its reader had waited before, as (ns waited, ns more) in rising order; between these
    along a line. Whoever sleeps longer takes longer to wake up: the core has gone to sleep, too. per_mib_ns:
    for each MiB. NVMeVirt subtracts such floors too. known: whether it could be measured; if not, reads come
    late by what nobody knows.
    """

    def __init__(
        self, after: Sequence[tuple[int, int]] = ((0, 0),), per_mib_ns: int = 0, known: bool = True
    ) -> None:
        self.per_mib_ns = per_mib_ns
        self.known = known
        self._waited = array("q", [waited_ns for waited_ns, _ in after])
        self._fixed = array("q", [fixed_ns for _, fixed_ns in after])
        self._last = len(after) - 1

    def of(self, nbytes: int, waited_ns: int) -> int:
        """For a read of this size, whose reader has just waited so long for another."""
        return self._after(waited_ns) + self.per_mib_ns * nbytes // _MIB

    def _after(self, waited_ns: int) -> int:
        at = 0
        while at < self._last and self._waited[at + 1] < waited_ns:
            at += 1
        fixed_ns, beyond_ns = self._fixed[at], waited_ns - self._waited[at]
        if at == self._last or beyond_ns <= 0:
            return fixed_ns
        return fixed_ns + (self._fixed[at + 1] - fixed_ns) * beyond_ns // (
            self._waited[at + 1] - self._waited[at]
        )

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it. fixed_ns: by the ns waited."""
        return {
            "fixed_ns": {str(waited): fixed for waited, fixed in zip(self._waited, self._fixed, strict=True)},
            "ns_per_mib": self.per_mib_ns,
            "known": self.known,
        }


def unsure_ns(nbytes: int) -> int:
    """How well the floor of a read of this size is known: it is not the same for every reader, nor under
    every load. With an idle core, and from 0.5 ms on, nearly all runs of tools/bench small-reads are within
    this (docs/accuracy.md).
    """
    return _UNSURE_NS + _UNSURE_NS_PER_MIB * nbytes // _MIB
