"""One read's way through the tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hbf_fuse.fs.arrival import Arrival
    from hbf_fuse.fs.pacer import Pacer
    from hbf_fuse.fs.resident import Resident


class Part(NamedTuple):
    """What one tier brings of a read."""

    tier: int
    offset: int
    nbytes: int
    deadline_ns: int


class Service:
    """A read in flight. `data` is what the reader gets; it may be seen from deadline_ns on. arrival_ns: when
    the server saw it; owed_ns: how much sooner it would have come on the real device; began_ns: when it would
    have begun there, as far as is known. direct: it goes past the page cache. signalled: a signal has reached
    the reader, which may be about to die of it. interrupted: it was.

    pacer and arrival are None for bytes that do not come from the tier, resident for bytes that the page
    cache will not hold, or may hold as long as it likes.
    """

    __slots__ = (
        "arrival",
        "arrival_ns",
        "began_ns",
        "data",
        "deadline_ns",
        "direct",
        "ino",
        "interrupted",
        "offset",
        "owed_ns",
        "pacer",
        "parts",
        "reader",
        "resident",
        "signalled",
    )

    def __init__(
        self, data: memoryview, offset: int, reader: int, arrival_ns: int, ino: int = 0, direct: bool = False
    ) -> None:
        self.data = data
        self.offset = offset
        self.reader = reader
        self.arrival_ns = arrival_ns
        self.ino = ino
        self.direct = direct
        self.began_ns = self.deadline_ns = arrival_ns
        self.owed_ns = 0
        self.parts: list[Part] = []
        self.signalled = False
        self.interrupted = False
        self.pacer: Pacer | None = None
        self.arrival: Arrival | None = None
        self.resident: Resident | None = None

    def wait(self) -> bool:
        """Sleep until the data is due. False if the reader was killed meanwhile."""
        return self.pacer is None or self.pacer.wait(self)

    def finish(self, started_ns: int) -> None:
        """The reply, whose sending began at started_ns, is with the reader."""
        if self.pacer is not None:
            self.pacer.finish(self, started_ns)
        if self.resident is not None:
            self.resident.came(self.ino, self.offset, len(self.data), arrived=True)

    def abandon(self) -> None:
        """The read ended without data."""
        if self.pacer is not None:
            self.pacer.abandon(self)
        if self.resident is not None:
            self.resident.came(self.ino, self.offset, len(self.data), arrived=False)
