"""A flash translation layer: where pages that were written lie, and what a write costs the medium.

Flash programs a page once, and erases whole blocks. So a page that is written again goes to a free place, and
the old one is garbage until its block is collected: what is still valid there is programmed again, then the
block is erased. What the medium programs, over what the host wrote, is the write amplification.
"""

import mmap
from array import array

from hbf_fuse.tier.bounds import NOWHERE

_NONE = -1
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its multiples are spread evenly (Knuth, TAOCP 3, 6.4)."""


class Translation:
    """Page-mapped, with an open block in each plane and greedy garbage collection within the plane: of the
    full blocks, the one with the fewest valid pages goes first. Of equals the oldest goes first, here and
    when a free block is opened: so wear spreads. Pages are written to the planes in turn.

    A page has any number below 2^61 as its name. logical: how many of them may be valid at once. blocks,
    pages: of each plane, and pages in each block. One block of a plane is always kept free for collection, so
    at least two more are needed than the logical pages fill. Raises IndexError if the blocks do not suffice.

    host_pages, medium_pages: programmed by the host, and in all. erases: of blocks. plane, moved, erased:
    where the newest write went, and how many pages and blocks were moved and erased there for it.
    """

    def __init__(self, logical: int, blocks: int, pages: int, planes: int = 1) -> None:
        if min(logical, pages, planes) < 1 or (blocks - 2) * pages * planes < logical:
            raise IndexError("a translation needs two blocks more in each plane than its logical pages fill")
        self.host_pages = self.medium_pages = self.erases = 0
        self.plane = self.moved = self.erased = 0
        self.logical_pages, self.physical_pages = logical, planes * blocks * pages
        self._pages, self._blocks, self._planes = pages, blocks, planes
        self._turn = 0
        # A hash table of names, with linear probing: name + 1, and the page of the medium. 0 is free.
        self._room_bits = (2 * logical).bit_length()
        self._names = _zeros(1 << self._room_bits)
        self._places = _zeros(1 << self._room_bits)
        # By page of the medium the name + 1 that it holds, or 0.
        self._holds = _zeros(planes * blocks * pages)
        self._valid = _zeros(planes * blocks)
        self._worn = _zeros(planes * blocks)
        # Full blocks of a plane by their valid pages: a doubly linked list for each number, the oldest first.
        self._first = array("q", [_NONE]) * (planes * (pages + 1))
        self._last = array("q", [_NONE]) * (planes * (pages + 1))
        self._next = array("q", [_NONE]) * (planes * blocks)
        self._before = array("q", [_NONE]) * (planes * blocks)
        # The free blocks of a plane, in a ring; all but its first block, which is open.
        self._free = array("q", range(1, planes * blocks + 1))
        self._first_free, self._used, self._valid_in = (array("q", bytes(8 * planes)) for _ in range(3))
        self._free_count = array("q", [blocks - 1]) * planes
        self._open = array("q", range(0, planes * blocks, blocks))

    def write(self, page: int) -> int:
        """Write a page. Returns how many pages the medium programs for it, 1 or more; 0, and nothing is
        written, if no plane has room.
        """
        self.trim(page)
        plane = self._next_plane()
        if plane == _NONE:
            return 0
        self.plane, self.moved, self.erased = plane, 0, 0
        if self._used[plane] == self._pages:
            self._open_next(plane)
        while not self._free_count[plane]:
            self._collect(plane)
        if self._used[plane] == self._pages:
            self._open_next(plane)
        self._put(page, self._program(plane, page))
        self.host_pages += 1
        return self.moved + 1

    def trim(self, page: int) -> None:
        """The host no longer needs a page."""
        slot = self._slot(page)
        if not self._names[slot]:
            return
        at = self._places[slot]
        self._remove(slot)
        self._holds[at] = 0
        block = at // self._pages
        plane = block // self._blocks
        self._valid_in[plane] -= 1
        is_listed = block != self._open[plane]
        if is_listed:
            self._unlist(block)
        self._valid[block] -= 1
        if is_listed:
            self._list(block)

    def trim_range(self, first: int, end: int) -> None:
        """The host no longer needs these pages."""
        for page in range(first, end):
            self.trim(page)

    def place(self, page: int) -> int:
        """The medium's page that holds a page; NOWHERE if it was never written."""
        slot = self._slot(page)
        return self._places[slot] if self._names[slot] else NOWHERE

    def plane_of(self, page: int) -> int:
        """The plane that holds a page; NOWHERE if it was never written."""
        at = self.place(page)
        return at if at == NOWHERE else at // (self._pages * self._blocks)

    def worn(self, block: int) -> int:
        """How often a block was erased. Blocks count plane by plane."""
        return self._worn[block]

    @property
    def spare_pct(self) -> float:
        """Over-provisioning in percent, without the block of each plane that is kept free."""
        free = self._planes * self._pages
        return ((self.physical_pages - free) / self.logical_pages - 1) * 100

    def wear(self) -> tuple[int, float, int]:
        """Erases of a block: the least, the mean, the most."""
        blocks = self._planes * self._blocks
        worn = [self._worn[block] for block in range(blocks)]
        return min(worn), sum(worn) / blocks, max(worn)

    def _next_plane(self) -> int:
        """Whose turn it is, of those that have room."""
        most = (self._blocks - 2) * self._pages
        for _tried in range(self._planes):
            plane = self._turn
            self._turn = plane + 1 if plane + 1 < self._planes else 0
            if self._valid_in[plane] < most:
                return plane
        return _NONE

    def _open_next(self, plane: int) -> None:
        """The open block is full: go on in a free one."""
        self._list(self._open[plane])
        first = self._first_free[plane]
        self._open[plane], self._used[plane] = self._free[plane * self._blocks + first], 0
        self._first_free[plane] = (first + 1) % self._blocks
        self._free_count[plane] -= 1

    def _program(self, plane: int, page: int) -> int:
        """Program a page into the open block of a plane. Returns where."""
        block = self._open[plane]
        at = block * self._pages + self._used[plane]
        self._used[plane] += 1
        self._holds[at] = page + 1
        self._valid[block] += 1
        self._valid_in[plane] += 1
        self.medium_pages += 1
        return at

    def _collect(self, plane: int) -> None:
        """Free the block with the fewest valid pages. The open block has room for them."""
        lists, valid = plane * (self._pages + 1), 0
        while self._first[lists + valid] == _NONE:
            valid += 1
        victim = self._first[lists + valid]
        self._unlist(victim)
        for at in range(victim * self._pages, (victim + 1) * self._pages):
            name = self._holds[at]
            if name:
                self._holds[at] = 0
                self._valid_in[plane] -= 1
                self._places[self._slot(name - 1)] = self._program(plane, name - 1)
                self.moved += 1
        self._valid[victim] = 0
        self._worn[victim] += 1
        self.erases += 1
        self.erased += 1
        last = (self._first_free[plane] + self._free_count[plane]) % self._blocks
        self._free[plane * self._blocks + last] = victim
        self._free_count[plane] += 1

    def _slot(self, page: int) -> int:
        """Where a page stands in the table, or would stand."""
        slot, room = self._home(page), 1 << self._room_bits
        while self._names[slot] and self._names[slot] != page + 1:
            slot = slot + 1 if slot + 1 < room else 0
        return slot

    def _home(self, page: int) -> int:
        mixed = (page * _GOLDEN) & _MASK
        return mixed >> (64 - self._room_bits)

    def _put(self, page: int, at: int) -> None:
        slot = self._slot(page)
        self._names[slot], self._places[slot] = page + 1, at

    def _remove(self, slot: int) -> None:
        """Free a slot of the table: what stands behind it, and belongs there or before, moves up."""
        room = 1 << self._room_bits
        at = slot
        while True:
            at = at + 1 if at + 1 < room else 0
            if not self._names[at]:
                break
            home = self._home(self._names[at] - 1)
            # Whether home lies behind the free slot, up to where it stands: then it must stay.
            stays = slot < home <= at if slot <= at else home > slot or home <= at
            if not stays:
                self._names[slot], self._places[slot] = self._names[at], self._places[at]
                slot = at
        self._names[slot] = 0

    def _list(self, block: int) -> None:
        place = block // self._blocks * (self._pages + 1) + self._valid[block]
        before = self._last[place]
        self._before[block], self._next[block] = before, _NONE
        if before == _NONE:
            self._first[place] = block
        else:
            self._next[before] = block
        self._last[place] = block

    def _unlist(self, block: int) -> None:
        place = block // self._blocks * (self._pages + 1) + self._valid[block]
        before, following = self._before[block], self._next[block]
        if before == _NONE:
            self._first[place] = following
        else:
            self._next[before] = following
        if following == _NONE:
            self._last[place] = before
        else:
            self._before[following] = before


def _zeros(count: int) -> "memoryview[int]":
    """Words of 8 bytes, in memory that is allocated when it is first used."""
    return memoryview(mmap.mmap(-1, 8 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).cast("q")
