"""Readahead windows in a trace: which reads the kernel requested together.

The kernel reads a file ahead in windows of one size, and marks the first page of each. When a reader comes to
the mark, the kernel first requests the next window; then the reader waits for its own (Linux, mm/readahead.c
and mm/filemap.c). So a window is requested when the last but one has been used up. In a trace, the reader
pauses between two windows, and never within one.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from hbf_fuse.traces.trace import Read

_LONGEST_WINDOW = 64
"""In requests."""

_NEIGHBOURS = 16
"""Requests may overtake fewer others than this."""

_RECENT = 64
"""A run has ended if this many reads of its file added nothing to it."""

_PAUSE = 2
"""A pause is longer than this many times the lower quartile of the gaps between requests."""

_BELIEVED = 0.4
"""Share of all pauses, by time and beyond chance, that must lie between the windows. With less, they are
rejected.
"""

_AS_GOOD = 0.8
"""The longest window that explains this much of what the best one does is taken: the best may be half of it.
"""

_MIN_PAUSES = 4

_SURE = 3.0
"""By how many standard deviations what lies between the windows must exceed what chance would bring there."""


def windows(reads: Sequence[Read], places: Sequence[int]) -> list[list[list[int]]]:
    """Runs of windows of places in `reads`. A run is a range of a file read in sequence; a window is what was
    requested together. places: the cached reads of one file, in the order of arrival. Reads outside of runs
    are left out: if the pauses do not show windows, none are guessed.
    """
    found = []
    # An empty read ends where it begins: it would follow itself.
    for run in _runs(reads, [place for place in places if reads[place].nbytes]):
        usual = statistics.mode(reads[place].nbytes for place in run)
        grid = _grid(reads, run, usual)
        if grid is not None:
            length, phase = grid
            found.append(list(_cut(reads, run, usual * length, usual * phase)))
    return found


def _runs(reads: Sequence[Read], places: Sequence[int]) -> list[list[int]]:
    """Ranges that were read without a hole and at about the same time, each in the order of its bytes."""
    runs: list[list[int]] = []
    starting: dict[int, list[int]] = {}
    ending: dict[int, list[int]] = {}
    for place in places:
        offset, end = reads[place].offset, reads[place].offset + reads[place].nbytes
        run = _recent(ending, offset, place)
        if not run:
            runs.append(run)
        run.append(place)
        # Requests overtake each other: the next one in the file may have arrived earlier.
        overtaken = _recent(starting, end, place)
        run += overtaken
        overtaken.clear()
        starting[reads[run[0]].offset] = run
        ending[reads[run[-1]].offset + reads[run[-1]].nbytes] = run
    return [run for run in runs if len(run) > 1]


def _recent(runs: dict[int, list[int]], offset: int, place: int) -> list[int]:
    """Take out the run that starts or ends at an offset. Empty if there is none, or only an old one."""
    run = runs.pop(offset, None)
    return run if run and place - max(run[0], run[-1]) <= _RECENT else []


def _grid(reads: Sequence[Read], run: Sequence[int], usual: int) -> tuple[int, int] | None:
    """(length, phase) of a run's windows, in requests of the usual size: the longest that pauses support."""
    between = [(reads[place].offset // usual, gap) for place, gap in _gaps(reads, run)]
    passed = sorted(gap for _, gap in between if gap > 0)
    if not passed:
        return None
    usual_gap = passed[len(passed) // 4]
    pauses = [(position, gap) for position, gap in between if gap > _PAUSE * usual_gap]
    if len(pauses) < _MIN_PAUSES:
        return None
    longest = min(_LONGEST_WINDOW, len(run) // _MIN_PAUSES)
    lengths = [2**power for power in range(longest.bit_length() - 1, 0, -1)]
    scored = [(*_best_phase(pauses, length), length) for length in lengths]
    best = max((score for score, _, _ in scored), default=0.0)
    if best < _BELIEVED:
        return None
    as_good = [(length, phase) for score, phase, length in scored if score >= _AS_GOOD * best]
    return next((grid for grid in as_good if not _is_two(between, *grid, usual_gap)), None)


def _best_phase(pauses: Sequence[tuple[int, int]], length: int) -> tuple[float, int]:
    """(score, phase) for windows of this length: where they begin, and the share of the pauses there. 1 is
    all of them, 0 what an even spread would give.
    """
    at_phase: dict[int, int] = defaultdict(int)
    for position, gap in pauses:
        at_phase[position % length] += gap
    phase = max(at_phase, key=lambda phase: at_phase[phase])
    whole = sum(at_phase.values())
    alike = whole**2 / sum(gap**2 for _, gap in pauses)
    score = (at_phase[phase] / whole - 1 / length) / (1 - 1 / length)
    return score if score * ((length - 1) * alike) ** 0.5 >= _SURE else 0.0, phase


def _is_two(between: Sequence[tuple[int, int]], length: int, phase: int, usual_gap: int) -> bool:
    """Whether the reader pauses in the middle of such windows, too: each is two on their way together, and
    with much latency the pause after both is the longer one. The middle's pause is nearer to that than to the
    usual gap, by its logarithm. Not asked of the shortest windows.
    """
    if length == 2:
        return False
    ends = [gap for position, gap in between if (position - phase) % length == 0]
    middles = [gap for position, gap in between if (position - phase) % length == length // 2]
    middle = statistics.median(middles or [0])
    return middle > 0 and middle**2 > statistics.median(ends) * usual_gap


def _gaps(reads: Sequence[Read], run: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Before each place except the first: the time in ns without a request of the run. Negative if requests
    overtook each other.
    """
    arrivals = [reads[place].arrival_ns for place in run]
    for index in range(1, len(run)):
        # Neighbours only: a page that was read long before says nothing about the rest.
        before, after = arrivals[max(0, index - _NEIGHBOURS) : index], arrivals[index : index + _NEIGHBOURS]
        yield run[index], min(after) - max(before)


def _cut(reads: Sequence[Read], run: Sequence[int], size: int, phase: int) -> Iterator[list[int]]:
    """The run in windows of `size` bytes. One of them begins at about `phase`, within a request's size."""
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
