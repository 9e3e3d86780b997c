"""The emulated DRAM in front of the tier: how much of the served files the page cache may hold.

Counts the pages that replies brought in. Names the oldest to be dropped as soon as reads in flight would
exceed the budget. The engine drops them in a separate thread: the kernel may wait for a page that a read in
flight has to bring, so a thread that holds a read must never ask for a drop.
"""

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate

from hbf_fuse.errors import HbfError
from hbf_fuse.observe.status import ResidentStatus
from hbf_fuse.pacing.tiers import Regions
from hbf_fuse.pacing.words import Words
from hbf_fuse.units import format_size

PAGE = 4096
WINDOW_BYTES = 10 << 20
"""Pages that are not pinned pass through this: several readahead windows of 2 MiB (see
server.BUDGET_READAHEAD_KIB).
"""

HEADROOM_BYTES = 4 << 20
"""Dropping begins this far below the budget, so that a burst of reads in flight does not exceed it."""

MIN_BYTES = 2 * WINDOW_BYTES
"""With less, pages would be dropped before their reader used them."""

OVERFULL = 1.05
"""More resident than this many times the budget, even for a moment, is an overfill: not what was asked for.
"""

_PINNED = 1
"""Mark of a page that stays. 0: not resident. Others: the number of the reply that brought it."""

_COUNTED, _EXEMPT = 0, 1
"""Regions of a file: whether the budget counts them."""

_FIELDS = 4
"""Of a reply in the queue: its number, file, first page, and the page after its last."""


