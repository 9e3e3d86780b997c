"""Which bytes of the served files have reached a reader: the end of staging, when all have."""

import threading
import time
from array import array
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from hbf_fuse.host import machine, pressure
from hbf_fuse.host.starved import Starved
from hbf_fuse.observe.counters import Counters
from hbf_fuse.pacing.credit import Credit
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.verdict import Evidence

_PAGE = 4096
_TICKS_SECONDS = 0.1

_MOMENTS = 1024
"""Beginnings and ends of first passes that wait to be looked at, at most."""

_BLIND_NS = 1_000_000_000
"""Reads that are taken this soon after a stall may have waited unseen."""

_RECENT_NS = 2_000_000_000
"""Whoever read so lately is asked what it waits for."""

_FIGURES = 12
"""What Coverage._note_figures takes down."""


class Coverage:
    """Which pages of each file have reached a reader at least once, and when the last of them did.

    A page counts once one reply has covered the whole of it: only reads past the page cache can bring parts.
    Files are known by their places in `sizes` (bytes). Not safe for concurrent callers, but for `look`.
    """

    def __init__(self, sizes: Sequence[int], counters: Counters, credit: Credit, idle: Idle) -> None:
        self.moments = 0
        """How often first passes have begun or come further; `look` wants to be called after each."""
        self._counters, self._credit, self._idle = counters, credit, idle
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
        self._most_unsure_ns = array("q", zeros)
        self._late_ns, self._quarters = array("q", zeros), array("q", zeros)
        # The mount's figures up to the first read, and up to the newest first-time byte.
        self._before, self._after = array("q", zeros * _FIGURES), array("q", zeros * _FIGURES)
        self._of_moment, self._reader_of_moment = (array("q", bytes(8 * _MOMENTS)) for _ in range(2))
        self._looked = 0
        self._readers, self._servers = Starved(), Starved()
        self._look_lock = threading.Lock()
        self._looks: dict[int, list[_Look]] = {}

    def begin(self, file: int, arrival_ns: int, began_ns: int, owed_ns: int, reader: int) -> None:
        """A read has come, from a thread. What was before the first one is not this file's.

        arrival_ns: when the server saw it. began_ns: when it would have begun on the real device, owed_ns
        sooner than its reader came.
        """
        self._in_flight[file] += 1
        if self.is_complete(file):
            return
        if not self._begun[file]:
            self._begun[file] = 1
            self._first_ns[file], self._owed_ns[file] = began_ns, owed_ns
            self._note_figures(self._before, file)
            if arrival_ns - self._counters.blind_ns <= _BLIND_NS:
                # All of those that this read may have waited for unseen are taken to come after it has begun.
                self._before[file * _FIGURES] = self._before[file * _FIGURES + 1] = 0
            self._note(file, reader)
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
        self._most_unsure_ns[file] = max(self._most_unsure_ns[file], unsure_ns)
        if timed_ns:
            self._late_ns[file] += max(0, done_ns - due_ns)
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
            self._note_figures(self._after, file)
            self._after[file * _FIGURES + 3] = self._idle.window_until_ns(self._complete_due_ns[file])
            # A look at each quarter of the file: what comes after the newest one is no part of the pass.
            quarter = self._arrived[file] * 4 // self._pages[file]
            if quarter > self._quarters[file]:
                self._quarters[file] = quarter
                self._note(file, 0)

    def _note_figures(self, figures: "array[int]", file: int) -> None:
        """What the mount counts, at this moment. The first two are of waits that nobody saw."""
        at = file * _FIGURES
        figures[at] = self._counters.unseen_ns
        figures[at + 1] = self._counters.stops
        figures[at + 2] = self._credit.forgiven_ns
        figures[at + 3] = self._idle.window_ns
        figures[at + 4] = self._idle.pause_ns
        figures[at + 5] = self._idle.floor_ns
        figures[at + 6] = self._idle.late_ns
        figures[at + 7] = self._counters.exchanges
        figures[at + 8] = self._counters.overfills
        figures[at + 9] = self._counters.nameless
        figures[at + 10] = self._counters.sending_ns
        figures[at + 11] = self._counters.bytes

    def _count_parts(self, file: int, offset: int, end_byte: int) -> None:
        """Of pages that a reply begins or ends within and that have not arrived: their bytes."""
        base = self._first_page[file]
        head, tail = offset // _PAGE, end_byte // _PAGE
        if offset % _PAGE and not self._seen[base + head]:
            self._uncounted[file] += min(end_byte, (head + 1) * _PAGE) - offset
        within = end_byte % _PAGE and end_byte < self._sizes[file]
        if within and not (head == tail and offset % _PAGE) and not self._seen[base + tail]:
            self._uncounted[file] += end_byte - max(offset, tail * _PAGE)

    def _note(self, file: int, reader: int) -> None:
        """A first pass has begun, has come a quarter further, or has ended. reader: who began it, or 0."""
        self._of_moment[self.moments % _MOMENTS] = file
        self._reader_of_moment[self.moments % _MOMENTS] = reader
        self.moments += 1

    def look(self, servers: Collection[int] | None = None) -> None:
        """Take down what the machine has done so far, for every file whose first pass has begun or come
        further since this was called last. From Python's threads; safe for several.

        servers: the threads that reads wait for; None for all of this process.
        """
        with self._look_lock:
            moments = self.moments
            places = [at % _MOMENTS for at in range(max(self._looked, moments - _MOMENTS), moments)]
            if not places:
                return
            readers = set(self._credit.readers(time.monotonic_ns() - _RECENT_NS))
            readers |= {self._reader_of_moment[place] for place in places}
            now = _Look.now(self._starved_ns(readers - {0}, servers))
            for place in places:
                file = self._of_moment[place]
                known = self._looks.get(file, [])[:1] if self._quarters[file] else []
                self._looks[file] = [*known, now]
            self._looked = moments

    def _starved_ns(self, readers: Collection[int], servers: Collection[int] | None) -> int | None:
        """How long readers and servers have wanted a CPU, beyond what is reckoned with already."""
        readers_ns = self._readers.ns(readers)
        servers_ns = machine.own_threads_starved_ns() if servers is None else self._servers.ns(servers)
        if readers_ns is None or servers_ns is None:
            return None
        return readers_ns + servers_ns - int(self._counters.floored_ns + self._counters.woken_late_ns)

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

    def first_pass(self, file: int) -> Evidence:
        """Until the newest first-time byte was with a reader."""
        if not self._arrived[file]:
            return Evidence(uncounted_bytes=int(self._uncounted[file]))
        seconds = (self._complete_ns[file] - self._first_ns[file]) / 1e9
        at = file * _FIGURES
        (
            unseen,
            stops,
            forgiven,
            window,
            pause,
            floor,
            late,
            _,
            overfills,
            nameless,
            sending,
            nbytes,
        ) = (
            int(after - before)
            for after, before in zip(
                self._after[at : at + _FIGURES], self._before[at : at + _FIGURES], strict=True
            )
        )
        # Two bounds of the same: where readers wait for the tier side by side, the idle times between their
        # reads are short and many; where one waits for many reads at once, these overlap.
        timed_ns = self._timed_ns[file]
        share = seconds / timed_ns if timed_ns else 0.0
        meanwhile = self._meanwhile(file, seconds)
        return Evidence(
            nbytes=self.arrived_bytes(file),
            seconds=seconds,
            model_seconds=(self._complete_due_ns[file] - self._first_ns[file] - forgiven) / 1e9,
            timed=self._unsure_ns[file] > 0,
            forgiven_seconds=forgiven / 1e9,
            window_seconds=window / 1e9,
            pause_seconds=pause / 1e9,
            # One more is at the end, where the last reply has yet to wake its reader.
            floor_seconds=min((floor + self._most_unsure_ns[file]) / 1e9, self._unsure_ns[file] * share),
            late_seconds=min(late / 1e9, self._late_ns[file] * share),
            contention_seconds=meanwhile.starved_seconds,
            memory_seconds=meanwhile.memory_seconds or 0.0,
            idle_cores=meanwhile.idle_core_seconds and meanwhile.idle_core_seconds / meanwhile.seconds,
            unseen_seconds=unseen / 1e9,
            owed_seconds=max(0, self._owed_ns[file]) / 1e9,
            stops=stops,
            # Also those after it: the tier that it came from is not at hand any more.
            exchanges=int(self._counters.exchanges - self._before[at + 7]),
            overfills=overfills,
            nameless=nameless,
            uncounted_bytes=int(self._uncounted[file]),
            sending_ns_per_mib=(sending << 20) // nbytes if nbytes else 0,
        )

    def _meanwhile(self, file: int, seconds: float) -> "_Look":
        """What a first pass of this length has added to what the machine counts."""
        looks = self._looks.get(file, [])
        if len(looks) < 2:
            return _Look(0.0, 0.0, 0.0, None)
        before, after = looks
        passed = after.seconds - before.seconds
        idle = _added(before.idle_core_seconds, after.idle_core_seconds)
        # Looks that came at another time than the reads say nothing of the pass.
        if not max(_TICKS_SECONDS, seconds / 2) <= passed <= 2 * seconds:
            idle = None
        return _Look(
            passed,
            _added(before.starved_seconds, after.starved_seconds),
            _added(before.memory_seconds, after.memory_seconds),
            idle,
        )

    def to_dict(self, file: int) -> dict[str, Any]:
        """As stats.json holds it. Staging is over when arrived_bytes is size."""
        return {
            "size": int(self._sizes[file]),
            "arrived_bytes": self.arrived_bytes(file),
            "complete": self.is_complete(file),
            "first_arrival_ns": int(self._first_ns[file]),
            "complete_ns": int(self._complete_ns[file]),
            "complete_deadline_ns": int(self._complete_due_ns[file]),
        }


class _Look(NamedTuple):
    """The machine at a moment: for how long readers and servers have wanted a CPU (see
    Coverage._starved_ns), tasks have waited for memory, cores have been idle. None where it does not say: no
    read may fail for that.
    """

    seconds: float
    starved_seconds: float | None
    memory_seconds: float | None
    idle_core_seconds: float | None

    @classmethod
    def now(cls, starved_ns: int | None) -> "_Look":
        moment = time.monotonic()
        pressed, _ = pressure.totals(resources=("memory",))
        memory = (pressed or {}).get("memory_some")
        try:
            idle = machine.idle_core_seconds()
        except (OSError, ValueError, IndexError):
            idle = None
        return cls(moment, None if starved_ns is None else starved_ns / 1e9, memory, idle)


def _added(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)
