"""What this machine adds to a read, in ns: reckoned with, so that the tier does not pay for it."""

_MIB = 1 << 20
_UNSURE_NS = 50_000
_UNSURE_NS_PER_MIB = 50_000


class Floor:
    """What a reader waits beyond what the server can see: entering the kernel, and waking up at the end.

    Measured before the mount begins, by a reader outside the server (mount/floor.py). fixed_ns for a read of
    4 KiB, growing to fixed_ns + per_mib_ns for 1 MiB. NVMeVirt subtracts such floors too. known: whether it
    could be measured; if not, reads come late by what nobody knows.
    """

    def __init__(self, fixed_ns: int = 0, per_mib_ns: int = 0, known: bool = True) -> None:
        self.fixed_ns = fixed_ns
        self.per_mib_ns = per_mib_ns
        self.known = known

    def of(self, nbytes: int) -> int:
        """For a read of this size."""
        return self.fixed_ns + self.per_mib_ns * nbytes // _MIB


def unsure_ns(nbytes: int) -> int:
    """How well the floor of a read of this size is known: it is not the same for every reader, nor under
    every load. With an idle core, and from 0.5 ms on, nearly all runs of tools/bench_small_reads are within
    this (docs/accuracy.md).
    """
    return _UNSURE_NS + _UNSURE_NS_PER_MIB * nbytes // _MIB
