"""Results of a sweep's figures: statistics, findings, pages."""

import dataclasses
import json
import random
import re
import shutil

import pytest

from hbf_fuse.report import compare, credibility, findings, html, page, summary, tables
from hbf_fuse.report.statistics import Spread
from hbf_fuse.runs.run import Run
from hbf_fuse.runs.schema import run_of
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.expect import CHUNK_BYTES

SIZE = 2_000_000_000
REST = 10.0


def run(mbps, lat=0.0, repeat=1, mode="mmap", stage=None, valid=True, why="", layout=None, **metrics):
    """A run as a sweep stores it; by default staging takes the tier's time."""
    spec = TierSpec(mbps, lat)
    stage = stage or SIZE / mbps / 1e6
    wall = REST + (stage if mode == "mmap" else 0)
    known = {
        "stage_seconds": stage,
        "stage_effective_mbps": SIZE / stage / 1e6,
        "model_mbps": SIZE / stage / 1e6,
        "tier_error_pct": 0.01,
        "valid": valid,
        "why": why,
        "pp": 30.0 + repeat / 100,
        "tg": 7.0 + repeat / 100,
        "bench_wall_seconds": wall,
        "total_first_run_seconds": REST + stage,
        "load_seconds": wall - 8,
        "prefill_seconds": 3.0,
        "decode_seconds": 5.0,
        "resident_before_bytes": 0,
        "harness_seconds": 0.4,
        "other_cpu_seconds": 0.0,
    }
    moment = {"time": "2026-11-23T00:00:00+00:00", "throttle_count": None, "stolen_seconds": 0.0}
    machine = {"cpu": "A CPU", "virtual": False, "cores": 2, "memory_bytes": 8 << 30, "kernel": "6.1"}
    run = {
        "cell": {
            "name": f"{mode}-{mbps}-{lat}-r{repeat}",
            "mode": mode,
            "engine": "kernel",
            "repeat": repeat,
            "tier_mbps": mbps,
            "tier_lat_ms": lat,
            "tier": spec.to_dict(),
            "model": {"name": "model.gguf", "size": SIZE, "sha256": "0" * 64},
            "bench": {"n_prompt": 256, "n_gen": 128, "threads": 0},
            "layout": layout or {},
        },
        "metrics": {**known, **metrics},
        "command": ["llama-bench", "-m", "MOUNT/model.gguf"],
        "llama_bench": {"version": "1"},
        "environment": {
            **machine,
            **{"python": "3.12", "hbf_fuse": "1", "compiled": True, "before": moment, "after": moment},
        },
        "conditions": {"concerns": ["power: running on battery; plug in"], "git": None},
    }
    return run_of(run)


def failed(mbps, error="it fell over"):
    return Run(cell=run(mbps).cell, error=error)


def unthrottled(mbps):
    """A rate like that of a tier with this bandwidth."""
    open_tier = run(mbps)
    open_tier.cell.tier_mbps, open_tier.cell.tier = None, TierSpec()
    return open_tier


def grid(**fields):
    return [
        run(mbps, lat, repeat, stage=SIZE / mbps / 1e6 * (1 + repeat / 1e4), **fields)
        for mbps in (250, 500, 1000)
        for lat in (0, 1)
        for repeat in (1, 2, 3)
    ]


def checks(runs):
    (series,) = summary.series_of(runs)
    return " ".join([*credibility.checks(series), *credibility.details(series)])


def meaning(runs, target=None):
    (series,) = summary.series_of(runs)
    return " ".join(findings.meaning(series, target))


def test_the_spread_of_a_figure_is_deterministic_and_holds_the_median():
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.median, spread.least, spread.most) == (2.0, 1.0, 3.0)
    assert spread.least <= spread.low <= spread.median <= spread.high <= spread.most
    assert Spread.of([3.0, 1.0, 2.0]) == spread
    assert Spread.of([]) is None
    single = Spread.of([4.0])
    assert (single.low, single.high, single.width_pct) == (4.0, 4.0, 0.0)


