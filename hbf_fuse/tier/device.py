"""The device: one function from (arrival, offset, size) to the time when the data may be seen.

Next-available-time, as NVMeVirt and FEMU do it, not a token bucket, which would allow bursts: the link
is one pipe and each read waits until it is free. Latency follows the transfer and overlaps between
reads in flight.
"""

from hbf_fuse.tier.lateness import Lateness
from hbf_fuse.tier.spec import TierSpec

_SECOND_NS = 1_000_000_000


class Tier:
    """A device in the making of its schedule. Deterministic; not safe for concurrent callers.

    Times are integers in ns on one monotonic scale of the caller's choosing.
    """

    def __init__(self, spec: TierSpec) -> None:
        self.spec = spec
        self.lateness = Lateness()
        self._link_free_ns = 0
        # Transfer times seldom are whole ns: the remainder (in ns x bytes/s) goes to the next read, so
        # that the rate is exact over any number of reads.
        self._remainder = 0

    def reserve(self, arrival_ns: int, offset: int, nbytes: int, reader: int = 0) -> int:
        """Put one read into the schedule and return its deadline in ns.

        reader: who waits for this read (a thread id). What the emulator still owes this reader is
        given back by treating the read as having come that much earlier; see Lateness.
        """
        spec = self.spec
        start = max(arrival_ns - self.lateness.owed(reader, arrival_ns), self._link_free_ns)
        if rate := spec.bytes_per_second:
            transfer, self._remainder = divmod(nbytes * _SECOND_NS + self._remainder, rate)
            start += transfer
        self._link_free_ns = start
        return start + spec.latency_ns
