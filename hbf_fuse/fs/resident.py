"""The emulated DRAM in front of the tier: how much of the served files the page cache may hold.

Counts the pages that replies brought in, and has the oldest dropped as soon as reads on their way would
exceed the budget. Dropping is done by a thread of its own: the kernel may wait for a page that a read in
flight is to bring, so a thread that holds a read must never ask for it.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

if TYPE_CHECKING:
    import numpy.typing as npt

PAGE = 4096
WINDOW_BYTES = 10 << 20
"""What streams past pinned pages: several readahead windows of 2 MiB (see server.BUDGET_READAHEAD_KIB)."""

HEADROOM_BYTES = 4 << 20
"""Dropping begins this far below the budget: what is on its way in a burst must not exceed it."""

MIN_BYTES = 2 * WINDOW_BYTES
"""Below this, pages would be dropped before their reader came to them."""

OVERFULL = 1.05
"""So many times the budget in memory, if only for a moment, is not what was asked for."""

_PINNED = 1
_FREE = (1 << 64) - 1
"""Of a page that no budget counts."""

_LEAST_TO_SORT_OUT = 1024


Evict = Callable[[int, int, int], None]
"""Drop (inode, offset, bytes) from the page cache."""


class Resident:
    """A budget and what it holds. Safe for concurrent callers.

    policy: `fifo` drops what came first, as a page cache does that sees each page once; `pin` keeps what
    came first, up to the budget less WINDOW_BYTES, and lets the rest pass through that window. Decode reads
    the weights in a cycle: fifo then keeps nothing that is read again, pin all that fits.

    Raises HbfError for a budget below MIN_BYTES.
    """

    def __init__(self, budget: int, policy: str, sizes: dict[int, int]) -> None:
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
        self._limit = budget - HEADROOM_BYTES
        self._pin_limit = budget - WINDOW_BYTES if policy == "pin" else 0
        # Per page the number of the reply that brought it, _PINNED, or 0 for a page that is not there.
        self._brought = {ino: np.zeros(-(-size // PAGE), np.uint64) for ino, size in sizes.items()}
        self._queue: deque[tuple[int, int, int, int]] = deque()
        self._sort_out_at = _LEAST_TO_SORT_OUT
        self._number = _PINNED
        self._coming_bytes = 0
        self._condition = threading.Condition()
        self._evict: Evict | None = None

    @property
    def overfull(self) -> bool:
        """Whether there ever was much more than the budget: pages came faster than they were dropped."""
        return self.most_resident_bytes > self.budget * OVERFULL

    def exempt(self, ino: int, first_byte: int, end_byte: int) -> None:
        """Never count these pages, never drop them."""
        self._brought[ino][slice(*_pages(first_byte, end_byte - first_byte))] = _FREE

    def start(self, evict: Evict) -> None:
        """Begin to drop pages, in a thread that ends with the process."""
        self._evict = evict
        threading.Thread(target=self._drop_for_ever, daemon=True, name="evict").start()

    def coming(self, ino: int, offset: int, nbytes: int) -> None:
        """A read arrived: its pages are not there, whatever was counted, and need room."""
        first, end = _pages(offset, nbytes)
        with self._condition:
            self._forget(ino, first, end)
            self._coming_bytes += nbytes
            self._condition.notify()

    def came(self, ino: int, offset: int, nbytes: int, arrived: bool) -> None:
        """The read was answered, with its pages or without them."""
        first, end = _pages(offset, nbytes)
        with self._condition:
            self._coming_bytes -= nbytes
            if not arrived:
                return
            self._forget(ino, first, end)
            pages = self._brought[ino][first:end]
            counted = pages != _FREE
            held = int(np.count_nonzero(counted)) * PAGE
            if self.pinned_bytes + held <= self._pin_limit:
                pages[counted] = _PINNED
                self.pinned_bytes += held
            else:
                self._number += 1
                pages[counted] = self._number
                self._queue.append((self._number, ino, first, end))
                self._sort_out()
            self.resident_bytes += held
            self.most_resident_bytes = max(self.most_resident_bytes, self.resident_bytes)
            self._condition.notify()

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it."""
        with self._condition:
            return {
                "budget_bytes": self.budget,
                "policy": self.policy,
                "resident_bytes": self.resident_bytes,
                "most_resident_bytes": self.most_resident_bytes,
                "pinned_bytes": self.pinned_bytes,
                "evicted_bytes": self.evicted_bytes,
            }

    def _forget(self, ino: int, first: int, end: int) -> None:
        """Count pages as gone. The kernel drops some on its own account; a read of them is how we learn."""
        pages = self._brought[ino][first:end]
        there = (pages != 0) & (pages != _FREE)
        count = int(np.count_nonzero(there))
        if count:
            self.pinned_bytes -= int(np.count_nonzero(pages == _PINNED)) * PAGE
            self.resident_bytes -= count * PAGE
            pages[there] = 0

    def _sort_out(self) -> None:
        """Forget replies of which nothing is left. Where the kernel drops pages on its own account, and the
        budget is never reached, nothing else would.
        """
        if len(self._queue) < self._sort_out_at:
            return
        self._queue = deque(reply for reply in self._queue if len(self._still_there(*reply)))
        self._sort_out_at = max(_LEAST_TO_SORT_OUT, 2 * len(self._queue))

    def _still_there(self, number: int, ino: int, first: int, end: int) -> "npt.NDArray[np.intp]":
        """Which of a reply's pages, counted from its first one, it was the newest to bring."""
        return np.flatnonzero(self._brought[ino][first:end] == number)

    def _drop_for_ever(self) -> None:
        while True:
            with self._condition:
                while not self._queue or self.resident_bytes + self._coming_bytes <= self._limit:
                    self._condition.wait()
                runs = self._oldest()
            for ino, first, end in runs:
                self._drop(ino, first, end)

    def _oldest(self) -> list[tuple[int, int, int]]:
        """The runs of pages that are still there of the oldest reply in the queue."""
        number, ino, first, end = self._queue.popleft()
        there = self._still_there(number, ino, first, end)
        if not len(there):
            return []
        self._brought[ino][first:end][there] = 0
        self.resident_bytes -= len(there) * PAGE
        self.evicted_bytes += len(there) * PAGE
        runs = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1)
        return [(ino, first + int(run[0]), first + int(run[-1]) + 1) for run in runs]

    def _drop(self, ino: int, first: int, end: int) -> None:
        try:
            if self._evict is not None:
                self._evict(ino, first * PAGE, (end - first) * PAGE)
        except OSError:
            # The kernel has forgotten the inode, and its pages with it; or the mount has ended.
            return


def _pages(offset: int, nbytes: int) -> tuple[int, int]:
    return offset // PAGE, -(-(offset + nbytes) // PAGE)