@pytest.mark.parametrize(
    ("count", "coverage", "name"),
    [(1, 0, "range"), (3, 0.75, "range"), (5, 0.9375, "range"), (6, 0.96875, "97% interval")],
)
def test_an_interval_has_the_right_name(count, coverage, name):
    spread = Spread.of([float(value) for value in range(count)])
    assert (spread.coverage, spread.interval) == (coverage, name)
    assert (spread.low, spread.high) == (0, count - 1)


def test_an_interval_covers_the_median_as_surely_as_it_says():
    draw = random.Random(1)
    for count in (3, 5, 8, 20):
        spreads = [Spread.of([draw.gauss(0, 1) for _ in range(count)]) for _ in range(4000)]
        covered = sum(spread.low <= 0 <= spread.high for spread in spreads) / 4000
        assert covered == pytest.approx(spreads[0].coverage, abs=0.02)


def test_an_interval_narrows_with_repeats():
    few, many = Spread.of([9.0, 10.0, 11.0]), Spread.of([9.0, 10.0, 11.0] * 30)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([10.0, 10.01, 14.0], [2]),
        ([10.0, 10.01, 10.2], []),  # different, but by less than matters
        ([8.0, 10.0, 12.0], []),
        ([10.0, 14.0], []),  # of two values, neither can be called the outlier
    ],
)
def test_outliers_stand_apart_from_the_others_and_far_enough_to_matter(values, places):
    assert Spread.of(values).outliers() == places


def test_a_sound_sweep_says_so():
    text = checks(grid())
    assert "follows the tier model within 0.01% in 6 of 6 points" in text
    assert "follows size / bandwidth within 0.02% in 6 of 6 points" in text
    assert "everywhere" in text
    assert "No byte of the model was resident before 18 of 18 runs" in text
    assert "0.40 s a cell" in text
    assert "Outliers" not in text and "Other processes" not in text


def test_a_point_bound_by_latency_is_named_and_not_called_wrong():
    bound = [run(2000, 5, repeat, stage=SIZE / 600e6) for repeat in (1, 2, 3)]
    text = checks(grid() + bound)
    assert "within 0.02% in 6 of 7 points" in text
    assert "2000/5 (-70.0%)" in text
    assert "not valid" not in text


def test_a_copy_is_compared_with_chunks_of_4_mib():
    chunk_seconds = CHUNK_BYTES / 500e6 + 0.005
    stage = SIZE / CHUNK_BYTES * chunk_seconds
    assert "MiB chunks at bandwidth and latency within" in checks([run(500, 5, mode="stage", stage=stage)])
    assert "1 of 1" in checks([run(500, 5, mode="stage", stage=stage)])


def test_points_that_miss_the_model_are_named_with_the_reason():
    text = checks([*grid(), run(2000, valid=False, why="CPU starved")])
    assert "2000/0: unsure." in text


def test_slower_staging_with_more_bandwidth_is_reported():
    text = checks([run(250, stage=4.0), run(500, stage=8.0), run(1000, stage=2.0)])
    assert "Not in the order of the tiers, beyond tolerance: 250/0 and 500/0." in text


def test_identical_repeats_are_reported():
    same = {"pp": 1.0, "tg": 1.0}
    assert "Repeats of 250/0 are alike" in checks([run(250, repeat=number, **same) for number in (1, 2, 3)])


def test_an_outlier_is_named():
    text = checks([run(250, repeat=1), run(250, repeat=2), run(250, repeat=3, pp=60.0)])
    assert "Outliers: 250/0 repeat 3: pp 60 against 30" in text


def test_a_warm_cache_and_busy_neighbours_are_reported():
    text = checks([run(250, resident_before_bytes=4096), run(500, other_cpu_seconds=9.0)])
    assert "before 1 of 2 runs" in text
    assert "Other processes used the CPU during 500/0 repeat 1 (9.0 s)" in text


def test_the_knee_is_where_staging_takes_as_long_as_the_rest():
    assert f"knee is at {SIZE / REST / 1e6:g} MB/s" in meaning(grid())


