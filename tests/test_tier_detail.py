"""Jitter, flash detail, depth and the model's expectation, in virtual time."""

import heapq
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse import compiled
from hbf_fuse.tier import SpecError, Tier, TierSpec, expect, jitter, profiles

US, MS = 1000, 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "uniform:0.5",
        "normal:0.2",
        "lognormal:0.4,0.8",
        "exponential:0.3",
        "tail:0.01,2",
        "normal:0.1+tail:0.02,1",
    ],
)
def test_jitter_has_the_mean_and_the_deviation_that_it_promises(text):
    tier = Tier(TierSpec(latency_ms=1, jitter=text, seed=3))
    seen = [tier.reserve(0, 0, 1) / MS for _ in range(60_000)]
    parts = jitter.parse(text)
    deviation = sum(part.deviation_ms() ** 2 for part in parts) ** 0.5
    assert statistics.mean(seen) == pytest.approx(
        1 + sum(part.mean_ms() for part in parts), abs=deviation / 40
    )
    assert statistics.pstdev(seen) == pytest.approx(deviation, rel=0.08)
    assert min(seen) >= 0


def test_the_seed_decides_the_jitter():
    def draws(seed):
        tier = Tier(TierSpec(latency_ms=1, jitter="exponential:1", seed=seed))
        return [tier.reserve(0, 0, 1) for _ in range(50)]

    assert draws(1) == draws(1) != draws(2)
    seeds = (0, 1, -1, 1 << 62, -(1 << 62), (1 << 63) - 1, 1 - (1 << 63))
    assert len({tuple(draws(seed)) for seed in seeds}) == len(seeds)


def test_a_rare_event_is_as_rare_as_it_should_be():
    latencies = jitter.latencies(jitter.parse("tail:1e-6,1000"), 0, seed=5)
    draws = 20_000_000 if not compiled.why_not() else 200_000
    seen = sum(latencies.draw() > 0 for _ in range(draws))
    expected = draws * 1e-6
    assert abs(seen - expected) <= 4 * expected**0.5 + 1


@pytest.mark.parametrize(
    "text",
    [
        "gamma:1",
        "uniform",
        "uniform:a",
        "uniform:1,2",
        "uniform:-1",
        "normal:nan",
        "tail:2,1",
        "lognormal:1,9",
    ],
)
def test_an_invalid_jitter_is_refused(text):
    with pytest.raises(SpecError, match="jitter"):
        TierSpec(latency_ms=100, jitter=text)


@pytest.mark.parametrize("text", ["uniform:1.1", "normal:0.3"])
def test_a_jitter_that_would_go_negative_is_refused(text):
    with pytest.raises(SpecError, match="below zero"):
        TierSpec(latency_ms=1, jitter=text)


def test_a_small_read_costs_a_whole_page():
    tier = Tier(TierSpec(planes=4, page_bytes=4096, t_read_us=50))
    assert tier.reserve(0, 4000, 512) == 50 * US
    assert tier.planes.bytes_sensed == 2 * 4096


def test_read_amplification_is_whole_pages_over_requested_bytes():
    tier = Tier(TierSpec(planes=4, page_bytes=16384, t_read_us=50))
    for page in range(10):
        tier.reserve(0, page * 16384, 4096)
    assert tier.planes.read_amplification == 4


def test_readers_share_the_link_evenly():
    tier, done, shares = Tier(TierSpec(500, 0.3)), dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0)
    for _ in range(4000):
        reader = min(done, key=done.get)
        done[reader] = tier.reserve(done[reader], 0, 1 << 17)
        shares[reader] += 1
    assert max(shares.values()) - min(shares.values()) <= 1


def test_planes_work_at_once_and_one_plane_works_in_turn():
    spread = Tier(TierSpec(planes=4, page_bytes=4096, t_read_us=50))
    assert spread.reserve(0, 0, 4 * 4096) == 50 * US
    assert spread.reserve(0, 16 * 4096, 5 * 4096) == 150 * US
    same = Tier(TierSpec(planes=4, page_bytes=4096, t_read_us=50, interleave="modulo"))
    assert [same.reserve(0, plane * 4 * 4096, 4096) for plane in range(3)] == [50 * US, 100 * US, 150 * US]


