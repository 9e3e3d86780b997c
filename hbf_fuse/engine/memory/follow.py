"""Follows what readers of the shared memory write: every read goes through a pacer of the server's own.

Readers could write anything there. So each record is read once, checked, and its deadline reckoned again: the
pacer's books, and the verdict with them, rest on the server's own arithmetic, and on times that the server's
clock allows.
"""

from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.tier.heap import Heap

WORDS = 6
"""A record's size in words of 8 bytes; `struct record` of shared.h."""

_EARLY_NS = 500_000
"""How long before its deadline a chunk may be there: its reader begins to map it a little early."""

_SLOW_NS = 2_000_000_000
"""How long a reader may take from a fault to its reservation: it may be stopped in between."""

_LOW = 0xFFFFFFFF


class Follower:
    """Reads records of readers, `room` of them in a ring, in the order of reservation.

    words: the ring. sizes: of the files, in bytes. altered: records that cannot be what a reader of this tier
    has done. lost: records that were overwritten before they were read.
    """

    def __init__(self, pacer: Pacer, words: memoryview, room: int, sizes: memoryview) -> None:
        self.altered = self.lost = 0
        self._pacer = pacer
        self._words = words
        self._room = room
        self._sizes = sizes
        self._files = len(sizes)
        self._next = 0
        self._looked_ns = 0
        # Reads whose data has come, by when. Places of those still under way, and a mark for each of them.
        self._done = Heap(room)
        self._waiting = memoryview(bytearray(room * 8)).cast("q")
        self._count = 0
        self._under_way = bytearray(room)
        self._kept = memoryview(bytearray(room * WORDS * 8)).cast("q")

    def follow(self, end: int, now_ns: int) -> bool:
        """Take all records before `end`, which were there at now_ns. False if there was nothing new."""
        waited = self._count
        self._settle(now_ns)
        fresh = end - self._next
        if fresh < 0 or fresh > self._room:
            self.lost += 1
            self._next, fresh = end, 0
        for place in range(self._next, self._next + fresh):
            self._take(place % self._room, now_ns)
        self._next += fresh
        self._settle(now_ns)
        self._complete(now_ns)
        self._looked_ns = now_ns
        return fresh > 0 or waited != self._count

    def in_flight(self) -> int:
        """Reads whose data has not come."""
        return self._count

    def abandon(self, process: int) -> None:
        """A process has ended: its reads will not come. 0: every process."""
        left = 0
        for at in range(self._count):
            place = self._waiting[at]
            base = place * WORDS
            if process and self._kept[base + 5] >> 32 & _LOW != process:
                self._waiting[left] = place
                left += 1
                continue
            self._under_way[place] = 0
            reader = self._kept[base + 4] >> 32 & _LOW
            nbytes, file = self._kept[base + 4] & _LOW, self._kept[base + 5] & _LOW
            self._pacer.abandon(file, nbytes, reader, False, True)
        self._count = left

    def _take(self, place: int, now_ns: int) -> None:
        """Admit a new record."""
        base = place * WORDS
        if self._under_way[place]:
            self.lost += 1
            return
        for word in range(WORDS):
            self._kept[base + word] = self._words[base + word]
        arrival_ns, offset = self._kept[base], self._kept[base + 3]
        nbytes, reader = self._kept[base + 4] & _LOW, self._kept[base + 4] >> 32 & _LOW
        file = self._kept[base + 5] & _LOW
        if (
            file >= self._files
            or offset < 0
            or not 0 < nbytes <= self._sizes[file] - offset
            or not self._looked_ns - _SLOW_NS < arrival_ns <= now_ns
        ):
            self.altered += 1
            return
        self._complete(arrival_ns)
        due_ns = self._pacer.admit(file, offset, nbytes, reader, False, arrival_ns)
        if due_ns != self._kept[base + 1]:
            self.altered += 1
            self._kept[base + 1] = due_ns
        self._pacer.sending(reader, arrival_ns, due_ns)
        self._under_way[place] = 1
        if not self._has_come(place, now_ns):
            self._waiting[self._count] = place
            self._count += 1

    def _settle(self, now_ns: int) -> None:
        """Look which of the reads under way have come."""
        left = 0
        for at in range(self._count):
            place = self._waiting[at]
            if not self._has_come(place, now_ns):
                self._waiting[left] = place
                left += 1
        self._count = left

    def _has_come(self, place: int, now_ns: int) -> bool:
        """Whether a read's data has come. If so, it is no longer under way."""
        base = place * WORDS
        done_ns = self._words[base + 2]
        if not done_ns or now_ns < done_ns <= now_ns + _SLOW_NS:
            # Come meanwhile: the next look knows the time.
            return False
        if done_ns > now_ns or done_ns <= self._kept[base] or done_ns < self._kept[base + 1] - _EARLY_NS:
            self.altered += 1
            done_ns = now_ns
        self._kept[base + 2] = done_ns
        self._under_way[place] = 0
        self._done.push(done_ns, place)
        return True

    def _complete(self, until_ns: int) -> None:
        """Enter the reads that had come by then, in the order in which they came."""
        while self._done.count and self._done.first_key() <= until_ns:
            base = self._done.pop() * WORDS
            done_ns, nbytes = self._kept[base + 2], self._kept[base + 4] & _LOW
            self._pacer.complete(
                self._kept[base + 5] & _LOW,
                self._kept[base + 3],
                nbytes,
                self._kept[base + 4] >> 32 & _LOW,
                False,
                self._kept[base],
                self._kept[base + 1],
                done_ns,
                done_ns,
            )
