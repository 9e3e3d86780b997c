"""Credit for late replies: a late reply delays the reader's next read, too, and that is not the reader's
doing.

On the real device the reader would have come back earlier by that lateness. So its next arrival counts as
that much earlier. Think time stays the reader's own. Deadlines are absolute, so nothing adds up: a reader
that has caught up is owed nothing.
"""

from array import array

from hbf_fuse.pacing.bounds import LIFETIME_NS, MAX_OWED_NS, MAX_READERS

_WAYS = 4
_BUCKETS = MAX_READERS // _WAYS
_UNKNOWN = -1


class Credit:
    """The lateness of each reader's newest reply. Keeps up to MAX_READERS readers. When a bucket is full, the
    reader with the oldest reply is dropped. Not safe for concurrent callers.

    forgiven_ns: lateness that was never given back (too old, or too much). It belongs to the emulator's
    error: a schedule without it would make the emulator look better than it is.
    """

    def __init__(self) -> None:
        self.forgiven_ns = 0
        places = _WAYS * _BUCKETS
        # Per place: the reader's id + 1 (0 for a free place), when its newest read arrived, when the reply
        # was due, and when the reply was visible (0 until then).
        self._names = array("q", bytes(8 * places))
        self._came = array("q", bytes(8 * places))
        self._due = array("q", bytes(8 * places))
        self._done = array("q", bytes(8 * places))

    def sending(self, reader: int, arrival_ns: int, due_ns: int) -> None:
        """A reply that was due at due_ns is about to be sent. Its read arrived at arrival_ns."""
        place = self._find(reader)
        if place == _UNKNOWN:
            place = self._oldest(reader)
            self._names[place] = reader + 1
        self._came[place] = arrival_ns
        self._due[place] = due_ns
        self._done[place] = 0

    def sent(self, reader: int, due_ns: int, done_ns: int) -> None:
        """The reply was visible at done_ns. Ignored if the reader has a newer reply."""
        place = self._find(reader)
        if place != _UNKNOWN and self._due[place] == due_ns:
            self._done[place] = done_ns

    def nothing_owed(self, reader: int) -> None:
        """The newest reply came from an unthrottled tier, or never came: its duration earns no credit."""
        place = self._find(reader)
        if place != _UNKNOWN:
            self._names[place] = 0

    def owed(self, reader: int, arrival_ns: int) -> int:
        """By how many ns this arrival would have been earlier on the real device. Negative after an early
        reply.
        """
        place = self._find(reader)
        if place == _UNKNOWN:
            return 0
        done_ns = self._done[place]
        if not done_ns:
            # The reader returned before its server could read the clock: its think time is 0.
            done_ns = arrival_ns
        late_ns = done_ns - self._due[place]
        if arrival_ns - done_ns > LIFETIME_NS or late_ns > MAX_OWED_NS:
            self._names[place] = 0
            self.forgiven_ns += max(0, late_ns)
            return 0
        return late_ns

    def waited(self, reader: int) -> int:
        """How long the tier took for a reader's newest reply, in ns; 0 if there is none."""
        place = self._find(reader)
        return self._due[place] - self._came[place] if place != _UNKNOWN else 0

    def readers(self, since_ns: int) -> list[int]:
        """Readers whose newest reply was due after since_ns."""
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
