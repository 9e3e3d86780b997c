"""The device: one function from (arrival, offset, size) to the time when the data is visible, or written.

The link is one pipe. Each read waits until it is free: next-available-time, as in NVMeVirt and FEMU, not a
token bucket, which would allow bursts. Latency follows the transfer and overlaps between reads in flight.
Flash planes and the arm are this project's own; see Planes and TierSpec. The device knows neither the reader
nor the emulator's lateness.
"""

from hbf_fuse.tier import jitter
from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.flash import Planes
from hbf_fuse.tier.heap import Heap
from hbf_fuse.tier.link import Pipe
from hbf_fuse.tier.spec import TierSpec

_NOWHERE = -1


class Tier:
    """A device with its schedule. Deterministic; not safe for concurrent callers.

    Times are integers in ns on one monotonic scale of the caller's choice, up to FOREVER_NS. written_bytes:
    size of what can be written; see Planes.
    """

    def __init__(self, spec: TierSpec, written_bytes: int = 0) -> None:
        self.spec = spec
        self.written_bytes = written_bytes
        parts = jitter.parse(spec.jitter)
        # With planes, a retry is per page, in its plane.
        retries = [(part.values[0], part.values[1]) for part in parts if part.kind == jitter.RETRY]
        self.planes = Planes(spec, retries, written_bytes) if spec.planes else None
        by_read = [part for part in parts if not (spec.planes and part.kind == jitter.RETRY)]
        self._rate = spec.bytes_per_second
        self._latency_ns = spec.latency_ns
        self._latencies = jitter.latencies(by_read, spec.latency_ms, spec.seed) if by_read else None
        self._link = Pipe(self._rate)
        # What the medium takes of writes: beside the link, so that slow writes leave the link to reads.
        self._intake = Pipe(round(spec.write_mbps * 1e6) if spec.write_mbps else 0)
        self._programs = bool(spec.t_prog_us)
        self._depth = spec.depth
        self._working = Heap(spec.depth)
        self._seek_ns = round(spec.seek_ms * 1e6)
        self._arm_ns = 0
        self._arm_at = _NOWHERE
        self.carried_ns = 0
        """When the link has carried everything that was requested so far."""

    def succeeded_by(self, spec: TierSpec) -> "Tier":
        """A device with another spec that replaces this one. The transfers on its link go on. Where the flash
        is the same, what is on it stays where it is; else the translation layer begins anew, empty.
        """
        heir = Tier(spec, self.written_bytes)
        heir._link.succeed(self._link)
        heir._intake.succeed(self._intake)
        if self.planes is not None and heir.planes is not None:
            heir.planes.count_on_from(self.planes)
            if spec.medium == self.spec.medium:
                heir.planes.take_over(self.planes)
        return heir

    def reserve(self, arrival_ns: int, offset: int, nbytes: int) -> int:
        """Put one read into the schedule. Returns its deadline in ns. nbytes: up to 2^44.

        A read that arrives after later reads takes link time that they left idle; see Link.
        """
        begin_ns = self._begun(arrival_ns, offset)
        if self.planes is not None:
            begin_ns = self.planes.sense(begin_ns, offset, nbytes, self._rate)
        carried_ns = self._link.carry(begin_ns, nbytes, arrival_ns)
        self.carried_ns = max(self.carried_ns, carried_ns)
        return self._done(carried_ns, offset + nbytes)

    def write(self, arrival_ns: int, offset: int, nbytes: int) -> int:
        """Put one write into the schedule: as `reserve`, but it is the planes' turn after the link. Returns
        when it is on the medium and its writer may know, in ns.
        """
        begin_ns = self._begun(arrival_ns, offset)
        carried_ns = self._link.carry(begin_ns, nbytes, arrival_ns)
        # Beside the link, not after it: the medium takes what has come while the rest is being carried.
        carried_ns = max(carried_ns, self._intake.carry(begin_ns, nbytes, arrival_ns))
        self.carried_ns = max(self.carried_ns, carried_ns)
        if self._programs and self.planes is not None and nbytes > 0:
            carried_ns = self.planes.program(carried_ns, offset, nbytes, self._rate)
        return self._done(carried_ns, offset + nbytes)

    def _begun(self, arrival_ns: int, offset: int) -> int:
        """When the device begins to work on a request: it has been admitted, and the arm is there."""
        taken_ns = min(arrival_ns, FOREVER_NS)
        if self._depth:
            taken_ns = self._admitted(taken_ns)
        return self._sought(taken_ns, offset) if self._seek_ns else taken_ns

    def _done(self, carried_ns: int, end: int) -> int:
        """The deadline of a request that the device has worked on until carried_ns."""
        if self._seek_ns:
            self._arm_ns, self._arm_at = carried_ns, end
        latency_ns = self._latency_ns if self._latencies is None else self._latencies.draw()
        deadline_ns = carried_ns + latency_ns
        if self._depth:
            self._working.push(deadline_ns, 0)
        return deadline_ns

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
