"""The newest reads of a mount in memory, one record each, as traces hold them (traces/trace.py)."""

import mmap

from hbf_fuse.observe.bounds import RING_RECORDS

_WORDS = 6
"""A record's size in words of 8 bytes."""


class Ring:
    """Takes records and keeps the newest RING_RECORDS. One caller at a time may add, anybody may copy
    meanwhile.
    """

    def __init__(self) -> None:
        self.count = 0
        # Not allocated before it is used.
        self._memory = mmap.mmap(-1, RING_RECORDS * _WORDS * 8)
        self._words = memoryview(self._memory).cast("q")

    def add(
        self,
        arrival_ns: int,
        due_ns: int,
        done_ns: int,
        offset: int,
        nbytes: int,
        reader: int,
        ino: int,
        tier: int,
        direct: int,
    ) -> None:
        """One read, its fields as in trace.RECORD."""
        at = self.count % RING_RECORDS * _WORDS
        self._words[at] = arrival_ns
        self._words[at + 1] = due_ns
        self._words[at + 2] = done_ns
        self._words[at + 3] = offset
        self._words[at + 4] = nbytes | (reader & 0x7FFFFFFF) << 32
        self._words[at + 5] = ino | tier << 32 | direct << 48
        self.count += 1

    def since(self, count: int) -> tuple[bytes, int]:
        """The records that were added after there were `count`, oldest first, and how many of them are not in
        memory any more.
        """
        newest = self.count
        oldest = max(count, newest - RING_RECORDS)
        copied = self._copied(oldest, newest)
        # What was written over while it was copied; one more is being written, perhaps.
        kept = min(newest, max(oldest, self.count + 1 - RING_RECORDS))
        return copied[(kept - oldest) * _WORDS * 8 :], kept - count

    def _copied(self, first: int, end: int) -> bytes:
        begin, until = first % RING_RECORDS * _WORDS * 8, end % RING_RECORDS * _WORDS * 8
        if begin < until or first == end:
            return self._memory[begin:until]
        return self._memory[begin:] + self._memory[:until]
