"""One read's way through the tier in real time: begin, wait until its data is due, finish."""

import threading
import time
from typing import Any

from hbf_fuse import linux
from hbf_fuse.fs.arrival import Arrival
from hbf_fuse.fs.estimate import Estimate
from hbf_fuse.observe import Counters
from hbf_fuse.tier import Tier, TierSpec

_INTERRUPTIBLE_NS = 50_000_000
_SLICE_SECONDS = 0.02
_MIB = 1 << 20


class Service:
    """A read in flight. `data` is what the reader gets; it may be seen from deadline_ns on."""

    __slots__ = ("arrival", "arrival_ns", "data", "deadline_ns", "interrupted", "offset", "reader")

    def __init__(self, data: memoryview, offset: int, reader: int, arrival_ns: int, deadline_ns: int) -> None:
        self.data = data
        self.offset = offset
        self.reader = reader
        self.arrival_ns = arrival_ns
        self.deadline_ns = deadline_ns
        self.interrupted = False
        self.arrival: Arrival | None = None


class Pacer:
    """A tier on the monotonic clock: gives every read its deadline and lets it go in time for it.

    A reply is started early by what the copy to the reader and the server's own waking cost lately, so
    that the data is visible at the deadline and not after it.
    """

    def __init__(self, spec: TierSpec) -> None:
        self.tier = Tier(spec)
        self.counters = Counters()
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._wake_ns = Estimate(60_000, most=1_000_000)
        self._copy_ns_per_mib = Estimate(200_000, most=5_000_000)
        self._reply_ns = Estimate(15_000, most=1_000_000)

    def begin(self, arrival_ns: int, reader: int, offset: int, data: memoryview) -> Service:
        """Reserve the read's place in the tier's schedule."""
        nbytes = len(data)
        with self._lock:
            self.counters.began(arrival_ns, nbytes)
            deadline_ns = self.tier.reserve(arrival_ns, offset, nbytes, reader)
        return Service(data, offset, reader, arrival_ns, deadline_ns)

    def wait(self, service: Service) -> bool:
        """Sleep until the reply must be started. False if the reader was killed meanwhile."""
        if not self.tier.spec.throttled:
            return True
        copy_ns = self._copy_cost(len(service.data))
        start_ns = service.deadline_ns - copy_ns
        until_ns = start_ns - self._wake_ns.value
        now = time.monotonic_ns()
        if until_ns > now:
            while until_ns - now > _INTERRUPTIBLE_NS and not service.interrupted:
                time.sleep(_SLICE_SECONDS)
                now = time.monotonic_ns()
            if service.interrupted:
                return False
            self._sleep(until_ns - now)
            now = time.monotonic_ns()
            self._wake_ns.add(now - until_ns)
        # Foreseen here because the reader may be back with its next read before this thread runs again.
        with self._lock:
            self.tier.lateness.replied(service.reader, service.deadline_ns, now + copy_ns)
        return not service.interrupted

    def finish(self, service: Service, started_ns: int) -> None:
        """The reply, started at started_ns, is with the reader now."""
        done_ns = time.monotonic_ns()
        nbytes = len(service.data)
        with self._lock:
            if nbytes >= _MIB // 8:
                self._copy_ns_per_mib.add((done_ns - started_ns - self._reply_ns.value) * _MIB // nbytes)
            else:
                self._reply_ns.add(done_ns - started_ns)
            self.tier.lateness.corrected(service.reader, service.deadline_ns, done_ns)
            self.counters.finished(service.arrival_ns, service.deadline_ns, done_ns, nbytes)
            if service.arrival is not None:
                service.arrival.add(
                    service.offset,
                    nbytes,
                    service.arrival_ns,
                    service.deadline_ns,
                    done_ns,
                    self.tier.lateness.forgiven_ns,
                )

    def abandon(self, service: Service) -> None:
        """The read ended without data."""
        with self._lock:
            self.counters.abandoned(service.interrupted)

    def stats(self) -> dict[str, Any]:
        """Counters, and what the pacer reckons with (ns)."""
        with self._lock:
            return {
                **self.counters.to_dict(),
                "forgiven_seconds": self.tier.lateness.forgiven_ns / 1e9,
                "wake_ns": self._wake_ns.value,
                "copy_ns_per_mib": self._copy_ns_per_mib.value,
                "reply_ns": self._reply_ns.value,
            }

    def _copy_cost(self, nbytes: int) -> int:
        return self._reply_ns.value + self._copy_ns_per_mib.value * nbytes // _MIB

    def _sleep(self, duration_ns: int) -> None:
        if not hasattr(self._thread, "sharp"):
            linux.sharpen_timers()
            self._thread.sharp = True
        if duration_ns > 0:
            time.sleep(duration_ns / 1e9)