@pytest.mark.parametrize("mode", ["mmap", "stage"])
def test_the_bandwidth_for_a_target_gives_the_target(mode):
    text = meaning([run(250, 2, mode=mode), run(500, 2, mode=mode)], target=20)
    need = float(re.search(r"needs ([\d.,]+) MB/s", text)[1].replace(",", ""))
    waiting = -(-SIZE // CHUNK_BYTES) * 0.002 if mode == "stage" else 0
    assert REST + SIZE / need / 1e6 + waiting == pytest.approx(20, rel=0.01)


def test_a_target_that_no_bandwidth_reaches_is_reported():
    assert "No bandwidth brings the first run down to 9 s" in meaning(grid(), target=9)


def test_a_target_beyond_the_bytes_in_flight_is_reported():
    """1 MiB windows at 40 ms: 245 MB/s, whatever the bandwidth."""
    bound = [run(mbps, 40, stage=SIZE / 245e6) for mbps in (500, 1000)]
    text = meaning(bound, target=15)
    assert "No bandwidth brings the first run down to 15 s at 40 ms" in text and "245 MB/s at most" in text
    assert "needs" in meaning(bound, target=20)


def test_the_knee_of_a_copy_includes_its_latency():
    text = meaning([run(mbps, 5, mode="stage") for mbps in (250, 500)])
    knee = float(re.search(r"knee is at ([\d.,]+) MB/s and 5 ms", text)[1].replace(",", ""))
    assert SIZE / knee / 1e6 + -(-SIZE // CHUNK_BYTES) * 0.005 == pytest.approx(REST, rel=0.01)


def test_a_placed_model_has_no_knee_and_is_not_comparable_with_an_unplaced_one():
    placed = grid(layout={"place": ["ffn=dram", ".*=hbf"], "tiers": {}})
    assert "knee" not in meaning(placed, target=20) and "needs" not in meaning(placed, target=20)
    assert compare.differences(grid(), placed) == ["not the same placement of tensors"]
    assert "placed: ffn=dram, .*=hbf" in page.markdown(placed)


def test_with_jitter_or_planes_there_is_no_knee():
    jittered = [run(mbps, 1, mode="stage", stage=SIZE / 80e6) for mbps in (250, 500)]
    for each in jittered:
        each.cell.tier = dataclasses.replace(each.cell.tier, jitter="exponential:20")
    text = meaning(jittered, target=30)
    assert "knee" not in text and "No bandwidth for the target" in text
    assert "jitter, planes or depth, as the model says" in checks(jittered)


def test_small_figures_keep_their_digits():
    shown = [tables.cell_text(value) for value in (0.00124, 0.0, 1.23456, -0.0567, 100.0)]
    assert shown == ["0.00124", "0", "1.235", "-0.0567", "100"]


def stream(mbps, repeat=1, off=1.0):
    """Decode at 1 / (20 ms + 100 MB / bandwidth), times a factor."""
    seconds = 0.02 + 100 / mbps
    heat = {"layers": ["0", "1"], "seconds": [0.5, 1.0], "bytes": [[5.0, 0.0], [0.0, 7.0]]}
    return run(
        mbps,
        repeat=repeat,
        mode="stream",
        layout={"resident_bytes": 64 << 20, "policy": "pin", "place": [], "tiers": {}},
        tg=off / seconds + repeat / 1e4,
        compute_tg=50.0,
        bytes_per_token=100e6,
        tier_seconds_per_token=100 / mbps,
        predicted_tg=1 / seconds,
        tg_error_pct=(off - 1) * 100,
        bound="tier" if mbps < 5000 else "compute",
        break_even_mbps=5000.0,
        attribution={"heat": heat, "read_sizes": {"1048576": 90}, "queue_depths": {"1": 4, "2": 5}},
    )


def test_decode_is_compared_with_compute_and_tier():
    runs = [stream(mbps, repeat) for mbps in (100, 800, 9000) for repeat in (1, 2, 3)]
    text = checks(runs)
    assert "follows 1 / (compute + tier) within 0% in 2 of 2 valid points that the tier binds" in text
    assert "Bound by compute, where readahead hides part of the tier: 9000/0" in text
    assert "reads 100 MB from the tier" in meaning(runs)
    assert "at 5,000 MB/s the tier takes as long as compute" in meaning(runs)


def test_if_latency_alone_takes_longer_no_bandwidth_breaks_even():
    slow = stream(500)
    slow.cell.tier = dataclasses.replace(slow.cell.tier, latency_ms=5.0)
    slow.metrics.break_even_mbps = None
    assert "No bandwidth breaks even with 5 ms" in meaning([slow])


def test_decode_that_misses_is_named():
    assert "Further off: 100/0 (+20.0%)" in checks([stream(100, off=1.2), stream(200)])


def test_decode_has_its_own_table_and_plots():
    runs = [stream(mbps) for mbps in (100, 800)]
    assert " | ".join(summary.STREAM_COLUMNS) in page.markdown(runs)
    _, drawn = html.render(runs)
    names = [plot.name.partition("-stream-")[0] for plot in drawn]
    assert names == ["decode", "heat", "sizes", "depths"]
    assert all("64.00-MiB-pin" in plot.name for plot in drawn)


def test_a_page_has_the_columns_of_the_reference_and_every_reason():
    runs = [*grid(), *grid(mode="stage"), failed(4000), run(9, valid=False, why="too slow")]
    text = page.markdown(runs, 30)
    assert " | ".join(summary.COLUMNS) in text
    assert "failed: it fell over" in text and "unsure: too slow" in text
    assert "Not controlled: power: running on battery; plug in" in text
    assert len(summary.summarize(runs)) == 14


def test_a_sweep_without_finished_cells_has_a_page():
    assert "No cell was finished." in page.markdown([failed(4000)])
    text, drawn = html.render([failed(4000)])
    assert "it fell over" in text and not drawn


def test_html_from_a_sweep_is_escaped():
    text, _ = html.render([failed(4000, "<script>alert(1)</script>")])
    assert "<script" not in text


def test_unthrottled_tiers_have_a_place_in_tables_and_plots():
    open_tier = unthrottled(250)
    open_tier.metrics.model_mbps = open_tier.metrics.tier_error_pct = None
    text, drawn = html.render([open_tier])
    assert "max/0" in text and {plot.name.partition("-mmap")[0] for plot in drawn} == {"first-run", "pp-tg"}


def test_two_sweeps_are_compared_point_by_point():
    first = grid()
    second = [run(500, 0, repeat, tg=14.0 + repeat / 100) for repeat in (1, 2, 3)] + [run(3000)]
    (row,) = compare.rows(first, second)
    assert row["tier"] == "500/0"
    assert row["tg_change_pct"] == pytest.approx(100, abs=1) and row["tg_differs"]
    assert not row["pp_differs"]
    assert "(+99.7%) *" in compare.markdown([row], "a", "b")
    assert "no point in common" in compare.markdown([], "a", "b")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here; `apt-get install chromium`")
    with sync_api.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_stands_alone_and_fits_the_screen(browser, tmp_path, width, scheme):
    runs = grid() + grid(mode="stage") + [stream(mbps) for mbps in (100, 800)]
    text, drawn = html.render(runs, target_seconds=30)
    (tmp_path / "report.html").write_text(text)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    try:
        shown = context.new_page()
        asked, complaints = [], []
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("console", lambda message: complaints.append(message.text))
        shown.goto((tmp_path / "report.html").as_uri())
        assert len(asked) == 1 and not complaints
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        boxes = shown.evaluate(
            "[...document.querySelectorAll('figure svg')].map(plot => {"
            "const box = plot.getBoundingClientRect(); return [box.width, box.height, box.left, box.right]})"
        )
        assert len(boxes) == len(drawn) == 14
        assert all(w > 250 and h > 80 and left >= 0 and right <= width for w, h, left, right in boxes)
        ink, paper = shown.evaluate(
            "[getComputedStyle(document.querySelector('figure svg text')).fill,"
            " getComputedStyle(document.body).backgroundColor]"
        )
        assert abs(_brightness(ink) - _brightness(paper)) > 400
    finally:
        context.close()


def _brightness(colour: str) -> int:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])


