"""Coverage: which bytes of the served files have reached a reader. Staging ends when all have."""

import threading
import time
from array import array
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import NamedTuple

from hbf_fuse.host import machine, pressure
from hbf_fuse.host.starved import Starved
from hbf_fuse.observe.counters import Counters
from hbf_fuse.observe.status import CoverageStatus
from hbf_fuse.pacing.bounds import ENDLESS, LIFETIME_NS
from hbf_fuse.pacing.credit import Credit
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.pacing.pages import Pages
from hbf_fuse.pacing.zeros import zeros
from hbf_fuse.verdict import Evidence

_PAGE = 4096
_MIB = 1 << 20
_TICKS_SECONDS = 0.1

_MOMENTS = 1024
"""Beginnings, quarters and ends of first passes that may wait for `look`, at most."""

_BLIND_NS = 1_000_000_000
"""Reads that are taken this soon after a stall may have waited unseen."""

_RECENT_NS = 2_000_000_000
"""`look` counts the run-queue delay of every reader that read this recently."""

_SOON_SECONDS = 0.5
"""A first pass that is noticed this soon after its file became ready counts from then on."""

_SOMETIMES_NS = 250_000_000
"""How often what has no end counts as having made progress."""

_FIGURES = 12
"""Number of values that Coverage._note_figures records."""

_NAMED = 12
PASS_FIGURES = _NAMED + 2 * _FIGURES
"""Number of values that Coverage.copy_pass copies."""


