"""The link: one pipe, busy or idle, on the device's own time scale."""

from bisect import bisect_left, bisect_right

REMEMBERED_NS = 100_000_000
"""How far back idle time can still be used; as long as lateness is given back (see Lateness)."""

MAX_GAPS = 4096
"""Idle times remembered at once; the oldest go first. Twice what small reads leave within REMEMBERED_NS."""


class Link:
    """When the pipe is taken. Carries one read at a time, in the order of their ideal arrivals.

    A read that the emulator brought late, whose ideal arrival lies in the past, takes the time that the
    link has stood idle since then: on the real device it would have had it. Reads that come in order
    never find such time, so this is plain next-available-time for them. No moment is given twice.
    """

    def __init__(self) -> None:
        self._free_ns = 0
        self._gaps: list[tuple[int, int]] = []

    def carry(self, arrival_ns: int, duration_ns: int, now_ns: int) -> int:
        """Take the pipe for duration_ns from arrival_ns on, as early as it is idle; returns the end.

        now_ns: when this was asked for. arrival_ns may be far behind it (a reader that was late) or ahead of
        it (a plane that has yet to read).
        """
        free_ns = self._free_ns
        if arrival_ns >= free_ns:
            # Before the first read there was nothing that anybody could have used.
            if arrival_ns > free_ns > 0:
                self._remember(free_ns, arrival_ns, now_ns)
            self._free_ns = arrival_ns + duration_ns
            return self._free_ns
        if duration_ns and self._gaps and self._gaps[-1][1] > arrival_ns:
            end_ns, duration_ns = self._fill(arrival_ns, duration_ns)
            if not duration_ns:
                return end_ns
        self._free_ns = free_ns + duration_ns
        return self._free_ns

    def _remember(self, start_ns: int, end_ns: int, now_ns: int) -> None:
        gaps = self._gaps
        gaps.append((start_ns, end_ns))
        del gaps[: bisect_left(gaps, min(now_ns, end_ns) - REMEMBERED_NS, key=_end)]
        del gaps[:-MAX_GAPS]

    def _fill(self, arrival_ns: int, duration_ns: int) -> tuple[int, int]:
        """Use idle time from arrival_ns on. Returns the end of the last piece and what is left to carry."""
        gaps, left = self._gaps, []
        end_ns = arrival_ns
        first = at = bisect_right(gaps, arrival_ns, key=_end)
        while duration_ns and at < len(gaps):
            start, end = gaps[at]
            begin = max(start, arrival_ns)
            end_ns = min(end, begin + duration_ns)
            duration_ns -= end_ns - begin
            left += [piece for piece in ((start, begin), (end_ns, end)) if piece[0] < piece[1]]
            at += 1
        # Using the middle of one leaves two.
        gaps[first:at] = left
        del gaps[:-MAX_GAPS]
        return end_ns, duration_ns


def _end(gap: tuple[int, int]) -> int:
    return gap[1]
