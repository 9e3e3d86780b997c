"""Floor: what this machine adds to a read, in ns. It is taken off, so that the tier is not charged for it."""

from array import array
from collections.abc import Sequence

from hbf_fuse.observe.status import FloorStatus

_MIB = 1 << 20
_UNSURE_NS = 50_000
_UNSURE_NS_PER_MIB = 50_000
"""Of a read through the kernel."""

WRITTEN_UNSURE_NS_PER_MIB = 100_000
"""Besides, of a write: its data is copied before the server can see it, which takes 0.15 to 0.4 ms per MiB.
"""

MAPPED_UNSURE_NS = 2_000
"""Of a fault under the memory engine: about as much as its floor varies with a quiet core."""

INJECTED_UNSURE_NS = 50_000
"""Of a fault that another process serves: two threads wake up, on cores that sleep (40 to 65 us) or do not
(4).
"""


class Floor:
    """What a reader waits beyond what the server can see: entering the kernel, and waking up at the end.

    Measured before the mount begins, by a reader outside the server (mount/floor.py). after: the addition to
    a read of 4 KiB, by how long the reader's previous read took, as (ns waited, ns added) in rising order;
    interpolated linearly between them. A longer sleep takes longer to wake from: the core sleeps, too.
    per_mib_ns: addition per MiB. NVMeVirt subtracts such floors too. known: whether the floor could be
    measured; if not, reads come late by an unknown time. doubt_ns: uncertainty of every read's floor; None
    for that of unsure_ns. doubt_per_mib_ns: uncertainty of each MiB besides.
    """

    def __init__(
        self,
        after: Sequence[tuple[int, int]] = ((0, 0),),
        per_mib_ns: int = 0,
        known: bool = True,
        doubt_ns: int | None = None,
        doubt_per_mib_ns: int = 0,
    ) -> None:
        self.per_mib_ns = per_mib_ns
        self.known = known
        self._doubt_ns = -1 if doubt_ns is None else doubt_ns
        self._doubt_per_mib_ns = doubt_per_mib_ns
        self._waited = array("q", [waited_ns for waited_ns, _ in after])
        self._fixed = array("q", [fixed_ns for _, fixed_ns in after])
        self._last = len(after) - 1

    def of(self, nbytes: int, waited_ns: int) -> int:
        """The floor of a read of this size. waited_ns: how long the reader's previous read took."""
        return self._after(waited_ns) + self.per_mib_ns * nbytes // _MIB

    def unsure(self, nbytes: int) -> int:
        """Uncertainty of the floor of a read of this size, in ns."""
        doubt_ns = unsure_ns(nbytes) if self._doubt_ns < 0 else self._doubt_ns
        return doubt_ns + self._doubt_per_mib_ns * nbytes // _MIB

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

    def status(self) -> FloorStatus:
        """As JSON for stats.json. fixed_ns: by the ns waited."""
        return {
            "fixed_ns": {str(waited): fixed for waited, fixed in zip(self._waited, self._fixed, strict=True)},
            "ns_per_mib": self.per_mib_ns,
            "known": self.known,
        }


def unsure_ns(nbytes: int) -> int:
    """Uncertainty of the floor of a read of this size, in ns: it varies between readers and with load. With
    an idle core and from 0.5 ms on, nearly all runs of tools/bench small-reads are within this
    (docs/accuracy.md).
    """
    return _UNSURE_NS + _UNSURE_NS_PER_MIB * nbytes // _MIB
