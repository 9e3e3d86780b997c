"""KV spill: closed formulas, simulation and real reads."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import GgufError, GgufFile, kv
from hbf_fuse.kv import endurance, requirements
from hbf_fuse.kv import replay as kv_replay
from hbf_fuse.kv import solve as kv_solve
from hbf_fuse.kv.sim import simulate, tokens_for
from hbf_fuse.kv.spill import Spill, ceiling_tps, fastest_seconds, token_seconds
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.flash import translation_of

QWEN = {"block_count": 36, "embedding_length": 2048, "attention.head_count": 16, "attention.head_count_kv": 2}


def model(**fields):
    metadata = {f"qwen2.{key}": value for key, value in {**QWEN, **fields}.items() if value is not None}
    return GgufFile(Path("m.gguf"), 0, 3, {"general.architecture": "qwen2", **metadata}, [], 0)


def spill(**fields):
    usual = {"kv_bytes": 36_864, "layers": 4, "context": 600, "resident": 100, "compute_seconds": 0.01}
    return Spill(**{**usual, "chunk_bytes": 1 << 18, "depth": 4, **fields})


def test_a_token_of_qwen_takes_what_its_geometry_says():
    assert kv.bytes_per_token(model()) == 2 * 36 * 2 * 128 * 2 == 36_864
    assert kv.bytes_per_token(model(), "q8_0", "q8_0") == 36_864 // 2 // 32 * 34
    assert kv.bytes_per_token(model(), "q4_0", "q4_0") == 36_864 // 2 // 32 * 18
    assert kv.bytes_per_token(model(), "f32", "f16") == 36_864 // 2 * 3


def test_layers_without_a_cache_of_their_own_cost_nothing():
    whole = kv.bytes_per_token(model())
    assert kv.bytes_per_token(model(nextn_predict_layers=1)) == whole * 35 // 36
    hybrid = model(**{"attention.head_count_kv": [2] * 18 + [0] * 18})
    assert kv.bytes_per_token(hybrid) == whole // 2
    known = (model(), model(nextn_predict_layers=1), hybrid)
    assert [kv.cached_layers(each) for each in known] == [36, 35, 18]


@pytest.mark.parametrize(
    ("fields", "types", "words"),
    [
        ({"attention.head_count_kv": [2, 2]}, ("f16", "f16"), "a list of 2 for 36 layers"),
        ({"block_count": 0}, ("f16", "f16"), "has 0 layers"),
        ({"nextn_predict_layers": 37}, ("f16", "f16"), "37 of them"),
        ({"block_count": None}, ("f16", "f16"), "block_count"),
        ({"attention.key_length": 100}, ("q8_0", "f16"), "not a multiple"),
        ({}, ("q3_k", "f16"), "unknown cache type"),
    ],
)
def test_a_model_that_the_formula_does_not_fit_is_refused_with_the_reason(fields, types, words):
    with pytest.raises(GgufError, match=words):
        kv.bytes_per_token(model(**fields), *types)


def test_a_key_that_llama_cpp_does_not_read_changes_nothing():
    ignored = {
        "attention.sliding_window": 4096,
        "full_attention_interval": 4,
        "attention.kv_lora_rank": 512,
        "attention.shared_kv_layers": 6,
    }
    assert kv.bytes_per_token(model(**ignored)) == kv.bytes_per_token(model())


def test_the_ceiling_is_the_first_order_formula():
    expected = 1 / (2 * 0.05e-3 + 256_000 / 500e6)
    assert ceiling_tps(256_000, TierSpec(500, 0.05), 2) == pytest.approx(expected)
    assert ceiling_tps(256_000, TierSpec(), 2) is None


@settings(deadline=None, max_examples=80)
@given(
    mbps=st.floats(20, 5000),
    lat_ms=st.floats(0, 5),
    depth=st.integers(1, 12),
    prefetch=st.integers(0, 1),
    context=st.integers(101, 2000),
    compute=st.floats(0, 0.05),
    chunk=st.sampled_from([1 << 16, 1 << 18, 1 << 20]),
)
def test_closed_forms_equal_the_simulation(mbps, lat_ms, depth, prefetch, context, compute, chunk):
    case = spill(depth=depth, prefetch=prefetch, context=context, compute_seconds=compute, chunk_bytes=chunk)
    spec = TierSpec(mbps, lat_ms)
    expected = token_seconds(case, spec)
    assume(expected and expected > 1e-4)
    seconds = simulate(case, spec, tokens=12).seconds
    assert sum(seconds) / len(seconds) == pytest.approx(expected, rel=1e-3)


def test_prefetch_hides_the_shorter_of_reading_and_computing():
    spec = TierSpec(1000, 0)
    alone, ahead = simulate(spill(), spec), simulate(spill(prefetch=1), spec)
    # The link carries the token's keys and values, too.
    reading = (spill().token_bytes + spill().written_bytes) / 1000e6
    assert sum(alone.seconds) / len(alone.seconds) == pytest.approx(reading + 0.01, rel=1e-3)
    assert sum(ahead.seconds) / len(ahead.seconds) == pytest.approx(max(reading, 0.01), rel=1e-3)


def test_writing_back_bounds_a_tier_that_writes_slowly():
    slow = simulate(spill(context=101), TierSpec(5000, write_mbps=0.5))
    assert slow.bound == "write"
    assert slow.tps(50) == pytest.approx(0.5e6 / 36_864, rel=1e-2)


def test_jitter_spreads_the_tokens_and_a_seed_repeats_them():
    spec = TierSpec(2000, 1, jitter="exponential:0.5+tail:0.01,20", seed=4)
    once, again = simulate(spill(), spec), simulate(spill(), spec)
    assert once == again
    assert once.tps(5) < once.tps(50) < once.tps(95)
    assert simulate(spill(), dataclasses.replace(spec, seed=5)).seconds != once.seconds


def test_the_bound_of_a_token_is_named():
    assert simulate(spill(), TierSpec(10)).bound == "bandwidth"
    assert simulate(spill(), TierSpec(1e6, 100)).bound == "latency"
    assert simulate(spill(), TierSpec(1e6)).bound == "compute"


@pytest.mark.parametrize("jitter", ["", "exponential:0.05"])
@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_the_least_bandwidth_meets_the_target_and_less_does_not(prefetch, jitter):
    case, spec = spill(prefetch=prefetch), TierSpec(None, 0.1, jitter=jitter)
    found = kv_solve.least_mbps(case, spec, tps=40)
    enough = simulate(case, dataclasses.replace(spec, bandwidth_mbps=found)).tps(50)
    short = simulate(case, dataclasses.replace(spec, bandwidth_mbps=found * 0.98)).tps(50)
    assert enough >= 40 * 0.999 and short < 40


def test_the_greatest_latency_meets_the_target_and_more_does_not():
    case = spill()
    found = kv_solve.most_lat_ms(case, TierSpec(2000), tps=30)
    assert simulate(case, TierSpec(2000, found * 0.99)).tps(50) >= 30
    assert simulate(case, TierSpec(2000, found * 1.02)).tps(50) < 30


def test_a_target_that_no_tier_meets_says_what_bounds_it():
    with pytest.raises(HbfError, match="compute alone leaves 100"):
        kv_solve.least_mbps(spill(), TierSpec(), tps=200)
    with pytest.raises(HbfError, match="no latency gives"):
        kv_solve.most_lat_ms(spill(), TierSpec(10), tps=90)


def test_requirements_say_where_nothing_is_needed_and_where_nothing_helps():
    rows = requirements.table([spill(context=50), spill()], TierSpec(), [20, 200], 50)
    assert all("nothing is spilled" in row["why"] for row in rows[:2])
    assert rows[2]["least_mbps"] > 0 and rows[2]["simulated_tps"] >= 20 * 0.999
    assert "compute" in rows[3]["why"]
    rows = requirements.table([spill()], TierSpec(2000), [30], 50)
    assert rows[0]["most_lat_ms"] > 0


@pytest.mark.parametrize("fields", [{"context": 0}, {"depth": 0}, {"chunk_bytes": 1}, {"write_unit": -1}])
def test_an_impossible_spill_is_refused(fields):
    with pytest.raises(HbfError):
        spill(**fields)


@pytest.mark.parametrize("way", kv_replay.WAYS)
def test_real_reads_take_about_what_the_simulation_says(mount, noise, way):
    point = mount(noise(24 << 20), mbps=400, lat=1)
    case = spill(compute_seconds=0.02, chunk_bytes=1 << 20, context=1200, write_unit=0)
    measured = kv_replay.replay(case, point / "model.gguf", tokens=4, way=way).mean_seconds
    simulated = simulate(case, TierSpec(400, 1), tokens=4).seconds
    assert 0.7 < measured / (sum(simulated) / 4) < 2.5


def hbf(*arguments, env=None):
    line = [sys.executable, "-m", "hbf_fuse", "kv", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=100, check=False, env=env)


def test_the_command_line_says_what_the_library_says(tiny_model, mount, tmp_path):
    rows = json.loads(hbf("info", tiny_model, "--json").stdout)["bytes_per_token"]
    assert rows["f16"] == 12_288 and rows["q8_0"] == 12_288 // 64 * 34
    said = hbf("ceiling", "--kv-kb-per-token", 256, "--mbps", "500,1000", "--op-lat-ms", 0.05, "--json")
    assert [row["mbps"] for row in json.loads(said.stdout)] == [500, 1000]
    shared = ["-m", tiny_model, "--compute-ms", 10, "--json"]
    said = hbf("sim", *shared, "--context", "1024,4096", "--mbps", "500,900", "-o", tmp_path / "sim.csv")
    assert len(json.loads(said.stdout)) == 4 == len((tmp_path / "sim.csv").read_text().splitlines()) - 1
    drawn = ["--svg", tmp_path / "needs.svg"]
    said = json.loads(
        hbf("solve", *shared, "--context", "2048,4096", "--tps", 8, "--lat", 0.1, *drawn).stdout
    )
    assert all(row["simulated_tps"] >= 8 * 0.999 for row in said) and len(said) == 2
    assert (tmp_path / "needs.svg").read_text().startswith("<svg")
    said = hbf("sim", *shared, "--context", 4096, "--mbps", "500,900", "--svg", tmp_path / "speeds.svg")
    assert (tmp_path / "speeds.svg").read_text().startswith("<svg"), said.stderr
    point = mount(tiny_model, mbps=800)
    said = hbf("replay", point, "--context", 2048, "--compute-ms", 10, "--tokens", 3, "--json")
    assert json.loads(said.stdout)["measured_tps"] > 0


def test_a_remark_is_printed_once(tmp_path):
    model = tmp_path / "cache/hbf/tiny.gguf"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    for name in ("HBF_MODEL", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    line = ["--context", "8192,9000", "--compute-ms", 50]
    for command, once in [
        (["sim", *line, "--mbps", "9000,90000"], "no model named: making"),
        (["solve", *line, "--tps", "2,8"], "no model named: taking"),
    ]:
        told = hbf(*command, env=environment).stderr.splitlines()
        assert len(told) == 3 and once in told[0] and str(model) in told[0], told
        for remark, context in zip(told[1:], (8192, 9000), strict=True):
            assert f"a context of {context} is beyond the model's 4096" in remark


def test_bad_input_gives_one_line(tiny_model, noise, mount):
    for arguments, words in [
        (("sim", "-m", noise(100), "--context", 10), "not a GGUF"),
        (("solve", "-m", tiny_model, "--context", 10, "--resident", 20, "--tps", 5), "nothing is spilled"),
        (("solve", "-m", tiny_model, "--context", 99, "--compute-ms", 100, "--tps", 50), "compute alone"),
        (("sim", "-m", tiny_model, "--context", 9, "--bench", noise(9)), "no run with a tg"),
        (("replay", noise(5).parent, "--context", 10), "not a live hbf mount"),
        (
            ("replay", mount(noise(4096)), "--context", 10, "-m", tiny_model, "--compute-ms", 1),
            "smaller than one chunk",
        ),
    ]:
        said = hbf(*arguments)
        assert said.returncode == 1 and words in said.stderr, (arguments, said.stderr)
        assert "Traceback" not in said.stderr
    said = hbf(
        "sim", "-m", tiny_model, "--context", 99_999, "--compute-ms", 5, "--mbps", 90_000, "--tokens", 2
    )
    assert said.returncode == 0 and "beyond the model's 4096" in said.stderr


# Batches, attention, ceilings, endurance


@settings(max_examples=60)
@given(
    st.integers(0, 8),
    st.integers(1, 64),
    st.floats(0, 2),
    st.sampled_from([100, 2000, 1_600_000]),
    st.sampled_from([0, 0.01, 1]),
    st.integers(1, 4),
)
def test_nothing_is_faster_than_its_ceiling(prefetch, depth, compute_ms, mbps, lat, batch):
    """With a prefetch of two or more the first-order ceiling does not hold: latencies overlap."""
    known = spill(prefetch=prefetch, depth=depth, compute_seconds=compute_ms / 1e3, batch=batch)
    mean = sum(simulate(known, TierSpec(mbps, lat), 32).seconds) / 32
    assert mean >= fastest_seconds(known, TierSpec(mbps, lat)) * 0.97


def test_a_ceiling_is_reached_where_nothing_else_binds():
    for prefetch in (0, 1, 2, 4):
        known = spill(prefetch=prefetch, depth=64, compute_seconds=0)
        spec = TierSpec(2000, 1)
        mean = sum(simulate(known, spec, 64).seconds) / 64
        assert mean == pytest.approx(fastest_seconds(known, spec), rel=0.05)


def test_streams_share_the_device_with_each_other_and_with_the_weights():
    spec = TierSpec(1000)
    alone = sum(simulate(spill(compute_seconds=0), spec).seconds)
    eight = sum(simulate(spill(compute_seconds=0, resident=800, batch=8), spec).seconds)
    assert eight == pytest.approx(8 * alone, rel=0.01)
    weights = spill(compute_seconds=0, weight_bytes=10_000_000)
    assert sum(simulate(weights, spec).seconds) == pytest.approx(alone + 64 * 0.01, rel=0.01)
    # Weights are read once a step, for any number of streams.
    both = spill(compute_seconds=0, resident=800, batch=8, weight_bytes=10_000_000)
    assert sum(simulate(both, spec).seconds) == pytest.approx(8 * alone + 64 * 0.01, rel=0.01)


def test_attention_takes_the_time_of_its_context():
    known = spill(context=100_000, dram_mbps=50_000, compute_seconds=0.01)
    assert known.busy_seconds == pytest.approx(0.01 + 100_000 * 36_864 / 50e9)
    assert dataclasses.replace(known, batch=4).busy_seconds == pytest.approx(
        0.01 + 4 * 100_000 * 36_864 / 50e9
    )


def test_a_batch_larger_than_its_memory_is_refused():
    with pytest.raises(HbfError, match="does not fit into DRAM"):
        spill(resident=3, batch=4)
    assert spill(resident=0, batch=4).spilled_tokens == 600


def test_too_little_in_flight_is_reported():
    """8 x 1 MiB in flight are half of bandwidth x latency at 1.6 TB/s + 10 us."""
    known = simulate(spill(chunk_bytes=1 << 20, depth=8), TierSpec(1_600_000, 0.01))
    assert known.filled_pct == pytest.approx(8 * 2**20 / (10e-6 + 2**20 / 1.6e12) / 1.6e12 * 100, rel=0.01)


def test_percentiles_of_too_few_tokens_are_left_out():
    few = simulate(spill(), TierSpec(1000, 1, "exponential:0.1"), 64).to_dict()
    assert few["token_ms_p50"] and few["token_ms_p99"] is None
    many = simulate(spill(), TierSpec(1000, 1, "exponential:0.1"), tokens_for(99)).to_dict()
    assert many["token_ms_p99"] > many["token_ms_p95"] > many["token_ms_p50"]


def test_endurance_is_cycles_over_bytes_written():
    """512 GB, 100,000 cycles, 5 years, 36,864 B at 8 tokens/s: about 1,100 streams."""
    per_day = 36_864 * 8 * 86_400 / 1e9
    assert endurance.streams(512, 100_000, per_day, 5) == pytest.approx(1101, abs=1)
    assert endurance.streams(512, 100_000, per_day, 5, amplification=2) == pytest.approx(550, abs=1)
    # Kyung et al., section VI: 48 GB/s into 512 GB, always or half the time: "under two weeks".
    assert endurance.years(512, 100_000, 48 * 86_400) * 365 == pytest.approx(12.3, abs=0.1)
    assert endurance.years(512, 100_000, 0) == float("inf")
    assert spill(context=1000).prefill_written_bytes == 900 * 36_864


# Writes

PAGE = 4096


def flash(**fields):
    """One plane: 0.1 ms to sense a page, 1 ms to program one."""
    usual = {"planes": 1, "page_bytes": PAGE, "t_read_us": 100, "t_prog_us": 1000, "block_pages": 4}
    return TierSpec(**{**usual, "spare_pct": 100, **fields})


def paged(**fields):
    """A context of 16 pages, read page by page; a token is one page."""
    usual = {"kv_bytes": PAGE, "layers": 1, "context": 16, "resident": 0, "chunk_bytes": PAGE, "depth": 1}
    return spill(**{**usual, **fields})


def mean_of(case, spec, tokens=64):
    seconds = simulate(case, spec, tokens).seconds
    return sum(seconds) / len(seconds)


def columns_of(case, spec, **of):
    return simulate(case, spec).to_dict(**of)


def test_the_link_carries_what_is_written_too():
    case = spill(depth=1, chunk_bytes=1 << 18, kv_bytes=1 << 18, context=110)
    reading = case.token_bytes / 100e6 + case.layers * case.busy_seconds / case.layers
    assert mean_of(dataclasses.replace(case, write_unit=0), TierSpec(100)) == pytest.approx(reading, rel=1e-6)
    assert mean_of(case, TierSpec(100)) == pytest.approx(reading + (1 << 18) / 100e6, rel=1e-6)


def test_a_token_ends_when_the_one_before_is_written():
    case = spill(context=101, kv_bytes=1 << 20, chunk_bytes=1 << 18)
    written = 4 * 0.5e-3 + (1 << 20) / 10e6
    assert mean_of(case, TierSpec(None, 0.5, write_mbps=10)) == pytest.approx(written, rel=1e-6)


def test_writes_that_are_fast_enough_cost_no_time_of_their_own():
    case = spill(compute_seconds=0.1)
    assert mean_of(case, TierSpec(1000, 0.1, write_mbps=1)) == mean_of(case, TierSpec(1000, 0.1))


@settings(deadline=None, max_examples=60)
@given(
    mbps=st.sampled_from([None, 50, 500, 5000]),
    write_mbps=st.sampled_from([None, 0.5, 5, 500]),
    lat_ms=st.floats(0, 3),
    depth=st.integers(1, 8),
    prefetch=st.integers(0, 1),
    context=st.integers(101, 600),
    compute=st.floats(0.001, 0.05),
)
def test_closed_forms_with_writes_equal_the_simulation(
    mbps, write_mbps, lat_ms, depth, prefetch, context, compute
):
    case = spill(depth=depth, prefetch=prefetch, context=context, compute_seconds=compute)
    spec = TierSpec(mbps, lat_ms, write_mbps=write_mbps)
    expected = token_seconds(case, spec)
    assume(expected is not None)
    assert mean_of(case, spec, 12) == pytest.approx(expected, rel=1e-3)


def test_there_is_no_closed_form_where_writes_and_reads_mix():
    assert token_seconds(paged(), flash()) is None
    assert token_seconds(spill(prefetch=1, compute_seconds=0), TierSpec(1000)) is None
    assert token_seconds(spill(kv_bytes=1 << 21), TierSpec(1000, write_mbps=10)) is None


def test_a_read_behind_a_program_waits_for_it_or_suspends_it():
    """The write comes after the first read. The next read waits for its program; or each of them suspends
    it.
    """
    reading = 0.01 + 16 * 100e-6
    assert mean_of(paged(), flash()) == pytest.approx(reading + 1e-3, rel=1e-6)
    assert mean_of(paged(), flash(suspend_us=50)) == pytest.approx(reading + 15 * 50e-6, rel=1e-6)
    row = columns_of(paged(), flash())
    assert row["reads_behind_pct"] == pytest.approx(100 / 16, rel=0.05)
    assert row["reads_behind_ms"] == pytest.approx(1, rel=1e-3)
    assert columns_of(paged(), flash(suspend_us=50))["reads_behind_ms"] == pytest.approx(0.05, rel=1e-3)


def test_blocks_are_erased_from_the_first_token_on():
    """The medium is full before anything is counted: every fourth token erases a block of 4 pages."""
    assert mean_of(paged(), flash(t_erase_us=2000)) - mean_of(paged(), flash()) == pytest.approx(2e-3 / 4)
    slowest = max(simulate(paged(), flash(t_erase_us=2000)).seconds)
    assert slowest == pytest.approx(0.01 + 16 * 100e-6 + 3e-3, rel=1e-6)


def test_tokens_that_go_round_whole_pages_are_written_once_and_others_more_often():
    halves = paged(kv_bytes=PAGE // 2, context=32)
    assert columns_of(paged(), flash())["write_amplification"] == 1
    assert columns_of(halves, flash(spare_pct=400))["write_amplification"] == 2
    # With less room what is valid in a block has to move.
    assert columns_of(halves, flash())["write_amplification"] > 2.1


def test_a_very_large_context_is_written_round_in_a_part_of_it(monkeypatch):
    from hbf_fuse.kv import sim

    whole = columns_of(paged(context=640), flash())
    monkeypatch.setattr(sim, "MOST_PAGES", 64)
    assert columns_of(paged(context=640), flash())["write_amplification"] == whole["write_amplification"] == 1


def test_a_medium_that_collects_no_garbage_for_long_is_refused(monkeypatch):
    from hbf_fuse.kv import sim

    monkeypatch.setattr(sim, "_MOST_WRITES", 20)
    with pytest.raises(HbfError, match="smaller blocks"):
        simulate(paged(), flash())


def test_what_writes_cost_is_told_of_tiers_that_have_writes_of_their_own():
    columns = {"write_amplification", "reads_behind_pct", "reads_behind_ms", "days_left"}
    assert not columns & set(columns_of(spill(), TierSpec(1000)))
    row = columns_of(spill(), TierSpec(1000, write_mbps=100))
    assert [row[name] for name in sorted(columns)] == [None, None, 0, 1]
    assert columns <= set(columns_of(paged(), flash()))


def test_the_days_left_are_the_cycles_of_the_capacity_over_what_is_programmed_a_day():
    case, spec = paged(kv_bytes=PAGE // 2, context=32), flash(endurance=1000)
    row = columns_of(case, spec, capacity_gb=5)
    assert row["days_left"] == pytest.approx(5000 / (row["written_gb_per_day"] * row["write_amplification"]))
    # Else of what is simulated: the context, its over-provisioning, and the blocks that are kept free.
    medium = translation_of(spec, case.cache_bytes).physical_pages * PAGE
    assert columns_of(case, spec)["days_left"] == pytest.approx(row["days_left"] * medium / 5e9)


def test_the_bandwidth_that_is_solved_for_bears_the_writes():
    case, spec = spill(kv_bytes=1 << 19, context=110), TierSpec(None, 0.1, write_mbps=50)
    found = kv_solve.least_mbps(case, spec, tps=40)
    assert simulate(case, dataclasses.replace(spec, bandwidth_mbps=found)).tps(50) >= 40 * 0.999
    with pytest.raises(HbfError, match="write alone leaves"):
        kv_solve.least_mbps(case, dataclasses.replace(spec, write_mbps=10), tps=40)


@pytest.fixture
def writable(tmp_path, noise):
    """Mounts with kv/ until the test ends: writable(TierSpec(...), size) -> mountpoint."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    with ExitStack() as stack:

        def make(spec, size, source=None):
            (tmp_path / "writable").mkdir()
            config = MountConfig(source or noise(4096), tmp_path / "writable", spec, kv_bytes=size)
            return stack.enter_context(child.mounted(config))

        yield make


