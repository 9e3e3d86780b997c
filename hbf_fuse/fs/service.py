"""One read's way through the tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hbf_fuse.fs.arrival import Arrival
    from hbf_fuse.fs.pacer import Pacer


class Service:
    """A read in flight. `data` is what the reader gets; it may be seen from deadline_ns on.

    pacer and arrival are None for bytes that do not come from the tier.
    """

    __slots__ = ("arrival", "arrival_ns", "data", "deadline_ns", "interrupted", "offset", "pacer", "reader")

    def __init__(self, data: memoryview, offset: int, reader: int, arrival_ns: int) -> None:
        self.data = data
        self.offset = offset
        self.reader = reader
        self.arrival_ns = arrival_ns
        self.deadline_ns = arrival_ns
        self.interrupted = False
        self.pacer: Pacer | None = None
        self.arrival: Arrival | None = None

    def wait(self) -> bool:
        """Sleep until the data is due. False if the reader was killed meanwhile."""
        return self.pacer is None or self.pacer.wait(self)

    def finish(self, started_ns: int) -> None:
        """The reply, whose sending began at started_ns, is with the reader."""
        if self.pacer is not None:
            self.pacer.finish(self, started_ns)

    def abandon(self) -> None:
        """The read ended without data."""
        if self.pacer is not None:
            self.pacer.abandon(self)
