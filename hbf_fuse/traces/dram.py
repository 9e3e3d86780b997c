"""How much DRAM in front of the tier: what a recorded decode would have read of it with another budget.

The recording must show every use of the weights: of decode with as little DRAM as can be, where each token
reads all that it uses. Here these uses pass through a cache with another budget and policy. What misses is
replayed on the tier, as in decode's own prediction (`chains.alone`).

Pages that are always read together are one unit, of at most UNIT_BYTES: a unit is in DRAM or not.
"""

from bisect import bisect_left
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf.reader import Tensor
from hbf_fuse.pacing.resident import HEADROOM_BYTES, WINDOW_BYTES
from hbf_fuse.tier import Tier, TierSpec
from hbf_fuse.traces import chains, experts
from hbf_fuse.traces.attribution import HEADER, Phase, TensorMap, experts_in, layer_of
from hbf_fuse.traces.experts import Expert
from hbf_fuse.traces.trace import Read, joined, wholes

UNIT_BYTES = 64 << 10
MOST_USES = 1 << 23
"""Of units: about twenty seconds of work for each budget and policy."""

NEVER = 1 << 62


class Uses:
    """A recording as units and when each is used. reads: of one model, in the order of arrival. HbfError if
    they are too many.

    units: (first byte, bytes). used: for each read the range of its units.
    """

    def __init__(self, reads: Sequence[Read]) -> None:
        self.reads = sorted(map(joined, wholes(reads)), key=lambda read: read.arrival_ns)
        edges = {edge for read in self.reads for edge in (read.offset, read.offset + read.nbytes)}
        last = max(edges, default=0)
        bounds = sorted(edges | set(range(0, last, UNIT_BYTES)))
        self.units = [(first, end - first) for first, end in pairwise(bounds)]
        self.used = [
            range(bisect_left(bounds, read.offset), bisect_left(bounds, read.offset + read.nbytes))
            for read in self.reads
        ]
        if sum(map(len, self.used)) > MOST_USES:
            raise HbfError("this trace is too long to be replayed with other budgets", "record with -n 4")

    def next_uses(self) -> Iterator[int]:
        """For each use, in order, the number of the next use of the same unit, or NEVER."""
        found: list[int] = []
        seen: dict[int, int] = {}
        uses = [unit for units in self.used for unit in units]
        for place in range(len(uses) - 1, -1, -1):
            found.append(seen.get(uses[place], NEVER))
            seen[uses[place]] = place
        return reversed(found)


class _Recent:
    """What was used last stays (lru), or what came last (fifo)."""

    def __init__(self, uses: Uses, budget: int, moves: bool) -> None:
        self._units, self._room, self._moves = uses.units, budget - HEADROOM_BYTES, moves
        self._kept: OrderedDict[int, None] = OrderedDict()

    def use(self, unit: int) -> bool:
        """Whether it was there; now it is."""
        if unit in self._kept:
            if self._moves:
                self._kept.move_to_end(unit)
            return True
        self._room -= self._units[unit][1]
        self._kept[unit] = None
        while self._room < 0:
            gone, _ = self._kept.popitem(last=False)
            self._room += self._units[gone][1]
        return False


class _Pinned:
    """What came first stays; the rest passes through a window."""

    def __init__(self, uses: Uses, budget: int) -> None:
        self._units, self._room = uses.units, budget - WINDOW_BYTES
        self._kept: set[int] = set()
        self._window = _Recent(uses, WINDOW_BYTES, moves=False)

    def use(self, unit: int) -> bool:
        if unit in self._kept:
            return True
        size = self._units[unit][1]
        if size <= self._room:
            self._kept.add(unit)
            self._room -= size
            return False
        return self._window.use(unit)


class _Least:
    """What ranks highest stays: what was used most often (lfu), or what is used again soonest (opt, Belady's
    optimum: IBM Systems Journal 5, 1966). A unit may pass without staying.
    """

    def __init__(self, uses: Uses, budget: int, rank: Callable[[int], tuple[int, int]]) -> None:
        """rank: of a unit that is being used; what has the least goes first."""
        self._units, self._room, self._rank = uses.units, budget, rank
        self._kept: dict[int, tuple[int, int]] = {}
        self._queue: list[tuple[tuple[int, int], int]] = []

    def use(self, unit: int) -> bool:
        was_there = unit in self._kept
        if not was_there:
            self._room -= self._units[unit][1]
        self._kept[unit] = self._rank(unit)
        heappush(self._queue, (self._kept[unit], unit))
        while self._room < 0:
            rank, gone = heappop(self._queue)
            if self._kept.get(gone) == rank:
                del self._kept[gone]
                self._room += self._units[gone][1]
        return was_there


def _lfu(uses: Uses, budget: int) -> _Least:
    counts: Counter[int] = Counter()
    turn = iter(range(NEVER))

    def rank(unit: int) -> tuple[int, int]:
        counts[unit] += 1
        return counts[unit], next(turn)

    return _Least(uses, budget - HEADROOM_BYTES, rank)


def _opt(uses: Uses, budget: int) -> _Least:
    following = uses.next_uses()
    return _Least(uses, budget, lambda unit: (-next(following), unit))


