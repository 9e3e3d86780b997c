"""A flash translation layer: where pages that were written lie, and what a write costs the medium.

Flash programs a page once, and erases whole blocks. So a page that is written again goes to a free place, and
the old one is garbage until its block is collected: what is still valid there is programmed again, then the
block is erased. What the medium programs, over what the host wrote, is the write amplification.
"""

from array import array

_NONE = -1


class Translation:
    """Page-mapped, with one open block and greedy garbage collection: of the full blocks, the one with the
    fewest valid pages goes first. Of equals the oldest goes first, here and when a free block is opened: so
    wear spreads.

    logical: pages that the host sees. blocks, pages: of the medium, and pages in each block. One block is
    always kept free for collection, so at least two more are needed than the logical pages fill.
    host_pages, medium_pages: programmed by the host, and in all. erases: of blocks. Numbers of pages are
    addresses. Raises IndexError if the blocks do not suffice.
    """

    def __init__(self, logical: int, blocks: int, pages: int) -> None:
        if logical < 1 or pages < 1 or blocks < -(-logical // pages) + 2:
            raise IndexError("a translation needs two blocks more than its logical pages fill")
        self.host_pages = self.medium_pages = self.erases = 0
        self._pages = pages
        self._where = array("q", [_NONE]) * logical
        self._holds = array("q", [_NONE]) * (blocks * pages)
        self._valid = array("q", bytes(8 * blocks))
        self._worn = array("q", bytes(8 * blocks))
        # Full blocks by their valid pages: a doubly linked list for each number, the oldest first.
        self._first = array("q", [_NONE]) * (pages + 1)
        self._last = array("q", [_NONE]) * (pages + 1)
        self._next = array("q", [_NONE]) * blocks
        self._before = array("q", [_NONE]) * blocks
        self._free = array("q", [*range(1, blocks), _NONE])
        self._blocks, self._first_free, self._free_count = blocks, 0, blocks - 1
        self._open, self._used = 0, 0

    def write(self, page: int) -> int:
        """Write a logical page. Returns how many pages the medium programs for it, 1 or more."""
        before = self.medium_pages
        self.trim(page)
        if self._used == self._pages:
            self._open_next()
        while not self._free_count:
            self._collect()
        if self._used == self._pages:
            self._open_next()
        self._program(page)
        self.host_pages += 1
        return self.medium_pages - before

    def trim(self, page: int) -> None:
        """The host no longer needs a logical page."""
        at = self._where[page]
        if at == _NONE:
            return
        self._where[page] = self._holds[at] = _NONE
        block = at // self._pages
        is_listed = block != self._open
        if is_listed:
            self._unlist(block)
        self._valid[block] -= 1
        if is_listed:
            self._list(block)

    def place(self, page: int) -> int:
        """The medium's page that holds a logical page; -1 if it was never written."""
        return self._where[page]

    def worn(self, block: int) -> int:
        """How often a block was erased."""
        return self._worn[block]

    def _open_next(self) -> None:
        """The open block is full: go on in a free one."""
        self._list(self._open)
        self._open, self._used = self._free[self._first_free], 0
        self._first_free = (self._first_free + 1) % self._blocks
        self._free_count -= 1

    def _program(self, page: int) -> None:
        at = self._open * self._pages + self._used
        self._used += 1
        self._where[page], self._holds[at] = at, page
        self._valid[self._open] += 1
        self.medium_pages += 1

    def _collect(self) -> None:
        """Free the block with the fewest valid pages. The open block has room for them."""
        valid = 0
        while self._first[valid] == _NONE:
            valid += 1
        victim = self._first[valid]
        self._unlist(victim)
        for at in range(victim * self._pages, (victim + 1) * self._pages):
            page = self._holds[at]
            if page != _NONE:
                self._holds[at] = _NONE
                self._program(page)
        self._valid[victim] = 0
        self._worn[victim] += 1
        self.erases += 1
        self._free[(self._first_free + self._free_count) % self._blocks] = victim
        self._free_count += 1

    def _list(self, block: int) -> None:
        valid = self._valid[block]
        before = self._last[valid]
        self._before[block], self._next[block] = before, _NONE
        if before == _NONE:
            self._first[valid] = block
        else:
            self._next[before] = block
        self._last[valid] = block

    def _unlist(self, block: int) -> None:
        valid = self._valid[block]
        before, following = self._before[block], self._next[block]
        if before == _NONE:
            self._first[valid] = following
        else:
            self._next[before] = following
        if following == _NONE:
            self._last[valid] = before
        else:
            self._before[following] = before
