"""When the tiers had nothing to carry: the only time in which the emulator can have changed a result.

While a link is busy, a delay of its readers does not change what comes through it. A read that finds the link
idle may have come late for three reasons: its reader's own doing, a late reply, or the uncertain part of what
the machine adds to a read. So the emulator's influence is at most the idle time, and at most the sum of the
last two.
"""


class Idle:
    """Sums over all reads so far, in ns. Not safe for concurrent callers.

    window_ns: idle time in which reads waited for the latency of a tier. pause_ns: idle time in which no read
    waited. floor_ns: of both, the uncertain part of what the machine adds to the reads that ended them.
    late_ns: of both, lateness of the last replies to other readers: a reader that shares work with them, as
    llama.cpp's threads do, waited as well.
    """

    def __init__(self) -> None:
        self.window_ns = self.pause_ns = self.floor_ns = self.late_ns = 0
        self._carried_ns = self._due_ns = 0
        self._late_ns = 0

    def ended(self, began_ns: int, owed_ns: int, unsure_ns: int) -> None:
        """A read has arrived. owed_ns: known lateness of its arrival, already taken off. unsure_ns:
        uncertainty of began_ns.
        """
        idle_ns = began_ns - self._carried_ns
        if idle_ns <= 0 or not self._carried_ns:
            return
        window_ns = min(idle_ns, max(0, self._due_ns - self._carried_ns))
        self.window_ns += window_ns
        self.pause_ns += idle_ns - window_ns
        floor_ns = min(idle_ns, unsure_ns)
        self.floor_ns += floor_ns
        self.late_ns += min(idle_ns - floor_ns, max(0, self._late_ns - max(0, owed_ns)))
        self._late_ns = 0

    def taken(self, carried_ns: int, due_ns: int) -> None:
        """A tier has taken a read: the link has carried it at carried_ns, and its data is due at due_ns."""
        self._carried_ns = max(self._carried_ns, carried_ns)
        self._due_ns = max(self._due_ns, due_ns)

    def replied(self, done_ns: int, late_ns: int) -> None:
        """A reply was visible at done_ns, late by late_ns. A newer reply replaces it as long as the tiers are
        busy.
        """
        self._late_ns = max(self._late_ns, late_ns) if done_ns > self._carried_ns else late_ns

    def untimed(self, took_ns: int) -> None:
        """A read from an unthrottled tier took this long."""
        self.floor_ns += took_ns

    def window_until_ns(self, moment_ns: int) -> int:
        """window_ns at moment_ns, if all replies are due by then and no read arrives before."""
        return self.window_ns + max(0, moment_ns - self._carried_ns)