def test_real_reads_and_writes_take_about_what_the_simulation_says(writable):
    spec = TierSpec(400, 1, write_mbps=10)
    case = spill(kv_bytes=1 << 18, context=64, resident=0, compute_seconds=0.02, write_unit=PAGE)
    point = writable(spec, 32 << 20)
    told = []
    measured = kv_replay.replay_writing(case, point / "kv", 4, lambda *of: told.append(of)).mean_seconds
    assert 0.7 < measured / mean_of(case, spec, 4) < 2.5
    assert told[-1] == (case.cache_bytes, case.cache_bytes) and not list((point / "kv").iterdir())
    assert client.read_stats(point)["kv"]["bytes_written"] >= case.cache_bytes + 5 * case.written_bytes


def test_replay_writes_or_says_what_is_missing(tiny_model, mount, writable):
    line: list[object] = ["--context", 512, "--compute-ms", 5, "--tokens", 3, "--write", "-m", tiny_model]
    said = hbf("replay", mount(tiny_model), *line)
    assert said.returncode == 1 and "has no kv/" in said.stderr and "mount with --kv" in said.stderr
    point = writable(TierSpec(500), 8 << 20, tiny_model)
    found = json.loads(hbf("replay", point, *line, "--json").stdout)
    assert found["measured_tps"] > 0 and found["written_bytes_per_token"] == 12_288
    refused: dict[str, list[object]] = {
        "no room for a spilled context of 12582912 bytes": ["--context", 1024],
        "not by mmap; leave out --way": ["--way", "mmap"],
    }
    for words, more in refused.items():
        said = hbf("replay", point, *line, *more)
        assert said.returncode == 1 and words in said.stderr, said.stderr
    (point / "kv/other").write_bytes(bytes(4 << 20))
    said = hbf("replay", point, *line)
    assert said.returncode == 1 and "remove files there" in said.stderr, said.stderr
    assert [path.name for path in (point / "kv").iterdir()] == ["other"]


