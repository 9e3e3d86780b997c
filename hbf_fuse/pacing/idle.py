"""When the tiers had nothing to carry: all that the emulator can have changed.

While a link is busy, whatever happens to its readers changes nothing of what comes through it. A read that
finds it idle came when it came: by the reader's own doing, or because a reply was late, or by what the
machine adds to a read and nobody knows exactly. So what the emulator may have done is at most the idle time,
and at most those.
"""


class Idle:
    """Sums over all reads so far, in ns. Not safe for concurrent callers.

    window_ns: reads waited for the latency of a tier, and none had anything to carry. pause_ns: nobody
    waited. floor_ns: of both, what the machine adds to the reads that ended them, as far as it is not known.
    late_ns: of both, lateness of the last replies to others: who shares work with them, as llama.cpp's
    threads do, waited as well.
    """

    def __init__(self) -> None:
        self.window_ns = self.pause_ns = self.floor_ns = self.late_ns = 0
        self._carried_ns = self._due_ns = 0
        self._late_ns = 0

    def ended(self, began_ns: int, owed_ns: int, unsure_ns: int) -> None:
        """A read has come, `owed_ns` later than it would have, which is reckoned with; and by up to unsure_ns
        more, of which nobody knows.
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
        """A tier has a read: it has carried all of it by then, and its data is due."""
        self._carried_ns = max(self._carried_ns, carried_ns)
        self._due_ns = max(self._due_ns, due_ns)

    def replied(self, done_ns: int, late_ns: int) -> None:
        """A reply came then, so late. Before the tiers have nothing to carry, a newer reply makes up for
        it.
        """
        self._late_ns = max(self._late_ns, late_ns) if done_ns > self._carried_ns else late_ns

    def untimed(self, took_ns: int) -> None:
        """A read of what takes no time took so long all the same."""
        self.floor_ns += took_ns

    def window_until_ns(self, moment_ns: int) -> int:
        """window_ns, if nothing comes before a moment by which everything is due."""
        return self.window_ns + max(0, moment_ns - self._carried_ns)
