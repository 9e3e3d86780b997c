"""Which reads of a trace the kernel asked for together: the windows of its readahead.

The kernel reads a file ahead in windows of one size, and marks the first page of each. A reader that comes to
the mark has the next window asked for, and only then waits for its own (Linux, mm/readahead.c and
mm/filemap.c). So a window is asked for when the last but one has been used up. A trace shows the windows by
where the reader pauses: between two windows, and within none.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from hbf_fuse.traces.trace import Read

_LONGEST_WINDOW = 64
"""In requests."""

_NEIGHBOURS = 16
"""Requests overtake each other by less than this many."""

_RECENT = 64
"""A run to which nothing was added for this many reads of its file is over."""

_PAUSE = 2
"""A pause is longer than this many times what lies between two requests of a window: the lower quartile."""

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
    found = []
    # A read of nothing begins where it ends: it would follow itself.
    for run in _runs(reads, [place for place in places if reads[place].nbytes]):
        usual = statistics.mode(reads[place].nbytes for place in run)
        grid = _grid(reads, run, usual)
        if grid is not None:
            length, phase = grid
            found.append(list(_cut(reads, run, usual * length, usual * phase)))
    return found


def _runs(reads: Sequence[Read], places: Sequence[int]) -> list[list[int]]:
    """Stretches that were read without a hole and at about one time, each in the order of its bytes."""
    runs: list[list[int]] = []
    starting: dict[int, list[int]] = {}
    ending: dict[int, list[int]] = {}
    for place in places:
        offset, end = reads[place].offset, reads[place].offset + reads[place].nbytes
        run = _recent(ending, offset, place)
        if not run:
            runs.append(run)
        run.append(place)
        # Requests overtake each other: what comes next in the file may have come before.
        overtaken = _recent(starting, end, place)
        run += overtaken
        overtaken.clear()
        starting[reads[run[0]].offset] = run
        ending[reads[run[-1]].offset + reads[run[-1]].nbytes] = run
    return [run for run in runs if len(run) > 1]


def _recent(runs: dict[int, list[int]], offset: int, place: int) -> list[int]:
    """Takes out the run that starts or ends at an offset; an empty one if it is not of about now."""
    run = runs.pop(offset, None)
    return run if run and place - max(run[0], run[-1]) <= _RECENT else []


def _grid(reads: Sequence[Read], run: Sequence[int], usual: int) -> tuple[int, int] | None:
    """(length, phase) of a run's windows in requests of the usual size: the longest that pauses bear out."""
    between = [(reads[place].offset // usual, gap) for place, gap in _gaps(reads, run)]
    passed = sorted(gap for _, gap in between if gap > 0)
    if not passed:
        return None
    pauses = [(position, gap) for position, gap in between if gap > _PAUSE * passed[len(passed) // 4]]
    if len(pauses) < _MIN_PAUSES:
        return None
    longest = min(_LONGEST_WINDOW, len(run) // _MIN_PAUSES)
    lengths = [2**power for power in range(longest.bit_length() - 1, 0, -1)]
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
