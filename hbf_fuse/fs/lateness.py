"""The emulator's own lateness, kept apart so that it is never charged to the tier.

A reader whose reply came late comes back late with its next read. On the real device it would have come
back sooner by just that lateness, so its next arrivals are moved back by it, and by nothing else: the
time that a reader spends thinking stays its own. The scheme needs no running total. Deadlines stand on
an absolute scale, so a reader that has caught up is owed nothing.

A reader that pauses may have been released by another one, of the same process: the last of several
readers that finishes a layer lets all go on. What is given back then is what that last reply was late.
"""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_Reply = tuple[int, int, bool, int]
"""A reader's newest: when it was due, when it was there, whether that is certain or foreseen, and how many ns
of its lateness are not given back. Plain, because every read makes two.
"""

LIFETIME_NS = 100_000_000
"""Lateness older than this is forgotten: a reader back after a pause must see the full latency again."""

MAX_OWED_NS = 1_000_000_000
"""No more than a second is given back at once: a suspended machine must not answer with a burst."""

MAX_READERS = 1024
"""More than can be in flight. Threads come and go; those silent for longest are dropped first."""

PAUSE_NS = 500_000
"""A reader back sooner than this after its own reply waited for nobody else."""


class Lateness:
    """How late each reader's newest reply was. At most MAX_READERS entries.

    process_of: whose thread a reader is; by default each reader stands alone.
    forgiven_ns: lateness that was never given back (too old, or too much). It belongs to the
    emulator's error: a schedule that excludes it would flatter the emulator.
    """

    def __init__(self, process_of: Callable[[int], int] = lambda reader: reader) -> None:
        self.forgiven_ns = 0
        self._newest: dict[int, _Reply] = {}
        self._process_of = process_of
        self._last_of: dict[int, tuple[int, int]] = {}

    def replying(self, reader: int, deadline_ns: int, foreseen_ns: int) -> None:
        """A reply that is due at deadline_ns is on its way to `reader`, to be there at about foreseen_ns."""
        _put_last(self._newest, reader, (deadline_ns, foreseen_ns, False, 0))

    def replied(self, reader: int, deadline_ns: int, done_ns: int) -> None:
        """That reply was there at done_ns (early is negative). Ignored if a newer one is on its way."""
        known = self._newest.get(reader)
        if known is not None and known[0] == deadline_ns:
            self._newest[reader] = (deadline_ns, done_ns, True, known[3])
            _put_last(self._last_of, self._process_of(reader), (done_ns, done_ns - deadline_ns))

    def nothing_owed(self, reader: int) -> None:
        """The newest reply came from no tier, or never came: how long it took is nobody's lateness."""
        self._newest.pop(reader, None)

    def owed(self, reader: int, arrival_ns: int) -> int:
        """By how many ns this arrival would have been earlier on the real device."""
        known = self._newest.get(reader)
        if known is None:
            return 0
        deadline_ns, done_ns, certain, forgiven_ns = known
        if not certain:
            # The reader is back before the thread that served it could look at the clock: its reply came
            # at most now, and there was no time to think.
            done_ns = max(done_ns, arrival_ns)
        late = done_ns - deadline_ns - forgiven_ns
        if arrival_ns - done_ns > LIFETIME_NS:
            del self._newest[reader]
            self.forgiven_ns += max(0, late)
            return 0
        if late > MAX_OWED_NS:
            excess = late - MAX_OWED_NS
            self.forgiven_ns += excess
            self._newest[reader] = (deadline_ns, done_ns, True, forgiven_ns + excess)
            return MAX_OWED_NS
        if arrival_ns - done_ns > PAUSE_NS:
            return self._of_the_last(reader, done_ns, late)
        return late

    def _of_the_last(self, reader: int, done_ns: int, late: int) -> int:
        """What a reader is owed after a pause: at most the lateness of its process's newest reply."""
        last_done_ns, last_late = self._last_of.get(self._process_of(reader), (done_ns, late))
        return min(late, last_late) if last_done_ns > done_ns else late


def _put_last(known: dict[int, T], key: int, value: T) -> None:
    """Put a value at the end of a dict of at most MAX_READERS, whose first one goes if need be."""
    known.pop(key, None)
    if len(known) >= MAX_READERS:
        del known[next(iter(known))]
    known[key] = value
