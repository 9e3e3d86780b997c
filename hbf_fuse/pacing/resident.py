"""The emulated DRAM in front of the tier: how much of the served files the page cache may hold.

Counts the pages that replies brought in, and names the oldest to be dropped as soon as reads on their way
would exceed the budget. The engine drops them, in a thread of its own: the kernel may wait for a page that
a read in flight is to bring, so a thread that holds a read must never ask for it.
"""

import mmap
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

PAGE = 4096
WINDOW_BYTES = 10 << 20
"""What streams past pinned pages: several readahead windows of 2 MiB (see server.BUDGET_READAHEAD_KIB)."""

HEADROOM_BYTES = 4 << 20
"""Dropping begins this far below the budget: what is on its way in a burst must not exceed it."""

MIN_BYTES = 2 * WINDOW_BYTES
"""Below this, pages would be dropped before their reader came to them."""

OVERFULL = 1.05
"""So many times the budget in memory, if only for a moment, is not what was asked for."""

_FREE = -1
"""Of a page that no budget counts."""

_PINNED = 1
"""Of a page that stays. 0: not there. Others: the number of the reply that brought it."""

_FIELDS = 4
"""Of a reply in the queue: its number, file, first page and the page after its last."""


class Resident:
    """A budget and what it holds. Not safe for concurrent callers. Files are known by their places in
    `sizes`.

    policy: `fifo` drops what came first, as a page cache does that sees each page once; `pin` keeps what
    came first, up to the budget less WINDOW_BYTES, and lets the rest pass through that window. Decode reads
    the weights in a cycle: fifo then keeps nothing that is read again, pin all that fits.

    Raises HbfError for a budget below MIN_BYTES.
    """

    def __init__(self, budget: int, policy: str, sizes: Sequence[int]) -> None:
        if budget < MIN_BYTES:
            raise HbfError(
                f"a resident budget (--resident) of {format_size(budget)} thrashes; give at least "
                f"{format_size(MIN_BYTES)}"
            )
        self.budget = budget
        self.policy = policy
        self.resident_bytes = 0
        self.most_resident_bytes = 0
        self.evicted_bytes = 0
        self.pinned_bytes = 0
        self.drop_file = self.drop_first = self.drop_end = 0
        """What next_drop has named: a file and its pages from drop_first up to drop_end."""
        self._limit = budget - HEADROOM_BYTES
        self._most = int(budget * OVERFULL)
        self._pin_limit = budget - WINDOW_BYTES if policy == "pin" else 0
        pages = [-(-size // PAGE) for size in sizes]
        self._first_page = array("q", accumulate(pages, initial=0))
        self._brought = _zeros(sum(pages))
        # Replies in the order in which they came, in a ring. Each holds a page at least, or is sorted out.
        self._room = max(1024, 2 * min(budget // PAGE, sum(pages)))
        self._queue = _zeros(self._room * _FIELDS)
        self._head = self._count = 0
        self._number = _PINNED
        self._coming_bytes = 0
        # The reply that is being dropped: what is left of it.
        self._dropping = self._at = self._end = 0

    def is_overfull(self) -> bool:
        """Whether there is much more than the budget: pages came faster than they were dropped."""
        return self.resident_bytes > self._most

    def exempt(self, file: int, first_byte: int, end_byte: int) -> None:
        """Never count these pages, never drop them."""
        base = self._first_page[file]
        for page in range(base + first_byte // PAGE, base + -(-end_byte // PAGE)):
            self._brought[page] = _FREE

    def coming(self, file: int, offset: int, nbytes: int) -> None:
        """A read arrived: its pages are not there, whatever was counted, and need room."""
        if nbytes <= 0:
            return
        self._forget(file, offset, nbytes)
        self._coming_bytes += nbytes

    def came(self, file: int, offset: int, nbytes: int) -> None:
        """The read was answered, with its pages."""
        self._coming_bytes -= nbytes
        if nbytes <= 0:
            return
        self._forget(file, offset, nbytes)
        base = self._first_page[file]
        first, end = base + offset // PAGE, base + (offset + nbytes + PAGE - 1) // PAGE
        held = 0
        for page in range(first, end):
            if self._brought[page] != _FREE:
                held += PAGE
        mark = _PINNED
        if self.pinned_bytes + held <= self._pin_limit:
            self.pinned_bytes += held
        else:
            self._number += 1
            mark = self._number
            self._enqueue(file, first, end)
        for page in range(first, end):
            if self._brought[page] != _FREE:
                self._brought[page] = mark
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
        """Name the next run of pages to be dropped, which count as dropped from now on. False if none must
        be.
        """
        while self.must_drop():
            if self._at >= self._end:
                self._next_reply()
            while self._at < self._end and self._brought[self._at] != self._dropping:
                self._at += 1
            first = self._at
            while self._at < self._end and self._brought[self._at] == self._dropping:
                self._brought[self._at] = 0
                self._at += 1
            if first < self._at:
                base = self._first_page[self.drop_file]
                self.drop_first, self.drop_end = first - base, self._at - base
                self.resident_bytes -= (self._at - first) * PAGE
                self.evicted_bytes += (self._at - first) * PAGE
                return True
        return False

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it."""
        return {
            "budget_bytes": self.budget,
            "policy": self.policy,
            "resident_bytes": self.resident_bytes,
            "most_resident_bytes": self.most_resident_bytes,
            "pinned_bytes": self.pinned_bytes,
            "evicted_bytes": self.evicted_bytes,
        }

    def _forget(self, file: int, offset: int, nbytes: int) -> None:
        """Count pages as gone. The kernel drops some on its own account; a read of them is how we learn."""
        base = self._first_page[file]
        for page in range(base + offset // PAGE, base + (offset + nbytes + PAGE - 1) // PAGE):
            mark = self._brought[page]
            if mark > 0:
                self._brought[page] = 0
                self.resident_bytes -= PAGE
                if mark == _PINNED:
                    self.pinned_bytes -= PAGE

    def _enqueue(self, file: int, first: int, end: int) -> None:
        if self._count == self._room:
            self._sort_out()
        if self._count == self._room:
            # Nobody drops: there is much more than the budget, which is told.
            return
        at = (self._head + self._count) % self._room * _FIELDS
        self._queue[at] = self._number
        self._queue[at + 1] = file
        self._queue[at + 2] = first
        self._queue[at + 3] = end
        self._count += 1

    def _next_reply(self) -> None:
        """Begin to drop the oldest one."""
        at = self._head * _FIELDS
        self._dropping = self._queue[at]
        self.drop_file = self._queue[at + 1]
        self._at = self._queue[at + 2]
        self._end = self._queue[at + 3]
        self._head = (self._head + 1) % self._room
        self._count -= 1

    def _sort_out(self) -> None:
        """Forget replies of which nothing is left. Where the kernel drops pages on its own account, and the
        budget is never reached, nothing else would.
        """
        kept = 0
        for place in range(self._count):
            here = (self._head + place) % self._room * _FIELDS
            there = (self._head + kept) % self._room * _FIELDS
            if self._is_left(here):
                for field in range(_FIELDS):
                    self._queue[there + field] = self._queue[here + field]
                kept += 1
        self._count = kept

    def _is_left(self, at: int) -> bool:
        """Whether a reply in the queue was the newest to bring any of its pages."""
        for page in range(self._queue[at + 2], self._queue[at + 3]):
            if self._brought[page] == self._queue[at]:
                return True
        return False


def _zeros(count: int) -> memoryview:
    """Words of 8 bytes that take no memory before they are used."""
    return memoryview(mmap.mmap(-1, max(8, 8 * count))).cast("q")
