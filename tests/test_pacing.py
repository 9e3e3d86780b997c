"""Accounting of reads in virtual time: credit, coverage, residency."""

import os
import random
import subprocess
import sys
from pathlib import Path

import accounts
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse import compiled
from hbf_fuse.observe.counters import Counters
from hbf_fuse.pacing.bounds import LIFETIME_NS, MAX_OWED_NS, MAX_READERS
from hbf_fuse.pacing.coverage import Coverage
from hbf_fuse.pacing.credit import Credit
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.pacing.resident import HEADROOM_BYTES, MIN_BYTES, WINDOW_BYTES, Resident
from hbf_fuse.tier import TierSpec

PAGE = 4096
MIB = 1 << 20
MS = 1_000_000
NOW = 10**12
LATE = 300_000
READER = 7


def one_tier(latency_ms=1.0, mbps=None):
    return Pacer({"hbf": TierSpec(mbps, latency_ms)}, [(10, 64 * MIB)], {})


def admit(pacer, arrival, reader=READER, offset=0, nbytes=PAGE):
    return pacer.admit(0, offset, nbytes, reader, True, arrival)


def complete(pacer, arrival, due, done, reader=READER, offset=0, nbytes=PAGE):
    pacer.sending(reader, arrival, due)
    pacer.complete(0, offset, nbytes, reader, True, arrival, due, due, done)


def first_read(pacer, late=LATE):
    """A read whose reply was late; returns the time of the reply."""
    due = admit(pacer, NOW)
    complete(pacer, NOW, due, due + late)
    return due + late


# Credit


@pytest.mark.parametrize("thinking", [0, 1, LATE, 20 * MS, LIFETIME_NS])
def test_a_late_reply_moves_the_next_arrival_by_its_lateness_and_not_by_think_time(thinking):
    pacer = one_tier()
    arrival = first_read(pacer) + thinking
    assert admit(pacer, arrival) == arrival - LATE + MS
    assert pacer.credit.forgiven_ns == 0


def test_a_reader_that_has_caught_up_has_no_credit():
    pacer = one_tier()
    done = first_read(pacer)
    due = admit(pacer, done)
    complete(pacer, done, due, due)
    assert admit(pacer, due) == due + MS


def test_credit_of_one_reader_is_not_given_to_another():
    pacer = one_tier()
    done = first_read(pacer)
    assert admit(pacer, done, reader=READER + 1) == done + MS
    assert admit(pacer, done) == done - LATE + MS


def test_lateness_is_forgiven_when_it_is_too_old_or_too_much():
    pacer = one_tier()
    arrival = first_read(pacer) + LIFETIME_NS + 1
    assert admit(pacer, arrival) == arrival + MS
    assert pacer.status()["forgiven_seconds"] == LATE / 1e9
    for late, back in ((MAX_OWED_NS, MAX_OWED_NS), (MAX_OWED_NS + 1, 0)):
        pacer = one_tier()
        done = first_read(pacer, late)
        assert admit(pacer, done) == done - back + MS
        assert pacer.credit.forgiven_ns == late - back


def test_forgiven_lateness_is_counted_once():
    pacer = one_tier()
    arrival = first_read(pacer) + LIFETIME_NS + 1
    admit(pacer, arrival)
    admit(pacer, arrival)
    assert pacer.credit.forgiven_ns == LATE


def test_a_reader_back_before_its_reply_was_recorded_had_no_time_to_think():
    pacer = one_tier()
    due = admit(pacer, NOW)
    pacer.sending(READER, NOW, due)
    assert admit(pacer, due + LATE) == due + MS


def test_the_end_of_an_older_reply_is_ignored_while_a_newer_one_is_in_flight():
    credit = Credit()
    credit.sending(READER, NOW, NOW)
    credit.sending(READER, NOW, NOW + MS)
    credit.sent(READER, NOW, NOW + 9 * MS)
    assert credit.owed(READER, NOW + MS + LATE) == LATE
    credit.sent(READER, NOW + MS, NOW + MS + 5)
    assert credit.owed(READER, NOW + MS + LATE) == 5


