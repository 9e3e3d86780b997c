"""Which reads of a trace the kernel asked for together: the windows of its readahead.

The kernel reads a file ahead in windows of one size, and marks the first page of each. A reader that comes to
the mark has the next window asked for, and only then waits for its own (Linux, mm/readahead.c and
mm/filemap.c). So a window is asked for when the last but one has been used up. A trace shows the windows by
where the reader pauses: between two windows, and within none.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from hbf_fuse.observe.trace import Read

_LONGEST_WINDOW = 64
"""In requests."""

_NEIGHBOURS = 16
"""Requests overtake each other by less than this many."""

_PAUSE = 8
"""A pause is longer than this many times what usually lies between two requests."""

_BELIEVED = 0.4
"""How much of all pauses, by time and beyond chance, must lie between the windows for them to be believed."""

_AS_GOOD = 0.8
"""A longer window that explains this much of what the best one does is the window: the best may be half of
it.
"""

_MIN_PAUSES = 4


def windows(reads: Sequence[Read], places: Sequence[int]) -> list[list[list[int]]]:
    """Runs of windows of places in `reads`: each run one stretch of a file read in sequence, each window what
    was asked for together. places: the cached reads of one file, in the order of arrival. Reads in no run are
    left out: what the pauses do not tell is not guessed.
    """
    runs = [run for run in _runs(reads, places) if len(run) > 1]
    if not runs:
        return []
    usual = statistics.mode(reads[place].nbytes for run in runs for place in run)
    found = _grid(reads, runs, usual) if usual else None
    if found is None:
        return []
    length, phase = found
    return [list(_cut(reads, run, usual * length, usual * phase)) for run in runs if len(run) >= length]


def _runs(reads: Sequence[Read], places: Sequence[int]) -> Iterator[list[int]]:
    """Stretches without a hole, in the order of their bytes: of the first reading of a page, of the second,
    ...
    """
    times_read: dict[int, int] = defaultdict(int)
    passes: dict[int, list[int]] = defaultdict(list)
    for place in places:
        offset = reads[place].offset
        passes[times_read[offset]].append(place)
        times_read[offset] += 1
    for members in passes.values():
        members.sort(key=lambda place: reads[place].offset)
        run = members[:1]
        for before, after in pairwise(members):
            if reads[after].offset != reads[before].offset + reads[before].nbytes:
                yield run
                run = []
            run.append(after)
        yield run


def _grid(reads: Sequence[Read], runs: Sequence[list[int]], usual: int) -> tuple[int, int] | None:
    """(length, phase) of the windows in requests of the usual size; the longest that the pauses bear out."""
    between = [(reads[place].offset // usual, gap) for run in runs for place, gap in _gaps(reads, run)]
    typical = statistics.median(gap for _, gap in between)
    pauses = [(position, gap) for position, gap in between if gap > _PAUSE * max(0.0, typical)]
    if len(pauses) < _MIN_PAUSES:
        return None
    lengths = [2**power for power in range(_LONGEST_WINDOW.bit_length() - 1, 0, -1)]
    scored = [(*_best_phase(pauses, length), length) for length in lengths]
    best = max(score for score, _, _ in scored)
    if best < _BELIEVED:
        return None
    return next((length, phase) for score, phase, length in scored if score >= _AS_GOOD * best)


def _best_phase(pauses: Sequence[tuple[int, int]], length: int) -> tuple[float, int]:
    """(score, phase): where windows of a length begin, and which share of the pauses lies there. 1 is all, 0
    what an even spread would come to.
    """
    at_phase: dict[int, int] = defaultdict(int)
    for position, gap in pauses:
        at_phase[position % length] += gap
    phase = max(at_phase, key=lambda phase: at_phase[phase])
    share = at_phase[phase] / sum(at_phase.values())
    return (share - 1 / length) / (1 - 1 / length), phase


def _gaps(reads: Sequence[Read], run: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Before each place but the first, the time in ns in which nothing of the run was asked for; negative
    where requests overtook each other.
    """
    arrivals = [reads[place].arrival_ns for place in run]
    for index in range(1, len(run)):
        # Neighbours only: one page that somebody looked at long before says nothing about the rest.
        before, after = arrivals[max(0, index - _NEIGHBOURS) : index], arrivals[index : index + _NEIGHBOURS]
        yield run[index], min(after) - max(before)


def _cut(reads: Sequence[Read], run: Sequence[int], size: int, phase: int) -> Iterator[list[int]]:
    """The run in windows of `size` bytes, one of which begins at about `phase`: within a request of it."""
    window: list[int] = []
    known = None
    for place in run:
        cell = (reads[place].offset - phase) // size
        if known is not None and cell != known:
            yield window
            window = []
        known = cell
        window.append(place)
    yield window
