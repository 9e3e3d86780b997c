"""A mount's counters over all its reads. Times are CLOCK_MONOTONIC in ns; not locked, the caller is."""

from typing import Any

from hbf_fuse.observe.histogram import Histogram


class Counters:
    """Reads begun and finished, and how long after their deadlines their data was visible."""

    def __init__(self) -> None:
        self.reads = 0
        self.bytes = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self.largest_read = 0
        self.interrupted = 0
        self.failed = 0
        self.waited_ns = 0
        self.starved_ns = 0
        self.all_busy = 0
        """How often no thread was left to see the next read arrive."""
        self.stops = 0
        """How often the server stood still (SIGSTOP): what came meanwhile waited unseen."""
        self.blind_ns = 0
        """When it was last over that reads might wait unseen, by what the two above count."""
        self.nameless = 0
        """Reads of threads that have no number here: those of another PID namespace."""
        self.first_arrival_ns = 0
        self.last_done_ns = 0
        self.lateness = Histogram()

    def began(self, arrival_ns: int, nbytes: int, reader: int, starved_ns: int) -> None:
        """A read of nbytes arrived from a thread, after its server thread had waited starved_ns for a CPU."""
        # Of reads that come at once, the earliest may be the last to get here.
        self.first_arrival_ns = min(self.first_arrival_ns or arrival_ns, arrival_ns)
        self.reads += 1
        self.nameless += not reader
        self.largest_read = max(self.largest_read, nbytes)
        self.in_flight += 1
        self.starved_ns += starved_ns
        self.in_flight_max = max(self.in_flight_max, self.in_flight)

    def finished(self, arrival_ns: int, deadline_ns: int, done_ns: int, nbytes: int) -> None:
        """Its data was visible at done_ns."""
        self.in_flight -= 1
        self.bytes += nbytes
        self.waited_ns += done_ns - arrival_ns
        self.last_done_ns = max(self.last_done_ns, done_ns)
        self.lateness.add(done_ns - deadline_ns)

    def abandoned(self, interrupted: bool) -> None:
        """It ended without data: its reader was killed, or the source failed."""
        self.in_flight -= 1
        if interrupted:
            self.interrupted += 1
        else:
            self.failed += 1

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it. wait_seconds sums over reads, so it can exceed wall time."""
        return {
            "reads": self.reads,
            "bytes_read": self.bytes,
            "in_flight": self.in_flight,
            "in_flight_max": self.in_flight_max,
            "largest_read_bytes": self.largest_read,
            "interrupted": self.interrupted,
            "failed": self.failed,
            "wait_seconds": self.waited_ns / 1e9,
            "starved_seconds": self.starved_ns / 1e9,
            "all_busy": self.all_busy,
            "nameless": self.nameless,
            "stops": self.stops,
            "first_arrival_ns": self.first_arrival_ns,
            "last_done_ns": self.last_done_ns,
            "lateness_ns": self.lateness.summary(),
        }
