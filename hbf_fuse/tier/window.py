"""Requests in flight: a fixed number at once; the next one begins as soon as one is done."""

from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.heap import Heap


class Window:
    """A tier in virtual time with `depth` reads or writes in flight."""

    def __init__(self, tier: Tier, depth: int) -> None:
        self._tier = tier
        self._free = Heap(depth)
        for slot in range(depth):
            self._free.push(0, slot)

    def read(self, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int) -> int:
        """Read a range in chunks from issued_ns on. Returns when all of it has arrived, in ns."""
        return self._move(issued_ns, offset, nbytes, chunk_bytes, False)

    def write(self, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int) -> int:
        """Write a range in chunks from issued_ns on. Returns when all of it is written, in ns."""
        return self._move(issued_ns, offset, nbytes, chunk_bytes, True)

    def _move(self, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int, writes: bool) -> int:
        ready_ns, end = issued_ns, offset + nbytes
        while offset < end:
            begin_ns = max(self._free.first_key(), issued_ns)
            slot = self._free.pop()
            size = min(chunk_bytes, end - offset)
            if writes:
                deadline_ns = self._tier.write(begin_ns, offset, size)
            else:
                deadline_ns = self._tier.reserve(begin_ns, offset, size)
            self._free.push(deadline_ns, slot)
            ready_ns = max(ready_ns, deadline_ns)
            offset += chunk_bytes
        return ready_ns