def test_json_of_an_unthrottled_tier_is_json():
    runs = [*grid(), unthrottled(500)]
    rows = json.loads(json.dumps(summary.summarize(runs), allow_nan=False))
    assert rows[-1]["tier_mbps"] is None
    assert "| max |" in summary.markdown(runs)
    assert re.search(r">\s*max\s*</td>", html.render(runs)[0])


def test_nothing_is_concluded_from_one_tier_or_one_repeat():
    one = [run(500, repeat=repeat) for repeat in (1, 2, 3)]
    assert "with bandwidth" not in checks(one) and "on the tier" not in meaning(one)
    text = checks([run(mbps) for mbps in (250, 500)])
    assert "falls with bandwidth" in text and "with latency" not in text
    assert "on the tier" not in meaning([run(mbps) for mbps in (250, 500)])


def test_nothing_is_concluded_from_invalid_runs():
    wrong = grid(valid=False, why="lateness")
    assert "everywhere" not in checks(wrong) and not meaning(wrong)


def test_a_comparison_needs_repeats_and_says_what_is_valid_and_what_differs():
    once, more = [run(500)], [run(500, stage=4.5, valid=False, why="lateness")]
    (row,) = compare.rows(once, more)
    assert not row["stage_seconds_differs"] and row["valid"] == "1/1 -> 0/1"
    assert not compare.differences(once, more)
    other = run(500)
    other.cell.engine, other.cell.tier = "fusepy", TierSpec(500, 2, jitter="uniform:1")
    assert len(compare.differences(once, [other])) == 2


