"""Which bytes of a served file have reached a reader: the end of staging, when all have."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from hbf_fuse.fs.service import Service
from hbf_fuse.observe import machine

_PAGE = 4096
_TICKS_SECONDS = 0.1


class Disturbances(NamedTuple):
    """What has come between the readers and the tier so far, whichever file they read."""

    forgiven_ns: int = 0
    """The lateness that the tier's schedule no longer holds; see Lateness."""
    starved_ns: int = 0
    all_busy: int = 0
    stops: int = 0
    """These three as Counters has them."""

    def since(self, before: "Disturbances") -> "Disturbances":
        """What has been added."""
        return Disturbances(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass(frozen=True)
class FirstPass:
    """A file's first pass, as far as it has come: nbytes, the last of them `seconds` after the first read
    began, and how long the tier's schedule takes for the very same reads.
    """

    nbytes: int
    seconds: float
    model_seconds: float
    disturbances: Disturbances
    """Meanwhile. model_seconds has been reduced by the forgiven part: of all readers together, so it may be
    more than the time that the tier takes.
    """
    uncounted_bytes: int = 0
    """What was read besides, in parts of pages."""
    owed_seconds: float = 0.0
    """By how much the first read's reader came late, for what it had read before. It counts as having come
    sooner.
    """
    timed: bool = True
    """Whether any of the reads came from a tier that takes time."""
    unsure_share: float = 0.0
    """Of the time of these, the part by which what the machine adds is not known; see costs.unsure_ns."""
    idle_cores: float | None = None
    """How many cores were idle on average; None before all has arrived, if that took too short a time, or if
    the machine did not tell.
    """


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
        self._uncounted_bytes = 0
        """Of pages that no reply has covered whole, as far as it was known when they came."""
        self._in_flight = self._owed_ns = 0
        self._timed_ns = self._unsure_ns = 0
        self._meanwhile = Disturbances()
        self._pages = -(-size // _PAGE)
        self._seen = bytearray(self._pages)
        self._before: Disturbances | None = None
        self._idle_before: float | None = None
        self._idle_after: float | None = None

    @property
    def complete(self) -> bool:
        return self.arrived_pages == self._pages

    @property
    def arrived_bytes(self) -> int:
        missing = -self.size % _PAGE if self._pages and self._seen[-1] else 0
        return self.arrived_pages * _PAGE - missing

    def begin(self, so_far: Disturbances) -> None:
        """A read has come. What was before the first one is not this file's."""
        self._in_flight += 1
        if self._before is None:
            self._before = so_far
            self._idle_before = _idle_core_seconds()

    def abandon(self) -> None:
        """A read ended without data: if it was the first, the next one is."""
        self._in_flight -= 1
        if not self._in_flight and not self.first_arrival_ns:
            self._before = None

    def add(self, service: Service, done_ns: int, so_far: Disturbances, unsure_ns: int = 0) -> None:
        """A reply was visible at done_ns. Does nothing once all has arrived.

        unsure_ns: by how much the read's own time is uncertain, or 0 if no tier takes time for it.
        """
        self._in_flight -= 1
        if self.complete:
            return
        if not self.first_arrival_ns or service.began_ns < self.first_arrival_ns:
            self.first_arrival_ns, self._owed_ns = service.began_ns, service.owed_ns
        first = -(-service.offset // _PAGE)
        end_byte = service.offset + len(service.data)
        end = self._pages if end_byte >= self.size else end_byte // _PAGE
        self._uncounted_bytes += self._parts(service.offset, end_byte)
        self._timed_ns += done_ns - service.began_ns if unsure_ns else 0
        self._unsure_ns += unsure_ns
        fresh = self._seen.count(0, first, end)
        if fresh:
            self._seen[first:end] = b"\x01" * (end - first)
            self.arrived_pages += fresh
            self.complete_ns = max(self.complete_ns, done_ns)
            self.complete_deadline_ns = max(self.complete_deadline_ns, service.deadline_ns)
            self._meanwhile = so_far.since(self._before or Disturbances())
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

    def first_pass(self) -> FirstPass:
        """Until the newest first-time byte was with a reader."""
        if not self.arrived_pages:
            return FirstPass(0, 0.0, 0.0, self._meanwhile, self._uncounted_bytes)
        seconds = (self.complete_ns - self.first_arrival_ns) / 1e9
        model_ns = self.complete_deadline_ns - self.first_arrival_ns - self._meanwhile.forgiven_ns
        return FirstPass(
            self.arrived_bytes,
            seconds,
            model_ns / 1e9,
            self._meanwhile,
            self._uncounted_bytes,
            owed_seconds=self._owed_ns / 1e9,
            timed=self._unsure_ns > 0,
            unsure_share=self._unsure_ns / self._timed_ns if self._timed_ns else 0.0,
            idle_cores=self._idle_cores(seconds),
        )

    def _idle_cores(self, seconds: float) -> float | None:
        if self._idle_before is None or self._idle_after is None or seconds < _TICKS_SECONDS:
            return None
        return (self._idle_after - self._idle_before) / seconds

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it. Staging is over when arrived_bytes is size."""
        return {
            "size": self.size,
            "arrived_bytes": self.arrived_bytes,
            "complete": self.complete,
            "first_arrival_ns": self.first_arrival_ns,
            "complete_ns": self.complete_ns,
            "complete_deadline_ns": self.complete_deadline_ns,
            "forgiven_ns": self._meanwhile.forgiven_ns,
        }


def _idle_core_seconds() -> float | None:
    """None if the machine cannot be asked: no read may fail for that, when descriptors are short."""
    try:
        return machine.idle_core_seconds()
    except OSError:
        return None
