"""A mount's counters over all its reads. Times are CLOCK_MONOTONIC in ns. The caller holds the lock."""

from hbf_fuse.observe.histogram import Histogram
from hbf_fuse.observe.status import ReadCounts

_GAP_NS = 5_000_000


class Counters:
    """Reads begun and finished, and how long they took.

    took: from a read's arrival until its data was visible. lateness: how long after its deadline that was. A
    deadline that had passed when the read arrived counts from the arrival. backlog: for how long it had
    passed then, of reads that a throttled tier times. Late replies move the next deadline: if the machine is
    slower than the tier, its reader never catches up.

    unseen_ns: how long no thread was free to see the next read arrive. stops: how often the server stood
    still (SIGSTOP); reads that came meanwhile waited unseen. blind_ns: when the last such time, by either of
    these two, ended. nameless: reads of threads without an id here, from another PID namespace. exchanges:
    how often a tier was replaced by another. overfills: replies after which more was resident than the budget
    allows. last_seen_ns: when the newest read arrived. gap_end_ns: when a read last arrived after 5 ms
    without any.

    Run-queue delay that is already accounted for: floored_ns, how much earlier reads counted because of the
    machine's floor; woken_late_ns, how late threads woke up from waiting for a deadline.
    """

    def __init__(self) -> None:
        self.reads = self.bytes = self.writes = self.bytes_written = 0
        self.in_flight = self.in_flight_max = 0
        self.largest_read = 0
        self.interrupted = self.failed = 0
        self.waited_ns = self.sending_ns = 0
        self.unseen_ns = self.stops = self.blind_ns = 0
        self.nameless = self.exchanges = self.overfills = 0
        self.last_seen_ns = self.gap_end_ns = 0
        self.floored_ns = self.woken_late_ns = self.wakes = 0
        self.first_arrival_ns = self.last_done_ns = 0
        self.took, self.lateness, self.backlog = Histogram(), Histogram(), Histogram()

    def began(self, arrival_ns: int, nbytes: int, reader: int, writes: bool = False) -> None:
        """A read of nbytes arrived from a thread, or a write. The kernel's own writes have no thread."""
        # Concurrent reads may be counted in another order than they arrived.
        self.first_arrival_ns = min(self.first_arrival_ns or arrival_ns, arrival_ns)
        if arrival_ns - self.last_seen_ns > _GAP_NS:
            self.gap_end_ns = arrival_ns
        self.last_seen_ns = max(self.last_seen_ns, arrival_ns)
        if writes:
            self.writes += 1
        else:
            self.reads += 1
            self.largest_read = max(self.largest_read, nbytes)
            if not reader:
                self.nameless += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)

    def finished(
        self,
        arrival_ns: int,
        due_ns: int,
        started_ns: int,
        done_ns: int,
        nbytes: int,
        writes: bool = False,
    ) -> None:
        """The read's data, or the answer to the write, was sent from started_ns on and visible at done_ns."""
        self.in_flight -= 1
        if writes:
            self.bytes_written += nbytes
        else:
            self.bytes += nbytes
            self.sending_ns += done_ns - started_ns
        self.waited_ns += done_ns - arrival_ns
        self.last_done_ns = max(self.last_done_ns, done_ns)
        self.took.add(done_ns - arrival_ns)
        self.lateness.add(done_ns - max(due_ns, arrival_ns))

    def abandoned(self, interrupted: bool) -> None:
        """The read ended without data: its reader was killed, or the source failed."""
        self.in_flight -= 1
        if interrupted:
            self.interrupted += 1
        else:
            self.failed += 1

    def copy_to(self, other: "Counters") -> None:
        """Make the figures that `status` shows the same in another one."""
        other.reads, other.bytes = self.reads, self.bytes
        other.writes, other.bytes_written = self.writes, self.bytes_written
        other.in_flight, other.in_flight_max = self.in_flight, self.in_flight_max
        other.largest_read = self.largest_read
        other.interrupted, other.failed = self.interrupted, self.failed
        other.waited_ns, other.sending_ns = self.waited_ns, self.sending_ns
        other.unseen_ns, other.stops = self.unseen_ns, self.stops
        other.nameless, other.exchanges, other.overfills = self.nameless, self.exchanges, self.overfills
        other.wakes, other.woken_late_ns, other.floored_ns = self.wakes, self.woken_late_ns, self.floored_ns
        other.first_arrival_ns, other.last_done_ns = self.first_arrival_ns, self.last_done_ns
        self.took.copy_to(other.took)
        self.lateness.copy_to(other.lateness)
        self.backlog.copy_to(other.backlog)

    @property
    def sending_ns_per_mib(self) -> int:
        """Mean time to hand 1 MiB to the kernel, in ns: reading the source and copying."""
        return (self.sending_ns << 20) // self.bytes if self.bytes else 0

    def status(self) -> ReadCounts:
        """As stats.json holds it."""
        return {
            "reads": self.reads,
            "bytes_read": self.bytes,
            "writes": self.writes,
            "bytes_written": self.bytes_written,
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
            "backlog_ns": self.backlog.summary(),
        }
