"""Which read waited for which: a trace as chains that can be replayed on another tier.

Reads past the page cache wait for earlier reads of their own thread. For reads through the page cache, a
trace does not show which thread waited. Threads that wait for each other, as llama.cpp's do at every
operation, wait for the file's read that had ended last. Independent threads wait each for their own.
`threads_wait` tells the two apart by the delays; if it cannot, both results are given.

The kernel requests a whole window of readahead when the reader enters the window before it
(`traces/readahead.py`): when the reader has used up the one before that. Using it takes as long as in the
recording, and cannot end before its last bytes have arrived and been used.
"""

import statistics
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from hbf_fuse.tier import Tier, TierSpec
from hbf_fuse.tier.virtual import START, Replay, Request, replay
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

    readahead_share: the share of bytes read through the page cache that lies in recognised readahead windows;
    None if no byte was read so. Other reads are assumed to wait for what had arrived. On a slower tier this
    gives the longest possible time.
    """

    def __init__(self, reads: Sequence[Read], apart: bool = False) -> None:
        """apart: threads that read through the page cache do not wait for each other."""
        self._parts = sorted(wholes(reads), key=lambda parts: parts[0].arrival_ns)
        self.reads = list(map(joined, self._parts))
        self.start_ns = self.reads[0].arrival_ns if self.reads else 0
        self._cached: dict[tuple[int, int], list[int]] = defaultdict(list)
        direct: dict[int, list[int]] = defaultdict(list)
        for place, read in enumerate(self.reads):
            cached = self._cached[read.ino, read.reader if apart else 0]
            (direct[read.reader] if read.direct else cached).append(place)
        self._after: list[After] = [()] * len(self.reads)
        self._comings: list[After] = []
        """What the reader's entry into each window waits for. One mark each; marks follow the reads."""
        for places in (*direct.values(), *self._cached.values()):
            ends = self._ends(places)
            for place in places:
                self._after[place] = self._newest(self.reads[place].arrival_ns, ends)
        told = sum(map(self._windows, self._cached.values()))
        nbytes = sum(self.reads[place].nbytes for places in self._cached.values() for place in places)
        self.readahead_share = told / nbytes if nbytes else None

    def requests(self, marks_ns: Sequence[int] = ()) -> list[Request]:
        """The reads, then marks of 0 bytes: the chains' own marks, then one for each of marks_ns. Those wait
        for the newest read of any thread.
        """
        found = [
            Request(after, read.offset, read.nbytes)
            for after, read in zip(self._after, self.reads, strict=True)
        ]
        everybody = self._ends(range(len(self.reads)))
        marks = self._comings + [self._newest(mark, everybody) for mark in marks_ns]
        return found + [Request(after, 0, 0) for after in marks]

    def alone(self) -> list[Request]:
        """The reads on their own tiers, in the same places, with nobody who thinks: each is sent as soon as
        those that it waited for have come. One of several tiers becomes a mark that waits for its parts,
        which stand behind all others.
        """
        whole: list[Request] = []
        divided: list[Request] = []
        waiting = self._after + self._comings
        for waits, parts in zip_longest(waiting, self._parts, fillvalue=()):
            after = tuple((place, 0) for place, _ in waits)
            requests = [Request(after, part.offset, part.nbytes, part.tier) for part in parts]
            if len(requests) != 1:
                first = len(waiting) + len(divided)
                divided += requests
                after = tuple((first + place, 0) for place in range(len(requests))) or after
                requests = [Request(after, 0, 0)]
            whole += requests
        return whole + divided

    def _windows(self, places: Sequence[int]) -> int:
        """Make readahead windows wait as in the kernel. Returns the bytes in them."""
        told = 0
        for run in readahead.windows(self.reads, places):
            coming: int | None = None
            for number, window in enumerate(run):
                first = min(window)
                if number >= 2 and not self._at_once(window, run[number - 1]):
                    # Told wrongly: each of its reads keeps waiting for what had come.
                    coming = None
                    continue
                after = self._after[first]
                # If a window seems to wait for a later one, it was cut wrongly: it keeps waiting for what
                # had arrived.
                if number >= 2 and max(run[number - 2]) < min(run[number - 1]) < first:
                    after = self._used_up(run[number - 2], min(run[number - 1]), first, coming) or after
                coming = self._mark(after)
                for place in window:
                    self._after[place] = ((coming, 0),)
                    told += self.reads[place].nbytes
        return told

    def _at_once(self, window: Sequence[int], before: Sequence[int]) -> bool:
        """Whether the reads of a window came closer together than it and the one before it did."""
        first_ns, last_ns = self.reads[min(window)].arrival_ns, self.reads[max(window)].arrival_ns
        return last_ns - first_ns <= first_ns - self.reads[max(before)].arrival_ns

    def _used_up(self, window: Sequence[int], next_first: int, first: int, coming: int | None) -> After:
        """What the reader's arrival at the end of a window waits for. next_first, first: the first reads of
        the next two windows. The kernel requested them when the reader came to the window's beginning and to
        its end. coming: the mark of the beginning.
        """
        begin_ns, end_ns = self.reads[next_first].arrival_ns, self.reads[first].arrival_ns
        came_ns = max(self.reads[place].done_ns for place in window)
        if came_ns > end_ns:
            return ()
        if came_ns > begin_ns:
            # The reader waited for the tier. How long it needed for the data itself is unknown.
            return tuple((place, end_ns - came_ns) for place in window)
        # All of it was there: the time is what using it takes. After each read, the rest must still be used.
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
        """(done, place) in the order of completion."""
        return sorted((self.reads[place].done_ns, place) for place in places)

    def _newest(self, moment_ns: int, ends: list[tuple[int, int]]) -> After:
        """What an event at this moment waited for: the read that had ended last."""
        before = bisect_right(ends, (moment_ns, len(self.reads))) - 1
        if before < 0:
            return ((START, max(0, moment_ns - self.start_ns)),)
        done_ns, place = ends[before]
        return ((place, moment_ns - done_ns),)


