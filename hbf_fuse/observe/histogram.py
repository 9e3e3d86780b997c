"""Percentiles of durations in constant memory: log-linear buckets, as HdrHistogram and fio keep them."""

from array import array
from collections.abc import Sequence
from itertools import accumulate

from hbf_fuse.observe.status import Percentiles

_SUB_BITS = 5
_SUB = 1 << _SUB_BITS
_BUCKETS = (64 - _SUB_BITS) * _SUB


class Histogram:
    """Counts non-negative integers (ns) within 3% of their value. Negative ones count as 0."""

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _BUCKETS))
        self.count = self.total = 0
        self.largest = 0

    def add(self, value: int) -> None:
        """Count one value."""
        value = max(0, value)
        shift = 0
        while value >> shift >= 2 * _SUB:
            shift += 1
        self._counts[shift * _SUB + (value >> shift)] += 1
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)

    def copy_to(self, other: "Histogram") -> None:
        """Make another one the same."""
        for index in range(_BUCKETS):
            other._counts[index] = self._counts[index]
        other.count, other.total, other.largest = self.count, self.total, self.largest

    def percentile(self, percent: float) -> int:
        """The value that `percent` percent of all values do not exceed (bucket's upper edge); 0 if there are
        none.
        """
        wanted = percent / 100 * self.count
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                shift = max(0, index // _SUB - 1)
                upper = ((index - shift * _SUB + 1) << shift) - 1
                return min(upper, self.largest)
        return 0

    def below(self, powers: Sequence[int]) -> list[int]:
        """For each power of two, in rising order and from 2**5 on: how many values are smaller. No value lies
        in a bucket that such a power would split.
        """
        sums = list(accumulate(self._counts, initial=0))
        return [sums[(power - _SUB_BITS + 1) * _SUB] for power in powers]

    def summary(self) -> Percentiles:
        """p50, p90, p99 and max in ns."""
        return {
            "p50": self.percentile(50),
            "p90": self.percentile(90),
            "p99": self.percentile(99),
            "max": self.largest,
        }
