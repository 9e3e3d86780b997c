"""What decode from a tier is held against: its own reads in virtual time, on the tier as its model has it."""

import dataclasses
import heapq
import random

import pytest
from test_virtual import read_ahead

from hbf_fuse.sweep import decode as decoding
from hbf_fuse.sweep.decode import Decode
from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.traces.trace import Read

SIZE = 128 << 10
SPEC = TierSpec(400, 1)
TRANSFER = SIZE / 400e6
"""Seconds that SPEC's link takes for a read."""

LATENCY = 1e-3
COUNT = 400
PIECES = ((0, SIZE),) * COUNT
START_NS = 1_000_000_000


def recorded(specs, pieces=PIECES, threads=1, depth=1, think_ns=lambda _: 0, late_ns=lambda: 0):
    """A trace of threads that each read these pieces, as (tier, bytes), with `depth` in flight. The next one
    is sent when the data of the oldest was there and the think time is over.
    """
    tiers, found = [Tier(spec) for spec in specs], []
    waiting = [
        (START_NS + think_ns(thread), thread, number) for thread in range(threads) for number in range(depth)
    ]
    heapq.heapify(waiting)
    while waiting:
        arrival, thread, number = heapq.heappop(waiting)
        tier, nbytes = pieces[number]
        # Scattered: what lies in a row might be readahead.
        offset = (number * 7919 % 4001 * threads + thread) * 3 * SIZE
        deadline = tiers[tier].reserve(arrival, offset, nbytes)
        # No reply comes in the same ns.
        done = max(deadline, arrival + 1) + late_ns()
        found.append(Read(arrival, deadline, done, offset, nbytes, thread + 1, 2, tier))
        if number + depth < len(pieces):
            heapq.heappush(waiting, (done + think_ns(thread), thread, number + depth))
    return found


def of(reads, specs=(SPEC,), tokens=1, compute=0.01):
    names = ("hbf", "slow", "dram")
    return Decode(compute, reads, tokens, dict(zip(names, specs, strict=False)))


def some(most_ns, seed=1):
    """Times of chance."""
    draw = random.Random(seed)
    return lambda *_: draw.randrange(most_ns)


def test_one_read_after_the_other_takes_latency_and_transfer_each():
    found = of(recorded([SPEC]), tokens=10)
    assert found.tier_seconds == pytest.approx(COUNT * (LATENCY + TRANSFER) / 10, rel=1e-6)
    assert found.bytes_per_token == COUNT * SIZE / 10


@pytest.mark.parametrize("sizes", [[4096, 60 << 10, 1 << 20], [2 << 20]])
def test_every_read_counts_with_its_own_size(sizes):
    pieces = [(0, sizes[number % len(sizes)]) for number in range(300)]
    expected = sum(LATENCY + nbytes / 400e6 for _, nbytes in pieces)
    assert of(recorded([SPEC], pieces)).tier_seconds == pytest.approx(expected, rel=1e-6)


def test_what_is_in_flight_together_shares_the_latency():
    reads = recorded([SPEC], depth=2)
    assert of(reads).tier_seconds == pytest.approx(COUNT / 2 * (LATENCY + TRANSFER) + TRANSFER, rel=1e-6)
    # Where two hide the latency, the link is all there is.
    fast = TierSpec(400, 0.1)
    assert of(recorded([fast], depth=2), [fast]).tier_seconds == pytest.approx(COUNT * TRANSFER, rel=0.001)


@pytest.mark.parametrize("using_ns", [0, 40_000_000])
def test_readahead_runs_ahead_by_the_windows_that_the_kernel_asks_for(using_ns):
    """Recorded where computing took longer than reading, too: windows that came before they were needed."""
    tier = TierSpec(2000, 20)
    there = read_ahead(tier, 0)
    expected = (max(read.done_ns for read in there) - there[0].arrival_ns) / 1e9
    assert of(read_ahead(tier, using_ns), [tier]).tier_seconds == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("spec", [SPEC, TierSpec(100, 1)], ids=str)
