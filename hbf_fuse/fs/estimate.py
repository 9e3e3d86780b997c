"""A running estimate of a small cost in ns that one bad sample cannot spoil."""

_WEIGHT = 16


class Estimate:
    """Follows the median of its samples: each moves it by a bounded step. Stays within 0 and `most`."""

    def __init__(self, first: int, most: int) -> None:
        self.value = first
        self._most = most

    def add(self, sample: int) -> None:
        """Move towards a sample in ns, by at most a sixteenth of the present value and 1 us."""
        step = self.value // _WEIGHT + 1000
        self.value = min(self._most, max(0, self.value + max(-step, min(step, (sample - self.value) // 4))))
