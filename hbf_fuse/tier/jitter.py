"""Latency that varies: named distributions, drawn from a seeded generator, so that runs repeat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hbf_fuse.tier.draws import Latencies
from hbf_fuse.tier.errors import SpecError

FORMS = {
    "uniform": ("W", "evenly within W ms of the latency"),
    "normal": ("S", "bell curve around the latency with deviation S ms"),
    "lognormal": ("M,S", "adds M ms on average, with S as the deviation of its logarithm"),
    "exponential": ("M", "adds M ms on average, mostly less"),
    "tail": (
        "P,X",
        "adds X ms with probability P: flash read retry, of each page that is sensed where --planes is",
    ),
}
"""Every distribution: its parameters (ms, except for P and lognormal's S) and what it does."""

RETRY = "tail"

NORMAL_REACH = 4
"""A normal deviation may be at most a quarter of the latency. With more, the cut at zero would show."""


MAX_PARTS = 16
"""Each part costs every read a draw."""


@dataclass(frozen=True, slots=True)
class Component:
    """One distribution with its parameters."""

    kind: str
    values: tuple[float, ...]

    def mean_ms(self) -> float:
        """Mean addition to the latency."""
        match self.kind:
            case "exponential" | "lognormal":
                return self.values[0]
            case "tail":
                return self.values[0] * self.values[1]
        return 0.0

    def deviation_ms(self) -> float:
        """Standard deviation."""
        match self.kind:
            case "uniform":
                return self.values[0] / math.sqrt(3)
            case "lognormal":
                return self.values[0] * math.sqrt(math.expm1(self.values[1] ** 2))
            case "tail":
                chance, extra = self.values
                return extra * math.sqrt(chance * (1 - chance))
        return self.values[0]

    def below_ms(self) -> float:
        """How far below the latency it may reach."""
        return {"uniform": 1, "normal": NORMAL_REACH}.get(self.kind, 0) * self.values[0]


def parse(text: str) -> tuple[Component, ...]:
    """The parts of "normal:0.1+tail:1e-4,2"; empty for no jitter. SpecError says which part is wrong."""
    pieces = text.split("+") if text.strip() else []
    if len(pieces) > MAX_PARTS:
        raise SpecError(f"jitter of {len(pieces)} parts; at most {MAX_PARTS} make sense")
    return tuple(_part(piece.strip()) for piece in pieces)


def latencies(parts: Sequence[Component], latency_ms: float, seed: int) -> Latencies:
    """A generator of latencies with jitter."""
    coded = [(part.kind, part.values[0], part.values[-1]) for part in parts]
    return Latencies(latency_ms, coded, seed)


def _part(piece: str) -> Component:
    kind, _, numbers = piece.partition(":")
    if kind not in FORMS:
        raise SpecError(
            f"unknown jitter {kind!r}; there are: {', '.join(f'{k}:{v[0]}' for k, v in FORMS.items())}"
        )
    try:
        values = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        values = ()
    if len(values) != len(FORMS[kind][0].split(",")):
        raise SpecError(f"jitter {piece!r} must be written like {kind}:{FORMS[kind][0]}, in ms")
    if not all(math.isfinite(value) and 0 <= value <= 60_000 for value in values):
        raise SpecError(f"jitter {piece!r}: every number must be from 0 to 60000")
    if kind == "tail" and values[0] > 1:
        raise SpecError(f"jitter {piece!r}: {values[0]:g} is not a probability")
    if kind == "lognormal" and values[1] > 4:
        raise SpecError(f"jitter {piece!r}: a deviation of the logarithm above 4 has no usable mean")
    return Component(kind, values)
