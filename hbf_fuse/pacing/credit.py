"""Credit for late replies: a reader whose reply came late is late with its next read, which is not its doing.

On the real device it would have come back sooner by just that lateness, so its next arrival counts as that
much earlier. Think time stays the reader's own, and deadlines are absolute, so that nothing adds up: a
reader that has caught up is owed nothing.
"""

from array import array

from hbf_fuse.pacing.bounds import LIFETIME_NS, MAX_OWED_NS, MAX_READERS

_WAYS = 4
_BUCKETS = MAX_READERS // _WAYS
_UNKNOWN = -1


class Credit:
    """How late each reader's newest reply was. Keeps some thousand readers; of those that share a bucket, the
    one whose reply is oldest goes. Not safe for concurrent callers.

    forgiven_ns: lateness that was never given back (too old, or too much). It belongs to the emulator's
    error: a schedule that excludes it would flatter the emulator.
    """

    def __init__(self) -> None:
        self.forgiven_ns = 0
        places = _WAYS * _BUCKETS
        # Per place: the reader's number + 1 (0 for a free place), when its newest read came, when its reply
        # was due, and when that was there (0 while it is on its way).
        self._names = array("q", bytes(8 * places))
        self._came = array("q", bytes(8 * places))
        self._due = array("q", bytes(8 * places))
        self._done = array("q", bytes(8 * places))

    def sending(self, reader: int, arrival_ns: int, due_ns: int) -> None:
        """A reply that was due at due_ns is about to be sent to `reader`, whose read came at arrival_ns."""
        place = self._find(reader)
        if place == _UNKNOWN:
            place = self._oldest(reader)
            self._names[place] = reader + 1
        self._came[place] = arrival_ns
        self._due[place] = due_ns
        self._done[place] = 0

    def sent(self, reader: int, due_ns: int, done_ns: int) -> None:
        """It was there at done_ns. Ignored if a newer one is on its way."""
        place = self._find(reader)
        if place != _UNKNOWN and self._due[place] == due_ns:
            self._done[place] = done_ns

    def nothing_owed(self, reader: int) -> None:
        """The newest reply came from no tier, or never came: how long it took is nobody's lateness."""
        place = self._find(reader)
        if place != _UNKNOWN:
            self._names[place] = 0

    def owed(self, reader: int, arrival_ns: int) -> int:
        """By how many ns this arrival would have been earlier on the real device. Negative after a reply that
        was early.
        """
        place = self._find(reader)
        if place == _UNKNOWN:
            return 0
        done_ns = self._done[place]
        if not done_ns:
            # The reader is back before whoever served it could look at the clock: it had no time to think.
            done_ns = arrival_ns
        late_ns = done_ns - self._due[place]
        if arrival_ns - done_ns > LIFETIME_NS or late_ns > MAX_OWED_NS:
            self._names[place] = 0
            self.forgiven_ns += max(0, late_ns)
            return 0
        return late_ns

    def waited(self, reader: int) -> int:
        """How long a reader's newest reply took by the tier; 0 if there is none."""
        place = self._find(reader)
        return self._due[place] - self._came[place] if place != _UNKNOWN else 0

    def readers(self, since_ns: int) -> list[int]:
        """Those whose newest reply was due since then."""
        found = []
        for place in range(_WAYS * _BUCKETS):
            if self._names[place] and self._due[place] > since_ns:
                found.append(self._names[place] - 1)
        return found

    def _find(self, reader: int) -> int:
        first = reader % _BUCKETS * _WAYS
        for place in range(first, first + _WAYS):
            if self._names[place] == reader + 1:
                return place
        return _UNKNOWN

    def _oldest(self, reader: int) -> int:
        first = reader % _BUCKETS * _WAYS
        oldest = first
        for place in range(first, first + _WAYS):
            if not self._names[place]:
                return place
            if self._due[place] < self._due[oldest]:
                oldest = place
        return oldest
