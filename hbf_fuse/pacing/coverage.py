"""Which bytes of the served files have reached a reader: the end of staging, when all have."""

import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from hbf_fuse.observe import machine
from hbf_fuse.observe.counters import Counters
from hbf_fuse.pacing.credit import Credit

_PAGE = 4096
_TICKS_SECONDS = 0.1

_MOMENTS = 1024
"""Beginnings and ends of first passes that wait to be looked at, at most."""

_BLIND_NS = 1_000_000_000
"""So long after the server saw all reads again it may still come upon one that had waited before."""


class Disturbances(NamedTuple):
    """What has come between the readers and the tier.

    forgiven_ns: the lateness that the tier's schedule does not hold; see Credit. starved_ns: how long the
    server's threads wanted a CPU and had none. unseen_ns, stops: as Counters has them.
    """

    forgiven_ns: int = 0
    starved_ns: int = 0
    unseen_ns: int = 0
    stops: int = 0


@dataclass(frozen=True)
class FirstPass:
    """A file's first pass, as far as it has come: nbytes, the last of them `seconds` after the first read
    began, and how long the tier's schedule takes for the very same reads.

    disturbances: meanwhile. model_seconds has been reduced by the forgiven part: of all readers together, so
    it may be more than the time that the tier takes. uncounted_bytes: what was read besides, in parts of
    pages. owed_seconds: by how much the first read's reader came late, for what it had read before; it counts
    as having come sooner. timed: whether any of the reads came from a tier that takes time. unsure_share: of
    the time of these, the part by which what the machine adds is not known; see floor.unsure_ns. idle_cores:
    how many cores were idle on average; None before all has arrived, if that took too short a time, or if the
    machine did not tell.
    """

    nbytes: int
    seconds: float
    model_seconds: float
    disturbances: Disturbances
    uncounted_bytes: int = 0
    owed_seconds: float = 0.0
    timed: bool = True
    unsure_share: float = 0.0
    idle_cores: float | None = None


