"""Reads in flight: so many at once, the next one as soon as one of them is done."""

from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.heap import Heap


class Window:
    """A tier that is read with `depth` reads in flight, in virtual time."""

    def __init__(self, tier: Tier, depth: int) -> None:
        self._tier = tier
        self._free = Heap(depth)
        for slot in range(depth):
            self._free.push(0, slot)

    def read(self, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int) -> int:
        """Read a range in chunks from issued_ns on; returns when all of it is there, in ns."""
        ready_ns, end = issued_ns, offset + nbytes
        while offset < end:
            begin_ns = max(self._free.first_key(), issued_ns)
            slot = self._free.pop()
            deadline_ns = self._tier.reserve(begin_ns, offset, min(chunk_bytes, end - offset))
            self._free.push(deadline_ns, slot)
            ready_ns = max(ready_ns, deadline_ns)
            offset += chunk_bytes
        return ready_ns