def test_the_page_sensed_last_stays_in_its_register():
    tier = Tier(TierSpec(1000, planes=4, page_bytes=4096, t_read_us=50))
    # 8 reads of 512 bytes sense one page: 50 us, and 4.096 us of link, one after the other.
    now = 0
    for place in range(8):
        now = tier.reserve(now, place * 512, 512)
    assert now == 50 * US + 4096
    assert tier.planes.bytes_sensed == 4096
    # Another page in its plane replaces it.
    tier.reserve(now, 4 * 4096, 4 * 4096)
    tier.reserve(now, 0, 512)
    assert tier.planes.bytes_sensed == 6 * 4096


@pytest.mark.parametrize("rounds", [1, 2, 3, 8])
def test_a_read_longer_than_all_planes_is_not_carried_before_it_is_sensed(rounds):
    """A round takes half of tR on the link. The last round is sensed at rounds x tR, and then carried."""
    spec = TierSpec(4 * 4096 / 25, planes=4, page_bytes=4096, t_read_us=50)
    due = Tier(spec).reserve(0, 0, rounds * 4 * 4096)
    assert due == pytest.approx(rounds * 50 * US + 25 * US, abs=rounds)


def test_every_stride_uses_many_planes():
    """4 KiB at every power of two: at least half of what random reads get."""
    spec = TierSpec(1_536_000, planes=4096, page_bytes=4096, t_read_us=10)
    for power in range(12, 34):
        tier = Tier(spec)
        last = max(tier.reserve(0, place << power, 4096) for place in range(4096))
        # With 4096 random reads, the fullest plane has 7 pages.
        assert last <= 8 * 10 * US, power


@pytest.mark.parametrize(("depth", "per_second"), [(1, 14_167), (32, 394_000), (512, 1_150_000)])
def test_the_model_fits_a_real_ssd(depth, per_second):
    """Planes limit random reads, the link limits streams. Figures are from a page-level simulator."""
    spec = TierSpec(7000, 0.02, planes=64, page_bytes=16384, t_read_us=50)
    tier, draw, done = Tier(spec), random.Random(1), [0] * depth
    for _ in range(20_000):
        arrival = heapq.heappop(done)
        heapq.heappush(done, tier.reserve(arrival, draw.randrange(1 << 26) * 4096, 4096))
    assert 20_000e9 / max(done) == pytest.approx(per_second, rel=0.03)
    assert expect.closed_loop(spec, 1 << 20, 32) == pytest.approx(7000, rel=0.01)


@pytest.mark.parametrize(
    ("name", "depth", "per_second"),
    [("nvme-gen4", 1, 22_000), ("nvme-gen4", 512, 1_400_000), ("nvme-gen5", 512, 1_850_000)],
)
def test_ssd_profiles_match_their_data_sheets(name, depth, per_second):
    """The figures that the profiles name: random 4 KiB reads, and the sequential rate, within 5%."""
    spec = profiles.load(name).spec()
    tier, draw, done = Tier(spec), random.Random(1), [0] * depth
    for _ in range(40_000):
        arrival = heapq.heappop(done)
        heapq.heappush(done, tier.reserve(arrival, draw.randrange(1 << 28) * 4096, 4096))
    assert 40_000e9 / max(done) == pytest.approx(per_second, rel=0.05)
    assert expect.closed_loop(spec, 1 << 17, 32) == pytest.approx(spec.bandwidth_mbps, rel=0.05)


def test_the_hbf_of_papers_has_the_rate_of_its_planes():
    """Son et al., Table I: 16 x 25 x 4 KiB / 1 us = 1.638 TB/s; a third of it at 3 us."""
    for name, share in (("hbf-papers-1us", 1), ("hbf-papers-3us", 1 / 3)):
        rate = expect.closed_loop(profiles.load(name).spec(), 1 << 20, 64)
        assert rate == pytest.approx(1_638_400 * share, rel=0.01)


def test_an_arm_seeks_only_where_the_last_read_did_not_end():
    disk = profiles.load("hard-disk").spec()
    assert expect.closed_loop(disk, 1 << 17, 1) == pytest.approx(200, rel=0.01)
    tier, now = Tier(disk), 0
    for place in (9, 3, 7, 1):
        now = tier.reserve(now, place << 20, 4096)
    assert now == pytest.approx(4 * 12.2 * MS + 4 * 20.48 * US)
    # Readers share the arm.
    assert tier.reserve(0, 0, 4096) == pytest.approx(now + 12.2 * MS + 20.48 * US)


