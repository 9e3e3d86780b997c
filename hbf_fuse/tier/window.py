"""Reads in flight: a fixed number at once; the next one begins as soon as one is done."""

from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.heap import Heap


class Window:
    """A tier that is read in virtual time with `depth` reads in flight."""

    def __init__(self, tier: Tier, depth: int) -> None:
        self._tier = tier
        self._free = Heap(depth)
        for slot in range(depth):
            self._free.push(0, slot)

    def read(self, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int) -> int:
        """Read a range in chunks from issued_ns on. Returns when all of it has arrived, in ns."""
        ready_ns, end = issued_ns, offset + nbytes
        while offset < end:
            begin_ns = max(self._free.first_key(), issued_ns)
            slot = self._free.pop()
            deadline_ns = self._tier.reserve(begin_ns, offset, min(chunk_bytes, end - offset))
            self._free.push(deadline_ns, slot)
            ready_ns = max(ready_ns, deadline_ns)
            offset += chunk_bytes
        return ready_ns
