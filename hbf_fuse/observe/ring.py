"""The newest reads of a mount in memory, one record each, in the format of traces (traces/trace.py)."""

import mmap
import os

from hbf_fuse.host.linux import Descriptor
from hbf_fuse.observe.bounds import RING_RECORDS

_WORDS = 6
"""A record's size in words of 8 bytes."""
_COUNT = RING_RECORDS * _WORDS
"""Where the number of all records stands, in the page after them; then what `note` was told."""


class Ring:
    """Keeps the newest RING_RECORDS records. Only one caller at a time may add; copying is always safe.

    They stand in a file without a name, so that a watcher that has it open can read them after a kill
    (reaper.py).
    """

    def __init__(self) -> None:
        self.count = 0
        size = _COUNT * 8 + mmap.PAGESIZE
        # Memory is allocated when it is first used.
        self._file = _file_of(size)
        self._memory = mmap.mmap(self.descriptor(), size)
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
        way: int,
    ) -> None:
        """Add one read; fields as in trace.RECORD."""
        at = self.count % RING_RECORDS * _WORDS
        self._words[at] = arrival_ns
        self._words[at + 1] = due_ns
        self._words[at + 2] = done_ns
        self._words[at + 3] = offset
        self._words[at + 4] = nbytes | (reader & 0x7FFFFFFF) << 32
        self._words[at + 5] = ino | tier << 32 | way << 48
        self.count += 1
        self._words[_COUNT] = self.count

    def descriptor(self) -> int:
        """Of the file that holds the records; -1 if they are in plain memory."""
        return -1 if self._file is None else int(self._file.number)

    def note(self, written: int, size: int) -> None:
        """Leave word for a watcher: so many records are in the trace, which has this size in bytes."""
        self._words[_COUNT + 1] = written
        self._words[_COUNT + 2] = size

    def since(self, count: int) -> tuple[bytes, int]:
        """The records after the first `count`, oldest first, and how many of them are no longer in memory."""
        newest = self.count
        oldest = max(count, newest - RING_RECORDS)
        copied = self._copied(oldest, newest)
        # Leave out records that were overwritten during the copy, and one that may be half written.
        kept = min(newest, max(oldest, self.count + 1 - RING_RECORDS))
        return copied[(kept - oldest) * _WORDS * 8 :], kept - count

    def _copied(self, first: int, end: int) -> bytes:
        begin, until = first % RING_RECORDS * _WORDS * 8, end % RING_RECORDS * _WORDS * 8
        if begin < until or first == end:
            return self._memory[begin:until]
        return self._memory[begin : _COUNT * 8] + self._memory[:until]


def _file_of(size: int) -> Descriptor | None:
    """A file without a name; None where a limit on files (ulimit -f) is lower."""
    try:
        made = Descriptor(os.memfd_create("hbf-reads", os.MFD_CLOEXEC))
        os.ftruncate(made.number, size)
    except OSError:
        return None
    return made
