"""Virtual time: the same device, driven by reads that wait for each other."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.tier.virtual import START, Replay, Request, replay
from hbf_fuse.traces import chains, readahead
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.traces.trace import Read

MIB = 1 << 20
SPECS = [
    TierSpec(500, 1),
    TierSpec(None, 0.2),
    TierSpec(800, 0.5, jitter="normal:0.05+tail:0.01,2", seed=3),
    TierSpec(900, 0.1, planes=8, t_read_us=40),
    TierSpec(700, 0.3, depth=4),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, MIB)), min_size=1, max_size=60))
def test_deadlines_are_those_of_the_real_time_path(spec, reads):
    """The filesystem calls reserve as reads arrive; replay must say the same for the same arrivals."""
    reads = sorted(reads)
    tier = Tier(spec)
    expected = [tier.reserve(arrival, place * MIB, nbytes) for place, (arrival, nbytes) in enumerate(reads)]
    requests = [
        Request(((START, arrival),), place * MIB, nbytes) for place, (arrival, nbytes) in enumerate(reads)
    ]
    assert replay(requests, Tier(spec)) == expected


@pytest.mark.parametrize("depth", [1, 4])
def test_a_chain_of_reads_gets_what_a_closed_loop_gets(depth):
    spec, count = TierSpec(500, 1), 400
    requests = [
        Request(((place - depth if place >= depth else START, 0),), place * MIB, MIB)
        for place in range(count)
    ]
    rate = count * MIB * 1e3 / max(replay(requests, Tier(spec)))
    assert rate == pytest.approx(expect.closed_loop(spec, MIB, depth, count), rel=1e-9)


def test_marks_take_no_time_of_the_tier():
    requests = [Request(((START, 5),), 0, 0), Request(((0, 7),), 0, 0)]
    assert replay(requests, Tier(TierSpec(1, 100))) == [5, 12]


def test_a_replay_refuses_what_waits_for_nothing_that_exists_and_leaves_circles_out():
    with pytest.raises(IndexError, match="waits for 2"):
        replay([Request(((2, 0),), 0, 1), Request(((0, 0),), 0, 1)], Tier(TierSpec(1)))
    circle = [Request(((1, 0),), 0, 1), Request(((0, 0),), 0, 1), Request(((START, 3),), 0, 0)]
    assert replay(circle, Tier(TierSpec(1))) == [0, 0, 3]
    assert replay([], Tier(TierSpec(1))) == []


def test_one_replay_can_be_made_on_several_tiers():
    requests = [Request(((place - 1, 10),), place * MIB, MIB) for place in range(50)]
    flat = Replay(requests)
    for spec in SPECS:
        assert flat.on(Tier(spec)) == replay(requests, Tier(spec))


def test_each_read_goes_to_the_tier_in_its_place():
    requests = [Request(((place - 1, 0),), place * MIB, MIB, place % 2) for place in range(4)]
    fast, slow = TierSpec(1000), TierSpec(100, 1)
    expected = [1_048_576, 12_534_336, 13_582_912, 25_068_672]
    assert Replay(requests).on(Tier(fast), Tier(slow)) == expected
    with pytest.raises(IndexError, match="tier 1; there are 1"):
        Replay(requests).on(Tier(fast))
    with pytest.raises(IndexError, match="below 0"):
        Replay([Request(((START, 0),), 0, MIB, -1)])


def recorded(spec, think_ns, count=200, windows=1):
    """A trace of a thread that asks for `windows` reads at once, waits for the last, and thinks."""
    tier, now, found = Tier(spec), 1_000_000, []
    for round_number in range(count):
        arrival = now
        for window in range(windows):
            offset = (round_number * windows + window) * MIB
            done = tier.reserve(arrival, offset, MIB)
            found.append(Read(arrival, done, done, offset, MIB, 7, 2, 0))
        now = found[-1].done_ns + think_ns
    return found


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("think_ns", [0, 250_000])
def test_a_trace_replayed_on_another_tier_takes_what_it_would_have_taken_there(think_ns, windows):
    fast, slow = TierSpec(None, 0.05), TierSpec(400, 2)
    there = recorded(slow, think_ns, windows=windows)
    found = chains.elsewhere(recorded(fast, think_ns, windows=windows), [], slow)
    expected = (there[-1].done_ns - there[0].arrival_ns) / 1e9
    assert found["stage_seconds"] == pytest.approx(expected, rel=1e-6)


def test_a_trace_replayed_on_its_own_tier_is_the_trace():
    spec = TierSpec(600, 1)
    found = chains.elsewhere(recorded(spec, 100_000), [], spec)
    assert found["stage_seconds"] == pytest.approx(found["recorded_stage_seconds"], rel=1e-9)


def read_ahead(spec, using_ns, windows=150, of=8):
    """A trace of a reader that walks through windows of readahead; the kernel asks for the next when it comes
    to one. using_ns: what walking through one takes.
    """
    tier, found, came = Tier(spec), [], []
    now = 1_000_000

    def ask(window):
        for place in range(window * of, (window + 1) * of):
            # A few us lie between the arrivals of what was asked for at once.
            arrival = now + place % of * 3_000
            done = tier.reserve(arrival, place * MIB, MIB)
            found.append(Read(arrival, done, done, place * MIB, MIB, 7, 2, 0))
        came.append([read.done_ns for read in found[-of:]])

    ask(0)
    for window in range(windows):
        if window + 1 < windows:
            ask(window + 1)
        for done in came[window]:
            now = max(now, done) + using_ns // of
    return found


@pytest.mark.parametrize("tier", [TierSpec(200, 5), TierSpec(1000, 5), TierSpec(2000, 5), TierSpec(None, 5)])
def test_readahead_recorded_at_full_speed_runs_as_far_ahead_of_a_slow_tier(tier):
    using_ns = 2_000_000
    there = read_ahead(tier, using_ns)
    found = chains.elsewhere(read_ahead(TierSpec(None, 0.1), using_ns), [], tier)
    assert found["readahead_share"] == 1
    expected = (max(read.done_ns for read in there) - there[0].arrival_ns) / 1e9
    assert found["stage_seconds"] == pytest.approx(expected, rel=0.01)


def test_windows_are_told_from_pauses_and_not_guessed():
    told = read_ahead(TierSpec(None, 0.1), 2_000_000)
    (run,) = readahead.windows(told, range(len(told)))
    assert [len(window) for window in run] == [8] * 150
    # One request after the other, and requests in no order at all.
    single = recorded(TierSpec(500, 1), 100_000)
    assert readahead.windows(single, range(len(single))) == []
    scattered = [read._replace(offset=read.offset * 7919 % 2003 * MIB) for read in told]
    assert readahead.windows(scattered, range(len(scattered))) == []
    assert readahead.windows([], []) == []


@pytest.mark.parametrize("using_ns", [0, 500_000, 40_000_000])
def test_two_windows_on_their_way_together_are_not_taken_for_one(using_ns):
    """With more latency than a window takes to carry, the pause after both is the longer one."""
    reads = read_ahead(TierSpec(2000, 20), using_ns)
    (run,) = readahead.windows(reads, range(len(reads)))
    assert [len(window) for window in run] == [8] * 150


def in_pieces(spec, depth, runs=60):
    """A trace of a reader with `depth` reads in flight that walks through stretches in pieces of any size and
    computes for times of chance: there are no windows.
    """
    draw, tier, done = random.Random(depth), Tier(spec), [1_000_000] * depth
    found: list[Read] = []
    for _ in range(runs):
        offset = draw.randrange(1 << 20) * MIB
        for _ in range(draw.randrange(5, 40)):
            arrival = max(done[-depth], found[-1].arrival_ns if found else 0) + draw.randrange(60_000)
            nbytes = draw.randrange(1, 16) * 4096
            done.append(tier.reserve(arrival, offset, nbytes))
            found.append(Read(arrival, done[-1], done[-1], offset, nbytes, 7, 2, 0))
            offset += nbytes
    return found


@pytest.mark.parametrize("spec", [TierSpec(400, 5), TierSpec(800, 0.2), TierSpec(400)], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12])
def test_windows_that_chance_would_show_are_not_believed(spec, depth):
    """What they would wait for, the recording did not: on its own tier a trace takes as long as it took."""
    reads = in_pieces(spec, depth)
    found = chains.elsewhere(reads, [], spec)
    assert found["readahead_share"] < 0.05
    assert found["stage_seconds"] == pytest.approx(found["recorded_stage_seconds"], rel=0.01)


@pytest.mark.parametrize("count", range(2, 9))
def test_runs_of_a_few_requests_show_no_windows(count):
    """Also where there is a pause before most."""
    arrivals = [place * 1000 + max(0, place - 2) * 100_000 for place in range(count)]
    reads = [Read(at, at + 1, at + 1, place * MIB, MIB, 7, 2, 0) for place, at in enumerate(arrivals)]
    assert readahead.windows(reads, range(count)) == []


def test_windows_are_told_in_every_token_where_requests_overtake_each_other():
    """Tokens read the same stretch again and again, in windows of two requests."""
    one = read_ahead(TierSpec(None, 0.1), 1_000_000, windows=30, of=2)
    lasts = one[-1].done_ns + 20_000_000
    reads = [
        read._replace(arrival_ns=read.arrival_ns + token * lasts, done_ns=read.done_ns + token * lasts)
        for token in range(5)
        for read in one
    ]
    reads[40], reads[41] = (
        reads[40]._replace(offset=reads[41].offset),
        reads[41]._replace(offset=reads[40].offset),
    )
    runs = readahead.windows(reads, range(len(reads)))
    assert [[len(window) for window in run] for run in runs] == [[2] * 30] * 5


def test_reads_past_the_page_cache_wait_for_their_own_thread_and_others_for_anybody():
    reads = [
        Read(0, 10, 10, 0, MIB, 1, 2, 0, way=1),
        Read(1, 30, 30, 8 * MIB, MIB, 2, 2, 0, way=1),
        Read(35, 50, 50, 16 * MIB, MIB, 1, 2, 0, way=1),
    ]
    assert chains.Chains(reads).requests()[2].after == ((0, 25),)
    reads = [read._replace(way=0) for read in reads]
    assert chains.Chains(reads).requests()[2].after == ((1, 5),)


def test_decode_is_stretched_by_what_its_reads_take_longer():
    spec = TierSpec(1000, 0)
    reads = recorded(spec, 1_000_000, count=100)
    phases = [Phase("decode", 10, reads[50].arrival_ns, reads[99].done_ns + 1_000_000)]
    found = chains.elsewhere(reads, phases, TierSpec(100, 0))
    longer = 100 * MIB / 100e6 - 100 * MIB / 1000e6
    assert found["longer_seconds"] == pytest.approx(longer, rel=1e-3)
    assert found["tg"] < found["recorded_tg"]


def by_threads(spec, threads, together, rounds=150):
    """A trace of threads that read scattered pieces through the page cache and compute for 0.1 to 0.3 ms in
    between: each for itself, or all waiting for each other after every read.
    """
    draw, tier, found = random.Random(threads), Tier(spec), []
    thinks = [[draw.randrange(100_000, 300_000) for _ in range(rounds)] for _ in range(threads)]
    if together:
        now = 1_000_000
        for number in range(rounds):
            asked = sorted((now + thinks[thread][number] // 20, thread) for thread in range(threads))
            for arrival, thread in asked:
                offset = (draw.randrange(4000) * threads + thread) * 7 * 65_536
                done = tier.reserve(arrival, offset, 65_536)
                found.append(Read(arrival, done, done, offset, 65_536, thread + 1, 2, 0))
            now = max(read.done_ns for read in found[-threads:]) + 200_000
        return found
    waiting = [(1_000_000 + thread * 7_000, thread, 0) for thread in range(threads)]
    heapq.heapify(waiting)
    while waiting:
        arrival, thread, number = heapq.heappop(waiting)
        offset = (draw.randrange(4000) * threads + thread) * 7 * 65_536
        done = tier.reserve(arrival, offset, 65_536)
        found.append(Read(arrival, done, done, offset, 65_536, thread + 1, 2, 0))
        if number + 1 < rounds:
            heapq.heappush(waiting, (done + thinks[thread][number] // 20 + 200_000, thread, number + 1))
    return found


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("there", [TierSpec(200, 1), TierSpec(1_600_000, 0.01), TierSpec(2000, 0.1)])
def test_threads_wait_for_each_other_or_not_or_both_answers_are_given(threads, together, there):
    recorded_on = TierSpec(1000, 0.2)
    truth = by_threads(there, threads, together)
    expected = (max(read.done_ns for read in truth) - truth[0].arrival_ns) / 1e9
    found = chains.elsewhere(by_threads(recorded_on, threads, together), [], there)
    low, high = found.get("bracket", {}).get("stage_seconds", (found["stage_seconds"],) * 2)
    assert low * 0.98 <= expected <= high * 1.02
    if threads > 1 and found["threads"] != "unknown":
        assert found["threads"] == ("together" if together else "apart")


def test_staging_ends_when_every_page_has_come_once():
    first, again = Read(0, 10, 10, 0, 8192, 1, 2, 0), Read(20, 90, 90, 0, 4096, 1, 2, 0)
    assert chains.first_pass_ns([first, again], [10, 90]) == 10


def test_readers_that_are_as_fast_as_the_tier_are_off_by_nothing():
    """However late one of them begins, and however long one pauses."""
    spec, begins = TierSpec(200, 1), [0, 3_000_000]
    ends = expect.ends_ns(spec, MIB, begins, 8)
    told = [(begin, end, [end - begin]) for begin, end in zip(begins, ends, strict=True)]
    assert expect.readers_error_pct(spec, MIB, 8, told) == pytest.approx(0, abs=1e-6)
    paused = expect.ends_ns(spec, MIB, [0], 8, 2_000_000)[0]
    alone = (0, paused, [(paused - 14_000_000) // 8] * 8)
    assert expect.readers_error_pct(spec, MIB, 8, [alone]) == pytest.approx(0, abs=1e-3)
    slower = [(begin, begin + (end - begin) * 2, [2 * (end - begin)]) for begin, end, _ in told]
    assert expect.readers_error_pct(spec, MIB, 8, slower) == pytest.approx(-50)


def test_readers_together_get_what_a_closed_loop_gets():
    for spec in (TierSpec(200, 1), TierSpec(None, 2), TierSpec(1000)):
        ends = expect.ends_ns(spec, MIB, [0] * 4, 25)
        assert 100 * MIB * 1e3 / max(ends) == pytest.approx(expect.closed_loop(spec, MIB, 4, 100), rel=1e-6)
