"""Requests in flight: a fixed number at once; the next one begins as soon as one is done."""

from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.heap import Heap

_NO_LIMIT = (1 << 63) - 1


class Window:
    """A tier in virtual time with `depth` reads or writes in flight.

    moved: bytes that the last call has read or written; fewer than asked for if it had a limit.
    """

    def __init__(self, tier: Tier, depth: int) -> None:
        self.moved = 0
        self._tier = tier
        self._free = Heap(depth)
        for slot in range(depth):
            self._free.push(0, slot)

    def free_ns(self) -> int:
        """When the next request may begin."""
        return self._free.first_key()

    def read(self, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int) -> int:
        """Read a range in chunks from issued_ns on. Returns when all of it has arrived, in ns."""
        return self._move(issued_ns, offset, nbytes, chunk_bytes, _NO_LIMIT, False)

    def read_until(self, until_ns: int, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int) -> int:
        """As `read`, but what would begin after until_ns is left: `moved` says how far it has come."""
        return self._move(issued_ns, offset, nbytes, chunk_bytes, until_ns, False)

    def write(self, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int) -> int:
        """Write a range in chunks from issued_ns on. Returns when all of it is written, in ns."""
        return self._move(issued_ns, offset, nbytes, chunk_bytes, _NO_LIMIT, True)

    def _move(
        self, issued_ns: int, offset: int, nbytes: int, chunk_bytes: int, until_ns: int, writes: bool
    ) -> int:
        ready_ns, first, end = issued_ns, offset, offset + nbytes
        while offset < end:
            begin_ns = max(self._free.first_key(), issued_ns)
            if begin_ns > until_ns:
                break
            slot = self._free.pop()
            size = min(chunk_bytes, end - offset)
            if writes:
                deadline_ns = self._tier.write(begin_ns, offset, size)
            else:
                deadline_ns = self._tier.reserve(begin_ns, offset, size)
            self._free.push(deadline_ns, slot)
            ready_ns = max(ready_ns, deadline_ns)
            offset += size
        self.moved = offset - first
        return ready_ns