class Coverage:
    """Which pages of each file have reached a reader at least once, and when the last of them did.

    A page counts once one reply has covered the whole of it: only reads past the page cache can bring parts.
    Files are known by their places in `sizes` (bytes). Not safe for concurrent callers, but for `look`.
    """

    def __init__(self, sizes: Sequence[int], counters: Counters, credit: Credit) -> None:
        self.moments = 0
        """How often first passes have begun or come further; `look` wants to be called after each."""
        self._counters, self._credit = counters, credit
        pages = [-(-size // _PAGE) for size in sizes]
        self._sizes, self._pages = array("q", sizes), array("q", pages)
        self._first_page = array("q", accumulate(pages, initial=0))
        self._seen = bytearray(sum(pages))
        zeros = bytes(8 * len(sizes))
        self._arrived, self._uncounted = array("q", zeros), array("q", zeros)
        self._in_flight, self._begun = array("q", zeros), array("q", zeros)
        self._first_ns, self._owed_ns = array("q", zeros), array("q", zeros)
        self._complete_ns, self._complete_due_ns = array("q", zeros), array("q", zeros)
        self._timed_ns, self._unsure_ns = array("q", zeros), array("q", zeros)
        self._eighths = array("q", zeros)
        # What has come between: up to the first read, and up to the newest first-time byte.
        self._forgiven_before, self._forgiven = array("q", zeros), array("q", zeros)
        self._unseen_before, self._unseen = array("q", zeros), array("q", zeros)
        self._stops_before, self._stops = array("q", zeros), array("q", zeros)
        self._of_moment = array("q", bytes(8 * _MOMENTS))
        self._looked = 0
        self._look_lock = threading.Lock()
        self._looks: dict[int, list[_Look]] = {}

    def begin(self, file: int, arrival_ns: int, began_ns: int, owed_ns: int) -> None:
        """A read has come. What was before the first one is not this file's.

        arrival_ns: when the server saw it. began_ns: when it would have begun on the real device, owed_ns
        sooner than its reader came.
        """
        self._in_flight[file] += 1
        if self.is_complete(file):
            return
        if not self._begun[file]:
            self._begun[file] = 1
            self._first_ns[file], self._owed_ns[file] = began_ns, owed_ns
            self._forgiven_before[file] = self._credit.forgiven_ns
            # All of those that this read may have waited for unseen are taken to come after it has begun.
            unspoilt = arrival_ns - self._counters.blind_ns > _BLIND_NS
            self._unseen_before[file] = self._counters.unseen_ns if unspoilt else 0
            self._stops_before[file] = self._counters.stops if unspoilt else 0
            self._note(file)
        elif began_ns < self._first_ns[file]:
            self._first_ns[file], self._owed_ns[file] = began_ns, owed_ns

    def abandon(self, file: int) -> None:
        """A read ended without data: if it was the first, the next one is."""
        self._in_flight[file] -= 1
        if not self._in_flight[file] and not self._arrived[file]:
            self._begun[file] = 0

    def add(
        self, file: int, offset: int, nbytes: int, due_ns: int, done_ns: int, timed_ns: int, unsure_ns: int
    ) -> None:
        """A reply was visible at done_ns. Does nothing once all has arrived.

        timed_ns: what it took in all, if a tier that takes time brought it. unsure_ns: by how much that is
        uncertain.
        """
        self._in_flight[file] -= 1
        if nbytes <= 0 or self.is_complete(file):
            return
        base, size = self._first_page[file], self._sizes[file]
        end_byte = offset + nbytes
        first = (offset + _PAGE - 1) // _PAGE
        end = self._pages[file] if end_byte >= size else end_byte // _PAGE
        self._timed_ns[file] += timed_ns
        self._unsure_ns[file] += unsure_ns
        self._count_parts(file, offset, end_byte)
        fresh = 0
        for page in range(base + first, base + end):
            if not self._seen[page]:
                self._seen[page] = 1
                fresh += 1
        if fresh:
            self._arrived[file] += fresh
            self._complete_ns[file] = max(self._complete_ns[file], done_ns)
            self._complete_due_ns[file] = max(self._complete_due_ns[file], due_ns)
            self._forgiven[file] = self._credit.forgiven_ns
            self._unseen[file], self._stops[file] = self._counters.unseen_ns, self._counters.stops
            # A look at each eighth of the file: what comes after the newest one is no part of the pass.
            eighth = self._arrived[file] * 8 // self._pages[file]
            if eighth > self._eighths[file]:
                self._eighths[file] = eighth
                self._note(file)

    def _count_parts(self, file: int, offset: int, end_byte: int) -> None:
        """Of pages that a reply begins or ends within and that have not arrived: their bytes."""
        base = self._first_page[file]
        head, tail = offset // _PAGE, end_byte // _PAGE
        if offset % _PAGE and not self._seen[base + head]:
            self._uncounted[file] += min(end_byte, (head + 1) * _PAGE) - offset
        within = end_byte % _PAGE and end_byte < self._sizes[file]
        if within and not (head == tail and offset % _PAGE) and not self._seen[base + tail]:
            self._uncounted[file] += end_byte - max(offset, tail * _PAGE)

    def _note(self, file: int) -> None:
        """A first pass has begun, has come an eighth further, or has ended."""
        self._of_moment[self.moments % _MOMENTS] = file
        self.moments += 1

    def look(self) -> None:
        """Take down what the machine and the server's threads have done so far, for every file whose first
        pass has begun or come further since this was called last. From Python's threads; safe for several.
        """
        with self._look_lock:
            moments = self.moments
            for moment in range(max(self._looked, moments - _MOMENTS), moments):
                file = self._of_moment[moment % _MOMENTS]
                known = self._looks.get(file, [])[:1] if self._eighths[file] else []
                self._looks[file] = [*known, _Look.now()]
            self._looked = moments

    def is_complete(self, file: int) -> bool:
        """Whether every page has arrived."""
        return self._arrived[file] == self._pages[file]

    def arrived_bytes(self, file: int) -> int:
        """How much has come at least once."""
        pages, size = self._pages[file], self._sizes[file]
        has_last = pages and self._seen[self._first_page[file] + pages - 1]
        return int(self._arrived[file] * _PAGE - (-size % _PAGE if has_last else 0))

    def begun(self) -> list[int]:
        """Places of the files of which anything has arrived."""
        return [file for file in range(len(self._sizes)) if self._arrived[file] or self._uncounted[file]]

    def first_pass(self, file: int) -> FirstPass:
        """Until the newest first-time byte was with a reader."""
        if not self._arrived[file]:
            return FirstPass(0, 0.0, 0.0, Disturbances(), int(self._uncounted[file]))
        seconds = (self._complete_ns[file] - self._first_ns[file]) / 1e9
        meanwhile = self._disturbances(file)
        model_ns = self._complete_due_ns[file] - self._first_ns[file] - meanwhile.forgiven_ns
        timed_ns = self._timed_ns[file]
        return FirstPass(
            self.arrived_bytes(file),
            seconds,
            model_ns / 1e9,
            meanwhile,
            int(self._uncounted[file]),
            owed_seconds=self._owed_ns[file] / 1e9,
            timed=self._unsure_ns[file] > 0,
            unsure_share=self._unsure_ns[file] / timed_ns if timed_ns else 0.0,
            idle_cores=self._idle_cores(file, seconds),
        )

    def _disturbances(self, file: int) -> Disturbances:
        looks = self._looks.get(file, [])
        before, after = (looks[0].starved_ns, looks[1].starved_ns) if len(looks) == 2 else (None, None)
        starved_ns = after - before if before is not None and after is not None else 0
        return Disturbances(
            int(self._forgiven[file] - self._forgiven_before[file]),
            max(0, starved_ns),
            int(self._unseen[file] - self._unseen_before[file]),
            int(self._stops[file] - self._stops_before[file]),
        )

    def _idle_cores(self, file: int, seconds: float) -> float | None:
        looks = self._looks.get(file, [])
        if len(looks) < 2:
            return None
        before, after = looks
        passed = after.seconds - before.seconds
        # Looks that came at another time than the reads say nothing of the pass.
        if not max(_TICKS_SECONDS, seconds / 2) <= passed <= 2 * seconds:
            return None
        if before.idle_core_seconds is None or after.idle_core_seconds is None:
            return None
        return (after.idle_core_seconds - before.idle_core_seconds) / passed

    def to_dict(self, file: int) -> dict[str, Any]:
        """As stats.json holds it. Staging is over when arrived_bytes is size."""
        return {
            "size": int(self._sizes[file]),
            "arrived_bytes": self.arrived_bytes(file),
            "complete": self.is_complete(file),
            "first_arrival_ns": int(self._first_ns[file]),
            "complete_ns": int(self._complete_ns[file]),
            "complete_deadline_ns": int(self._complete_due_ns[file]),
            "forgiven_ns": self._disturbances(file).forgiven_ns,
        }


class _Look(NamedTuple):
    """The machine at a moment. None where it cannot be asked: no read may fail for that."""

    seconds: float
    starved_ns: int | None
    idle_core_seconds: float | None

    @classmethod
    def now(cls) -> "_Look":
        moment = time.monotonic()
        try:
            return cls(moment, machine.own_threads_starved_ns(), machine.idle_core_seconds())
        except (OSError, ValueError, IndexError):
            return cls(moment, None, None)
