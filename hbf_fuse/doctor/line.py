"""One line of `hbf doctor`'s output."""

from collections.abc import Iterable
from dataclasses import dataclass

from hbf_fuse.sweep.conditions import Concern

OK, WARN, FAIL = STATES = ("ok", "warn", "fail")


@dataclass(frozen=True)
class Line:
    """What was checked, its state, and the remedy: a command or an advice. Empty if the state is ok.

    warn: everything works, but with less, slower or less reliably. fail: something does not work at all.
    """

    name: str
    state: str
    message: str
    remedy: str = ""


def of_concerns(name: str, concerns: Iterable[Concern], otherwise: str) -> Line:
    """A warning for the first of the sweep's concerns, or an ok line."""
    for concern in concerns:
        return Line(name, WARN, concern.what, concern.remedy)
    return Line(name, OK, otherwise)