@pytest.mark.parametrize("think_ns", [0, 20_000])
def test_threads_with_chains_of_their_own_share_the_link(spec, think_ns):
    think = some(15_000)
    pause = (lambda thread: think_ns + think()) if think_ns else (lambda thread: 0)
    expected = max(expect.ends_ns(spec, SIZE, [0, 0], COUNT)) / 1e9
    assert of(recorded([spec], threads=2, think_ns=pause), [spec]).tier_seconds == pytest.approx(
        expected, rel=0.01
    )


def operations(think_ns=0, threads=2, count=300):
    """A trace as of llama.cpp: at each operation every thread reads some pieces one after the other and
    computes with each, and then they wait for each other.
    """
    tier, found, now = Tier(SPEC), [], START_NS
    pieces, computing = random.Random(1), random.Random(2)
    for _ in range(count):
        asked = [
            (now + thread, thread, pieces.choice([1, 1, 2, 3]))
            for thread in range(threads)
            if pieces.random() < 0.8
        ]
        heapq.heapify(asked)
        while asked:
            arrival, thread, left = heapq.heappop(asked)
            nbytes, offset = pieces.randrange(1, 64) * 4096, pieces.randrange(1 << 20) * 4096
            done = tier.reserve(arrival, offset, nbytes)
            found.append(Read(arrival, done, done, offset, nbytes, thread + 1, 2, 0))
            used = done + 1 + (round(computing.expovariate(1 / think_ns)) if think_ns else 0)
            now = max(now, used)
            if left > 1:
                heapq.heappush(asked, (used, thread, left - 1))
    return found


@pytest.mark.parametrize(("think_ns", "within"), [(20_000, 0.01), (200_000, 0.05), (2_000_000, 0.2)])
def test_threads_that_wait_for_each_other_at_every_operation_do_so_in_virtual_time(think_ns, within):
    """The more they compute, the less does the order of their reads tell."""
    alone = operations()
    expected = (max(read.done_ns for read in alone) - alone[0].arrival_ns) / 1e9
    assert of(operations(think_ns)).tier_seconds == pytest.approx(expected, rel=within)


def test_each_read_is_brought_by_its_own_tier():
    specs = SPEC, TierSpec(100, 5), TierSpec()
    reads = recorded(specs, [(number % 3, SIZE) for number in range(300)])
    found = of(reads, specs)
    assert found.tier_seconds == pytest.approx(100 * (LATENCY + TRANSFER + 5e-3 + 4 * TRANSFER), rel=1e-6)
    assert found.bytes_by_tier == dict.fromkeys(("hbf", "slow", "dram"), 100 * SIZE)


