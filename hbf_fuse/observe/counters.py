"""A mount's counters over all its reads. Times are CLOCK_MONOTONIC in ns; not locked, the caller is."""

from typing import Any

from hbf_fuse.observe.histogram import Histogram

_GAP_NS = 5_000_000


class Counters:
    """Reads begun and finished, and how long after their deadlines their data was visible.

    unseen_ns: for how long nobody was left to see the next read arrive. stops: how often the server stood
    still (SIGSTOP): what came meanwhile waited unseen. blind_ns: when it was last over that reads might wait
    unseen, by what these two count. nameless: reads of threads that have no number here: those of another PID
    namespace. exchanges: how often a tier was exchanged for another. overfills: replies after which more was
    resident than the budget allows. last_seen_ns: when the newest read arrived;
    gap_end_ns: when one last did after none had for 5 ms.

    What is reckoned with already of all the time that threads wait for a CPU: floored_ns, what reads counted
    as earlier for the machine's floor; woken_late_ns, how late threads came back from waiting for a deadline.
    """

    def __init__(self) -> None:
        self.reads = self.bytes = 0
        self.in_flight = self.in_flight_max = 0
        self.largest_read = 0
        self.interrupted = self.failed = 0
        self.waited_ns = self.sending_ns = 0
        self.unseen_ns = self.stops = self.blind_ns = 0
        self.nameless = self.exchanges = self.overfills = 0
        self.last_seen_ns = self.gap_end_ns = 0
        self.floored_ns = self.woken_late_ns = self.wakes = 0
        self.first_arrival_ns = self.last_done_ns = 0
        self.lateness = Histogram()

    def began(self, arrival_ns: int, nbytes: int, reader: int) -> None:
        """A read of nbytes arrived from a thread."""
        # Of reads that come at once, the earliest may be the last to get here.
        self.first_arrival_ns = min(self.first_arrival_ns or arrival_ns, arrival_ns)
        if arrival_ns - self.last_seen_ns > _GAP_NS:
            self.gap_end_ns = arrival_ns
        self.last_seen_ns = max(self.last_seen_ns, arrival_ns)
        self.reads += 1
        if not reader:
            self.nameless += 1
        self.largest_read = max(self.largest_read, nbytes)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)

    def finished(self, arrival_ns: int, due_ns: int, started_ns: int, done_ns: int, nbytes: int) -> None:
        """Its data, sent from started_ns on, was visible at done_ns."""
        self.in_flight -= 1
        self.bytes += nbytes
        self.waited_ns += done_ns - arrival_ns
        self.sending_ns += done_ns - started_ns
        self.last_done_ns = max(self.last_done_ns, done_ns)
        self.lateness.add(done_ns - due_ns)

    def abandoned(self, interrupted: bool) -> None:
        """It ended without data: its reader was killed, or the source failed."""
        self.in_flight -= 1
        if interrupted:
            self.interrupted += 1
        else:
            self.failed += 1

    @property
    def sending_ns_per_mib(self) -> int:
        """What it took on average to hand 1 MiB to the kernel: reading the source, copying."""
        return (self.sending_ns << 20) // self.bytes if self.bytes else 0

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
            "sending_ns_per_mib": self.sending_ns_per_mib,
            "unseen_seconds": self.unseen_ns / 1e9,
            "nameless": self.nameless,
            "exchanges": self.exchanges,
            "overfills": self.overfills,
            "stops": self.stops,
            "wakes": self.wakes,
            "woken_late_seconds": self.woken_late_ns / 1e9,
            "floored_seconds": self.floored_ns / 1e9,
            "first_arrival_ns": self.first_arrival_ns,
            "last_done_ns": self.last_done_ns,
            "lateness_ns": self.lateness.summary(),
        }
