"""Writes in virtual time: the link, the device's own rate, programs and erases, what reads wait for."""

import dataclasses
import random

import pytest

from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.pacing.room import Room
from hbf_fuse.tier import SpecError, Tier, TierSpec, profiles
from hbf_fuse.tier.expect import closed_loop

US, MS = 1_000, 1_000_000
PAGE = 4096
MIB = 1 << 20
KV = 16 << 40


def test_a_write_takes_its_size_over_the_bandwidth_and_the_latency():
    tier = Tier(TierSpec(500, 1))
    assert tier.write(0, KV, 500_000) == 2 * MS
    # The link is busy until 1 ms; latencies overlap.
    assert tier.write(0, KV, 500_000) == 3 * MS


def test_reads_and_writes_share_the_link():
    tier = Tier(TierSpec(500))
    assert tier.write(0, KV, 500_000) == MS
    assert tier.reserve(0, 0, 500_000) == 2 * MS
    assert tier.write(0, KV, 500_000) == 3 * MS


@pytest.mark.parametrize(("write_mbps", "rate"), [(100, 100), (500, 500), (2000, 1000)])
def test_the_slower_of_link_and_device_sets_the_rate_of_writes(write_mbps, rate):
    spec = TierSpec(1000, write_mbps=write_mbps)
    assert closed_loop(spec, MIB, 1, writes=True) == pytest.approx(rate, rel=1e-6)
    assert closed_loop(spec, MIB, 4, writes=True) == pytest.approx(rate, rel=1e-3)


def test_slow_writes_leave_the_link_to_reads():
    tier = Tier(TierSpec(1000, write_mbps=100))
    assert tier.write(0, KV, 10_000_000) == 100 * MS
    # The link has carried the write after 10 ms.
    assert tier.reserve(0, 0, 1_000_000) == 11 * MS


def flash(**more):
    return TierSpec(planes=4, page_bytes=PAGE, t_read_us=10, t_prog_us=100, **more)


def test_pages_are_programmed_by_all_planes_at_once():
    tier = Tier(flash(), MIB * 64)
    assert tier.write(0, KV, PAGE) == 100 * US
    tier = Tier(flash(), MIB * 64)
    assert tier.write(0, KV, 4 * PAGE) == 100 * US
    assert tier.write(0, KV + 4 * PAGE, 4 * PAGE) == 200 * US
    assert tier.planes.bytes_programmed == 8 * PAGE


def test_the_rate_of_writes_is_that_of_the_planes_programs():
    spec = flash(bandwidth_mbps=10_000)
    assert closed_loop(spec, MIB, 4, writes=True) == pytest.approx(4 * PAGE / 100, rel=0.01)


@pytest.mark.parametrize(("suspend_us", "waited"), [(None, 90), (0, 0), (5, 5)])
def test_a_read_waits_for_a_program_in_its_plane_or_suspends_it(suspend_us, waited):
    tier = Tier(dataclasses.replace(flash(), planes=1, suspend_us=suspend_us), MIB * 8)
    tier.write(0, KV, PAGE)
    began = 100 * US
    assert tier.write(began, KV + PAGE, PAGE) == began + 100 * US
    assert tier.reserve(began + 10 * US, KV, PAGE) == began + (10 + waited + 10) * US
    assert (tier.planes.reads_behind, tier.planes.behind_ns) == (int(waited > 0), waited * US)


def test_what_was_suspended_ends_later():
    tier = Tier(dataclasses.replace(flash(), planes=1, suspend_us=5), MIB * 8)
    tier.write(0, KV, PAGE)
    tier.write(100 * US, KV + PAGE, PAGE)
    tier.reserve(110 * US, KV, PAGE)
    # The read took 5 + 10 us of the plane, and so the program that is due at 200 us ends at 215.
    assert tier.write(150 * US, KV + 2 * PAGE, PAGE) == 315 * US


