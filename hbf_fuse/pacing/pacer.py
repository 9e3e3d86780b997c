"""The accounting of a mount's reads: each read is admitted, which sets its deadline, and then completed or
abandoned.

An arrival counts as earlier by the time that its reader waited before the server could see it: the machine's
floor (floor.py) and the lateness of its newest reply (credit.py). The tier is charged for neither.
"""

from array import array
from collections.abc import Mapping, Sequence

from hbf_fuse.observe.bounds import DIRECT, KV, MAX_READER_NAMES, MOST_NAMED_AT_ONCE, MOST_THREADS, WRITES
from hbf_fuse.observe.counters import Counters
from hbf_fuse.observe.readers import Readers
from hbf_fuse.observe.ring import Ring
from hbf_fuse.observe.status import PacerStatus, ReaderStatus
from hbf_fuse.pacing.bounds import ENDLESS
from hbf_fuse.pacing.coverage import PASS_FIGURES, Coverage
from hbf_fuse.pacing.credit import Credit
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.pacing.mutex import Mutex
from hbf_fuse.pacing.resident import Resident
from hbf_fuse.pacing.tiers import Rank, Regions
from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.spec import TierSpec
from hbf_fuse.tier.translation import Translation
from hbf_fuse.verdict import Evidence

_PAGE = 4096
_UNSEEN_NS = 1_000_000

_BEAT_NS = 5_000_000
_REST_NS = 100_000_000
"""Interval of beats after a second without reads."""

_LATE_BEAT_NS = 10_000_000
"""A beat that is later than this shows that its thread was kept from running."""

_LIVELY_NS = 1_000_000_000

_TRIMMED_AT_ONCE = 4096

OFFSETS = (1 << 40) - 1
"""In what fs/kv.py gives a file of kv/ as an offset, the bits that are one within the file."""

_LINK_WAIT_NS = 500_000
"""If all tiers have bandwidth only, the floor is at least that after a wait of this length. A link does not
make up for what a slowly waking reader loses. No link carries more than its rate, whatever is taken off
arrivals.
"""