def test_abandoned_reads_and_reads_of_no_tier_give_no_credit():
    pacer = one_tier()
    done = first_read(pacer)
    admit(pacer, done)
    pacer.abandon(0, PAGE, READER, True, False)
    assert admit(pacer, done) == done + MS
    free = Pacer({"hbf": TierSpec()}, [(10, MIB)], {})
    assert admit(free, first_read(free)) == NOW + LATE


def test_of_readers_in_one_bucket_the_one_with_the_oldest_reply_is_forgotten():
    credit = Credit()
    readers = [READER + place * MAX_READERS // 4 for place in range(5)]
    for place, reader in enumerate(readers):
        credit.sending(reader, NOW, NOW + place)
        credit.sent(reader, NOW + place, NOW + place + LATE)
    assert [credit.owed(reader, NOW + LATE) for reader in readers] == [0, LATE, LATE, LATE, LATE]


def test_every_one_of_many_readers_is_remembered_if_their_numbers_follow_each_other():
    credit = Credit()
    for reader in range(1, MAX_READERS + 1):
        credit.sending(reader, NOW, NOW + reader)
        credit.sent(reader, NOW + reader, NOW + 2 * reader)
    assert all(credit.owed(reader, NOW + MS) == reader for reader in range(1, MAX_READERS + 1))


def test_the_floor_depends_on_how_long_a_reader_has_waited():
    floor = Floor([(100, 10), (200, 30), (1000, 70)])
    waits = (0, 100, 150, 200, 600, 1000, 9000)
    assert [floor.of(0, waited) for waited in waits] == [10, 10, 20, 30, 50, 70, 70]
    pacer = one_tier()
    pacer.reckon_with(Floor([(0, 1000), (2 * MS, 5000)]))
    due = admit(pacer, NOW)
    assert due == NOW - 1000 + MS
    complete(pacer, NOW, due, due)
    # It has waited 999 us, by the tier.
    assert admit(pacer, due) == due - Floor([(0, 1000), (2 * MS, 5000)]).of(PAGE, due - NOW) + MS


def test_the_floor_is_subtracted_from_every_arrival():
    pacer = one_tier()
    pacer.reckon_with(Floor([(0, 10_000)], 40_000))
    assert admit(pacer, NOW, nbytes=MIB // 2) == NOW - 30_000 + MS


# Tiers


def test_a_read_over_several_tiers_is_due_with_its_last_part_and_counted_by_tier():
    specs = {"fast": TierSpec(None, 1), "slow": TierSpec(None, 5), "dram": TierSpec()}
    pacer = Pacer(specs, [(10, MIB)], {0: [(0, 0), (2 * PAGE, 1), (3 * PAGE, 0), (9 * PAGE, 2)]})
    assert admit(pacer, NOW, nbytes=2 * PAGE) == NOW + MS
    due = admit(pacer, NOW, nbytes=10 * PAGE, reader=8)
    assert due == NOW + 5 * MS
    complete(pacer, NOW, due, due, reader=8, nbytes=10 * PAGE)
    assert pacer.status()["tier_bytes"] == {"fast": 8 * PAGE, "slow": PAGE, "dram": PAGE}


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), max_size=6),
    st.lists(st.tuples(st.integers(0, 40 * PAGE), st.integers(0, 40 * PAGE)), min_size=1, max_size=8),
)
def test_bytes_are_counted_where_they_lie_and_the_slowest_tier_sets_the_time(steps, reads):
    latencies = [1, 7, 3]
    specs = {str(place): TierSpec(None, each) for place, each in enumerate(latencies)}
    regions, start = [], 0
    for pages, tier in steps:
        regions.append((start, tier))
        start += pages * PAGE
    pacer = Pacer(specs, [(10, 80 * PAGE)], {0: regions} if regions else {})
    expected = [0, 0, 0]
    for number, (offset, nbytes) in enumerate(reads, start=1):
        lie = [next((tier for first, tier in reversed(regions) if first <= at), 0)
               for at in range(offset // PAGE * PAGE, offset + max(1, nbytes), PAGE)]  # fmt: skip
        for at in range(offset, offset + nbytes):
            if at == offset or at % PAGE == 0:
                tier = lie[at // PAGE - offset // PAGE]
                expected[tier] += min((at // PAGE + 1) * PAGE, offset + nbytes) - at
        due = admit(pacer, NOW, reader=number, offset=offset, nbytes=nbytes)
        assert due == NOW + max(latencies[tier] for tier in lie) * MS
        complete(pacer, NOW, due, due, reader=number, offset=offset, nbytes=nbytes)
    assert list(pacer.status()["tier_bytes"].values()) == expected


# Coverage

lengths = st.one_of(st.integers(0, 6 * PAGE), st.integers(0, 6).map(lambda pages: pages * PAGE))


@given(
    st.lists(lengths, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), lengths, lengths), max_size=30),
)
def test_coverage_equals_a_list_of_pages(sizes, reads):
    coverage = Coverage(sizes, Counters(), Credit(), Idle())
    seen: list[set[int]] = [set() for _ in sizes]
    uncounted = [0] * len(sizes)
    for time, (which, at, length) in enumerate(reads, start=1):
        file = which % len(sizes)
        size = sizes[file]
        offset = min(at, size)
        end = min(offset + length, size)
        pages = {at: (at * PAGE, min((at + 1) * PAGE, size)) for at in range(-(-size // PAGE))}
        if len(seen[file]) < len(pages):
            for page, (first, last) in pages.items():
                if offset <= first and last <= end:
                    seen[file].add(page)
                elif page not in seen[file]:
                    uncounted[file] += max(0, min(end, last) - max(offset, first))
        coverage.begin(file, time, time, 0, 1)
        coverage.add(file, offset, end - offset, time, time, 1, 1)
        assert coverage.arrived_bytes(file) == sum(pages[at][1] - pages[at][0] for at in seen[file])
        assert coverage.is_complete(file) == (len(seen[file]) == len(pages))
        assert coverage.first_pass(file).uncounted_bytes == uncounted[file]
    assert coverage.begun() == [file for file in range(len(sizes)) if seen[file] or uncounted[file]]


def test_a_first_pass_begins_with_the_first_read_that_brings_data():
    coverage = Coverage([2 * PAGE], Counters(), Credit(), Idle())
    coverage.begin(0, 100, 100, 0, 1)
    coverage.abandon(0)
    coverage.begin(0, 5000, 5000, 0, 1)
    coverage.begin(0, 6000, 4000, 1000, 1)
    coverage.add(0, 0, PAGE, 7000, 7500, 1, 1)
    coverage.add(0, PAGE, PAGE, 8000, 9000, 1, 1)
    found = coverage.first_pass(0)
    assert (found.seconds, found.model_seconds, found.owed_seconds) == (5e-6, 4e-6, 1e-6)
    assert coverage.moments == 4


# Residency

FILES = (30 * MIB, 2 * MIB + 1)
EXEMPT = (1, 0, 10 * PAGE)
LIMIT = MIN_BYTES - HEADROOM_BYTES


class Model:
    """Which read brought which page; reads in the order of their replies."""

    def __init__(self, pin_limit):
        self.pin_limit = pin_limit
        self.brought = {}
        self.coming = self.answered = 0

    def forget(self, pages):
        for page in pages:
            self.brought.pop(page, None)

    def came(self, pages):
        self.forget(pages)
        held = [page for page in pages if not (page[0] == EXEMPT[0] and page[1] < EXEMPT[2] // PAGE)]
        self.answered += 1
        pins = (self.pinned() + len(held)) * PAGE <= self.pin_limit
        self.brought.update(dict.fromkeys(held, 0 if pins else self.answered))

    def pinned(self):
        return sum(not number for number in self.brought.values())

    def oldest(self):
        return min((number for number in self.brought.values() if number), default=None)


WAYS = ("answer", "answer", "answer", "wait", "abandon", "drop", "drop")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("policy", ["fifo", "pin"])
def test_residency_equals_a_list_of_pages(policy, seed):
    chance = random.Random(seed)
    resident = Resident(MIN_BYTES, policy, FILES, {EXEMPT[0]: [EXEMPT[1:]]})
    model = Model(MIN_BYTES - WINDOW_BYTES if policy == "pin" else 0)
    waiting = []
    for _ in range(300):
        file, way = int(chance.random() < 0.1), WAYS[chance.randrange(len(WAYS))]
        offset = chance.randrange(FILES[file])
        nbytes = min(chance.randrange(1, 2 * MIB), FILES[file] - offset)
        pages = [(file, page) for page in range(offset // PAGE, -(-(offset + nbytes) // PAGE))]
        resident.coming(file, offset, nbytes)
        model.forget(pages)
        model.coming += nbytes
        waiting.append((file, offset, nbytes, pages))
        if way == "abandon":
            waiting.pop()
            resident.abandoned(nbytes)
            model.coming -= nbytes
        while waiting and way != "wait":
            file, offset, nbytes, pages = waiting.pop(0)
            resident.came(file, offset, nbytes)
            model.came(pages)
            model.coming -= nbytes
        if way == "drop":
            drop(resident, model)
        elif not resident.must_drop():
            assert len(model.brought) * PAGE + model.coming <= LIMIT or model.oldest() is None
        assert resident.resident_bytes == len(model.brought) * PAGE >= 0
        assert resident.pinned_bytes == model.pinned() * PAGE
    drop(resident, model)
    assert resident.evicted_bytes > 20 * MIB, "too little was dropped for a test"


def drop(resident, model):
    """Drop until the budget holds: from the oldest reply, and only pages that no later reply brought."""
    begun = None
    while resident.next_drop():
        named = [(resident.drop_file, page) for page in range(resident.drop_first, resident.drop_end)]
        assert named
        oldest = model.oldest()
        # If one page of a reply is dropped, all of it is.
        assert oldest == begun or len(model.brought) * PAGE + model.coming > LIMIT
        begun = oldest
        assert {model.brought.get(page) for page in named} == {oldest}
        model.forget(named)
        assert resident.resident_bytes == len(model.brought) * PAGE
    assert len(model.brought) * PAGE + model.coming <= LIMIT or model.oldest() is None
    assert not resident.must_drop()


# Accounting


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20 * PAGE), st.integers(0, 3)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_every_read_is_recorded_once(reads, chance):
    sizes = [20 * PAGE, 12_345, 0]
    resident = Resident(MIN_BYTES, "fifo", sizes)
    pacer = Pacer({"hbf": TierSpec(100, 1)}, list(enumerate(sizes)), {}, resident)
    begun, ways = [], [0, 0, 0, 0]
    for number, (file, at, way) in enumerate(reads):
        offset = min(at, sizes[file])
        nbytes = min(5000, sizes[file] - offset)
        due = pacer.admit(file, offset, nbytes, number, way == 0, NOW + number)
        begun.append((file, offset, nbytes, number, way, due))
    assert pacer.status()["in_flight"] == pacer.status()["in_flight_max"] == len(reads)
    chance.shuffle(begun)
    brought = 0
    for file, offset, nbytes, number, way, due in begun:
        ways[way] += 1
        if way < 2:
            brought += nbytes
            pacer.sending(number, NOW + number, due)
            pacer.complete(file, offset, nbytes, number, way == 0, NOW + number, due, due, due + 1)
        else:
            pacer.abandon(file, nbytes, number, False, way == 2)
    found = pacer.status()
    assert (found["in_flight"], found["reads"], found["bytes_read"]) == (0, len(reads), brought)
    assert (found["interrupted"], found["failed"]) == (ways[2], ways[3])
    assert sum(found["tier_bytes"].values()) == brought
    assert not resident.must_drop()
    assert len(pacer.ring.since(0)[0]) == (ways[0] + ways[1]) * 48


@pytest.mark.skipif(bool(compiled.why_not()), reason=str(compiled.why_not()))
def test_due_times_drops_and_statistics_are_the_same_compiled_and_uncompiled():
    line = [sys.executable, accounts.__file__]
    environment = {
        **os.environ,
        "HBF_UNCOMPILED": "1",
        "PYTHONPATH": str(Path(compiled.PACKAGE).parent),
    }
    said = subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=100)
    assert said.stdout.split() == [accounts.digest(1, "fifo"), accounts.digest(2, "pin")]
