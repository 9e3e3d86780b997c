"""What is known about one file's first pass, and only that pass."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """A file's first pass so far. nbytes: bytes that arrived; seconds: from the beginning of the first read
    to the newest of them. model_seconds: the time by the tier's schedule for the same reads, without
    forgiven_seconds. That is lateness that was not given back, summed over all readers: it may exceed the
    tier's time.

    timed: whether any of the reads came from a throttled tier.

    Where the time went: window_seconds, the tier had nothing to carry while reads waited for its latency;
    pause_seconds, no read was in flight. The rest of the time the tier was busy.

    What may have moved the reads that ended such idle times (see pacing/idle.py): floor_seconds, the
    uncertain part of what the machine adds to a read; late_seconds, lateness of replies to other readers.
    contention_seconds: run-queue delay of readers and servers; None where the kernel does not tell.
    memory_seconds: how long tasks waited for memory (PSI). idle_cores: mean; None if not known.
    unseen_seconds: how long no thread was free to see reads arrive. owed_seconds: by how much the first read
    counts as earlier because of its reader's previous reads.

    stops, exchanges, overfills, nameless: how often the server stood still, the tier was exchanged (then or
    later), more was resident than the budget allows, reads came from threads without an id here.
    uncounted_bytes: bytes read in parts of pages, which do not count. sending_ns_per_mib: mean time of
    sending, with copying. floor_known, replies_seen: whether the floor was measured, and whether the engine
    knows when replies were sent.

    Of mappings, whose readers keep the time themselves: altered, what they wrote that contradicts the
    server's own arithmetic or the kernel; unproven_bytes, what the kernel has not confirmed.
    """

    nbytes: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    timed: bool = True
    forgiven_seconds: float = 0.0
    window_seconds: float = 0.0
    pause_seconds: float = 0.0
    floor_seconds: float = 0.0
    late_seconds: float = 0.0
    contention_seconds: float | None = 0.0
    memory_seconds: float = 0.0
    idle_cores: float | None = None
    unseen_seconds: float = 0.0
    owed_seconds: float = 0.0
    stops: int = 0
    exchanges: int = 0
    overfills: int = 0
    nameless: int = 0
    uncounted_bytes: int = 0
    sending_ns_per_mib: int = 0
    floor_known: bool = True
    replies_seen: bool = True
    altered: int = 0
    unproven_bytes: int = 0

    @property
    def idle_seconds(self) -> float:
        """Time in which the tier had nothing to carry. While the tier is busy, a delay of its readers changes
        nothing. So this is the most time that the emulator can have influenced.
        """
        return self.window_seconds + self.pause_seconds