POLICIES: dict[str, Callable[[Uses, int], "_Recent | _Pinned | _Least"]] = {
    "lru": lambda uses, budget: _Recent(uses, budget, moves=True),
    "fifo": lambda uses, budget: _Recent(uses, budget, moves=False),
    "pin": _Pinned,
    "lfu": _lfu,
    "opt": _opt,
}
"""What stays in DRAM, by name. `pin` and `fifo` are those of a mount (pacing/resident.py)."""


@dataclass(frozen=True)
class Recording:
    """A run with little DRAM. reads: of the model's files; decode: when it decoded; specs: of the tiers, by
    their places. compute_seconds: of a token with all weights in memory; None if that was not measured.
    """

    reads: Sequence[Read]
    tensors: Sequence[Tensor]
    decode: Phase
    specs: Sequence[TierSpec]
    compute_seconds: float | None


@dataclass
class Point:
    """What a decoded token would have cost. Bytes are means over the tokens. read: of the tier; used: of all.

    by_group: (read, used) by the names that `group_of` gives. by_expert: the same.
    """

    policy: str
    resident_bytes: int
    read: float = 0.0
    used: float = 0.0
    tg: float | None = None
    by_group: dict[str, tuple[float, float]] = field(default_factory=dict)
    by_expert: dict[Expert, tuple[float, float]] = field(default_factory=dict)


class Curve:
    """Points of one recording. HbfError if its decode read nothing, or reads came from several tiers."""

    def __init__(self, recording: Recording, group_of: Callable[[Tensor], str]) -> None:
        self._recording = recording
        self._uses = Uses(recording.reads)
        if len({read.tier for read in recording.reads}) > 1:
            raise HbfError("these reads came from several tiers", "record without --place")
        self._decodes = [self._in_decode(read) for read in self._uses.reads]
        if not any(self._decodes):
            raise HbfError(
                "the recorded decode read nothing: all weights stayed in DRAM",
                "record with `hbf bench --mode stream --resident 20M --policy fifo --trace FILE`",
            )
        self._tokens = recording.decode.tokens
        self._known = TensorMap(recording.tensors)
        self._group_of = group_of
        self.expert_bytes = experts.sizes(recording.tensors)
        """Sizes of the experts."""
        self._waiting_seconds = self._waits()

    def point(self, policy: str, resident_bytes: int) -> Point:
        """With so much DRAM."""
        cache = POLICIES[policy](self._uses, resident_bytes)
        missing: list[Read] = []
        point = Point(policy, resident_bytes)
        read: Counter[int] = Counter()
        used: Counter[int] = Counter()
        for each, units, decodes in zip(self._uses.reads, self._uses.used, self._decodes, strict=True):
            gone = [unit for unit in units if not cache.use(unit)]
            if not decodes:
                continue
            used.update(units)
            read.update(gone)
            if gone:
                first, nbytes = self._uses.units[gone[0]][0], sum(self._uses.units[unit][1] for unit in gone)
                missing.append(each._replace(offset=first, nbytes=nbytes))
        self._attribute(point, read, used)
        point.tg = self._tg(missing)
        return point

    def _in_decode(self, read: Read) -> bool:
        return self._recording.decode.start_ns <= read.arrival_ns < self._recording.decode.end_ns

    def _attribute(self, point: Point, read: Counter[int], used: Counter[int]) -> None:
        groups: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        by_expert: dict[Expert, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for unit, count in used.items():
            for tensor, offset, nbytes in self._known.parts(*self._uses.units[unit]):
                for times, place in ((read[unit], 0), (count, 1)):
                    share = nbytes * times / self._tokens
                    groups[self._group_of(tensor) if tensor else HEADER][place] += share
                    for number, part in experts_in(tensor, offset, nbytes):
                        layer = layer_of(tensor.name if tensor else "")
                        by_expert[layer, number][place] += part * times / self._tokens
        point.by_group = {name: (gone, all_) for name, (gone, all_) in groups.items()}
        point.by_expert = {expert: (gone, all_) for expert, (gone, all_) in by_expert.items()}
        point.read = sum(gone for gone, _ in point.by_group.values())
        point.used = sum(all_ for _, all_ in point.by_group.values())

    def _tg(self, missing: Sequence[Read]) -> float | None:
        compute = self._recording.compute_seconds
        if compute is None:
            return None
        tier_ns = max(chains.alone(missing).on(*map(Tier, self._recording.specs))) if missing else 0
        waiting = self._waiting_seconds * len(missing)
        # No token is faster than its computing, however much of the recorded one went on under reads.
        return 1 / max(compute, compute + (tier_ns / 1e9 + waiting) / self._tokens)

    def _waits(self) -> float:
        """What a read cost in the recording beyond compute and the read itself, in seconds: threads that
        wait for each other and wake up. Less than 0 where computing went on under reads.
        """
        if self._recording.compute_seconds is None:
            return 0.0
        reads = [read for read, decodes in zip(self._uses.reads, self._decodes, strict=True) if decodes]
        busy_ns, until_ns, decode = 0, 0, self._recording.decode
        for read in reads:
            done_ns = min(read.done_ns, decode.end_ns)
            busy_ns += max(0, done_ns - max(read.arrival_ns, until_ns))
            until_ns = max(until_ns, done_ns)
        idle_seconds = (decode.end_ns - decode.start_ns - busy_ns) / 1e9
        return (idle_seconds - self._recording.compute_seconds * self._tokens) / len(reads)