def test_a_read_of_two_tiers_is_there_when_both_have_brought_their_parts():
    specs = SPEC, TierSpec(100, 5)
    first = recorded(specs, [(0, SIZE)] * 100)
    # The second part lies in the slow tier and comes with the first.
    longer = round((5e-3 + 4 * TRANSFER) * 1e9) - (first[0].done_ns - first[0].arrival_ns)
    whole = [
        read._replace(
            arrival_ns=read.arrival_ns + place * longer, done_ns=read.done_ns + (place + 1) * longer
        )
        for place, read in enumerate(first)
    ]
    parts = [part for read in whole for part in (read, read._replace(offset=read.offset + SIZE, tier=1))]
    assert of(parts, specs).tier_seconds == pytest.approx(100 * (5e-3 + 4 * TRANSFER), rel=1e-6)
    fast = SPEC, TierSpec()
    assert of(parts, fast).tier_seconds == pytest.approx(100 * (LATENCY + TRANSFER), rel=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_late_replies_and_computing_are_no_part_of_the_tiers_time(depth):
    expected = of(recorded([SPEC], depth=depth)).tier_seconds
    late = recorded([SPEC], depth=depth, late_ns=some(300_000), think_ns=some(200_000, seed=2))
    took = (max(read.done_ns for read in late) - late[0].arrival_ns) / 1e9
    assert took > expected * 1.15
    assert of(late).tier_seconds == pytest.approx(expected, rel=1e-6 if depth == 1 else 0.03)
    # However late: also by more than what a read takes.
    very = recorded([SPEC], late_ns=some(20_000_000))
    assert of(very).tier_seconds == pytest.approx(COUNT * (LATENCY + TRANSFER), rel=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        TierSpec(500),
        TierSpec(500, jitter="exponential:5"),
        TierSpec(500, 1, jitter="tail:0.1,50"),
        TierSpec(500, planes=4, page_bytes=4096, t_read_us=50),
        TierSpec(500, 1, depth=1, seek_ms=3),
    ],
    ids=str,
)
def test_a_trace_of_nobody_who_computes_took_what_is_predicted(spec):
    """With jitter, planes, depth and arm, as the tier has them."""
    reads = recorded([spec])
    took = (max(read.done_ns for read in reads) - reads[0].arrival_ns) / 1e9
    assert of(reads, [spec]).tier_seconds == pytest.approx(took, rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_at_the_break_even_half_the_speed_is_left(depth):
    found = of(recorded([SPEC], depth=depth), compute=COUNT * 2e-3)
    even = found.break_even_mbps
    there = dataclasses.replace(found, specs={"hbf": TierSpec(even, 1)})
    assert there.predicted_tg == pytest.approx(1 / found.compute_seconds / 2, rel=0.001)
    assert there.overlapped_tg == pytest.approx(1 / found.compute_seconds, rel=0.002)
    slower = dataclasses.replace(found, specs={"hbf": TierSpec(even * 0.99, 1)})
    assert slower.tier_seconds > found.compute_seconds


def test_without_latency_the_bytes_alone_say_where_it_breaks_even():
    reads = recorded([TierSpec(400)])
    assert of(reads, [TierSpec(400)]).break_even_mbps == pytest.approx(COUNT * SIZE / 0.01 / 1e6)
    assert of(reads, [TierSpec()]).break_even_mbps == pytest.approx(COUNT * SIZE / 0.01 / 1e6)
    dram = recorded([TierSpec(400), TierSpec()], [(number % 2, SIZE) for number in range(COUNT)])
    assert of(dram, [TierSpec(400), TierSpec()]).break_even_mbps == pytest.approx(
        COUNT / 2 * SIZE / 0.01 / 1e6
    )


def test_where_latency_alone_takes_longer_nothing_breaks_even():
    reads = recorded([SPEC])
    assert of(reads, compute=COUNT * LATENCY * 0.99).break_even_mbps is None
    assert of(reads, compute=COUNT * LATENCY * 1.01).break_even_mbps > SIZE / (LATENCY * 0.02) / 1e6
    # Two in flight wait half as long.
    assert of(recorded([SPEC], depth=2), compute=COUNT * LATENCY * 0.99).break_even_mbps is not None
    assert of([]).break_even_mbps is None


def test_two_predictions_stand_side_by_side():
    """Nothing overlaps, and everything does; with the bytes that hide the latency: 400 MB/s x 1 ms."""
    found = of(recorded([SPEC]))
    assert found.predicted_tg == pytest.approx(1 / (0.01 + found.tier_seconds))
    assert found.overlapped_tg == pytest.approx(1 / found.tier_seconds)
    assert found.bound == "tier" and found.hiding_bytes == pytest.approx(400e3)
    assert of(recorded([SPEC]), [TierSpec(latency_ms=5)]).hiding_bytes is None
    assert of(recorded([SPEC]), [TierSpec(1e6)]).overlapped_tg == pytest.approx(100)


def test_what_is_resident_as_a_whole_reads_nothing():
    found = of([])
    assert (found.tier_seconds, found.predicted_tg, found.hiding_bytes) == (0, 100, None)


def test_of_very_many_reads_the_last_tokens_are_replayed(monkeypatch):
    reads = recorded([SPEC], [(0, SIZE)] * 3000)
    known = of(reads, tokens=30)
    monkeypatch.setattr(decoding, "MOST_READS", 1000)
    fewer = of(reads, tokens=30)
    assert fewer.tier_seconds == pytest.approx(known.tier_seconds, rel=0.001)
    assert 9 < fewer._replayed[1] < 11
    monkeypatch.setattr(decoding, "MOST_READS", 10)
    assert 0.9 < of(reads, tokens=30)._replayed[1] < 1.1
