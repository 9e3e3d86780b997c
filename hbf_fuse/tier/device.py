"""The device: one function from (arrival, offset, size) to the time when the data may be seen.

Next-available-time, as NVMeVirt and FEMU do it, not a token bucket, which would allow bursts: the link
is one pipe and each read waits until it is free. Latency follows the transfer and overlaps between
reads in flight.
"""

import heapq

from hbf_fuse.tier import jitter
from hbf_fuse.tier.flash import Planes
from hbf_fuse.tier.lateness import Lateness
from hbf_fuse.tier.link import Link
from hbf_fuse.tier.spec import TierSpec

_SECOND_NS = 1_000_000_000


class Tier:
    """A device in the making of its schedule. Deterministic; not safe for concurrent callers.

    Times are integers in ns on one monotonic scale of the caller's choosing.
    lateness: shared by the devices behind one emulator; one of its own if left out.
    """

    def __init__(self, spec: TierSpec, lateness: Lateness | None = None) -> None:
        self.spec = spec
        self.lateness = lateness or Lateness()
        self.planes = Planes(spec) if spec.planes else None
        self._rate = spec.bytes_per_second
        self._latency_ns = spec.latency_ns
        self._draw_latency = (
            jitter.sampler(jitter.parse(spec.jitter), spec.latency_ms, spec.seed) if spec.jitter else None
        )
        self._link = Link()
        # Transfer times seldom are whole ns: the remainder (in ns x bytes/s) goes to the next read, so
        # that the rate is exact over any number of reads.
        self._remainder = 0
        self._working: list[int] = []

    def succeeded_by(self, spec: TierSpec) -> "Tier":
        """A device of another kind in its place: what the link is carrying, it goes on carrying."""
        heir = Tier(spec, self.lateness)
        heir._link = self._link
        if self.planes and heir.planes:
            heir.planes.count_on_from(self.planes)
        return heir

    def reserve(self, arrival_ns: int, offset: int, nbytes: int, reader: int = 0) -> int:
        """Put one read into the schedule and return its deadline in ns.

        reader: who waits for this read (a thread id). What the emulator still owes this reader is
        given back by treating the read as having come that much earlier; see Lateness.
        """
        now_ns = arrival_ns
        arrival_ns -= self.lateness.owed(reader, arrival_ns)
        if self.spec.depth:
            arrival_ns = self._admit(arrival_ns)
        if self.planes is None:
            carried_ns = self._carry(arrival_ns, nbytes, now_ns)
        else:
            # The link starts with the first page and cannot end before the last one has come and gone.
            first_ready, all_ready, tail = self.planes.sense(arrival_ns, offset, nbytes)
            streamed_ns = self._carry(first_ready, nbytes, now_ns)
            tail_ns = tail * _SECOND_NS // self._rate if self._rate else 0
            carried_ns = max(streamed_ns, all_ready + tail_ns)
        deadline_ns = carried_ns + (self._draw_latency() if self._draw_latency else self._latency_ns)
        if self.spec.depth:
            heapq.heappush(self._working, deadline_ns)
        return deadline_ns

    def _carry(self, start_ns: int, nbytes: int, now_ns: int) -> int:
        """When the link has carried nbytes, which it could have from start_ns on."""
        if not self._rate:
            return start_ns
        transfer_ns, self._remainder = divmod(nbytes * _SECOND_NS + self._remainder, self._rate)
        return self._link.carry(start_ns, transfer_ns, now_ns)

    def _admit(self, arrival_ns: int) -> int:
        """When the device takes the read: with `depth` of them at work, when the first of those is done."""
        if len(self._working) < self.spec.depth:
            return arrival_ns
        return max(arrival_ns, heapq.heappop(self._working))
