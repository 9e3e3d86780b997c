"""Random numbers: the same for the same seed, compiled or not."""

from array import array
from collections.abc import Sequence
from math import cos, exp, log, sqrt

KINDS = ("uniform", "normal", "lognormal", "exponential", "tail")
_UNIFORM, _NORMAL, _LOGNORMAL, _EXPONENTIAL, _TAIL = range(5)

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_TURN = 6.283185307179586
_UNIT = 2.0**-52
_MOST_NS = 1e18
"""31 years: the longest draw, so that times fit into 64 bits."""


class Draws:
    """A stream of random numbers. SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): period 2^64.

    seed: any number of 64 bits, signed or not. Each seed starts elsewhere in the period.
    """

    def __init__(self, seed: int) -> None:
        # Mixed once: streams of seeds that differ by _STEP would be shifted copies of each other.
        self._state = seed & _MASK
        self._state = self._bits()

    def uniform(self) -> float:
        """Between 0 and 1, both excluded, in steps of 2^-52."""
        return ((self._bits() >> 12) + 0.5) * _UNIT

    def normal(self) -> float:
        """From the normal distribution with deviation 1 (Box and Muller, 1958)."""
        far = sqrt(-2.0 * log(self.uniform()))
        return far * cos(_TURN * self.uniform())

    def exponential(self) -> float:
        """From the exponential distribution with mean 1."""
        return -log(self.uniform())

    def _bits(self) -> int:
        self._state = (self._state + _STEP) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _MASK
        return mixed ^ (mixed >> 31)


class Latencies:
    """Latencies that vary around latency_ms by a sum of random parts.

    parts: each as (one of KINDS, its first parameter as in jitter.FORMS, its last parameter).
    """

    def __init__(self, latency_ms: float, parts: Sequence[tuple[str, float, float]], seed: int) -> None:
        self._draws = Draws(seed)
        self._latency_ms = latency_ms
        self._count = len(parts)
        self._kinds = array("q", [KINDS.index(kind) for kind, _, _ in parts])
        self._firsts = array("d", [first for _, first, _ in parts])
        self._lasts = array("d", [last for _, _, last in parts])
        for place in range(self._count):
            if self._kinds[place] == _LOGNORMAL:
                # From the mean to the median: _of_part multiplies the median.
                self._firsts[place] *= exp(-self._lasts[place] * self._lasts[place] / 2.0)

    def draw(self) -> int:
        """The next latency in ns, never below 0."""
        drawn_ms = self._latency_ms
        for place in range(self._count):
            drawn_ms += self._of_part(self._kinds[place], self._firsts[place], self._lasts[place])
        return int(min(max(drawn_ms, 0.0) * 1e6 + 0.5, _MOST_NS))

    def _of_part(self, kind: int, first: float, last: float) -> float:
        if kind == _UNIFORM:
            return first * (2.0 * self._draws.uniform() - 1.0)
        if kind == _NORMAL:
            return first * self._draws.normal()
        if kind == _LOGNORMAL:
            return first * exp(last * self._draws.normal())
        if kind == _EXPONENTIAL:
            return first * self._draws.exponential()
        return last if self._draws.uniform() < first else 0.0
