"""A tier on the monotonic clock: gives every read its deadline and lets it go in time for it.

A reply is started early by what the copy to the reader and the server's own waking cost lately, so that
the data is visible at the deadline and not after it. An arrival is moved back by what the reader waited
before the server saw it: the machine's floor, and the time that the server's thread wanted a CPU and had
none. None of that is the tier's.
"""

import threading
import time
from typing import Any

from hbf_fuse import linux
from hbf_fuse.fs.costs import Costs
from hbf_fuse.fs.service import Service
from hbf_fuse.observe import Counters, CpuWait
from hbf_fuse.tier import Tier, TierSpec

_INTERRUPTIBLE_NS = 50_000_000
_SLICE_SECONDS = 0.02


class Pacer:
    """One tier's schedule and its execution. Safe for concurrent callers.

    costs: kept by the caller, since they outlive a tier.
    """

    def __init__(self, spec: TierSpec, costs: Costs) -> None:
        self.tier = Tier(spec)
        self.counters = Counters()
        self.costs = costs
        self.log: list[tuple[int, int]] | None = None
        """If a list: every read's reader and its time from arrival to data in ns, in order of completion."""
        self._throttled = spec.throttled
        self._lock = threading.Lock()
        self._thread = _ThreadState()

    def begin(self, service: Service) -> None:
        """Reserve the read's place in the tier's schedule."""
        nbytes = len(service.data)
        starved_ns = self._thread.cpu_wait.since_mark()
        with self._lock:
            floor_ns = self.costs.floor.of(nbytes, self.counters.in_flight)
            arrival_ns = service.arrival_ns - starved_ns - floor_ns
            self.counters.began(service.arrival_ns, nbytes, starved_ns)
            service.deadline_ns = self.tier.reserve(arrival_ns, service.offset, nbytes, service.reader)
        service.pacer = self

    def wait(self, service: Service) -> bool:
        """Sleep until the reply must be started. False if the reader was killed meanwhile."""
        if not self._throttled:
            return not service.interrupted
        copy_ns = self.costs.copy(len(service.data))
        until_ns = service.deadline_ns - copy_ns - self.costs.wake.value
        now = time.monotonic_ns()
        if until_ns > now:
            while until_ns - now > _INTERRUPTIBLE_NS and not service.interrupted:
                time.sleep(_SLICE_SECONDS)
                now = time.monotonic_ns()
            if service.interrupted:
                return False
            if until_ns > now:
                time.sleep((until_ns - now) / 1e9)
            now = time.monotonic_ns()
            self.costs.wake.add(now - until_ns)
        with self._lock:
            # Foreseen here because the reader may be back with its next read before this thread runs again.
            self.tier.lateness.replying(service.reader, service.deadline_ns, now + copy_ns)
        return not service.interrupted

    def finish(self, service: Service, started_ns: int) -> None:
        """The reply, whose sending began at started_ns, is with the reader now."""
        done_ns = time.monotonic_ns()
        nbytes = len(service.data)
        with self._lock:
            self.costs.copied(nbytes, done_ns - started_ns)
            if self._throttled:
                self.tier.lateness.replied(service.reader, service.deadline_ns, done_ns)
            self.counters.finished(service.arrival_ns, service.deadline_ns, done_ns, nbytes)
            if self.log is not None:
                self.log.append((service.reader, done_ns - service.arrival_ns))
            if service.arrival is not None:
                service.arrival.add(service, done_ns, self.tier.lateness.forgiven_ns)
        self._thread.cpu_wait.mark()

    def abandon(self, service: Service) -> None:
        """The read ended without data."""
        with self._lock:
            self.counters.abandoned(service.interrupted)
        self._thread.cpu_wait.mark()

    def stats(self) -> dict[str, Any]:
        """Counters, and what the pacer reckons with."""
        with self._lock:
            planes = self.tier.planes
            sensed = planes.to_dict() if planes else {}
            forgiven = {"forgiven_seconds": self.tier.lateness.forgiven_ns / 1e9}
            return {**self.counters.to_dict(), **sensed, **forgiven, "costs": self.costs.to_dict()}


class _ThreadState(threading.local):
    """Made once in every thread that serves: exact timers, and how long the thread wanted a CPU."""

    def __init__(self) -> None:
        linux.sharpen_timers()
        self.cpu_wait = CpuWait()