class Coverage:
    """Which pages of each file have reached a reader at least once, and when the last of them did.

    A page counts once one reply has covered the whole of it; only reads past the page cache can bring parts.
    Files are named by their places in `sizes` (bytes). ENDLESS as a size is for what is read and written for
    ever: every byte counts, and pauses of more than LIFETIME_NS do not belong to its pass. Not safe for
    concurrent callers, except `look`.
    """

    def __init__(self, sizes: Sequence[int], counters: Counters, credit: Credit, idle: Idle) -> None:
        self.moments = 0
        """How often a first pass has begun or made progress. Call `look` after each change."""
        self._counters, self._credit, self._idle = counters, credit, idle
        pages = [0 if size == ENDLESS else -(-size // _PAGE) for size in sizes]
        self._sizes, self._pages = array("q", sizes), array("q", pages)
        self._first_page = array("q", accumulate(pages, initial=0))
        self._seen = Pages(sum(pages))
        self._arrived, self._uncounted, self._in_flight, self._begun = zeros(4, len(sizes))
        self._first_ns, self._owed_ns, self._complete_ns, self._complete_due_ns = zeros(4, len(sizes))
        self._timed_ns, self._unsure_ns, self._most_unsure_ns, self._late_ns = zeros(4, len(sizes))
        self._quarters, *_ = zeros(1, len(sizes))
        self._now = array("q", bytes(8 * _FIGURES))
        # The mount's figures at the first read, and at the newest first-time byte.
        self._before, self._after = zeros(2, len(sizes) * _FIGURES)
        self._of_moment, self._reader_of_moment = (array("q", bytes(8 * _MOMENTS)) for _ in range(2))
        self._looked = 0
        self._readers, self._servers = Starved(), Starved()
        self._look_lock = threading.Lock()
        self._looks: dict[int, list[_Look]] = {}
        self._ready: dict[int, _Look] = {}

    def begin(self, file: int, arrival_ns: int, began_ns: int, owed_ns: int, reader: int) -> None:
        """A read of a thread has arrived. A file's first pass begins with its first read.

        arrival_ns: when the server saw it. began_ns: when it would have begun on the real device. owed_ns: by
        how much that is earlier because of late replies to its reader.
        """
        self._in_flight[file] += 1
        if self.is_complete(file):
            return
        if self._sizes[file] == ENDLESS and self._in_flight[file] == 1 and self._begun[file]:
            self._leave_out_pause(file, began_ns)
        if not self._begun[file]:
            self._begun[file] = 1
            self._first_ns[file], self._owed_ns[file] = began_ns, owed_ns
            self._note_figures(self._before, file)
            if arrival_ns - self._counters.blind_ns <= _BLIND_NS:
                # This read may have waited unseen: count all unseen time and stops as part of this pass.
                self._before[file * _FIGURES] = self._before[file * _FIGURES + 1] = 0
            self._note(file, reader)
        elif began_ns < self._first_ns[file]:
            self._first_ns[file], self._owed_ns[file] = began_ns, owed_ns

    def abandon(self, file: int) -> None:
        """A read ended without data. If it was the first of the pass, the next one is."""
        self._in_flight[file] -= 1
        if not self._in_flight[file] and not self._arrived[file]:
            self._begun[file] = 0

    def add(
        self, file: int, offset: int, nbytes: int, due_ns: int, done_ns: int, timed_ns: int, unsure_ns: int
    ) -> None:
        """A reply was visible at done_ns. Does nothing once the file is complete.

        timed_ns: how long the read took, if a throttled tier served it; else 0. unsure_ns: uncertainty of
        timed_ns.
        """
        self._in_flight[file] -= 1
        if nbytes <= 0 or self.is_complete(file):
            return
        base, size = self._first_page[file], self._sizes[file]
        end_byte = offset + nbytes
        is_endless = size == ENDLESS
        first = (offset + _PAGE - 1) // _PAGE
        end = self._pages[file] if end_byte >= size else end_byte // _PAGE
        self._timed_ns[file] += timed_ns
        self._unsure_ns[file] += unsure_ns
        self._most_unsure_ns[file] = max(self._most_unsure_ns[file], unsure_ns)
        if timed_ns:
            self._late_ns[file] += max(0, done_ns - due_ns)
        if is_endless:
            fresh = nbytes
        else:
            self._count_parts(file, offset, end_byte)
            fresh = self._seen.add(base + first, base + end)
        if fresh:
            self._arrived[file] += fresh
            self._complete_ns[file] = max(self._complete_ns[file], done_ns)
            self._complete_due_ns[file] = max(self._complete_due_ns[file], due_ns)
            self._note_figures(self._after, file)
            self._after[file * _FIGURES + 3] = self._idle.window_until_ns(self._complete_due_ns[file])
            # `look` is called at each quarter of the file; the newest call bounds the pass.
            if is_endless:
                quarter = (done_ns - self._first_ns[file]) // _SOMETIMES_NS
            else:
                quarter = self._arrived[file] * 4 // self._pages[file]
            if quarter > self._quarters[file]:
                self._quarters[file] = quarter
                self._note(file, 0)

    def _leave_out_pause(self, file: int, began_ns: int) -> None:
        """A request has come after none was under way: a long pause is as if it had taken no time."""
        pause_ns = began_ns - self._complete_ns[file]
        if pause_ns <= LIFETIME_NS or not self._arrived[file]:
            return
        at = file * _FIGURES
        for figure in range(_FIGURES):
            self._now[figure] = self._before[at + figure]
        self._note_figures(self._before, file)
        for figure in range(_FIGURES):
            self._before[at + figure] += self._now[figure] - self._after[at + figure]
        self._first_ns[file] += pause_ns

    def _note_figures(self, figures: "memoryview[int]", file: int) -> None:
        """Record the mount's counters of this moment. The first two count waits that the server could not
        see.
        """
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
        """Add the bytes of pages that a reply covers only in part, if the pages have not arrived."""
        base = self._first_page[file]
        head, tail = offset // _PAGE, end_byte // _PAGE
        if offset % _PAGE and not self._seen.has(base + head):
            self._uncounted[file] += min(end_byte, (head + 1) * _PAGE) - offset
        within = end_byte % _PAGE and end_byte < self._sizes[file]
        if within and not (head == tail and offset % _PAGE) and not self._seen.has(base + tail):
            self._uncounted[file] += end_byte - max(offset, tail * _PAGE)

    def _note(self, file: int, reader: int) -> None:
        """A first pass has begun, has come a quarter further, or has ended. reader: the thread that began it,
        or 0.
        """
        self._of_moment[self.moments % _MOMENTS] = file
        self._reader_of_moment[self.moments % _MOMENTS] = reader
        self.moments += 1

    def ready(self, file: int, readers: Collection[int]) -> None:
        """A reader has mapped the file: its first read may come and go before the next `look`.

        readers: ids of all threads that the reader's process has by now.
        """
        with self._look_lock:
            self._readers.meet(readers)
            if not self._begun[file]:
                self._ready[file] = _Look.now(self._starved_ns((), ()))

    def look(self, servers: Collection[int] | None = None) -> None:
        """Record the machine's counters for every file whose first pass has begun or made progress since the
        last call. Called from Python's threads; safe for several.

        servers: ids of the threads that reads wait for; None for all threads of this process.
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
                ready = self._ready.get(file)
                if not known and ready and now.seconds - ready.seconds < _SOON_SECONDS:
                    known = [ready]
                self._looks[file] = [*known, now]
            self._looked = moments

    def _starved_ns(self, readers: Collection[int], servers: Collection[int] | None) -> int | None:
        """Run-queue delay of readers and servers, without what the floor and late wake-ups already cover."""
        readers_ns = self._readers.ns(readers)
        servers_ns = machine.own_threads_starved_ns() if servers is None else self._servers.ns(servers)
        if readers_ns is None or servers_ns is None:
            return None
        return readers_ns + servers_ns - int(self._counters.floored_ns + self._counters.woken_late_ns)

    def is_complete(self, file: int) -> bool:
        """Whether every page has arrived."""
        return self._arrived[file] == self._pages[file] and self._sizes[file] != ENDLESS

    def arrived_bytes(self, file: int) -> int:
        """Bytes that have arrived at least once."""
        if self._sizes[file] == ENDLESS:
            return int(self._arrived[file])
        pages, size = self._pages[file], self._sizes[file]
        has_last = pages and self._seen.has(self._first_page[file] + pages - 1)
        return int(self._arrived[file] * _PAGE - (-size % _PAGE if has_last else 0))

    def begun(self) -> list[int]:
        """Places of the files with any arrived bytes, without those that have no end."""
        files = [file for file in range(len(self._sizes)) if self._sizes[file] != ENDLESS]
        return [file for file in files if self._arrived[file] or self._uncounted[file]]

    def copy_pass(self, file: int, figures: "array[int]") -> None:
        """Copy what is known of a file's first pass: PASS_FIGURES values, which `evidence_of` reads."""
        figures[0], figures[1] = self._arrived[file], self._uncounted[file]
        figures[2], figures[3] = self._first_ns[file], self._owed_ns[file]
        figures[4], figures[5] = self._complete_ns[file], self._complete_due_ns[file]
        figures[6], figures[7] = self._timed_ns[file], self._unsure_ns[file]
        figures[8], figures[9] = self._most_unsure_ns[file], self._late_ns[file]
        figures[10] = self._counters.exchanges
        figures[11] = self._pages[file] > 0 and self._seen.has(self._first_page[file] + self._pages[file] - 1)
        for place in range(_FIGURES):
            figures[_NAMED + place] = self._before[file * _FIGURES + place]
            figures[_NAMED + _FIGURES + place] = self._after[file * _FIGURES + place]

    def first_pass(self, file: int) -> Evidence:
        """Evidence on the file's first pass, up to the newest first-time byte."""
        figures = array("q", bytes(8 * PASS_FIGURES))
        self.copy_pass(file, figures)
        return self.evidence_of(file, figures)

    def evidence_of(self, file: int, figures: "array[int]") -> Evidence:
        """The same, from figures that were copied."""
        arrived, uncounted, first_ns, owed_ns, complete_ns, due_ns = figures[:6]
        timed_ns, unsure_ns, most_unsure_ns, late_ns, exchanges, has_last = figures[6:_NAMED]
        before, after = figures[_NAMED : _NAMED + _FIGURES], figures[_NAMED + _FIGURES :]
        if not arrived:
            return Evidence(uncounted_bytes=uncounted)
        seconds = (complete_ns - first_ns) / 1e9
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
        ) = (now - was for now, was in zip(after, before, strict=True))
        # Two bounds of the same time; the smaller one counts. Many readers make idle times short and many.
        # With many reads in flight, the reads overlap: `share` scales their sums to the pass.
        share = seconds / timed_ns if timed_ns else 0.0
        meanwhile = self._meanwhile(file, seconds)
        return Evidence(
            nbytes=self._bytes_of(file, arrived, bool(has_last)),
            seconds=seconds,
            model_seconds=(due_ns - first_ns - forgiven) / 1e9,
            timed=unsure_ns > 0,
            forgiven_seconds=forgiven / 1e9,
            window_seconds=window / 1e9,
            pause_seconds=pause / 1e9,
            # Plus one at the end: the last reply still has to wake its reader.
            floor_seconds=min((floor + most_unsure_ns) / 1e9, unsure_ns * share),
            late_seconds=min(late / 1e9, late_ns * share),
            contention_seconds=meanwhile.starved_seconds,
            memory_seconds=meanwhile.memory_seconds or 0.0,
            idle_cores=meanwhile.idle_core_seconds and meanwhile.idle_core_seconds / meanwhile.seconds,
            unseen_seconds=unseen / 1e9,
            owed_seconds=max(0, owed_ns) / 1e9,
            stops=stops,
            # Also exchanges after the pass: the tier that served it is gone.
            exchanges=exchanges - before[7],
            overfills=overfills,
            nameless=nameless,
            uncounted_bytes=uncounted,
            sending_ns_per_mib=self._sending_ns_per_mib(file, sending, nbytes),
        )

    def _sending_ns_per_mib(self, file: int, sending_ns: int, nbytes: int) -> int:
        """0 for the few bytes of a kv/ that was hardly used: they say nothing about the source."""
        least = _MIB if self._sizes[file] == ENDLESS else 1
        return sending_ns * _MIB // nbytes if nbytes >= least else 0

    def _bytes_of(self, file: int, arrived: int, has_last: bool) -> int:
        if self._sizes[file] == ENDLESS:
            return arrived
        return int(arrived * _PAGE - (-self._sizes[file] % _PAGE if has_last else 0))

    def _meanwhile(self, file: int, seconds: float) -> "_Look":
        """What the machine's counters gained during a first pass of this length."""
        looks = self._looks.get(file, [])
        if len(looks) < 2:
            return _Look(0.0, 0.0, 0.0, None)
        before, after = looks
        passed = after.seconds - before.seconds
        idle = _added(before.idle_core_seconds, after.idle_core_seconds)
        # If the looks do not span about the time of the pass, they say nothing about it.
        if not max(_TICKS_SECONDS, seconds / 2) <= passed <= 2 * seconds:
            idle = None
        return _Look(
            passed,
            _added(before.starved_seconds, after.starved_seconds),
            _added(before.memory_seconds, after.memory_seconds),
            idle,
        )

    def status(self, file: int) -> CoverageStatus:
        """As stats.json holds it."""
        return {
            "size": int(self._sizes[file]),
            "arrived_bytes": self.arrived_bytes(file),
            "complete": self.is_complete(file),
            "first_arrival_ns": int(self._first_ns[file]),
            "complete_ns": int(self._complete_ns[file]),
            "complete_deadline_ns": int(self._complete_due_ns[file]),
        }


class _Look(NamedTuple):
    """The machine's counters at one moment: run-queue delay of readers and servers (see
    Coverage._starved_ns), time that tasks waited for memory, idle time of the cores. None where the machine
    does not tell; a read must not fail for that.
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
