"""What a few repeats can say, and no more."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)

OUTLIER_SCORE = 3.5
"""Modified z-score from which a value counts as an outlier (Iglewicz and Hoaglin, 1993)."""

OUTLIER_SHARE = 0.05
"""A value that is nearer to the median than this is no outlier, however close the others lie together."""

_MAD_TO_SIGMA = 0.6745


@dataclass(frozen=True)
class Spread:
    """Of one figure over the repeats. low and high: a 95% bootstrap interval of the median."""

    values: tuple[float, ...]
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """The spread of at least one value; the same values give the same interval."""
        if not values:
            return None
        known = np.array(values, dtype=float)
        picks = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
        low, high = np.percentile(np.median(known[picks], axis=1), _INTERVAL)
        return cls(tuple(values), float(np.median(known)), float(low), float(high))

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
        known = np.array(self.values)
        away = np.abs(known - self.median)
        usual = float(np.median(away))
        if len(known) < 3:
            return []
        limit = max(OUTLIER_SCORE * usual / _MAD_TO_SIGMA, OUTLIER_SHARE * abs(self.median))
        return [int(place) for place in np.flatnonzero(away > limit)]
