"""The link: one pipe, busy or idle, on the device's time scale."""

from array import array

from hbf_fuse.tier.bounds import FOREVER_NS, MAX_GAPS, REMEMBERED_NS

_ROOM = 2 * MAX_GAPS
_SECOND_NS = 1_000_000_000
_PIECE_BYTES = 9_000_000_000
"""Most bytes whose ns x bytes/s fits into 64 bits."""


class Link:
    """The schedule of the pipe. It carries one read at a time, in the order of ideal arrivals.

    A read that the emulator brought late has its ideal arrival in the past. It takes time in which the link
    has been idle since then: on the real device it would have had that time. Reads in order never find such
    idle time; for them this is plain next-available-time. No moment is given twice.
    """

    def __init__(self) -> None:
        self._free_ns = 0
        # Idle times, oldest first, at places _first up to _end.
        self._starts = array("q", bytes(8 * _ROOM))
        self._ends = array("q", bytes(8 * _ROOM))
        self._first = self._end = 0

    def carry(self, arrival_ns: int, duration_ns: int, now_ns: int) -> int:
        """Take the pipe for duration_ns, as early as it is idle from arrival_ns on. Returns the end.

        now_ns: when this was requested. arrival_ns may be later (a plane still has to sense). Arguments and
        result are at most FOREVER_NS.
        """
        free_ns = self._free_ns
        if arrival_ns >= free_ns:
            # Idle time before the first read cannot be used.
            if arrival_ns > free_ns > 0:
                self._remember(free_ns, arrival_ns, now_ns)
            self._free_ns = min(arrival_ns + duration_ns, FOREVER_NS)
            return self._free_ns
        end_ns, left_ns = arrival_ns, duration_ns
        at = self._first_after(arrival_ns)
        while left_ns and at < self._end:
            begin_ns = max(self._starts[at], arrival_ns)
            end_ns = min(self._ends[at], begin_ns + left_ns)
            left_ns -= end_ns - begin_ns
            at = self._use(at, begin_ns, end_ns)
        if left_ns or not duration_ns:
            self._free_ns = end_ns = min(free_ns + left_ns, FOREVER_NS)
        return end_ns

    def idle_times(self) -> list[tuple[int, int]]:
        """Idle times that can still be used, oldest first, each as (start, end) in ns."""
        return [(self._starts[at], self._ends[at]) for at in range(self._first, self._end)]

    def _remember(self, start_ns: int, end_ns: int, now_ns: int) -> None:
        self._insert(self._end, start_ns, end_ns)
        oldest_ns = min(now_ns, end_ns) - REMEMBERED_NS
        while self._ends[self._first] < oldest_ns:
            self._first += 1

    def _use(self, at: int, begin_ns: int, end_ns: int) -> int:
        """Remove begin_ns to end_ns from an idle time. Returns the place of the next one."""
        start_ns, stop_ns = self._starts[at], self._ends[at]
        if start_ns == begin_ns and end_ns == stop_ns:
            self._remove(at)
            return at
        if start_ns == begin_ns:
            self._starts[at] = end_ns
            return at + 1
        self._ends[at] = begin_ns
        if end_ns == stop_ns:
            return at + 1
        # Using the middle leaves two. Dropping the oldest moves places, but not as counted from the end.
        behind = self._end - at - 1
        self._insert(at + 1, end_ns, stop_ns)
        return self._end - behind

    def _first_after(self, moment_ns: int) -> int:
        """The place of the first idle time that ends after this moment."""
        low, high = self._first, self._end
        while low < high:
            middle = (low + high) // 2
            if self._ends[middle] > moment_ns:
                high = middle
            else:
                low = middle + 1
        return low

    def _insert(self, at: int, start_ns: int, end_ns: int) -> None:
        """Put an idle time at a place. Beyond MAX_GAPS, the oldest is dropped."""
        if self._end == _ROOM:
            at -= self._first
            self._to_the_front()
        for place in range(self._end, at, -1):
            self._starts[place], self._ends[place] = self._starts[place - 1], self._ends[place - 1]
        self._starts[at], self._ends[at] = start_ns, end_ns
        self._end += 1
        self._first = max(self._first, self._end - MAX_GAPS)

    def _remove(self, at: int) -> None:
        self._end -= 1
        for place in range(at, self._end):
            self._starts[place], self._ends[place] = self._starts[place + 1], self._ends[place + 1]

    def _to_the_front(self) -> None:
        for place in range(self._first, self._end):
            self._starts[place - self._first] = self._starts[place]
            self._ends[place - self._first] = self._ends[place]
        self._first, self._end = 0, self._end - self._first


class Pipe:
    """A link with a rate in bytes/s; 0 for no limit.

    Transfer times seldom are whole ns: the remainder (in ns x bytes/s) goes to the next transfer, so that the
    rate is exact over any number of them.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._remainder = 0
        self._link = Link()

    def carry(self, start_ns: int, nbytes: int, now_ns: int) -> int:
        """When nbytes that are ready from start_ns on have been carried. now_ns: as in Link.carry."""
        if not self._rate:
            return start_ns
        transfer_ns = 0
        while nbytes > 0:
            piece = min(nbytes, _PIECE_BYTES)
            units = piece * _SECOND_NS + self._remainder
            piece_ns = units // self._rate
            self._remainder = units - piece_ns * self._rate
            transfer_ns = min(transfer_ns + min(piece_ns, FOREVER_NS), FOREVER_NS)
            nbytes -= piece
        return self._link.carry(start_ns, transfer_ns, now_ns)

    def succeed(self, before: "Pipe") -> None:
        """Replace another pipe. The transfers that it has begun go on."""
        self._link = before._link
