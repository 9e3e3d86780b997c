"""Which read waited for which: a trace as chains that can be replayed on another tier."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hbf_fuse.observe.attribution import Phase
from hbf_fuse.observe.trace import Read
from hbf_fuse.tier import Tier, TierSpec
from hbf_fuse.tier.virtual import START, Request, replay

MARK_READER = 0
PAGE = 4096


def requests_of(reads: Sequence[Read], marks_ns: Sequence[int] = ()) -> list[Request]:
    """The reads in the order of arrival, then a mark of 0 bytes for each of marks_ns.

    A thread that waits goes on when data comes: what it asks for next, readahead of several windows at
    once included, is taken to wait for the newest of its own reads that had ended by then, and its think
    time is what lies between. A mark waits for the newest read of any thread.
    """
    ordered = sorted(reads, key=lambda read: read.arrival_ns)
    start_ns = ordered[0].arrival_ns if ordered else 0
    ends: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for place, read in enumerate(ordered):
        ends[read.reader].append((read.done_ns, place))
    everybody = sorted(end for of_reader in ends.values() for end in of_reader)
    for of_reader in ends.values():
        of_reader.sort()
    found = [
        Request(*_after(read.arrival_ns, ends[read.reader], start_ns), read.offset, read.nbytes, read.reader)
        for read in ordered
    ]
    marks = [Request(*_after(mark, everybody, start_ns), 0, 0, MARK_READER) for mark in marks_ns]
    return found + marks


def marks_of(phases: Sequence[Phase]) -> list[int]:
    """The beginning and the end of every phase, in their order."""
    return [mark for phase in phases for mark in (phase.start_ns, phase.end_ns)]


def elsewhere(reads: Sequence[Read], phases: Sequence[Phase], spec: TierSpec) -> dict[str, Any]:
    """What the same reads would have cost on another tier.

    stage_seconds: until every page had come once, and recorded_stage_seconds as it was. With phases, tg: of
    decode, and longer_seconds: by how much the end of the last phase would have come later.
    """
    marks = marks_of(phases)
    requests = requests_of(reads, marks)
    done = replay(requests, Tier(spec))
    ordered = sorted(reads, key=lambda read: read.arrival_ns)
    start_ns = ordered[0].arrival_ns
    found: dict[str, Any] = {
        "stage_seconds": first_pass_ns(ordered, done) / 1e9,
        "recorded_stage_seconds": (first_pass_ns(ordered, [read.done_ns for read in ordered]) - start_ns)
        / 1e9,
    }
    times = done[len(ordered) :]
    for place, phase in enumerate(phases):
        if phase.name == "decode":
            begin, end = times[2 * place : 2 * place + 2]
            found["tg"] = phase.tokens * 1e9 / (end - begin)
            found["recorded_tg"] = phase.tokens * 1e9 / (phase.end_ns - phase.start_ns)
    if phases:
        found["longer_seconds"] = (times[-1] - (marks[-1] - start_ns)) / 1e9
    return found


def _after(moment_ns: int, ends: list[tuple[int, int]], start_ns: int) -> tuple[int, int]:
    """(parent, think time) of something that happened at a moment, given (done, place) in order."""
    before = bisect_right(ends, moment_ns, key=lambda end: end[0]) - 1
    if before < 0:
        return START, max(0, moment_ns - start_ns)
    done_ns, place = ends[before]
    return place, moment_ns - done_ns


def first_pass_ns(reads: Sequence[Read], done_ns: Sequence[int]) -> int:
    """When every page of `reads` had come once, given when each read (in the order of arrival) ended."""
    pages: dict[int, int] = {}
    for read, done in zip(sorted(reads, key=lambda read: read.arrival_ns), done_ns, strict=False):
        for page in range(read.offset // PAGE, -(-(read.offset + read.nbytes) // PAGE)):
            known = pages.get(page)
            if known is None or done < known:
                pages[page] = done
    return max(pages.values(), default=0)
