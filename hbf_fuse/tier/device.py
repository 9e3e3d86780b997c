"""The device: one function from (arrival, offset, size) to the time when the data is visible.

The link is one pipe. Each read waits until it is free: next-available-time, as in NVMeVirt and FEMU, not a
token bucket, which would allow bursts. Latency follows the transfer and overlaps between reads in flight.
Flash planes and the arm are this project's own; see Planes and TierSpec. The device knows neither the reader
nor the emulator's lateness.
"""

from hbf_fuse.tier import jitter
from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.flash import Planes
from hbf_fuse.tier.heap import Heap
from hbf_fuse.tier.link import Link
from hbf_fuse.tier.spec import TierSpec

_NOWHERE = -1
_SECOND_NS = 1_000_000_000
_PIECE_BYTES = 9_000_000_000
"""Most bytes whose ns x bytes/s fits into 64 bits."""


class Tier:
    """A device with its schedule. Deterministic; not safe for concurrent callers.

    Times are integers in ns on one monotonic scale of the caller's choice, up to FOREVER_NS.
    """

    def __init__(self, spec: TierSpec) -> None:
        self.spec = spec
        parts = jitter.parse(spec.jitter)
        # With planes, a retry is per page, in its plane.
        retries = [(part.values[0], part.values[1]) for part in parts if part.kind == jitter.RETRY]
        self.planes = Planes(spec, retries) if spec.planes else None
        by_read = [part for part in parts if not (spec.planes and part.kind == jitter.RETRY)]
        self._rate = spec.bytes_per_second
        self._latency_ns = spec.latency_ns
        self._latencies = jitter.latencies(by_read, spec.latency_ms, spec.seed) if by_read else None
        self._link = Link()
        # Transfer times seldom are whole ns: the remainder (in ns x bytes/s) goes to the next read, so
        # that the rate is exact over any number of reads.
        self._remainder = 0
        self._depth = spec.depth
        self._working = Heap(spec.depth)
        self._seek_ns = round(spec.seek_ms * 1e6)
        self._arm_ns = 0
        self._arm_at = _NOWHERE
        self.carried_ns = 0
        """When the link has carried everything that was requested so far."""

    def succeeded_by(self, spec: TierSpec) -> "Tier":
        """A device with another spec that replaces this one. The transfers on its link go on."""
        heir = Tier(spec)
        heir._link = self._link
        if self.planes is not None and heir.planes is not None:
            heir.planes.count_on_from(self.planes)
        return heir

    def reserve(self, arrival_ns: int, offset: int, nbytes: int) -> int:
        """Put one read into the schedule. Returns its deadline in ns. nbytes: up to 2^44.

        A read that arrives after later reads takes link time that they left idle; see Link.
        """
        taken_ns = min(arrival_ns, FOREVER_NS)
        if self._depth:
            taken_ns = self._admitted(taken_ns)
        if self._seek_ns:
            taken_ns = self._sought(taken_ns, offset)
        if self.planes is None:
            carried_ns = self._carried(taken_ns, nbytes, arrival_ns)
        else:
            begin_ns = self.planes.sense(taken_ns, offset, nbytes, self._rate)
            carried_ns = self._carried(begin_ns, nbytes, arrival_ns)
        self.carried_ns = max(self.carried_ns, carried_ns)
        if self._seek_ns:
            self._arm_ns, self._arm_at = carried_ns, offset + nbytes
        latency_ns = self._latency_ns if self._latencies is None else self._latencies.draw()
        deadline_ns = carried_ns + latency_ns
        if self._depth:
            self._working.push(deadline_ns, 0)
        return deadline_ns

    def _carried(self, start_ns: int, nbytes: int, now_ns: int) -> int:
        """When the link has carried nbytes that are ready from start_ns on."""
        if not self._rate:
            return start_ns
        transfer_ns = 0
        while nbytes > 0:
            piece = min(nbytes, _PIECE_BYTES)
            units = piece * _SECOND_NS + self._remainder
            piece_ns = units // self._rate
            self._remainder = units - piece_ns * self._rate
            transfer_ns = min(transfer_ns + min(piece_ns, FOREVER_NS), FOREVER_NS)
            nbytes -= piece
        return self._link.carry(start_ns, transfer_ns, now_ns)

    def _sought(self, taken_ns: int, offset: int) -> int:
        """When the single arm is at a read's first byte: it serves one read at a time."""
        free_ns = max(taken_ns, self._arm_ns)
        return free_ns if offset == self._arm_at else min(free_ns + self._seek_ns, FOREVER_NS)

    def _admitted(self, arrival_ns: int) -> int:
        """When the device takes the read. If `depth` reads are in work: when the first of them is done."""
        if self._working.count < self._depth:
            return arrival_ns
        done_ns = self._working.first_key()
        self._working.pop()
        return min(max(arrival_ns, done_ns), FOREVER_NS)
