"""The books of a mount's reads: each one is admitted, which gives it a time to be due, and ends in one way.

An arrival counts as earlier by what the reader waited before the server could see it: the machine's floor
(floor.py), and what its newest reply was late (credit.py). None of that is the tier's.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from hbf_fuse.observe.counters import Counters
from hbf_fuse.observe.ring import Ring
from hbf_fuse.pacing.coverage import Coverage
from hbf_fuse.pacing.credit import Credit
from hbf_fuse.pacing.floor import Floor, unsure_ns
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.pacing.mutex import Mutex
from hbf_fuse.pacing.resident import Resident
from hbf_fuse.pacing.tiers import Rank, Regions
from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.spec import TierSpec

_UNSEEN_NS = 1_000_000

_BEAT_NS = 5_000_000
_REST_NS = 100_000_000
"""Between beats when no read has come for a second."""

_LATE_BEAT_NS = 10_000_000
"""A beat that comes later than this was kept from coming."""

_LIVELY_NS = 1_000_000_000

_LINK_WAIT_NS = 500_000
"""Of tiers that are a link alone, the floor is at least that after so long a wait. What a reader that wakes
up slowly loses, a link does not make up for; and none gives more than it carries, whatever is taken off
arrivals.
"""


class Pacer:
    """The tiers' schedules, and what becomes of the reads. Safe for concurrent callers.

    specs: the tiers by name, the first of them the mount's own. files: (inode, size in bytes) each; reads
    name a file by its place there. placed: see Regions. resident: None for no budget.
    """

    def __init__(
        self,
        specs: Mapping[str, TierSpec],
        files: Sequence[tuple[int, int]],
        placed: Mapping[int, Sequence[tuple[int, int]]],
        resident: Resident | None = None,
    ) -> None:
        self.throttled = any(spec.throttled for spec in specs.values())
        self._least_wait_ns = 0 if any(map(_waits, specs.values())) else _LINK_WAIT_NS
        self.floor = Floor()
        self.counters, self.credit, self.idle, self.ring = Counters(), Credit(), Idle(), Ring()
        self.coverage = Coverage([size for _, size in files], self.counters, self.credit, self.idle)
        self.resident = resident
        self.tiers = Rank([Tier(spec) for spec in specs.values()])
        self._regions = Regions(len(files), placed)
        self._names = list(specs)
        self._inodes = array("q", [ino for ino, _ in files])
        self._mutex = Mutex()

    def reckon_with(self, floor: Floor) -> None:
        """Take this floor off every read. Before the first one."""
        self.floor = floor

    def admit(self, file: int, offset: int, nbytes: int, reader: int, direct: bool, arrival_ns: int) -> int:
        """A read has come: reserve its place in the tiers' schedules. Returns when its data is due.

        reader: the thread that waits for it. direct: whether it goes past the page cache.
        """
        self._mutex.acquire()
        self.counters.began(arrival_ns, nbytes, reader)
        waited_ns = max(self._least_wait_ns, self.credit.waited(reader))
        self.counters.floored_ns += self.floor.of(0, waited_ns)
        arrived_ns = arrival_ns - self.floor.of(nbytes, waited_ns)
        owed_ns = self.credit.owed(reader, arrived_ns)
        began_ns = arrived_ns - owed_ns
        self.idle.ended(began_ns, owed_ns, unsure_ns(nbytes))
        end, due_ns = offset + nbytes, 0
        while True:
            piece_end = self._regions.piece_end(file, offset, end)
            ready_ns = self.tiers.reserve(self._regions.tier, began_ns, offset, piece_end - offset)
            due_ns = max(due_ns, ready_ns)
            self.idle.taken(self.tiers.carried_ns(self._regions.tier), ready_ns)
            offset = piece_end
            if offset >= end:
                break
        self.coverage.begin(file, arrival_ns, began_ns, owed_ns, reader)
        if self.resident is not None and not direct:
            self.resident.coming(file, end - nbytes, nbytes)
        self._mutex.release()
        return due_ns

    def sending(self, reader: int, arrival_ns: int, due_ns: int) -> None:
        """The reply that is due then, to a read that arrived then, is about to be sent. The reader may be
        back before it counts as sent.
        """
        self._mutex.acquire()
        self.credit.sending(reader, arrival_ns, due_ns)
        self._mutex.release()

    def complete(
        self,
        file: int,
        offset: int,
        nbytes: int,
        reader: int,
        direct: bool,
        arrival_ns: int,
        due_ns: int,
        started_ns: int,
        done_ns: int,
    ) -> None:
        """The reply, whose sending began at started_ns, was with the reader at done_ns."""
        self._mutex.acquire()
        self.counters.finished(arrival_ns, due_ns, started_ns, done_ns, nbytes)
        at, end, timed = offset, offset + nbytes, False
        while True:
            piece_end = self._regions.piece_end(file, at, end)
            place = self._regions.tier
            timed = timed or self.tiers.is_throttled(place)
            self.tiers.served(place, piece_end - at)
            self.ring.add(
                arrival_ns,
                due_ns,
                done_ns,
                at,
                piece_end - at,
                reader,
                self._inodes[file],
                place,
                direct,
            )
            at = piece_end
            if at >= end:
                break
        if timed:
            self.credit.sent(reader, due_ns, done_ns)
            self.idle.replied(done_ns, done_ns - due_ns)
            took_ns = done_ns - arrival_ns
            self.coverage.add(file, offset, nbytes, due_ns, done_ns, took_ns, unsure_ns(nbytes))
        else:
            self.credit.nothing_owed(reader)
            if self.throttled:
                self.idle.untimed(done_ns - arrival_ns)
            self.coverage.add(file, offset, nbytes, due_ns, done_ns, 0, 0)
        if self.resident is not None and not direct:
            self.resident.came(file, offset, nbytes)
            if self.resident.is_overfull():
                self.counters.overfills += 1
        self._mutex.release()

    def abandon(self, file: int, nbytes: int, reader: int, direct: bool, interrupted: bool) -> None:
        """A read ended without data. interrupted: because its reader was killed."""
        self._mutex.acquire()
        self.counters.abandoned(interrupted)
        self.credit.nothing_owed(reader)
        self.coverage.abandon(file)
        if self.resident is not None and not direct:
            self.resident.abandoned(nbytes)
        self._mutex.release()

    def was_blind(self, since_ns: int, until_ns: int) -> None:
        """Nobody was left to see reads arrive meanwhile. Less than a millisecond is what a reply may take."""
        if until_ns - since_ns < _UNSEEN_NS:
            return
        self._mutex.acquire()
        self.counters.unseen_ns += until_ns - since_ns
        self.counters.blind_ns = until_ns
        self._mutex.release()

    def next_beat(self, now_ns: int) -> int:
        """When the next beat is due: a sign that the server does not stand still, as in a frozen cgroup or on
        a paused machine. No signal tells that.
        """
        lively = now_ns - self.counters.last_seen_ns < _LIVELY_NS
        return now_ns + (_BEAT_NS if lively else _REST_NS)

    def beat(self, due_ns: int, now_ns: int) -> None:
        """A thread that waited for due_ns is back. If reads were seen meanwhile, only this thread was kept
        waiting; but one that was seen just now, after none had been for a while, may have waited as well.
        """
        seen_ns = self.counters.last_seen_ns
        steady = self.counters.gap_end_ns <= due_ns and now_ns - seen_ns < _LATE_BEAT_NS
        others_ran = due_ns < seen_ns and (steady or seen_ns < now_ns - _LATE_BEAT_NS // 2)
        if now_ns - due_ns > _LATE_BEAT_NS and not others_ran:
            self.was_blind(due_ns, now_ns)

    def next_drop(self) -> bool:
        """See Resident.next_drop; False where there is no budget."""
        if self.resident is None:
            return False
        self._mutex.acquire()
        named = self.resident.next_drop()
        self._mutex.release()
        return named

    def inode(self, file: int) -> int:
        """Of the file in a place."""
        return self._inodes[file]

    def exchange(self, spec: TierSpec) -> None:
        """Serve from another tier in place of the mount's own; reads in flight keep their deadlines."""
        # Kept until the mutex is free: nothing that runs Python code may come between, not even to free it.
        before = self.tiers.tier
        heir, throttled = before.succeeded_by(spec), spec.throttled
        self._exchange(heir, throttled, 0 if _waits(spec) else self._least_wait_ns)

    def _exchange(self, heir: Tier, throttled: bool, least_wait_ns: int) -> None:
        self._mutex.acquire()
        self.tiers.exchange(heir, throttled)
        self.counters.exchanges += 1
        self.throttled = self.tiers.any_throttled()
        self._least_wait_ns = least_wait_ns
        self._mutex.release()

    def stats(self) -> dict[str, Any]:
        """As stats.json holds them."""
        planes = self.tiers.tier.planes
        return {
            **self.counters.to_dict(),
            "tier_bytes": dict(zip(self._names, self.tiers.bytes_by_place(), strict=True)),
            **(planes.to_dict() if planes else {}),
            "forgiven_seconds": self.credit.forgiven_ns / 1e9,
            "floor": self.floor.to_dict(),
        }


def _waits(spec: TierSpec) -> bool:
    """Whether reads wait for more than the link."""
    return bool(spec.latency_ns or spec.planes or spec.jitter or spec.seek_ms)
