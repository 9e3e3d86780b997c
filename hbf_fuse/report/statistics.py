"""What a few repeats can say, and no more."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

COVERAGE = 0.95
"""Of an interval, where there are enough values for it: from 6 on."""

OUTLIER_SCORE = 3.5
"""Modified z-score from which a value counts as an outlier (Iglewicz and Hoaglin, 1993)."""

OUTLIER_SHARE = 0.05
"""A value that is nearer to the median than this is no outlier, however close the others lie together."""

_MAD_TO_SIGMA = 0.6745


@dataclass(frozen=True)
class Spread:
    """Of one figure over the repeats. low and high: the interval of the median, two of the values themselves:
    the tightest pair between which the median of all repeats that could be made lies with COVERAGE, or, of
    fewer than 6 values, the range. coverage: how surely it does (Conover, Practical Nonparametric Statistics,
    3.2): 0.75 of three values, 0.94 of five.
    """

    values: tuple[float, ...]
    median: float
    low: float
    high: float
    coverage: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """The spread of at least one value."""
        if not values:
            return None
        known, inward = sorted(values), 0
        while _coverage(len(known), inward + 1) >= COVERAGE:
            inward += 1
        low, high = known[inward], known[-1 - inward]
        return cls(tuple(values), statistics.median(known), low, high, _coverage(len(known), inward))

    @property
    def interval(self) -> str:
        """What low and high are called."""
        return f"{self.coverage:.0%} interval" if self.coverage >= COVERAGE else "range"

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    @property
    def width_pct(self) -> float:
        """From the least to the most, in percent of the median."""
        return (self.most - self.least) / self.median * 100 if self.median else 0.0

    def outliers(self) -> list[int]:
        """Which values stand apart from the others, by their places. Needs three values to know."""
        if len(self.values) < 3:
            return []
        away = [abs(value - self.median) for value in self.values]
        usual = statistics.median(away)
        limit = max(OUTLIER_SCORE * usual / _MAD_TO_SIGMA, OUTLIER_SHARE * abs(self.median))
        return [place for place, distance in enumerate(away) if distance > limit]


def _coverage(count: int, inward: int) -> float:
    """How surely the median lies between the values that are `inward` places from the ends of `count`."""
    if 2 * inward >= count:
        return 0.0
    beyond = sum(math.comb(count, places) for places in range(inward + 1))
    return 1.0 - 2.0 * beyond / float(2**count)
