"""Who reads a mount: counts by thread in the path of a read, names of their processes outside of it."""

import threading
from array import array

from hbf_fuse.host import linux
from hbf_fuse.observe.bounds import MAX_READER_NAMES
from hbf_fuse.observe.status import ReaderStatus

_WAYS = 4
_BUCKETS = 256
_NONE = -1

_RENEWED_NS = 10_000_000_000
"""After such a pause a thread is named anew: its id may be another's by now, or it runs another program."""

_UNNAMED = 0
UNKNOWN, OTHERS = "unknown", "other"
"""Processes that could not be looked up (ended, hidden, in another PID namespace), and those beyond
MAX_READER_NAMES.
"""


class Readers:
    """Reads and bytes asked for, by the name (comm) of the reading process. Keeps up to 1024 threads. When a
    bucket is full, the one that read longest ago is dropped, and its counts stay with its name.

    fresh: how often a thread without a name appeared. Not safe for concurrent callers, except `unnamed` and
    `slot_of`.
    """

    def __init__(self) -> None:
        self.fresh = 0
        places = _WAYS * _BUCKETS
        # Per place: the thread's id + 1 (0 for a free place), the slot of its name, its newest arrival, and
        # its counts.
        self._threads, self._slots = array("q", bytes(8 * places)), array("q", bytes(8 * places))
        self._seen_ns = array("q", bytes(8 * places))
        self._reads, self._bytes = array("q", bytes(8 * places)), array("q", bytes(8 * places))
        # Per slot: counts of threads that are no longer kept.
        self._past_reads = array("q", bytes(8 * (MAX_READER_NAMES + 3)))
        self._past_bytes = array("q", bytes(8 * (MAX_READER_NAMES + 3)))
        self._lock = threading.Lock()
        self._names = [UNKNOWN, UNKNOWN, OTHERS]
        self._pids = [0, 0, 0]

    def count(self, thread: int, nbytes: int, arrival_ns: int) -> None:
        """A read of a thread has arrived."""
        place = self._find(thread)
        if place == _NONE:
            place = self._oldest(thread)
            self._settle(place)
            self._threads[place] = thread + 1
        elif arrival_ns - self._seen_ns[place] > _RENEWED_NS:
            self._settle(place)
        self._seen_ns[place] = max(self._seen_ns[place], arrival_ns)
        self._reads[place] += 1
        self._bytes[place] += nbytes

    def give(self, thread: int, slot: int) -> None:
        """Let a thread without a name have that of a slot."""
        place = self._find(thread)
        if place != _NONE and self._slots[place] == _UNNAMED:
            self._slots[place] = slot

    def unnamed(self) -> list[int]:
        """Threads without a name."""
        found = []
        for place in range(_WAYS * _BUCKETS):
            if self._threads[place] and self._slots[place] == _UNNAMED:
                found.append(self._threads[place] - 1)
        return found

    def slot_of(self, thread: int) -> int:
        """The slot of the name that a thread's process has now."""
        comm, pid = linux.process_of(thread) or (UNKNOWN, 0)
        slot = 0
        with self._lock:
            if comm in self._names:
                slot = self._names.index(comm, 1)
            elif len(self._names) < MAX_READER_NAMES + 3:
                slot = len(self._names)
                self._names.append(comm)
                self._pids.append(pid)
            else:
                slot = self._names.index(OTHERS)
            self._pids[slot] = pid
        return slot

    def sum_into(self, reads: "array[int]", nbytes: "array[int]") -> None:
        """Write the counts of each slot: MAX_READER_NAMES + 3 values each."""
        for slot in range(MAX_READER_NAMES + 3):
            reads[slot], nbytes[slot] = self._past_reads[slot], self._past_bytes[slot]
        for place in range(_WAYS * _BUCKETS):
            reads[self._slots[place]] += self._reads[place]
            nbytes[self._slots[place]] += self._bytes[place]

    def status(self, reads: "array[int]", nbytes: "array[int]") -> list[ReaderStatus]:
        """As stats.json holds it, from counts that were summed: who read most comes first."""
        with self._lock:
            names, pids = list(self._names), list(self._pids)
        counts = list(zip(names, pids, reads, nbytes, strict=False))
        # Those that have no name yet are as unknown as those that never get one.
        (_, _, more_reads, more_bytes), (name, pid, few_reads, few_bytes), *named = counts
        counts = [(name, pid, few_reads + more_reads, few_bytes + more_bytes), *named]
        counts.sort(key=lambda each: each[3], reverse=True)
        return [
            {"comm": comm, "pid": pid, "reads": count, "bytes": size}
            for comm, pid, count, size in counts
            if count
        ]

    def _settle(self, place: int) -> None:
        """Move a place's counts to its name, and forget the name."""
        self._past_reads[self._slots[place]] += self._reads[place]
        self._past_bytes[self._slots[place]] += self._bytes[place]
        self._reads[place] = self._bytes[place] = self._seen_ns[place] = 0
        self._slots[place] = _UNNAMED
        self.fresh += 1

    def _find(self, thread: int) -> int:
        first = thread % _BUCKETS * _WAYS
        for place in range(first, first + _WAYS):
            if self._threads[place] == thread + 1:
                return place
        return _NONE

    def _oldest(self, thread: int) -> int:
        first = thread % _BUCKETS * _WAYS
        oldest = first
        for place in range(first, first + _WAYS):
            if not self._threads[place]:
                return place
            if self._seen_ns[place] < self._seen_ns[oldest]:
                oldest = place
        return oldest
