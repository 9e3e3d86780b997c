"""Which bytes of a served file have reached a reader: the end of staging, when all have."""

from typing import Any

from hbf_fuse.fs.service import Service
from hbf_fuse.observe import machine

_PAGE = 4096
_TICKS_SECONDS = 0.1


class Arrival:
    """Which pages of a file have reached a reader at least once, and when the last of them did.

    A page counts once one reply has covered the whole of it. Only reads past the page cache can bring parts.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.arrived_pages = 0
        self.first_arrival_ns = 0
        self.complete_ns = 0
        self.complete_deadline_ns = 0
        self.forgiven_ns = 0
        self.stops = 0
        """How often the server stood still meanwhile; see Counters."""
        self.uncounted_bytes = 0
        """Of pages that no reply has covered whole, as far as it was known when they came."""
        self._pages = -(-size // _PAGE)
        self._seen = bytearray(self._pages)
        self._before: tuple[int, int] | None = None
        self._idle_before: float | None = None
        self._idle_after: float | None = None

    @property
    def complete(self) -> bool:
        return self.arrived_pages == self._pages

    @property
    def arrived_bytes(self) -> int:
        missing = -self.size % _PAGE if self._pages and self._seen[-1] else 0
        return self.arrived_pages * _PAGE - missing

    def begin(self, forgiven_ns: int, stops: int) -> None:
        """A read has come. What was before the first one is not this file's.

        forgiven_ns: the lateness that the tier's schedule no longer holds, so far; see Lateness.
        stops: how often the server stood still, so far.
        """
        if self._before is None:
            self._before = forgiven_ns, stops

    def add(self, service: Service, done_ns: int, forgiven_ns: int, stops: int) -> None:
        """A reply was visible at done_ns. Does nothing once all has arrived. Others as in begin."""
        if self.complete:
            return
        if not self.first_arrival_ns:
            self._idle_before = _idle_core_seconds()
        self.first_arrival_ns = min(self.first_arrival_ns or service.began_ns, service.began_ns)
        first = -(-service.offset // _PAGE)
        end_byte = service.offset + len(service.data)
        end = self._pages if end_byte >= self.size else end_byte // _PAGE
        self.uncounted_bytes += self._parts(service.offset, end_byte)
        fresh = self._seen.count(0, first, end)
        if fresh:
            self._seen[first:end] = b"\x01" * (end - first)
            self.arrived_pages += fresh
            self.complete_ns = max(self.complete_ns, done_ns)
            self.complete_deadline_ns = max(self.complete_deadline_ns, service.deadline_ns)
            forgiven_before, stops_before = self._before or (0, 0)
            self.forgiven_ns = forgiven_ns - forgiven_before
            self.stops = stops - stops_before
            if self.complete:
                self._idle_after = _idle_core_seconds()

    def _parts(self, offset: int, end_byte: int) -> int:
        """How many bytes of a reply are in pages that it begins or ends within, and that have not arrived."""
        bounds = {offset, end_byte} - {self.size}
        parts = {bound // _PAGE for bound in bounds if bound % _PAGE}
        return sum(
            min(end_byte, (page + 1) * _PAGE) - max(offset, page * _PAGE)
            for page in parts
            if not self._seen[page]
        )

    @property
    def seconds(self) -> float:
        """From the beginning of the first read until the newest first-time byte was with a reader."""
        return (self.complete_ns - self.first_arrival_ns) / 1e9 if self.arrived_pages else 0.0

    @property
    def idle_cores(self) -> float | None:
        """How many cores were idle on average until all had arrived; None before, if it was too short, or if
        the machine did not tell.
        """
        if self._idle_before is None or self._idle_after is None or self.seconds < _TICKS_SECONDS:
            return None
        return (self._idle_after - self._idle_before) / self.seconds

    @property
    def model_seconds(self) -> float:
        """The same by the tier's schedule, less the emulator's lateness that the schedule has swallowed."""
        if not self.arrived_pages:
            return 0.0
        return (self.complete_deadline_ns - self.first_arrival_ns - self.forgiven_ns) / 1e9

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it. Staging is over when arrived_bytes is size."""
        return {
            "size": self.size,
            "arrived_bytes": self.arrived_bytes,
            "complete": self.complete,
            "first_arrival_ns": self.first_arrival_ns,
            "complete_ns": self.complete_ns,
            "complete_deadline_ns": self.complete_deadline_ns,
            "forgiven_ns": self.forgiven_ns,
        }


def _idle_core_seconds() -> float | None:
    """None if the machine cannot be asked: no read may fail for that, when descriptors are short."""
    try:
        return machine.idle_core_seconds()
    except OSError:
        return None
