"""Every clause of the tier model, in virtual time."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse.tier import SpecError, Tier, TierSpec
from hbf_fuse.tier.lateness import LIFETIME_NS, MAX_OWED_NS, MAX_READERS, PAUSE_NS, Lateness
from hbf_fuse.tier.link import MAX_GAPS, REMEMBERED_NS, Link

MS = 1_000_000
specs = st.builds(
    TierSpec,
    bandwidth_mbps=st.floats(0.1, 1e7),
    latency_ms=st.floats(0, 100),
)
sizes = st.integers(1, 8 << 20)
gaps = st.integers(0, 50 * MS)


def reply(tier, reader, deadline, done):
    tier.lateness.replying(reader, deadline, done)
    tier.lateness.replied(reader, deadline, done)


@given(specs, st.lists(st.tuples(gaps, sizes, st.integers(0, 3)), min_size=2, max_size=40))
def test_no_window_is_faster_than_the_link_and_order_is_kept(spec, reads):
    tier, arrival, deadlines = Tier(spec), 0, []
    for gap, nbytes, reader in reads:
        arrival += gap
        deadlines.append(tier.reserve(arrival, 0, nbytes, reader))
    assert deadlines == sorted(deadlines)
    for first, last in itertools.combinations(range(len(reads)), 2):
        moved = sum(nbytes for _, nbytes, _ in reads[first + 1 : last + 1])
        assert deadlines[last] - deadlines[first] >= moved * 1e9 / spec.bytes_per_second - 2


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 300)), min_size=1, max_size=60))
def test_the_link_gives_no_moment_twice_and_wastes_none_that_is_wanted(reads):
    """Against a link that is simulated moment by moment, for arrivals in any order."""
    link, taken = Link(), set()
    for arrival, duration in reads:
        end = link.carry(arrival, duration, arrival)
        begin = max(arrival, reads[0][0])
        wanted = (moment for moment in itertools.count(begin) if moment not in taken)
        expected = list(itertools.islice(wanted, duration))
        taken.update(expected)
        assert end == expected[-1] + 1


def test_a_reader_brought_late_gets_the_link_time_that_stood_idle_for_it():
    tier = Tier(TierSpec(bandwidth_mbps=1000))
    assert tier.reserve(0, 0, 1000, reader=1) == 1000
    reply(tier, 1, 1000, 9000)
    assert tier.reserve(5000, 0, 1000, reader=2) == 6000
    assert tier.reserve(9000, 0, 1000, reader=1) == 2000
    assert tier.reserve(9000, 0, 1000, reader=2) == 10_000


@given(specs, sizes, st.integers(1, 50))
def test_latency_overlaps_between_reads_in_flight(spec, nbytes, count):
    tier = Tier(spec)
    last = [tier.reserve(0, 0, nbytes, reader) for reader in range(count)][-1]
    assert last == pytest.approx(count * nbytes * 1e9 / spec.bytes_per_second + spec.latency_ns, abs=2)


@given(specs, sizes, st.lists(st.integers(0, 20 * MS), min_size=1, max_size=50))
def test_an_unlucky_server_costs_one_reader_nothing_but_the_last_lateness(spec, nbytes, stalls):
    tier, now, deadline = Tier(spec), 0, 0
    for stall in stalls:
        deadline = tier.reserve(now, 0, nbytes)
        # A reply cannot leave before its request was there, however late that request came.
        now = max(now, deadline) + stall
        reply(tier, 0, deadline, now)
    ideal = len(stalls) * (nbytes * 1e9 / spec.bytes_per_second + spec.latency_ns)
    assert deadline == pytest.approx(ideal, abs=len(stalls) + 2)


@given(specs, sizes, st.integers(0, 10 * MS), st.lists(st.integers(0, 80 * MS), min_size=1, max_size=30))
def test_think_time_is_never_given_back(spec, nbytes, stall, thinks):
    tier, now, deadline = Tier(spec), 0, 0
    for think in thinks:
        now += think
        deadline = tier.reserve(now, 0, nbytes)
        now = max(now, deadline) + stall
        reply(tier, 0, deadline, now)
    each = nbytes * 1e9 / spec.bytes_per_second + spec.latency_ns
    assert deadline == pytest.approx(sum(thinks) + len(thinks) * each, abs=len(thinks) + 2)


def test_the_rate_is_exact_over_a_million_reads_whose_transfers_are_no_whole_ns():
    tier = Tier(TierSpec(bandwidth_mbps=3333.333333))
    for _ in range(1_000_000):
        deadline = tier.reserve(0, 0, 4097)
    assert deadline == 4097 * 1_000_000 * 1_000_000_000 // 3_333_333_333


@given(specs, st.lists(st.tuples(gaps, sizes), max_size=20))
def test_the_same_reads_get_the_same_deadlines(spec, reads):
    def deadlines():
        tier = Tier(spec)
        arrivals = itertools.accumulate(gap for gap, _ in reads)
        return [tier.reserve(arrival, 0, size) for arrival, (_, size) in zip(arrivals, reads, strict=True)]

    assert deadlines() == deadlines()


def test_lateness_of_long_ago_is_forgiven_and_counted():
    tier = Tier(TierSpec(latency_ms=1))
    reply(tier, 7, 0, 5 * MS)
    arrival = 5 * MS + LIFETIME_NS + 1
    assert tier.reserve(arrival, 0, 1, reader=7) == arrival + MS
    assert tier.lateness.forgiven_ns == 5 * MS


def test_no_more_than_a_second_is_given_back_and_the_rest_is_counted():
    tier = Tier(TierSpec(latency_ms=1))
    reply(tier, 7, 0, MAX_OWED_NS + 3)
    assert tier.reserve(MAX_OWED_NS + 3, 0, 1, reader=7) == 3 + MS
    assert tier.lateness.forgiven_ns == 3


def test_a_reader_that_is_back_before_its_reply_was_noted_had_no_time_to_think():
    tier = Tier(TierSpec(latency_ms=1))
    tier.lateness.replying(7, deadline_ns=0, foreseen_ns=MS)
    assert tier.reserve(3 * MS, 0, 1, reader=7) == MS
    tier.lateness.replied(7, deadline_ns=-1, done_ns=9 * MS)
    assert tier.lateness.owed(7, 4 * MS) == 4 * MS


def test_lateness_beyond_what_is_given_back_is_forgiven_once():
    lateness = Lateness()
    lateness.replying(1, 0, 0)
    lateness.replied(1, 0, 3 * MAX_OWED_NS)
    assert [lateness.owed(1, 3 * MAX_OWED_NS + MS) for _ in range(3)] == [MAX_OWED_NS] * 3
    assert lateness.forgiven_ns == 2 * MAX_OWED_NS


def test_after_a_pause_a_reader_is_owed_what_its_process_was_late_last():
    """Three threads of a process, one of another; the last reply lets all of the process go on."""
    lateness = Lateness(lambda reader: reader // 10)
    for reader, late in ((11, 5 * MS), (12, 2 * MS), (21, 3 * MS)):
        lateness.replying(reader, deadline_ns=0, foreseen_ns=late)
    for reader, late in ((12, 2 * MS), (21, 3 * MS), (11, 5 * MS)):
        lateness.replied(reader, deadline_ns=0, done_ns=late)
    lateness.replying(13, 20 * MS, 20 * MS)
    lateness.replied(13, deadline_ns=20 * MS, done_ns=20 * MS + 7)
    assert lateness.owed(11, 5 * MS + PAUSE_NS) == 5 * MS
    assert lateness.owed(11, 21 * MS) == lateness.owed(12, 21 * MS) == 7
    assert lateness.owed(21, 21 * MS) == 3 * MS


def test_lateness_belongs_to_its_own_reader():
    tier = Tier(TierSpec(latency_ms=1))
    reply(tier, 1, 0, MS)
    assert tier.reserve(MS, 0, 1, reader=2) == 2 * MS


def test_readers_that_come_and_go_do_not_fill_the_memory():
    tier = Tier(TierSpec(latency_ms=1))
    steady = -1
    for reader in range(3 * MAX_READERS):
        reply(tier, reader, 0, MS)
        reply(tier, steady, 0, MS)
    assert tier.lateness.owed(0, MS) == 0
    assert tier.lateness.owed(steady, MS) == MS
    assert tier.lateness.owed(3 * MAX_READERS - 1, MS) == MS


@pytest.mark.parametrize("mbps", [0, -1, math.nan, math.inf, 1e10, 1e-7, "500", True])
def test_a_bandwidth_that_cannot_be_is_refused(mbps):
    with pytest.raises(SpecError, match="bandwidth"):
        TierSpec(bandwidth_mbps=mbps)


@pytest.mark.parametrize("lat", [-0.1, math.nan, math.inf, 1e6, "1", None])
def test_a_latency_that_cannot_be_is_refused(lat):
    with pytest.raises(SpecError, match="latency"):
        TierSpec(latency_ms=lat)


def test_a_spec_survives_json_and_refuses_what_it_does_not_know():
    spec = TierSpec(bandwidth_mbps=500, latency_ms=1)
    assert TierSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(SpecError, match="colour"):
        TierSpec.from_dict({"colour": 1})


@pytest.mark.parametrize(
    ("mbps", "lat", "model"),
    # The reference experiment's own column: 4 MiB / (4 MiB / B + L).
    [
        (250, 1, 236),
        (250, 5, 193),
        (500, 1, 447),
        (500, 5, 313),
        (1000, 1, 808),
        (1000, 5, 456),
        (2000, 1, 1354),
    ],
)
def test_the_chunked_model_is_the_references(mbps, lat, model):
    assert TierSpec(mbps, lat).chunked_mbps(4 << 20) == pytest.approx(model, abs=0.6)


def _carried_with_all_idle_time_kept(reads):
    """The rule of Link, written down plainly: idle time of the last REMEMBERED_NS can be used once."""
    free, gaps = 0, []
    for arrival, duration in reads:
        if arrival >= free:
            if arrival > free > 0:
                gaps = [gap for gap in gaps if gap[1] >= arrival - REMEMBERED_NS] + [(free, arrival)]
            free = arrival + duration
            yield free
            continue
        left, end, wanted = [], arrival, duration
        for start, stop in gaps:
            begin = max(start, arrival)
            used = min(max(0, stop - begin), wanted)
            wanted -= used
            end = begin + used if used else end
            pieces = ((start, begin), (end, stop)) if used else ((start, stop),)
            left += [piece for piece in pieces if piece[0] < piece[1]]
        gaps = left
        free += wanted
        yield free if wanted else end


def test_many_late_small_reads_cost_no_more_than_few_and_lose_no_idle_time():
    dice = random.Random(1)
    arrivals = itertools.accumulate(round(dice.expovariate(1 / 40_000)) for _ in range(6000))
    late = ((at, round(dice.expovariate(1 / 2e6)) * dice.randrange(2)) for at in arrivals)
    reads = [(MS * 1000 + at - lateness, 8192) for at, lateness in late]
    link = Link()
    assert [link.carry(*read, read[0]) for read in reads] == list(_carried_with_all_idle_time_kept(reads))
    for at in range(0, 400_000_000, 20_000):
        link.carry(MS * 2000 + at, 8192, MS * 2000 + at)
    assert len(link._gaps) <= MAX_GAPS
    assert link._gaps[0][1] >= link._gaps[-1][1] - REMEMBERED_NS
