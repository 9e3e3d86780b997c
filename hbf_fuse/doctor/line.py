"""One line of what `hbf doctor` prints."""

from collections.abc import Iterable
from dataclasses import dataclass

from hbf_fuse.sweep.conditions import Concern

OK, WARN, FAIL = STATES = ("ok", "warn", "fail")


@dataclass(frozen=True)
class Line:
    """What was looked at, how it is, and what mends it: a command, or what to do. Nothing to mend where ok.

    warn: everything works, but less, slower or less surely. fail: something does not work at all.
    """

    name: str
    state: str
    message: str
    mend: str = ""


def of_concerns(name: str, concerns: Iterable[Concern], otherwise: str) -> Line:
    """The first of the concerns that a sweep would tell; a concern says what is, then what to do."""
    for concern in concerns:
        message, _, mend = concern.message.partition("; ")
        return Line(name, WARN, message, mend)
    return Line(name, OK, otherwise)