def test_a_retry_is_of_a_page_and_occupies_its_plane():
    """A range has the same number of retries if it is read in other pieces."""
    spec = TierSpec(planes=16, page_bytes=4096, t_read_us=10, jitter="tail:0.01,1", seed=3)
    senses = {}
    for nbytes in (4096, 1 << 16, 1 << 20):
        tier, last = Tier(spec), 0
        for offset in range(0, 1 << 26, nbytes):
            last = max(last, tier.reserve(0, offset, nbytes))
        senses[nbytes] = last
    # 1024 pages a plane, 1% of them 1 ms longer.
    assert len(set(senses.values())) == 1
    assert senses[4096] == pytest.approx(1024 * (10 * US + 10 * US), rel=0.8)


def test_very_long_reads_take_as_long_as_their_pages_do():
    """The device looks one by one only at pages near both ends."""
    spec = TierSpec(1000, planes=2, page_bytes=4096, t_read_us=10)
    assert Tier(spec).reserve(0, 0, 1 << 36) == pytest.approx((1 << 24) / 2 * 10 * US, rel=1e-3)
    assert Tier(spec).reserve(0, 0, 1 << 44) > 1e12


def test_the_link_carries_pages_as_they_come():
    # 8 pages on 8 planes are ready at 50 us; 32 KiB at 1000 MB/s take 32.768 us more.
    assert Tier(TierSpec(1000, planes=8, t_read_us=50)).reserve(0, 0, 8 * 4096) == 50 * US + 32_768
    # On one plane the last page comes at 400 us and needs 4.096 us of link.
    assert Tier(TierSpec(1000, planes=1, t_read_us=50)).reserve(0, 0, 8 * 4096) == 400 * US + 4096


@given(st.integers(1, 64), st.integers(1, 1 << 20), st.integers(0, 1 << 24))
def test_flash_is_never_faster_than_its_planes_or_its_link(planes, nbytes, offset):
    spec = TierSpec(1000, planes=planes, page_bytes=4096, t_read_us=25)
    deadline = Tier(spec).reserve(0, offset, nbytes)
    pages = (offset + nbytes - 1) // 4096 - offset // 4096 + 1
    assert deadline >= 25 * US * -(-pages // planes)
    assert deadline >= nbytes * 1e9 / spec.bytes_per_second - 1


def test_depth_bounds_the_reads_in_the_device():
    tier = Tier(TierSpec(latency_ms=1, depth=2))
    assert [tier.reserve(0, 0, 1) for _ in range(6)] == [MS, MS, 2 * MS, 2 * MS, 3 * MS, 3 * MS]


@pytest.mark.parametrize("mbps", [250, 500, 2000, None])
@pytest.mark.parametrize("lat", [0.2, 1, 5])
@pytest.mark.parametrize("depth", [1, 4, 9])
def test_the_expectation_is_the_closed_form_where_there_is_one(mbps, lat, depth):
    spec = TierSpec(mbps, lat)
    assert expect.closed_loop(spec, 1 << 20, depth) == pytest.approx(
        spec.chunked_mbps(1 << 20, depth), rel=0.01
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"planes": -1},
        {"planes": 4, "page_bytes": 0},
        {"t_read_us": 5},
        {"depth": -1},
        {"t_read_us": float("nan")},
    ],
)
def test_invalid_flash_detail_is_refused(fields):
    with pytest.raises(SpecError):
        TierSpec(**fields)


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_a_tier_and_says_where_each_value_comes_from(name):
    profile = profiles.load(name)
    assert profile.spec().throttled
    assert all(
        value.label in ("sourced", "assumed") and len(value.why) > 10 for value in profile.values.values()
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "about = 'x'\n[colour]\nvalue = 1\nassumed = 'why'",
        "about = 'x'\n[latency_ms]\nvalue = 1",
        "about = 'x'\n[latency_ms]\nvalue = 1\nassumed = 'a'\nsourced = 'b'",
        "about = 'x'\nlatency_ms = 1",
        "about = 'x'\n[latency_ms]\nvalue = -1\nassumed = 'why'",
        "about = ",
    ],
)
def test_a_profile_without_provenance_is_refused(text):
    with pytest.raises(SpecError):
        profiles.parse("bad", text)


def test_a_read_of_an_idle_plane_waits_for_no_queue_of_another_one():
    tier = Tier(TierSpec(1000, planes=2, page_bytes=4096, t_read_us=1000, interleave="modulo"))
    now = 10**12
    tier.reserve(now - 10**9, 0, 4096)
    for row in range(1, 300):
        tier.reserve(now, row * 2 * 4096, 4096)
    assert tier.reserve(now + 1000, 4096, 4096) - now < 1_100_000