def test_a_read_finds_a_page_in_the_plane_that_it_was_written_to():
    spec = dataclasses.replace(flash(), t_read_us=100)
    tier = Tier(spec, MIB * 64)
    for page in range(4):
        tier.write(page * MS, KV, PAGE)
        written = tier.planes.translation.plane_of(KV // PAGE)
        assert written == page % 4
    # The page's plane is busy now; every other one could sense at once.
    tier.write(10 * MS, KV + PAGE, PAGE)
    busy = tier.planes.translation.plane_of(KV // PAGE + 1)
    for page in (KV, KV + PAGE):
        waits = tier.planes.translation.plane_of(page // PAGE) == busy
        assert (tier.reserve(10 * MS, page, PAGE) > 10 * MS + 100 * US) == waits


def test_a_page_that_is_written_in_part_is_sensed_first():
    tier = Tier(flash(), MIB * 64)
    tier.write(0, KV, PAGE)
    assert tier.write(MS, KV, 100) == MS + 110 * US
    assert tier.write(2 * MS, KV + 10 * PAGE, 100) == 2 * MS + 100 * US


def test_collection_takes_the_time_of_its_moves_and_erases():
    spec = TierSpec(
        planes=1, page_bytes=PAGE, t_read_us=1, t_prog_us=10, t_erase_us=1000, block_pages=8, spare_pct=50
    )
    tier, pages, draw = Tier(spec, 64 * PAGE), 64, random.Random(1)
    now = 0
    for page in range(pages):
        now = tier.write(now, KV + page * PAGE, PAGE)
    assert now == pages * 10 * US
    spent = 0
    for _ in range(1000):
        before = now
        now = tier.write(now, KV + draw.randrange(pages) * PAGE, PAGE)
        spent += now - before
    translation = tier.planes.translation
    moved = translation.medium_pages - translation.host_pages
    assert spent == 1000 * 10 * US + moved * 11 * US + translation.erases * MS
    assert tier.planes.bytes_programmed == translation.medium_pages * PAGE


def test_another_latency_leaves_pages_where_they_are_and_other_planes_begin_anew():
    tier = Tier(flash(), MIB * 64)
    tier.write(0, KV, PAGE)
    heir = tier.succeeded_by(flash(latency_ms=1))
    assert heir.planes.translation is tier.planes.translation
    assert heir.planes.bytes_programmed == PAGE
    other = tier.succeeded_by(dataclasses.replace(flash(), planes=8))
    assert other.planes.translation.host_pages == 0


@pytest.mark.parametrize(("mib", "spare_pct"), [(3200, 7.0), (64, 25.0), (1, 3100.0)])
def test_few_large_blocks_leave_more_spare_than_was_asked_for(mib, spare_pct):
    spec = TierSpec(planes=16, page_bytes=PAGE, t_prog_us=10, block_pages=256)
    assert Tier(spec, mib * MIB).planes.translation.spare_pct == pytest.approx(spare_pct, abs=0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"t_prog_us": 10},
        {"planes": 4, "t_erase_us": 10},
        {"planes": 4, "suspend_us": 1.0},
        {"write_mbps": 0},
        {"planes": 4, "t_prog_us": 1, "block_pages": 0},
        {"spare_pct": -1},
        {"spare_pct": None},
        {"endurance": 1.5},
        {"t_prog_us": float("nan"), "planes": 4},
    ],
)
def test_devices_that_cannot_be_are_refused(fields):
    with pytest.raises(SpecError):
        TierSpec(**fields)


def test_documents_of_before_say_the_same_as_ever():
    spec = TierSpec(500, 1)
    assert "t_prog_us" not in spec.to_dict() and "write_mbps" not in spec.to_dict()
    written = flash(write_mbps=100, suspend_us=0.0, endurance=1000)
    assert TierSpec.from_dict(written.to_dict()) == written


@pytest.mark.parametrize("name", ["hbf-papers-1us", "hbf-papers-3us"])
def test_the_papers_device_programs_at_16_gb_a_second(name):
    spec = profiles.load(name).spec()
    assert spec.planes * spec.page_bytes / spec.t_prog_us * 1e6 == pytest.approx(16.384e9)
    assert closed_loop(spec, MIB, 16, writes=True) == pytest.approx(16_384, rel=0.02)


def test_the_books_tell_writes_from_reads_and_leave_pauses_out():
    pacer = Pacer({"hbf": TierSpec(100)}, [(2, 10 * MIB)], {}, written_bytes=MIB)
    now = 10**9
    for number in range(20):
        # After ten writes nobody does anything for a minute.
        now += 60 * 10**9 if number == 10 else 0
        due = pacer.admit(-5, KV, 1_000_000, 1, 2, now)
        assert due == now + 10 * MS
        pacer.sending(1, now, due)
        pacer.complete(-5, KV, 1_000_000, 1, 2, now, due, due, due)
        now = due
    evidence = pacer.first_pass(pacer.kv_model)
    assert evidence.nbytes == 20_000_000
    assert evidence.seconds == pytest.approx(0.2)
    assert evidence.model_seconds == pytest.approx(0.2)
    counted = pacer.counted()
    assert (counted.writes, counted.bytes_written, counted.reads, counted.bytes) == (20, 20_000_000, 0, 0)
    assert pacer.coverage.begun() == []
    pacer.complete(-5, KV, 4096, 1, 0, now, pacer.admit(-5, KV, 4096, 1, 0, now), now, now + MS)
    assert pacer.kv_read_bytes == 4096


def test_room_is_counted_in_whole_units():
    room = Room(10 * PAGE, PAGE)
    assert room.grow(0, 1) and room.used == PAGE
    assert room.grow(1, PAGE) and room.used == PAGE
    assert not room.grow(PAGE, 11 * PAGE)
    assert room.grow(PAGE, 10 * PAGE) and room.used == 10 * PAGE
    assert room.grow(10 * PAGE, 0) and room.used == 0


def test_a_limit_of_writes_alone_leaves_reads_unthrottled():
    spec = TierSpec(write_mbps=100)
    assert not spec.throttled and spec.throttles_writes and "writes at 100 MB/s" in str(spec)
    assert closed_loop(spec, MIB, 1) is None
    assert closed_loop(spec, MIB, 1, writes=True) == pytest.approx(100)
    pacer = Pacer({"hbf": spec}, [(2, 10 * MIB)], {}, written_bytes=MIB)
    assert pacer.admit(0, 0, MIB, 1, 0, 10**9) == 10**9
    pacer.complete(0, 0, MIB, 1, 0, 10**9, 10**9, 10**9, 10**9 + MS)
    assert not pacer.first_pass(0).timed
    due = pacer.admit(-5, KV, 1_000_000, 1, 2, 10**9)
    assert due == 10**9 + 10 * MS
    pacer.complete(-5, KV, 1_000_000, 1, 2, 10**9, due, due, due + 1)
    assert pacer.first_pass(pacer.kv_model).timed
