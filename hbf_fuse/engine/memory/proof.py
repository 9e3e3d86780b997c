"""What the kernel says of readers' mappings, from /proc/PID/smaps: no reader can change that.

A reader keeps the time of its own reads. But bytes that it says came are in its page tables, and bytes that
are in its page tables it must have said. This compares both whenever it looks.
"""

import re
import time
from collections.abc import Collection

PAGE = 4096
_SLACK_SHARE = 0.75
"""With a budget, how much of what should be resident must be mapped at a look: pages come and go
meanwhile.
"""

_LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)", re.MULTILINE)
_RSS = re.compile(rb"^Rss:\s+(\d+) kB", re.MULTILINE)


def mapped_bytes(process: int, files: Collection[tuple[int, int, int]]) -> int | None:
    """Bytes of files in the page tables of a process. files: (major, minor, inode) of each.

    None if the process has ended, or the kernel does not let this one look.
    """
    try:
        with open(f"/proc/{process}/smaps", "rb") as smaps:
            said = smaps.read()
    except OSError:
        return None
    if not said:
        return None  # a zombie
    spans: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    for line in _LINE.finditer(said):
        low, high, offset, major, minor = (int(line[part], 16) for part in range(1, 6))
        file = major, minor, int(line[6])
        if file in files and (rss := _RSS.search(said, line.end())):
            spans.setdefault(file, []).append((offset, offset + high - low, int(rss[1]) << 10))
    return sum(map(_without_twice, spans.values()))


def _without_twice(spans: list[tuple[int, int, int]]) -> int:
    """Resident bytes of parts of a file, as (first, end, bytes); of parts that overlap, the largest
    counts.
    """
    total = reached = largest = 0
    for first, end, size in sorted(spans):
        if first >= reached:
            total, largest = total + largest, 0
        largest, reached = max(largest, size), max(reached, end)
    return total + largest


class Proof:
    """files: as for mapped_bytes. budget: most bytes that may be mapped at once, None for no limit.

    proven: how many of the bytes that came have been confirmed. excess, overfills: looks that found more
    mapped than had come, and more than the budget. cost_seconds: what the last look took.
    """

    def __init__(self, files: Collection[tuple[int, int, int]], budget: int | None) -> None:
        self.proven = self.excess = self.overfills = self.mapped = self.most_mapped = 0
        self.cost_seconds = 0.0
        self._files = files
        self._budget = budget
        self._peaks: dict[int, int] = {}

    def measure(self, processes: Collection[int]) -> dict[int, int]:
        """What is mapped by process, of those that can be seen. Call `judge` with it once the records of this
        moment have been read: what is mapped now was reserved before.
        """
        began = time.monotonic()
        found = {process: mapped_bytes(process, self._files) for process in processes}
        self.cost_seconds = time.monotonic() - began
        return {process: size for process, size in found.items() if size is not None}

    def judge(self, found: dict[int, int], arrived: int, in_flight: int) -> None:
        """arrived: bytes that came at least once, in whole pages, by the records. in_flight: bytes that are
        under way.
        """
        self.mapped = sum(found.values())
        largest = max(found.values(), default=0)
        self.most_mapped = max(self.most_mapped, largest)
        if largest > arrived + in_flight:
            self.excess += 1
        for process, size in found.items():
            self._peaks[process] = max(size, self._peaks.get(process, 0))
        if self._budget is None:
            self.proven = min(arrived, max(self.proven, sum(self._peaks.values())))
            return
        if largest > self._budget:
            self.overfills += 1
        if self.mapped >= _SLACK_SHARE * min(arrived, self._budget):
            self.proven = max(self.proven, arrived)
