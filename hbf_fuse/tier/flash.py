"""Planes: flash reads whole pages, each in its own plane, before the link can carry anything."""

from array import array

from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.spec import TierSpec


class Planes:
    """When each plane is free again. Pages lie across the planes in turn, as SSDs stripe them.

    bytes_sensed: what the planes have read so far, whole pages; bytes_asked: what was wanted of them.
    first_ready_ns, all_ready_ns: when the first page of the newest read is ready, and when all are.
    """

    def __init__(self, spec: TierSpec) -> None:
        self.bytes_sensed = 0
        self.bytes_asked = 0
        self.first_ready_ns = self.all_ready_ns = 0
        self._page = spec.page_bytes
        self._read_ns = round(spec.t_read_us * 1000)
        self._most_turns = FOREVER_NS // max(1, self._read_ns)
        self._planes = spec.planes
        self._free = array("q", bytes(8 * spec.planes))

    def sense(self, start_ns: int, offset: int, nbytes: int) -> int:
        """Read the pages under a range; returns the bytes in the last one.

        A page that is read in part costs a whole page.
        """
        first = offset // self._page
        last = max(first, (offset + nbytes - 1) // self._page)
        self.bytes_sensed += (last - first + 1) * self._page
        self.bytes_asked += nbytes
        self.first_ready_ns = self.all_ready_ns = 0
        for page in range(first, min(last + 1, first + self._planes)):
            plane = page % self._planes
            begin_ns = max(start_ns, self._free[plane])
            # This plane's turn comes again every `planes` pages.
            turns = min((last - page) // self._planes + 1, self._most_turns)
            self._free[plane] = min(begin_ns + turns * self._read_ns, FOREVER_NS)
            if not self.first_ready_ns:
                self.first_ready_ns = begin_ns + self._read_ns
            self.all_ready_ns = max(self.all_ready_ns, self._free[plane])
        return min(nbytes, (offset + nbytes - 1) % self._page + 1)

    def count_on_from(self, before: "Planes") -> None:
        """Take over what another's counters say."""
        self.bytes_sensed, self.bytes_asked = before.bytes_sensed, before.bytes_asked

    def to_dict(self) -> dict[str, float]:
        """As stats.json holds it. Read amplification is sensed over asked."""
        amplification = self.bytes_sensed / self.bytes_asked if self.bytes_asked else 1.0
        return {"flash_bytes_sensed": self.bytes_sensed, "read_amplification": amplification}