class Pacer:
    """The tiers' schedules, and the accounting of reads. Safe for concurrent callers.

    specs: the tiers by name; the first is the mount's own. files: (inode, size in bytes) each; reads name a
    file by its place in this list. placed: see Regions. resident: None for no budget. sets: places of files
    that are one model together; each other file is one by itself. Coverage is of models. written_bytes: size
    of kv/, whose files lie in the first tier; their place is minus their inode, and their offsets are what
    fs/kv.py gives them.
    """

    def __init__(
        self,
        specs: Mapping[str, TierSpec],
        files: Sequence[tuple[int, int]],
        placed: Mapping[int, Sequence[tuple[int, int]]],
        resident: Resident | None = None,
        sets: Sequence[Sequence[int]] = (),
        written_bytes: int = 0,
    ) -> None:
        self.throttled = any(spec.throttles_writes for spec in specs.values())
        self._least_wait_ns = 0 if any(map(_waits, specs.values())) else _LINK_WAIT_NS
        self.floor = self.writing = self.writing_at_most = Floor()
        self.counters, self.credit, self.idle, self.ring = Counters(), Credit(), Idle(), Ring()
        self.readers = Readers()
        # The last one stands for all files of kv/.
        self.kv = len(files)
        files = [*files, (0, ENDLESS)]
        sizes = [size for _, size in files]
        self.models = models_of(self.kv, sets)
        """Places of files, by model."""
        self._sizes, self._padded_end = array("q", sizes), array("q", sizes)
        self._model, self._base = array("q", sizes), array("q", sizes)
        whole = [self._laid_out(model, places, sizes) for model, places in enumerate(self.models)]
        self.kv_model = self._model[self.kv] = len(whole)
        self._base[self.kv] = 0
        self.coverage = Coverage([*whole, ENDLESS], self.counters, self.credit, self.idle)
        self.kv_read_bytes = self.kv_since_ns = 0
        self.resident = resident
        first, *others = specs.values()
        self.tiers = Rank([Tier(first, written_bytes), *map(Tier, others)])
        self._regions = Regions(len(files), placed)
        self._names = list(specs)
        self._inodes = array("q", [ino for ino, _ in files])
        self._mutex = Mutex()

    def _laid_out(self, model: int, places: Sequence[int], sizes: Sequence[int]) -> int:
        """Lay a model's files one behind the other, each at a page; returns the whole size in bytes."""
        size = 0
        for place in places:
            self._model[place], self._base[place] = model, -(-size // _PAGE) * _PAGE
            size = self._base[place] + sizes[place]
        for place in places:
            # A last page that the file fills in part is whole, but for the model's own last one.
            end = -(-sizes[place] // _PAGE) * _PAGE
            self._padded_end[place] = min(end, size - self._base[place])
        return size

    def reckon_with(self, floor: Floor, writing: Floor | None = None, at_most: Floor | None = None) -> None:
        """Take this floor off every read, and that of writing off every write. at_most: what it takes to
        write in the slowest cases. Call it before the first read.
        """
        self.floor = floor
        self.writing = writing or floor
        self.writing_at_most = at_most or self.writing

    def admit(self, file: int, offset: int, nbytes: int, reader: int, way: int, arrival_ns: int) -> int:
        """A read or a write has arrived: reserve its place in the tiers' schedules. Returns when its data is
        due, or when it is written.

        reader: the thread that waits for it. way: DIRECT for past the page cache, WRITES for a write.
        """
        self._mutex.acquire()
        place = file
        if file < 0:
            place = self.kv
            self.kv_since_ns = self.kv_since_ns or arrival_ns
        self.counters.began(arrival_ns, nbytes, reader, bool(way & WRITES))
        self.readers.count(reader, nbytes, arrival_ns)
        waited_ns = max(self._least_wait_ns, self.credit.waited(reader))
        self.counters.floored_ns += self._floor_of(way, 0, waited_ns)
        arrived_ns = arrival_ns - self._floor_of(way, nbytes, waited_ns)
        owed_ns = self.credit.owed(reader, arrived_ns)
        began_ns = arrived_ns - owed_ns
        self.idle.ended(began_ns, owed_ns, self._unsure_ns(way, nbytes))
        end, due_ns = offset + nbytes, 0
        while True:
            piece_end = self._regions.piece_end(place, offset, end)
            if way & WRITES:
                ready_ns = self.tiers.write(began_ns, offset, piece_end - offset)
            else:
                ready_ns = self.tiers.reserve(self._regions.tier, began_ns, offset, piece_end - offset)
            due_ns = max(due_ns, ready_ns)
            self.idle.taken(self.tiers.carried_ns(self._regions.tier), ready_ns)
            offset = piece_end
            if offset >= end:
                break
        self.coverage.begin(self._model[place], arrival_ns, began_ns, owed_ns, reader)
        if self.resident is not None and file >= 0 and not way & DIRECT:
            self.resident.coming(file, end - nbytes, nbytes)
        self._mutex.release()
        return due_ns

    def _floor_of(self, way: int, nbytes: int, waited_ns: int) -> int:
        if not way & WRITES:
            return self.floor.of(nbytes, waited_ns)
        # A writer has one write in flight. On a link alone it would lose some of it with each that is slow.
        if self._least_wait_ns:
            return self.writing_at_most.of(nbytes, waited_ns)
        return self.writing.of(nbytes, waited_ns)

    def _unsure_ns(self, way: int, nbytes: int) -> int:
        return self.writing.unsure(nbytes) if way & WRITES else self.floor.unsure(nbytes)

    def sending(self, reader: int, arrival_ns: int, due_ns: int) -> None:
        """A reply is about to be sent: due at due_ns, to a read that arrived at arrival_ns. Its reader may be
        back before `complete` is called.
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
        way: int,
        arrival_ns: int,
        due_ns: int,
        started_ns: int,
        done_ns: int,
    ) -> None:
        """The reply, sent from started_ns on, was visible to the reader at done_ns."""
        self._mutex.acquire()
        self.counters.finished(arrival_ns, due_ns, started_ns, done_ns, nbytes, bool(way & WRITES))
        place = file if file >= 0 else self.kv
        at, end, timed = offset, offset + nbytes, False
        model, begin = self._model[place], self._base[place] + offset
        covered, inode, shown, told = nbytes, self._inodes[place], offset, way
        if file < 0:
            inode, shown, told = -file, offset & OFFSETS, way | KV
            if not way & WRITES:
                self.kv_read_bytes += nbytes
        elif nbytes > 0 and end == self._sizes[file]:
            covered = self._padded_end[file] - offset
        while True:
            piece_end = self._regions.piece_end(place, at, end)
            tier = self._regions.tier
            timed = timed or self.tiers.is_throttled(tier)
            timed = timed or (way & WRITES > 0 and self.tiers.throttles_writes)
            self.tiers.served(tier, piece_end - at)
            self.ring.add(
                arrival_ns,
                due_ns,
                done_ns,
                shown + at - offset,
                piece_end - at,
                reader,
                inode,
                tier,
                told,
            )
            at = piece_end
            if at >= end:
                break
        if timed:
            self.counters.backlog.add(arrival_ns - due_ns)
            self.credit.sent(reader, due_ns, done_ns)
            self.idle.replied(done_ns, done_ns - due_ns)
            took_ns = done_ns - arrival_ns
            self.coverage.add(model, begin, covered, due_ns, done_ns, took_ns, self._unsure_ns(way, nbytes))
        else:
            self.credit.nothing_owed(reader)
            if self.throttled:
                self.idle.untimed(done_ns - arrival_ns)
            self.coverage.add(model, begin, covered, due_ns, done_ns, 0, 0)
        if self.resident is not None and file >= 0 and not way & DIRECT:
            self.resident.came(file, offset, nbytes)
            if self.resident.is_overfull():
                self.counters.overfills += 1
        self._mutex.release()

    def abandon(self, file: int, nbytes: int, reader: int, way: int, interrupted: bool) -> None:
        """A read ended without data. interrupted: its reader was killed."""
        self._mutex.acquire()
        self.counters.abandoned(interrupted)
        self.credit.nothing_owed(reader)
        self.coverage.abandon(self._model[file if file >= 0 else self.kv])
        if self.resident is not None and file >= 0 and not way & DIRECT:
            self.resident.abandoned(nbytes)
        self._mutex.release()

    def was_blind(self, since_ns: int, until_ns: int) -> None:
        """No thread was free to see reads arrive in this time. Below 1 ms it does not count: a reply may take
        that long.
        """
        if until_ns - since_ns < _UNSEEN_NS:
            return
        self._mutex.acquire()
        self.counters.unseen_ns += until_ns - since_ns
        self.counters.blind_ns = until_ns
        self._mutex.release()

    def next_beat(self, now_ns: int) -> int:
        """When the next beat is due. Beats show that the server runs: no signal tells of a frozen cgroup or a
        paused machine.
        """
        lively = now_ns - self.counters.last_seen_ns < _LIVELY_NS
        return now_ns + (_BEAT_NS if lively else _REST_NS)

    def beat(self, due_ns: int, now_ns: int) -> None:
        """A thread that waited until due_ns is back. If reads were seen in the meantime, only this thread was
        delayed. But a read seen just now, the first after a while, may have been delayed as well.
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
        """The inode number of the file at a place."""
        return self._inodes[file]

    def trim(self, offset: int, nbytes: int) -> None:
        """What was written there is no longer needed. In pieces: reads must not wait for a large file."""
        planes = self.tiers.tier.planes
        if planes is None or planes.translation is None:
            return
        page = self.tiers.tier.spec.page_bytes
        first, end = -(-offset // page), -(-(offset + nbytes) // page)
        for start in range(first, end, _TRIMMED_AT_ONCE):
            self._trim(planes.translation, start, min(end, start + _TRIMMED_AT_ONCE))

    def _trim(self, translation: Translation, first: int, end: int) -> None:
        self._mutex.acquire()
        translation.trim_range(first, end)
        self._mutex.release()

    def exchange(self, spec: TierSpec) -> None:
        """Replace the mount's own tier. Reads in flight keep their deadlines."""
        # Keep the old tier until the mutex is free: no Python code may run under it, not even a deallocation.
        before = self.tiers.tier
        heir, reads, writes = before.succeeded_by(spec), spec.throttled, spec.throttles_writes
        self._exchange(heir, reads, writes, 0 if _waits(spec) else self._least_wait_ns)

    def _exchange(self, heir: Tier, reads: bool, writes: bool, least_wait_ns: int) -> None:
        self._mutex.acquire()
        self.tiers.exchange(heir, reads, writes)
        self.counters.exchanges += 1
        self.throttled = self.tiers.any_throttled()
        self._least_wait_ns = least_wait_ns
        self._mutex.release()

    def first_pass(self, model: int) -> Evidence:
        """Evidence on a model's first pass, all of one moment."""
        figures = array("q", bytes(8 * PASS_FIGURES))
        self._mutex.acquire()
        self.coverage.copy_pass(model, figures)
        self._mutex.release()
        return self.coverage.evidence_of(model, figures)

    def name_readers(self) -> None:
        """Look up the processes of threads that began to read: while they wait for their first reads, they
        live. So many at a time that a crowd of thousands does not keep the interpreter from everything else.
        Called from Python's threads; safe for several.
        """
        for thread in self.readers.unnamed()[:MOST_NAMED_AT_ONCE]:
            slot = self.readers.slot_of(thread)
            self._name_reader(thread, slot)

    def _name_reader(self, thread: int, slot: int) -> None:
        self._mutex.acquire()
        self.readers.give(thread, slot)
        self._mutex.release()

    def reader_counts(self) -> list[ReaderStatus]:
        """Who read how much, all of one moment."""
        for _ in range(MOST_THREADS // MOST_NAMED_AT_ONCE):
            self.name_readers()
        reads, nbytes = (array("q", bytes(8 * (MAX_READER_NAMES + 3))) for _ in range(2))
        self._sum_readers(reads, nbytes)
        return self.readers.status(reads, nbytes)

    def _sum_readers(self, reads: "array[int]", nbytes: "array[int]") -> None:
        self._mutex.acquire()
        self.readers.sum_into(reads, nbytes)
        self._mutex.release()

    def counted(self) -> Counters:
        """The counters of one moment. Nothing that runs Python code comes between taking and freeing the
        mutex.
        """
        now = Counters()
        self._mutex.acquire()
        self.counters.copy_to(now)
        self._mutex.release()
        return now

    def status(self) -> PacerStatus:
        """As stats.json holds it."""
        # mypy cannot know that the counters hold no key of planes.
        status: PacerStatus = {
            **self.counted().status(),  # type: ignore[typeddict-item]
            "tier_bytes": dict(zip(self._names, self.tiers.bytes_by_place(), strict=True)),
            "readers": self.reader_counts(),
            "forgiven_seconds": self.credit.forgiven_ns / 1e9,
            "floor": self.floor.status(),
        }
        if planes := self.tiers.tier.planes:
            status["flash_bytes_sensed"] = planes.bytes_sensed
            status["read_amplification"] = planes.read_amplification
        return status


def models_of(files: int, sets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Every file's place once: the sets, and each other file by itself."""
    within = {place for places in sets for place in places}
    return [*map(list, sets), *([place] for place in range(files) if place not in within)]


def _waits(spec: TierSpec) -> bool:
    """Whether the tier has more than bandwidth: latency, planes, jitter or seeks."""
    return bool(spec.latency_ns or spec.planes or spec.jitter or spec.seek_ms)
