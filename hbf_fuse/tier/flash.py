"""Planes: flash reads whole pages, each in its own plane, before the link can carry anything."""

from hbf_fuse.tier.spec import TierSpec


class Planes:
    """When each plane is free again. Pages lie across the planes in turn, as SSDs stripe them.

    bytes_sensed: what the planes have read so far, whole pages; bytes_asked: what was wanted of them.
    """

    def __init__(self, spec: TierSpec) -> None:
        self.bytes_sensed = 0
        self.bytes_asked = 0
        self._page = spec.page_bytes
        self._read_ns = round(spec.t_read_us * 1000)
        self._free = [0] * spec.planes

    def sense(self, start_ns: int, offset: int, nbytes: int) -> tuple[int, int, int]:
        """Read the pages under a range. Returns (when the first is ready, when all are, bytes in the last).

        Times in ns. A page that is read in part costs a whole page.
        """
        free, planes = self._free, len(self._free)
        first = offset // self._page
        last = max(first, (offset + nbytes - 1) // self._page)
        self.bytes_sensed += (last - first + 1) * self._page
        self.bytes_asked += nbytes
        first_ready = all_ready = 0
        for page in range(first, min(last + 1, first + planes)):
            plane = page % planes
            begin = max(start_ns, free[plane])
            # This plane's turn comes again every `planes` pages.
            free[plane] = begin + ((last - page) // planes + 1) * self._read_ns
            first_ready = first_ready or begin + self._read_ns
            all_ready = max(all_ready, free[plane])
        return first_ready, all_ready, min(nbytes, (offset + nbytes - 1) % self._page + 1)

    def count_on_from(self, before: "Planes") -> None:
        """Take over what another's counters say."""
        self.bytes_sensed, self.bytes_asked = before.bytes_sensed, before.bytes_asked

    def to_dict(self) -> dict[str, float]:
        """As stats.json holds it. Read amplification is sensed over asked."""
        amplification = self.bytes_sensed / self.bytes_asked if self.bytes_asked else 1.0
        return {"flash_bytes_sensed": self.bytes_sensed, "read_amplification": amplification}