class Resident:
    """A budget and what it holds. Not safe for concurrent callers. Files are named by their places in
    `sizes`.

    policy: `fifo` drops what came first, like a page cache that sees each page once. `pin` keeps what came
    first, up to the budget less WINDOW_BYTES; the rest passes through that window. Decode reads the weights
    in a cycle: fifo then keeps nothing that is read again, pin all that fits. exempt: by the place of a file,
    ranges (first byte, end) in whole pages, in order, that are never counted and never dropped.

    Memory follows what is resident. Raises HbfError for a budget below MIN_BYTES.
    """

    def __init__(
        self,
        budget: int,
        policy: str,
        sizes: Sequence[int],
        exempt: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        if budget < MIN_BYTES:
            raise HbfError(
                f"a resident budget (--resident) of {format_size(budget)} thrashes",
                f"give at least {format_size(MIN_BYTES)}",
            )
        self.budget = budget
        self.policy = policy
        self.resident_bytes = 0
        self.most_resident_bytes = 0
        self.evicted_bytes = 0
        self.pinned_bytes = 0
        self.drop_file = self.drop_first = self.drop_end = 0
        """The pages that next_drop has named: of this file, from drop_first up to drop_end."""
        self._limit = budget - HEADROOM_BYTES
        self._most = int(budget * OVERFULL)
        self._pin_limit = budget - WINDOW_BYTES if policy == "pin" else 0
        pages = [-(-size // PAGE) for size in sizes]
        self._first_page = array("q", accumulate(pages, initial=0))
        self._brought = Words(sum(pages))
        self._exempt = Regions(len(sizes), {file: _in_turn(spans) for file, spans in (exempt or {}).items()})
        # A ring of replies in order of arrival. Replies without resident pages are removed when it is full.
        self._room = max(1024, 2 * min(budget // PAGE, sum(pages)))
        self._queue = Words(self._room * _FIELDS)
        self._head = self._count = 0
        self._unmarked = False
        self._number = _PINNED
        self._coming_bytes = 0
        # The reply that is being dropped: its number, and its remaining pages.
        self._dropping = self._at = self._end = 0

    def is_overfull(self) -> bool:
        """Whether much more than the budget is, or may be, resident: pages came faster than they were
        dropped, or there was no memory to note which came.
        """
        return self.resident_bytes > self._most or self._unmarked

    def coming(self, file: int, offset: int, nbytes: int) -> None:
        """A read arrived: its pages are not resident, whatever was counted, and need room."""
        if nbytes <= 0:
            return
        self._forget(file, offset, nbytes)
        self._coming_bytes += nbytes

    def came(self, file: int, offset: int, nbytes: int) -> None:
        """The read was answered with its pages."""
        self._coming_bytes -= nbytes
        if nbytes <= 0:
            return
        self._forget(file, offset, nbytes)
        held = self._pages(file, offset, nbytes, 0) * PAGE
        mark = _PINNED
        if self.pinned_bytes + held <= self._pin_limit:
            self.pinned_bytes += held
        else:
            self._number += 1
            mark = self._number
            base = self._first_page[file]
            self._enqueue(file, base + offset // PAGE, base + (offset + nbytes + PAGE - 1) // PAGE)
        self._pages(file, offset, nbytes, mark)
        self.resident_bytes += held
        self.most_resident_bytes = max(self.most_resident_bytes, self.resident_bytes)

    def abandoned(self, nbytes: int) -> None:
        """The read was answered without its pages."""
        self._coming_bytes -= nbytes

    def must_drop(self) -> bool:
        """Whether next_drop has something to name."""
        if self._at < self._end:
            return True
        return self._count > 0 and self.resident_bytes + self._coming_bytes > self._limit

    def next_drop(self) -> bool:
        """Name the next run of pages to be dropped. They count as dropped from now on. False if none must be
        dropped.
        """
        while self.must_drop():
            if self._at >= self._end:
                self._next_reply()
            while self._at < self._end and not self._is_of(self._at, self._dropping):
                self._at += 1
            first = self._at
            while self._at < self._end and self._is_of(self._at, self._dropping):
                self._brought.put(self._at, 0)
                self._at += 1
            if first < self._at:
                base = self._first_page[self.drop_file]
                self.drop_first, self.drop_end = first - base, self._at - base
                self.resident_bytes -= (self._at - first) * PAGE
                self.evicted_bytes += (self._at - first) * PAGE
                return True
        return False

    def status(self) -> ResidentStatus:
        """As JSON for stats.json."""
        return {
            "budget_bytes": self.budget,
            "policy": self.policy,
            "resident_bytes": self.resident_bytes,
            "most_resident_bytes": self.most_resident_bytes,
            "pinned_bytes": self.pinned_bytes,
            "evicted_bytes": self.evicted_bytes,
        }

    def _pages(self, file: int, offset: int, nbytes: int, mark: int) -> int:
        """How many pages of a reply the budget counts. They get this mark, unless it is 0."""
        base, end, pages = self._first_page[file], offset + nbytes, 0
        while offset < end:
            piece_end = self._exempt.piece_end(file, offset, end)
            if self._exempt.tier == _COUNTED:
                first, last = base + offset // PAGE, base + (piece_end + PAGE - 1) // PAGE
                pages += last - first
                if mark:
                    for page in range(first, last):
                        if not self._brought.put(page, mark):
                            self._unmarked = True
            offset = piece_end
        return pages

    def _forget(self, file: int, offset: int, nbytes: int) -> None:
        """Count pages as gone. The kernel drops some pages by itself; a new read of them shows it."""
        base = self._first_page[file]
        for page in range(base + offset // PAGE, base + (offset + nbytes + PAGE - 1) // PAGE):
            mark = self._brought.get(page)
            if mark:
                self._brought.put(page, 0)
                self.resident_bytes -= PAGE
                if mark == _PINNED:
                    self.pinned_bytes -= PAGE

    def _enqueue(self, file: int, first: int, end: int) -> None:
        if self._count == self._room:
            self._sort_out()
        if self._count == self._room:
            # The engine does not drop: is_overfull reports it.
            return
        at = (self._head + self._count) % self._room * _FIELDS
        # The end is stored last: without it, nothing of a reply is dropped.
        if not (
            self._queue.put(at, self._number)
            and self._queue.put(at + 1, file)
            and self._queue.put(at + 2, first)
            and self._queue.put(at + 3, end)
        ):
            self._unmarked = True
        self._count += 1

    def _next_reply(self) -> None:
        """Begin to drop the oldest reply."""
        at = self._head * _FIELDS
        self._dropping = self._queue.get(at)
        self.drop_file = self._queue.get(at + 1)
        self._at = self._queue.get(at + 2)
        self._end = self._queue.get(at + 3)
        for field in range(_FIELDS):
            self._queue.put(at + field, 0)
        self._head = (self._head + 1) % self._room
        self._count -= 1

    def _sort_out(self) -> None:
        """Remove replies without resident pages. Needed if the kernel drops pages by itself and the budget is
        never reached.
        """
        kept = 0
        for place in range(self._count):
            here = (self._head + place) % self._room * _FIELDS
            there = (self._head + kept) % self._room * _FIELDS
            if self._is_left(here):
                for field in range(_FIELDS):
                    self._queue.put(there + field, self._queue.get(here + field))
                kept += 1
        self._count = kept

    def _is_left(self, at: int) -> bool:
        """Whether a reply in the queue is the newest one for any of its pages."""
        number, page, end = self._queue.get(at), self._queue.get(at + 2), self._queue.get(at + 3)
        while page < end and not self._is_of(page, number):
            page += 1
        return page < end

    def _is_of(self, page: int, number: int) -> bool:
        """Whether a page is resident, and the reply with this number brought it."""
        mark = self._brought.get(page)
        return mark == number


def _in_turn(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The regions of a file: those that count and, at the spans, those that do not."""
    return [(0, _COUNTED), *(each for first, end in spans for each in ((first, _EXEMPT), (end, _COUNTED)))]