def test_machines_and_programs_of_all_runs_are_named():
    second = run(500, repeat=2)
    second.llama_bench.version = "2"
    text = page.markdown([run(500), second])
    assert "llama-bench 1" in text and "llama-bench 2" in text and "Not the same in all runs" in text


def judged(mbps, verdict, bound=0.4, reasons=(), **rest):
    """A run of this version: with a verdict, a bound and codes."""
    return run(
        mbps, valid=verdict == "agrees", verdict=verdict, tier_bound_pct=bound, reasons=list(reasons), **rest
    )


def test_a_point_says_how_its_repeats_were_judged():
    def said(*runs):
        return summary.summarize(list(runs))[0]["verdict"]

    assert said(
        *(judged(500, "agrees", bound, repeat=number) for number, bound in enumerate((0.1, 0.42)))
    ) == ("agrees ±0.4%")
    mixed = [judged(500, "agrees", repeat=1), judged(500, "agrees", repeat=2), judged(500, "off", repeat=3)]
    assert said(*mixed) == "2 agrees ±0.4%, 1 off"
    # Results of versions that stored only valid.
    assert said(run(500)) == "agrees" and said(run(500, valid=False, why="too slow")) == "unsure"


def test_each_reason_is_one_line_with_its_cells():
    runs = [judged(mbps, "unsure", reasons=["cpu-contention"]) for mbps in range(100, 110)]
    runs += [judged(500, "off", reasons=["source-slow", "no-such-code"]), judged(700, "agrees")]
    lines = page.remarks(runs)
    assert len(lines) == 3
    assert lines[0].startswith("unsure: threads waited for a CPU") and "and 4 more" in lines[0]
    assert lines[2].startswith("off: no-such-code")


def test_a_page_shows_what_is_unsure_and_what_is_off(tmp_path):
    text, _ = html.render([judged(250, "agrees"), judged(500, "unsure"), judged(1000, "off")])
    assert 'class="unsure"' in text and 'class="off"' in text and "<details>" in text


def test_every_finding_has_a_code_that_the_page_carries():
    (series,) = summary.series_of([judged(mbps, "agrees") for mbps in (250, 500, 1000)])
    found = [*findings.meaning(series, 60.0), *credibility.checks(series), *credibility.details(series)]
    assert found and all(each.code and each.code.islower() and " " not in each.code for each in found)
    text, _ = html.render([judged(mbps, "agrees") for mbps in (250, 500, 1000)])
    assert 'data-code="stage-against-model"' in text
