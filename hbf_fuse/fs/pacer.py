"""A tier on the monotonic clock: gives every read its deadline and lets it go in time for it.

A reply is started early by what the copy to the reader and the server's own waking cost lately, so that
the data is visible at the deadline and not after it. An arrival is moved back by what the reader waited
before the server saw it: the machine's floor, and the time that the server's thread wanted a CPU and had
none. None of that is the tier's.
"""

import functools
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from hbf_fuse import linux
from hbf_fuse.fs.arrival import Disturbances
from hbf_fuse.fs.costs import Costs, unsure_ns
from hbf_fuse.fs.lateness import MAX_READERS, Lateness
from hbf_fuse.fs.placement import Placement
from hbf_fuse.fs.service import Part, Service
from hbf_fuse.observe import Counters, CpuWait, Recorder
from hbf_fuse.tier import Tier, TierSpec

_BLIND_NS = 1_000_000_000
"""So long after the server saw all reads again it may still come upon one that had waited before."""

_INTERRUPTIBLE_NS = 50_000_000
_SLICE_SECONDS = 0.02


class Pacer:
    """The tiers' schedules and their execution. Safe for concurrent callers.

    specs: the tiers by name, the first of them the mount's own. placements: by inode, for files whose bytes
    come from several tiers. costs, trace: kept by the caller, since they outlive a tier.
    """

    def __init__(
        self,
        specs: Mapping[str, TierSpec],
        placements: Mapping[int, Placement],
        costs: Costs,
        trace: Recorder,
    ) -> None:
        self.tiers = [Tier(spec) for spec in specs.values()]
        self.changed = False
        """Whether a tier was exchanged for another since counting began."""
        self.counters = Counters()
        self.costs = costs
        self._names = list(specs)
        self._places = {name: place for place, name in enumerate(specs)}
        self._bytes = [0] * len(self.tiers)
        self._placements = placements
        self._lateness = Lateness(_process_of)
        self._trace = trace
        self._throttled = any(spec.throttled for spec in specs.values())
        self._lock = threading.Lock()
        self._thread = _ThreadState()

    def begin(self, service: Service) -> None:
        """Reserve the read's place in the tier's schedule."""
        nbytes = len(service.data)
        starved_ns = self._thread.cpu_wait.since_mark()
        with self._lock:
            floor_ns = self.costs.floor.of(nbytes, self.counters.in_flight)
            arrival_ns = service.arrival_ns - starved_ns - floor_ns
            self.counters.began(service.arrival_ns, nbytes, service.reader, starved_ns)
            service.owed_ns = self._lateness.owed(service.reader, arrival_ns)
            service.began_ns = arrival_ns - service.owed_ns
            service.parts = self._reserve(service, service.began_ns)
            service.deadline_ns = max(part.deadline_ns for part in service.parts)
            if service.arrival is not None:
                service.arrival.begin(self._disturbances_before(service))
        service.pacer = self

    def _reserve(self, service: Service, arrival_ns: int) -> list[Part]:
        placement = self._placements.get(service.ino)
        if placement is None or not service.data:
            pieces: Iterable[tuple[int, int, int]] = ((0, service.offset, len(service.data)),)
        else:
            named = placement.pieces(service.offset, len(service.data))
            pieces = ((self._places[name], offset, nbytes) for name, offset, nbytes in named)
        return [
            Part(place, offset, nbytes, self.tiers[place].reserve(arrival_ns, offset, nbytes))
            for place, offset, nbytes in pieces
        ]

    def _is_timed(self, service: Service) -> bool:
        """Whether any part of a read comes from a tier that takes time."""
        return self._throttled and any(self.tiers[part.tier].spec.throttled for part in service.parts)

    def exchange(self, spec: TierSpec) -> None:
        """Serve from another tier in place of the mount's own; reads in flight keep their deadlines."""
        with self._lock:
            self.tiers[0] = self.tiers[0].succeeded_by(spec)
            self.changed = True
            self._throttled = any(tier.spec.throttled for tier in self.tiers)

    def wait(self, service: Service) -> bool:
        """Sleep until the reply must be started. False if the reader was killed meanwhile."""
        if not self._is_timed(service):
            return True
        copy_ns = self.costs.copy(len(service.data))
        until_ns = service.deadline_ns - copy_ns - self.costs.wake.value
        now = time.monotonic_ns()
        if until_ns > now:
            while until_ns - now > _INTERRUPTIBLE_NS:
                # A signal that the reader handles is none of ours: no disk cuts a read short for one.
                if service.signalled and linux.is_dying(service.reader):
                    service.interrupted = True
                    return False
                time.sleep(_SLICE_SECONDS)
                now = time.monotonic_ns()
            if until_ns > now:
                time.sleep((until_ns - now) / 1e9)
            now = time.monotonic_ns()
            self.costs.wake.add(now - until_ns)
        with self._lock:
            # Foreseen here because the reader may be back with its next read before this thread runs again.
            self._lateness.replying(service.reader, service.deadline_ns, now + copy_ns)
        return True

    def finish(self, service: Service, started_ns: int) -> None:
        """The reply, whose sending began at started_ns, is with the reader now."""
        done_ns = time.monotonic_ns()
        nbytes = len(service.data)
        with self._lock:
            self.costs.copied(nbytes, done_ns - started_ns)
            if self._is_timed(service):
                self._lateness.replied(service.reader, service.deadline_ns, done_ns)
            else:
                self._lateness.nothing_owed(service.reader)
            self.counters.finished(service.arrival_ns, service.deadline_ns, done_ns, nbytes)
            for place, offset, size, deadline_ns in service.parts:
                self._bytes[place] += size
                self._trace.add(
                    service.arrival_ns,
                    deadline_ns,
                    done_ns,
                    offset,
                    size,
                    service.reader,
                    service.ino,
                    place,
                    service.direct,
                )
            if service.arrival is not None:
                service.arrival.add(service, done_ns, self._disturbances(), self._unsure_ns(service))

    def _disturbances(self) -> Disturbances:
        counters = self.counters
        return Disturbances(
            self._lateness.forgiven_ns, counters.starved_ns, counters.all_busy, counters.stops
        )

    def _disturbances_before(self, service: Service) -> Disturbances:
        """All of those that a read may have waited for unseen are taken to come after it has begun."""
        so_far = self._disturbances()
        if service.arrival_ns - self.counters.blind_ns > _BLIND_NS:
            return so_far
        return so_far._replace(all_busy=0, stops=0)

    def _unsure_ns(self, service: Service) -> int:
        """By how much a read's own time is uncertain, if it is one that a tier times."""
        return unsure_ns(len(service.data)) if self._is_timed(service) else 0

    def abandon(self, service: Service) -> None:
        """The read ended without data."""
        with self._lock:
            self.counters.abandoned(service.interrupted)
            self._lateness.nothing_owed(service.reader)
            if service.arrival is not None:
                service.arrival.abandon()

    def answered(self) -> None:
        """This thread has answered a request, of whatever kind. What it waited for a CPU until now, the next
        one did not wait for.
        """
        self._thread.cpu_wait.mark()

    def stats(self) -> dict[str, Any]:
        """Counters, and what the pacer reckons with."""
        with self._lock:
            planes = self.tiers[0].planes
            sensed = planes.to_dict() if planes else {}
            placed = {"tier_bytes": dict(zip(self._names, self._bytes, strict=True))}
            forgiven = {"forgiven_seconds": self._lateness.forgiven_ns / 1e9}
            return {**self.counters.to_dict(), **placed, **sensed, **forgiven, "costs": self.costs.to_dict()}


@functools.lru_cache(maxsize=MAX_READERS)
def _process_of(reader: int) -> int:
    """The process of a thread; a thread that is gone, or hidden from us, stands for itself."""
    try:
        with open(f"/proc/{reader}/status", "rb") as status:
            return next(int(line[5:]) for line in status if line.startswith(b"Tgid:"))
    except (OSError, StopIteration):
        return reader


class _ThreadState(threading.local):
    """Made once in every thread that serves: exact timers, and how long the thread wanted a CPU."""

    def __init__(self) -> None:
        linux.sharpen_timers()
        self.cpu_wait = CpuWait()