def threads_wait(reads: Sequence[Read]) -> str:
    """Whether threads that read through the page cache waited for each other: TOGETHER, APART or UNKNOWN.

    Each read follows its thread's last read by one delay, and the last read of any thread by another. The
    delay after the read that it waited for is regular; the other one is random. Compares the median
    deviations of both: they must differ by a factor of CLEARLY.
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
    """Median of the distances from the median; at least 1 ns."""
    middle = statistics.median(delays)
    return max(1.0, statistics.median(abs(delay - middle) for delay in delays))


def alone(reads: Sequence[Read]) -> Replay:
    """What the tiers alone take for llama.cpp's reads, to be replayed on tiers in the places that the trace
    has them in: nobody computes in between, and how late replies were is no part of it.

    Whether threads wait for each other is known here: llama.cpp's do, at every operation. Within one they do
    not, and of threads that compute for long `threads_wait` may see that alone. Taken for independent, they
    would have reads of several operations in flight at once, which they never have: a quarter less time, with
    two of them (tests/test_decode_model.py has such threads). Of threads that do go their own ways this says
    too much, the more they compute between their reads.
    """
    return Replay(Chains(reads).alone())


def marks_of(phases: Sequence[Phase]) -> list[int]:
    """The beginning and the end of every phase, in order."""
    return [mark for phase in phases for mark in (phase.start_ns, phase.end_ns)]


def elsewhere(reads: Sequence[Read], phases: Sequence[Phase], spec: TierSpec) -> dict[str, Any]:
    """What the same reads would have cost on another tier.

    stage_seconds: until every page had arrived once; recorded_stage_seconds: the same in the recording.
    readahead_share: see Chains. With phases, tg: of decode, and longer_seconds: by how much the last phase
    would have ended later. threads: see threads_wait. If it is UNKNOWN, the figures are those of threads that
    wait for each other, and `bracket` has both bounds of each figure.
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
    """When every page of `reads` had arrived once. done_ns: when each read ended, in the order of arrival.

    Keeps ranges of pages, not single pages: a record may claim any range.
    """
    ordered = zip(done_ns, sorted(reads, key=lambda read: read.arrival_ns), strict=False)
    stretches: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    last = 0
    for done, read in sorted(ordered, key=lambda each: each[0]):
        starts, ends = stretches[read.ino]
        first, end = read.offset // PAGE, -(-(read.offset + read.nbytes) // PAGE)
        # Merge it with the ranges that it touches.
        low, high = bisect_left(ends, first), bisect_right(starts, end)
        if high - low == 1 and starts[low] <= first and end <= ends[low]:
            continue
        last = done
        if low < high:
            first, end = min(first, starts[low]), max(end, ends[high - 1])
        starts[low:high], ends[low:high] = [first], [end]
    return last


def _rate(tokens: int, duration_ns: int) -> float | None:
    """Tokens/s; None if no time passed."""
    return tokens * 1e9 / duration_ns if duration_ns > 0 else None
