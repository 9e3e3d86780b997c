"""Which read waited for which: a trace as chains that can be replayed on another tier.

Reads past the page cache wait for their own thread's. Of reads through it nobody says who waited: threads
that wait for each other (llama.cpp's do, at every operation) wait for whichever read of that file had ended
last, and threads that go their own ways each for its own. Which it was is told from the delays
(`threads_wait`), and where it cannot be told, both answers are given. A window of readahead is asked for as
a whole when the reader comes to the window before it (`traces/readahead.py`): when it has used up the one
before that, which takes as long as it did in the recording, and cannot end before the last bytes have come
and been used.
"""

import statistics
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hbf_fuse.tier import Tier, TierSpec
from hbf_fuse.tier.virtual import START, Request, replay
from hbf_fuse.traces import readahead
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.traces.trace import Read, joined, wholes

PAGE = 4096

TOGETHER, APART, UNKNOWN = "together", "apart", "unknown"
CLEARLY = 3.0
LEAST_DELAYS = 20
_FIGURES = ("stage_seconds", "tg", "longer_seconds")

After = tuple[tuple[int, int], ...]


class Chains:
    """Reads as requests, in the order of arrival.

    readahead_share: of the bytes read through the page cache, how much lies in windows of readahead that
    could be told; None if nothing was. The rest is taken to wait for what had come, which on a slower tier is
    the longest that it can take.
    """

    def __init__(self, reads: Sequence[Read], apart: bool = False) -> None:
        """apart: threads that read through the page cache do not wait for each other."""
        self.reads = sorted(map(joined, wholes(reads)), key=lambda read: read.arrival_ns)
        self.start_ns = self.reads[0].arrival_ns if self.reads else 0
        self._cached: dict[tuple[int, int], list[int]] = defaultdict(list)
        direct: dict[int, list[int]] = defaultdict(list)
        for place, read in enumerate(self.reads):
            cached = self._cached[read.ino, read.reader if apart else 0]
            (direct[read.reader] if read.direct else cached).append(place)
        self._after: list[After] = [()] * len(self.reads)
        self._comings: list[After] = []
        """What the reader's coming to a window waits for; one mark each, behind the reads."""
        for places in (*direct.values(), *self._cached.values()):
            ends = self._ends(places)
            for place in places:
                self._after[place] = self._newest(self.reads[place].arrival_ns, ends)
        told = sum(map(self._windows, self._cached.values()))
        nbytes = sum(self.reads[place].nbytes for places in self._cached.values() for place in places)
        self.readahead_share = told / nbytes if nbytes else None

    def requests(self, marks_ns: Sequence[int] = ()) -> list[Request]:
        """The reads, then marks of 0 bytes: the chains' own, and last one for each of marks_ns, which waits
        for the newest read of any thread.
        """
        found = [
            Request(after, read.offset, read.nbytes)
            for after, read in zip(self._after, self.reads, strict=True)
        ]
        everybody = self._ends(range(len(self.reads)))
        marks = self._comings + [self._newest(mark, everybody) for mark in marks_ns]
        return found + [Request(after, 0, 0) for after in marks]

    def _windows(self, places: Sequence[int]) -> int:
        """Let windows of readahead wait as the kernel does; returns the bytes in them."""
        told = 0
        for run in readahead.windows(self.reads, places):
            coming: int | None = None
            for number, window in enumerate(run):
                first = min(window)
                after = self._after[first]
                # A window that seems to wait for a later one was told wrongly: it keeps waiting for what had
                # come.
                if number >= 2 and max(run[number - 2]) < min(run[number - 1]) < first:
                    after = self._used_up(run[number - 2], min(run[number - 1]), first, coming)
                coming = self._mark(after)
                for place in window:
                    self._after[place] = ((coming, 0),)
                    told += self.reads[place].nbytes
        return told

    def _used_up(self, window: Sequence[int], next_first: int, first: int, coming: int | None) -> After:
        """What the reader's coming to the end of a window waits for, given the first reads of the two windows
        after it, which were asked for when it came to the window's beginning and to its end, and the mark of
        the former.
        """
        begin_ns, end_ns = self.reads[next_first].arrival_ns, self.reads[first].arrival_ns
        came_ns = max(self.reads[place].done_ns for place in window)
        if came_ns > begin_ns:
            # The reader waited for the tier. How long it would have used what came, nobody saw.
            return tuple((place, max(0, end_ns - came_ns)) for place in window)
        # All of it was there: the time is what using it takes. Whichever read comes, the rest is still to be
        # used.
        using_ns = end_ns - begin_ns
        begun = () if coming is None else ((coming, using_ns),)
        left = range(len(window), 0, -1)
        return (
            *begun,
            *((place, using_ns * rest // len(window)) for place, rest in zip(window, left, strict=True)),
        )

    def _mark(self, after: After) -> int:
        self._comings.append(after)
        return len(self.reads) + len(self._comings) - 1

    def _ends(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """(done, place) in the order of ending."""
        return sorted((self.reads[place].done_ns, place) for place in places)

    def _newest(self, moment_ns: int, ends: list[tuple[int, int]]) -> After:
        """What something that happened at a moment waited for: what had ended last."""
        before = bisect_right(ends, moment_ns, key=lambda end: end[0]) - 1
        if before < 0:
            return ((START, max(0, moment_ns - self.start_ns)),)
        done_ns, place = ends[before]
        return ((place, moment_ns - done_ns),)


def threads_wait(reads: Sequence[Read]) -> str:
    """Whether threads that read through the page cache waited for each other: TOGETHER, APART or UNKNOWN.

    Each read comes some time after its thread's last one, and some time after the last one of any thread.
    What it waited for is what it comes after as regularly as clockwork; the other time is a matter of chance.
    Told by the median deviations of both: they must be apart by a factor of CLEARLY.
    """
    own: dict[tuple[int, int], int] = {}
    ended: list[int] = []
    after_own: list[int] = []
    after_any: list[int] = []
    for read in sorted(reads, key=lambda read: read.arrival_ns):
        if read.direct:
            continue
        before = bisect_right(ended, read.arrival_ns)
        last = own.get((read.ino, read.reader))
        if last is not None and before:
            after_own.append(read.arrival_ns - last)
            after_any.append(read.arrival_ns - ended[before - 1])
        own[read.ino, read.reader] = read.done_ns
        insort(ended, read.done_ns)
    if len(own) < 2:
        return TOGETHER
    if len(after_own) < LEAST_DELAYS:
        return UNKNOWN
    of_own, of_any = _deviation(after_own), _deviation(after_any)
    if of_own * CLEARLY < of_any:
        return APART
    return TOGETHER if of_any * CLEARLY < of_own else UNKNOWN


def _deviation(delays: Sequence[int]) -> float:
    """Median of the distances from the median; 1 ns at least."""
    middle = statistics.median(delays)
    return max(1.0, statistics.median(abs(delay - middle) for delay in delays))


def marks_of(phases: Sequence[Phase]) -> list[int]:
    """The beginning and the end of every phase, in their order."""
    return [mark for phase in phases for mark in (phase.start_ns, phase.end_ns)]


def elsewhere(reads: Sequence[Read], phases: Sequence[Phase], spec: TierSpec) -> dict[str, Any]:
    """What the same reads would have cost on another tier.

    stage_seconds: until every page had come once, and recorded_stage_seconds as it was. readahead_share: see
    Chains. With phases, tg: of decode, and longer_seconds: by how much the end of the last phase would have
    come later. threads: see threads_wait; where it is UNKNOWN, the figures are those of threads that wait for
    each other, and `bracket` has the two that each lies between.
    """
    threads = threads_wait(reads)
    found = {**_elsewhere(reads, phases, spec, threads == APART), "threads": threads}
    if threads == UNKNOWN:
        other = _elsewhere(reads, phases, spec, True)
        pairs = {name: (found[name], other[name]) for name in _FIGURES if name in found}
        found["bracket"] = {name: sorted(pair) for name, pair in pairs.items() if None not in pair}
    return found


def _elsewhere(reads: Sequence[Read], phases: Sequence[Phase], spec: TierSpec, apart: bool) -> dict[str, Any]:
    marks = marks_of(phases)
    chains = Chains(reads, apart)
    ordered, start_ns = chains.reads, chains.start_ns
    done = replay(chains.requests(marks), Tier(spec))
    found: dict[str, Any] = {
        "reads": len(ordered),
        "stage_seconds": first_pass_ns(ordered, done) / 1e9,
        "recorded_stage_seconds": (first_pass_ns(ordered, [read.done_ns for read in ordered]) - start_ns)
        / 1e9,
        "readahead_share": chains.readahead_share,
    }
    times = done[len(done) - len(marks) :]
    for place, phase in enumerate(phases):
        if phase.name == "decode":
            begin, end = times[2 * place : 2 * place + 2]
            found["tg"] = _rate(phase.tokens, end - begin)
            found["recorded_tg"] = _rate(phase.tokens, phase.end_ns - phase.start_ns)
    if phases:
        found["longer_seconds"] = (times[-1] - (marks[-1] - start_ns)) / 1e9
    return found


def first_pass_ns(reads: Sequence[Read], done_ns: Sequence[int]) -> int:
    """When every page of `reads` had come once, given when each read (in the order of arrival) ended.

    Keeps stretches of pages, not pages: a record may claim any range.
    """
    ordered = zip(done_ns, sorted(reads, key=lambda read: read.arrival_ns), strict=False)
    stretches: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    last = 0
    for done, read in sorted(ordered, key=lambda each: each[0]):
        starts, ends = stretches[read.ino]
        first, end = read.offset // PAGE, -(-(read.offset + read.nbytes) // PAGE)
        # The stretches that this one touches become one with it.
        low, high = bisect_left(ends, first), bisect_right(starts, end)
        if high - low == 1 and starts[low] <= first and end <= ends[low]:
            continue
        last = done
        if low < high:
            first, end = min(first, starts[low]), max(end, ends[high - 1])
        starts[low:high], ends[low:high] = [first], [end]
    return last


def _rate(tokens: int, duration_ns: int) -> float | None:
    """Tokens/s; None where no time has passed."""
    return tokens * 1e9 / duration_ns if duration_ns > 0 else None