@pytest.mark.parametrize("when", ["filling", "decoding"])
def test_an_interrupt_leaves_no_file_behind(tiny_model, writable, when):
    folder = writable(TierSpec(3 if when == "filling" else 300), 8 << 20, tiny_model) / "kv"
    line = ["replay", folder.parent, "--context", 512, "--compute-ms", 50, "--tokens", 1000, "--write"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hbf_fuse", "kv", *map(str, line), "--chunk", "256K"], stderr=subprocess.PIPE
    )
    until = time.monotonic() + 20
    while not list(folder.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    assert [path.name for path in folder.iterdir()] == [f"replay-{process.pid}.kv"]
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and b"Traceback" not in said and not list(folder.iterdir())


def test_a_lifetime_in_years_takes_the_simulated_amplification_unless_one_is_given(tiny_model):
    line = ["sim", "-m", tiny_model, "--context", 512, "--compute-ms", 5, "--json", "--pe-cycles", 1000]
    line += ["--capacity-gb", 1, "--endurance", 1000, "--planes", 1, "--page", 8192, "--t-prog", 10]
    line += ["--block", 4, "--spare", 400]
    row = json.loads(hbf(*line).stdout)[0]
    assert row["write_amplification"] > 1
    assert row["lifetime_years"] == pytest.approx(row["days_left"] / 365)
    given = json.loads(hbf(*line, "--write-amplification", 5).stdout)[0]
    assert given["lifetime_years"] == pytest.approx(row["lifetime_years"] * row["write_amplification"] / 5)


def test_the_rate_of_writes_is_one_option_of_the_tier(tiny_model):
    for command in ("sim", "solve"):
        assert len(re.findall(r"(?m)^│ +--write-mbps ", hbf(command, "--help").stdout)) == 1
    line = ["sim", "-m", tiny_model, "--context", 512, "--compute-ms", 5, "--json"]
    row = json.loads(hbf(*line, "--write-mbps", 0.1, "--endurance", 10, "--capacity-gb", 1).stdout)[0]
    assert row["bound"] == "write" and row["tps_p50"] == pytest.approx(0.1e6 / 12_288)
    assert row["days_left"] == pytest.approx(10 / 8.64)
