"""Every clause of the tier model, in virtual time."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse.tier import SpecError, Tier, TierSpec
from hbf_fuse.tier.bounds import FOREVER_NS, MAX_GAPS, NOTHING, REMEMBERED_NS
from hbf_fuse.tier.heap import Heap
from hbf_fuse.tier.link import Link

MS = 1_000_000
specs = st.builds(
    TierSpec,
    bandwidth_mbps=st.floats(0.1, 1e7),
    latency_ms=st.floats(0, 100),
)
sizes = st.integers(1, 8 << 20)
gaps = st.integers(0, 50 * MS)


@given(specs, st.lists(st.tuples(gaps, sizes), min_size=2, max_size=40))
def test_no_window_is_faster_than_the_link_and_order_is_kept(spec, reads):
    tier, arrival, deadlines = Tier(spec), 0, []
    for gap, nbytes in reads:
        arrival += gap
        deadlines.append(tier.reserve(arrival, 0, nbytes))
    assert deadlines == sorted(deadlines)
    for first, last in itertools.combinations(range(len(reads)), 2):
        moved = sum(nbytes for _, nbytes in reads[first + 1 : last + 1])
        assert deadlines[last] - deadlines[first] >= moved * 1e9 / spec.bytes_per_second - 2


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 300)), min_size=1, max_size=60))
def test_the_link_gives_no_moment_twice_and_wastes_none_that_is_wanted(reads):
    """Compared with a link that is simulated moment by moment, for arrivals in any order."""
    link, taken = Link(), set()
    for arrival, duration in reads:
        end = link.carry(arrival, duration, arrival)
        begin = max(arrival, reads[0][0])
        wanted = (moment for moment in itertools.count(begin) if moment not in taken)
        expected = list(itertools.islice(wanted, duration))
        taken.update(expected)
        assert end == expected[-1] + 1


def test_a_late_read_gets_the_link_time_that_was_idle_for_it():
    tier = Tier(TierSpec(bandwidth_mbps=1000))
    assert tier.reserve(0, 0, 1000) == 1000
    assert tier.reserve(5000, 0, 1000) == 6000
    assert tier.reserve(1000, 0, 1000) == 2000
    assert tier.reserve(9000, 0, 1000) == 10_000


@given(specs, sizes, st.integers(1, 50))
def test_latency_overlaps_between_reads_in_flight(spec, nbytes, count):
    tier = Tier(spec)
    last = [tier.reserve(0, 0, nbytes) for _ in range(count)][-1]
    assert last == pytest.approx(count * nbytes * 1e9 / spec.bytes_per_second + spec.latency_ns, abs=2)


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


@pytest.mark.parametrize("mbps", [0, -1, math.nan, math.inf, 1e10, 1e-7, "500", True])
def test_an_impossible_bandwidth_is_refused(mbps):
    with pytest.raises(SpecError, match="bandwidth"):
        TierSpec(bandwidth_mbps=mbps)


@pytest.mark.parametrize("lat", [-0.1, math.nan, math.inf, 1e6, "1", None])
def test_an_impossible_latency_is_refused(lat):
    with pytest.raises(SpecError, match="latency"):
        TierSpec(latency_ms=lat)


def test_a_spec_survives_json_and_refuses_unknown_keys():
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
    """The rule of Link in its simplest form: idle time of the last REMEMBERED_NS can be used once."""
    gaps: list[tuple[int, int]] = []
    free = 0
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
    idle = link.idle_times()
    assert len(idle) <= MAX_GAPS
    assert idle[0][1] >= idle[-1][1] - REMEMBERED_NS


@given(st.integers(1, 10**15), st.lists(st.integers(1, 1 << 44), min_size=1, max_size=5))
def test_huge_reads_take_the_time_of_a_single_exact_division(rate, sizes):
    tier = Tier(TierSpec(rate / 1e6))
    rate = tier.spec.bytes_per_second
    taken = [tier.reserve(0, 0, nbytes) for nbytes in sizes]
    exact = [total * 10**9 // rate for total in itertools.accumulate(sizes)]
    assert taken == [min(each, FOREVER_NS) for each in exact]


def test_no_tier_is_so_slow_that_its_times_overflow():
    slow = TierSpec(1e-6, 60_000, "lognormal:60000,4", planes=1, page_bytes=1, t_read_us=6e7, depth=1)
    tier, deadline = Tier(slow), 0
    for _ in range(20):
        deadline = tier.reserve(deadline, 0, 1 << 44)
        assert FOREVER_NS <= deadline < 2 * FOREVER_NS


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-(1 << 63), (1 << 63) - 1)), max_size=40))
def test_a_heap_gives_its_entries_in_the_order_of_key_and_item(entries):
    heap = Heap(len(entries))
    assert all(heap.push(*entry) for entry in entries)
    assert not heap.push(0, 0)
    assert heap.count == len(entries)
    found = []
    while heap.count:
        found.append((heap.first_key(), heap.pop()))
    assert found == sorted(entries)
    assert heap.pop() == NOTHING and heap.first_key() == (1 << 63) - 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.data())
def test_a_heap_stays_in_order_when_entries_leave_early(keys, data):
    heap, left = Heap(64), {}
    for item, key in enumerate(keys):
        heap.push(key, item)
        left[item] = key
    for item in data.draw(st.lists(st.integers(0, 45), max_size=20)):
        assert heap.remove(item) == (left.pop(item, None) is not None)
    assert [heap.pop() for _ in left] == sorted(left, key=lambda item: (left[item], item))
    assert not heap.count
