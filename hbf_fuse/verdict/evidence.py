"""What is known of one file's first pass, and of nothing else in the mount's life."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """A file's first pass, as far as it has come: nbytes, the last of them `seconds` after the first read
    began; model_seconds is what the tier's schedule takes for the very same reads, without lateness that it
    does not hold (forgiven_seconds, of all readers together: there may be more of it than of the tier's
    time).

    timed: whether any of the reads came from a tier that takes time.

    Where the time went: window_seconds, in which the tier had nothing to carry though reads waited for its
    latency; pause_seconds, in which nobody asked for anything. In the rest the tier was busy.

    What may have moved the reads that ended such idle times (see pacing/idle.py): floor_seconds, what the
    machine adds to a read, as far as it is not known; late_seconds, lateness of replies to others than the
    reader that came. contention_seconds: how long readers wanted a CPU and had none;
    None where the kernel does not say. memory_seconds: how long tasks waited for memory (PSI). idle_cores: on
    average; None if not known. unseen_seconds: how long nobody was left to see reads arrive. owed_seconds: by
    how much the first read counts as having come sooner, for what its reader had read before.

    stops, exchanges, overfills, nameless: how often the server stood still, the tier was exchanged (then or
    later), more was resident than the budget allows, reads came from threads that have no number here.
    uncounted_bytes: what was read besides, in parts of pages. sending_ns_per_mib: what a reply took, copying
    and all. floor_known, replies_seen: whether the floor was measured, and whether the engine knows when
    replies were sent.
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

    @property
    def idle_seconds(self) -> float:
        """In which the tier had nothing to carry. Whatever happens to its readers while it is busy changes
        nothing of what comes through it: this is the most that the emulator can have had a hand in.
        """
        return self.window_seconds + self.pause_seconds
