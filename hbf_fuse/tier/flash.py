"""Flash planes: each senses one whole page at a time, before the link can carry it, or programs one after."""

import math
from array import array
from collections.abc import Sequence

from hbf_fuse.tier.bounds import FOREVER_NS, NOWHERE
from hbf_fuse.tier.draws import Draws
from hbf_fuse.tier.spec import HASHED, TierSpec
from hbf_fuse.tier.translation import Translation

_NO_PAGE = -1
_NEVER = -1
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its multiples are spread evenly (Knuth, TAOCP 3, 6.4)."""

_MOST_PAGES = 1 << 20
"""Most pages of a read that are simulated one by one. Of a longer read: half of them at each end."""


class Planes:
    """When each plane is free, and which page its register holds.

    Pages are striped across the planes in rows, as in SSDs: page N is in row N // planes, in plane N %
    planes. With a hashed interleave, each row is rotated by a hash of its number, so that no stride hits only
    a few planes. A plane senses the next page while the link carries the last one (cache read). The page
    sensed last stays in the plane's register and is not sensed again.

    Simplified: a plane never waits until its registers are carried. With two registers (data and cache),
    random 64 KiB reads of 8 readers would be 23% slower if planes and link are equally fast. A read crosses
    the link in one piece: beside large reads, small ones are 4 to 15% slower than if the link took the oldest
    page that is there. Single reads are exact, and rates of equal reads within 1%: see
    tests/flash_reference.py.

    A plane that programs or erases does not sense: a read of it waits, or suspends it. What is suspended ends
    later by as much, but the write whose page it is keeps its deadline: only what comes after it in this
    plane is delayed. Pages that were written lie where the translation layer has put them. A page that is
    written in part is sensed first.

    bytes_sensed: bytes sensed so far, in whole pages. bytes_asked: bytes requested of them. bytes_programmed:
    in whole pages, with those that collection has moved. reads_behind, behind_ns: reads that waited for a
    program or an erase, and how long, each for its slowest page.
    """

    def __init__(
        self, spec: TierSpec, retries: Sequence[tuple[float, float]] = (), written_bytes: int = 0
    ) -> None:
        """retries: when a page takes longer, each as (probability, additional ms). written_bytes: size of
        what can be written, 0 if nothing keeps account of blocks.
        """
        self.bytes_programmed = self.reads_behind = self.behind_ns = 0
        self._waited_ns = 0
        self._program_ns = round(spec.t_prog_us * 1000)
        self._erase_ns = round(spec.t_erase_us * 1000)
        self._suspend_ns = _NEVER if spec.suspend_us is None else round(spec.suspend_us * 1000)
        self._programmed = array("q", bytes(8 * spec.planes))
        self.translation = translation_of(spec, written_bytes)
        self.bytes_sensed = 0
        self.bytes_asked = 0
        self._page = spec.page_bytes
        self._sense_ns = round(spec.t_read_us * 1000)
        self._planes = spec.planes
        self._hashed = spec.interleave == HASHED
        self._free = array("q", bytes(8 * spec.planes))
        self._held = array("q", [_NO_PAGE]) * spec.planes
        self._draws = Draws(spec.seed)
        self._retries = len(retries)
        self._chances = array("d", [chance for chance, _ in retries])
        self._more_ns = array("q", [round(more_ms * 1e6) for _, more_ms in retries])
        self._rows_looked_at = max(2, _MOST_PAGES // 2 // spec.planes) if spec.planes else 0

    def sense(self, start_ns: int, offset: int, nbytes: int, rate: int) -> int:
        """Sense the pages of a range, from start_ns on. rate: of the link in bytes/s, 0 for no limit. Returns
        when the link may begin to carry the range without a gap: from then on, every page is ready at its
        turn. The range has arrived at the maximum over its pages of (sensed + bytes still to carry / rate).

        A page that is read in part is sensed as a whole.
        """
        first, last = offset // self._page, (offset + max(1, nbytes) - 1) // self._page
        row, place = first // self._planes, first % self._planes
        last_row = last // self._planes
        turn = self._turn(row)
        page, begin_ns, skipped = first, start_ns, False
        self.bytes_asked += nbytes
        self._waited_ns = 0
        while page <= last:
            plane = place + turn
            if plane >= self._planes:
                plane -= self._planes
            if self.translation is not None:
                written_in = self.translation.plane_of(page)
                if written_in != NOWHERE:
                    plane = written_in
            ready_ns = self._ready(plane, page, start_ns)
            before_ns = 0
            if rate and page > first:
                before_ns = int((page * self._page - offset) * 1e9 / rate)
            begin_ns = max(begin_ns, ready_ns - before_ns)
            page += 1
            place += 1
            if place == self._planes:
                row, place = row + 1, 0
                if not skipped and last_row - row > 2 * self._rows_looked_at:
                    skipped = True
                    rows = last_row - row - 2 * self._rows_looked_at
                    self._skip(rows)
                    row += rows
                    page += rows * self._planes
                turn = self._turn(row)
        if self._waited_ns:
            self.reads_behind += 1
            self.behind_ns += self._waited_ns
        return begin_ns

    def program(self, carried_ns: int, offset: int, nbytes: int, rate: int) -> int:
        """Program the pages of a range whose last byte the link has carried at carried_ns, at `rate` bytes/s
        (0 for no limit). Returns when the last page is programmed. nbytes: above 0.
        """
        first, end = offset // self._page, offset + nbytes
        last, done_ns = (end - 1) // self._page, carried_ns
        for page in range(first, last + 1):
            page_end, behind_ns = (page + 1) * self._page, 0
            if rate and page_end < end:
                behind_ns = int((end - page_end) * 1e9 / rate)
            there_ns = carried_ns - behind_ns
            if self.translation is not None:
                held_in = self.translation.plane_of(page)
                if held_in != NOWHERE:
                    if page_end > end or page * self._page < offset:
                        there_ns = self._ready(held_in, page, there_ns)
                    if self._held[held_in] == page:
                        self._held[held_in] = _NO_PAGE
                programmed = self.translation.write(page)
                self.bytes_programmed += programmed * self._page
                plane = self.translation.plane
                there_ns = max(there_ns, self._free[plane], self._programmed[plane])
                there_ns += self.translation.moved * (self._sense_ns + self._program_ns)
                there_ns += self.translation.erased * self._erase_ns
            else:
                plane = (page % self._planes + self._turn(page // self._planes)) % self._planes
                there_ns = max(there_ns, self._free[plane], self._programmed[plane])
                self.bytes_programmed += self._page
            self._programmed[plane] = min(there_ns + self._program_ns, FOREVER_NS)
            done_ns = max(done_ns, self._programmed[plane])
        return done_ns

    def _ready(self, plane: int, page: int, start_ns: int) -> int:
        """When a page is in its plane's register."""
        free_ns = max(start_ns, self._free[plane])
        if self._held[plane] == page:
            return free_ns
        behind_ns = self._programmed[plane] - free_ns
        if behind_ns > 0:
            if self._suspend_ns != _NEVER:
                behind_ns = min(behind_ns, self._suspend_ns)
            self._waited_ns = max(self._waited_ns, behind_ns)
            free_ns += behind_ns
        ready_ns = free_ns + self._sense_ns
        for retry in range(self._retries):
            if self._draws.uniform() < self._chances[retry]:
                ready_ns += self._more_ns[retry]
        ready_ns = min(ready_ns, FOREVER_NS)
        if self._programmed[plane] > free_ns:
            # Suspended: what is left of it follows.
            self._programmed[plane] = min(
                self._programmed[plane] + ready_ns - free_ns + behind_ns, FOREVER_NS
            )
        self._free[plane] = ready_ns
        self._held[plane] = page
        self.bytes_sensed += self._page
        return ready_ns

    def _skip(self, rows: int) -> None:
        """Sense whole rows without simulating each page, with the mean number of retries."""
        each_ns = float(self._sense_ns)
        for retry in range(self._retries):
            each_ns += self._chances[retry] * self._more_ns[retry]
        more_ns = int(min(rows * each_ns, 1e18))
        for plane in range(self._planes):
            self._free[plane] = min(self._free[plane] + more_ns, FOREVER_NS)
        self.bytes_sensed += rows * self._planes * self._page

    def _turn(self, row: int) -> int:
        """By how many planes a row is rotated."""
        if not self._hashed:
            return 0
        mixed = (row * _GOLDEN) & _MASK
        return ((mixed >> 32) * self._planes) >> 32

    def count_on_from(self, before: "Planes") -> None:
        """Take over the counters of another one."""
        self.bytes_sensed, self.bytes_asked = before.bytes_sensed, before.bytes_asked
        self.bytes_programmed = before.bytes_programmed
        self.reads_behind, self.behind_ns = before.reads_behind, before.behind_ns

    def take_over(self, before: "Planes") -> None:
        """Have the pages where another one has them."""
        self.translation = before.translation
        for plane in range(self._planes):
            self._programmed[plane] = before._programmed[plane]

    @property
    def read_amplification(self) -> float:
        """Bytes sensed over bytes asked for."""
        return self.bytes_sensed / self.bytes_asked if self.bytes_asked else 1.0


def translation_of(spec: TierSpec, written_bytes: int) -> Translation | None:
    """The translation layer of so many bytes: their pages and the over-provisioning, in whole blocks of each
    plane, and the block that each keeps free. Few large blocks leave more spare than was asked for. None for
    a tier without program times.
    """
    if not (written_bytes and spec.t_prog_us):
        return None
    logical, row = -(-written_bytes // spec.page_bytes), spec.planes * spec.block_pages
    spared = math.ceil(logical * (1 + spec.spare_pct / 100) / row)
    return Translation(logical, max(spared, -(-logical // row) + 1) + 1, spec.block_pages, spec.planes)
