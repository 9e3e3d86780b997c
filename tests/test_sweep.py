"""Cells and sweeps with the real llama-bench."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import Layout
from hbf_fuse.mount import client
from hbf_fuse.report import page, summary
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.schema import run_of
from hbf_fuse.sweep import grid as grids
from hbf_fuse.sweep import loop, measuring, workspace
from hbf_fuse.sweep.cell import Cell, ModelFile
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.workload import llama
from hbf_fuse.workload.llama import BenchOptions
from hbf_fuse.workload.program import BENCH

SWEEP_PAGE = Path(__file__).parents[1] / "docs/sweep.md"
QUICK = BenchOptions(n_prompt=8, n_gen=4)


def planned(model, **fields):
    grid = grids.from_fields({"lat": [0], "n_prompt": [8], "n_gen": [4], "timeout": 60, **fields})
    return grid.cells(ModelFile.of(model))


def sweep(cells, results, done=lambda run: None):
    return loop.run(cells, results, loop.here([]), done)


def test_a_link_to_a_llama_bench_in_the_cache_hides_neither_a_newer_one_nor_one_on_path(
    tmp_path, monkeypatch
):
    def made(folder, age):
        folder.mkdir(parents=True)
        (folder / "llama-bench").write_text("#!/bin/sh\n")
        (folder / "llama-bench").chmod(0o755)
        os.utime(folder / "llama-bench", (age, age))
        return folder / "llama-bench"

    old, new = (made(tmp_path / f"cache/hbf/llama-bench-{number}", number) for number in (1, 2))
    bin_folder, own = tmp_path / "bin", made(tmp_path / "own", 1)
    bin_folder.mkdir()
    (bin_folder / "llama-bench").symlink_to(old)
    monkeypatch.delenv("HBF_LLAMA_BENCH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(bin_folder))
    assert BENCH.find() == new
    monkeypatch.setenv("PATH", f"{bin_folder}:{own.parent}")
    assert BENCH.find() == own
    (bin_folder / "llama-bench").unlink()
    (bin_folder / "llama-bench").symlink_to(own)
    assert BENCH.find() == bin_folder / "llama-bench"


def test_a_cell_measures_the_tiers_rate(tiny_model, llama_bench, tmp_path):
    cell = Cell(ModelFile.of(tiny_model), TierSpec(200, 0), bench=QUICK)
    with workspace.lent() as lent:
        run = measuring.run(cell, lent)
    metrics = run.metrics
    assert 150 < metrics.stage_effective_mbps < 206
    assert metrics.tier_bytes_read >= tiny_model.stat().st_size
    assert metrics.total_first_run_seconds >= metrics.stage_seconds
    assert metrics.pp > 0 and metrics.tg > 0
    assert not lent.mountpoint.parent.exists()
    text = json.dumps(run.to_dict())
    assert run_of(json.loads(text)) == run
    assert str(lent.mountpoint.parent) not in text and str(tiny_model.parent) not in text
    assert "MOUNT/model.gguf" in run.command
    assert {record["model_filename"] for record in run.llama_bench.records} == {"MOUNT/model.gguf"}


def _kill_server(lent, model):
    os.kill(client.read_hidden(lent.mountpoint, "spec.json")["pid"], signal.SIGKILL)


def _cut_source(lent, model):
    os.truncate(model, 1 << 20)


@pytest.mark.parametrize(
    ("harm", "words"), [(_kill_server, "the mount ended"), (_cut_source, "was changed since")]
)
def test_a_cell_ends_when_its_mount_ends(tiny_model, llama_bench, tmp_path, harm, words):
    """Otherwise llama.cpp's mmap would make the kernel retry the lost pages forever."""
    model = tmp_path / "copy.gguf"
    shutil.copy(tiny_model, model)
    cell = Cell(ModelFile.of(model), TierSpec(25, 0), bench=QUICK, timeout_seconds=60)
    begin = time.monotonic()
    with workspace.lent() as lent:
        later = threading.Timer(2.5, harm, (lent, model))
        later.start()
        with pytest.raises(HbfError, match=words):
            measuring.run(cell, lent)
        later.join()
    assert time.monotonic() - begin < 20
    assert not lent.mountpoint.parent.exists()


def test_the_mixture_of_experts_preset_runs(llama_bench, tmp_path):
    from hbf_fuse.gguf import presets, synth

    synth.write(presets.load("tiny-moe"), tmp_path / "moe.gguf")
    assert llama.run(llama_bench, tmp_path / "moe.gguf", QUICK, 60).tg > 0


def test_a_sweep_goes_on_where_it_stopped_and_repeats_nothing(tiny_model, llama_bench, tmp_path):
    cells = planned(tiny_model, mbps=["max", 800], repeats=2)
    results = Results(tmp_path / "results")
    seen = []

    def stop_after_two(run):
        seen.append(run.cell.name)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(cells, results, stop_after_two)
    measured, failed = sweep(cells, Results(results.folder), lambda run: seen.append(run.cell.name))
    assert (measured, failed) == (2, 0)
    assert sorted(seen) == sorted(cell.name for cell in cells)
    with (tmp_path / "results" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {"tier_mbps", "tier_lat_ms", "stage_seconds", "pp8", "tg4", "valid", "why"} <= set(rows[0])
    table = page.markdown(results.all())
    assert all(column in table for column in summary.COLUMNS)


def test_a_failed_cell_keeps_its_reason_and_the_sweep_goes_on(tiny_model, tmp_path, monkeypatch):
    fake = tmp_path / "llama-bench"
    fake.write_text(
        "#!/bin/sh\n[ \"$1\" = --help ] && echo '-m, --model' && exit 0\necho oh no >&2; exit 3\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("HBF_LLAMA_BENCH", str(fake))
    results = Results(tmp_path / "results")
    measured, failed = sweep(planned(tiny_model, mbps=[500, 900], repeats=1), results)
    assert (measured, failed) == (2, 2)
    assert "oh no" in results.all()[0].error
    assert "oh no" in page.markdown(results.all())


def test_a_folder_of_another_sweep_is_refused(tiny_model, tmp_path):
    results = Results(tmp_path)
    loop._claim(results, planned(tiny_model, mbps=[500])[0])
    loop._claim(results, planned(tiny_model, mbps=[900], n_gen=[8])[0])
    with pytest.raises(HbfError, match="another engine"):
        loop._claim(results, planned(tiny_model, mbps=[500], engine="fusepy")[0])
    with pytest.raises(HbfError, match="another tier"):
        loop._claim(results, planned(tiny_model, mbps=[500], tier={"depth": 2})[0])


def test_another_sweep_is_refused_before_its_cells_are_announced(tiny_model, llama_bench, tmp_path):
    line = [sys.executable, "-m", "hbf_fuse", "sweep", "-m", tiny_model, "-o", tmp_path / "results"]
    line += ["--mbps", "max", "--lat", "1", "--repeats", "1", "-p", "8", "-n", "2"]
    subprocess.run(line, check=True, capture_output=True)
    csv_file = tmp_path / "results/cells.csv"
    csv_file.write_text(csv_file.read_text() + "mine")
    refused = subprocess.run([*line, "--jitter", "normal:0.05"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "holds another sweep" in refused.stderr
    assert "already" not in refused.stderr and csv_file.read_text().endswith("mine")
    again = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "1 of 1 cells are there already" in again.stderr and "0/0" not in again.stderr


def test_a_model_that_is_replaced_meanwhile_is_not_measured_as_the_old_one(tiny_model, llama_bench, tmp_path):
    own = tmp_path / "model.gguf"
    shutil.copy(tiny_model, own)
    cells = planned(own, mbps=[800, 900], repeats=1)
    results = Results(tmp_path / "results")
    other = tmp_path / "other"
    shutil.copy(tiny_model, other)
    done = []

    def replace_after_one(run):
        done.append(run)
        if len(done) == 1:
            other.replace(own)

    _, failed = sweep(cells, results, replace_after_one)
    assert failed == 1 and "was changed since its hash" in done[1].error


def test_single_cells_and_sweeps_do_not_share_a_folder(tiny_model, llama_bench, tmp_path):
    line = [
        sys.executable,
        "-m",
        "hbf_fuse",
        "bench",
        "-m",
        tiny_model,
        "--mbps",
        "900",
        "-p",
        "8",
        "-n",
        "2",
    ]
    (tmp_path / "precious").write_text("precious")
    refused = subprocess.run(
        [*line, "-o", tmp_path / "a", "--trace", tmp_path / "precious"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1 and "no trace" in refused.stderr
    assert (tmp_path / "precious").read_text() == "precious"
    subprocess.run([*line, "-o", tmp_path / "a"], check=True, capture_output=True)
    with pytest.raises(HbfError, match="runs of hbf bench"):
        loop._claim(Results(tmp_path / "a"), planned(tiny_model, mbps=[500])[0])
    (tmp_path / "b").mkdir()
    loop._claim(Results(tmp_path / "b"), planned(tiny_model, mbps=[500])[0])
    refused = subprocess.run([*line, "-o", tmp_path / "b"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "holds a sweep" in refused.stderr


def test_a_copy_through_the_tier_is_staged_at_its_rate_and_holds_the_same_bytes(
    tiny_model, llama_bench, tmp_path
):
    cell = Cell(ModelFile.of(tiny_model), TierSpec(200, 2), mode="stage", bench=QUICK)
    with workspace.lent() as lent:
        metrics = measuring.run(cell, lent).metrics
        with lent.copies(["model.gguf"]) as (copy, _):
            assert ModelFile.of(copy).sha256 == cell.model.sha256
    chunked = cell.spec.chunked_mbps(expect.CHUNK_BYTES)
    assert 0.8 * chunked < metrics.stage_effective_mbps < 1.02 * chunked
    assert metrics.total_first_run_seconds == metrics.stage_seconds + metrics.bench_wall_seconds
    assert metrics.resident_before_bytes == 0
    assert metrics.tier_bytes_read == tiny_model.stat().st_size


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mbps": []}, "mbps: the list is empty"),
        ({"mbps": [-5]}, "bandwidth"),
        ({"lat": ["slow"]}, "lat.0"),
        ({"n_prompt": [0], "n_gen": [0]}, "measure nothing"),
        ({"repeats": 0}, "repeats"),
        ({"repeats": 10**6}, "make sense"),
        ({"mode": ["fast"]}, "mode.0"),
        ({"colour": "blue"}, "unknown key; known: model, mode, mbps"),
        ({"tier": {"wings": 2}}, "unknown tier parameter 'wings'"),
        ({"tier": {"latency_ms": 2}}, "axis lat"),
        ({"tier": {"profile": "nosuch"}}, "nosuch"),
        ({"engine": "steam"}, "kernel or fusepy"),
    ],
)
def test_an_invalid_grid_is_refused_with_the_place(fields, words):
    with pytest.raises(HbfError, match=words):
        grids.from_fields(fields)


def test_a_toml_file_is_a_grid_and_options_override_it(tiny_model, tmp_path):
    file = tmp_path / "grid.toml"
    file.write_text('mbps = [100, "max"]\nlat = [0.5]\nrepeats = 2\n[tier]\njitter = "uniform:0.1"\n')
    grid = grids.from_fields({"repeats": 1}, file)
    assert {cell.spec for cell in grid.cells(ModelFile.of(tiny_model))} == {
        TierSpec(100, 0.5, jitter="uniform:0.1"),
        TierSpec(None, 0.5, jitter="uniform:0.1"),
    }
    file.write_text("mbps = [")
    with pytest.raises(HbfError, match="is not TOML"):
        grids.from_fields({}, file)


def test_the_grid_in_the_page_about_sweeps_is_valid(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", SWEEP_PAGE.read_text(), re.DOTALL)
    file = tmp_path / "grid.toml"
    file.write_text(block)
    assert grids.from_fields({}, file).size > 1


def test_a_profile_gives_the_axes_that_the_grid_does_not_name():
    grid = grids.from_fields({"tier": {"profile": "sata-ssd"}, "lat": [1]})
    assert len(grid.mbps) == 1 and grid.lat == (1,)


def test_the_same_seed_gives_the_same_order_and_repeats_are_shuffled_apart(tiny_model):
    def order(seed):
        return [cell.name for cell in planned(tiny_model, mbps=[1, 2, 3, 4, 5, 6], seed=seed, repeats=2)]

    assert order(1) == order(1) != order(2)
    assert [name[:-3] for name in order(1)[:6]] != [name[:-3] for name in order(1)[6:]]
    assert len(set(order(1))) == 12


def test_modes_follow_each_other_within_a_repeat(tiny_model):
    cells = planned(tiny_model, mode=["stage", "mmap"], mbps=[1, 2, 3], repeats=2)
    modes = [cell.mode for cell in cells]
    assert modes == (["stage"] * 3 + ["mmap"] * 3) * 2


def test_only_mode_stream_has_a_budget(tiny_model):
    cells = planned(tiny_model, mode=["mmap", "stream"], mbps=[1, 2], resident=["30M", "50%"], repeats=1)
    assert [cell.mode for cell in cells] == ["mmap"] * 2 + ["stream"] * 4
    assert {cell.layout.resident_bytes for cell in cells} == {
        None,
        30 << 20,
        tiny_model.stat().st_size // 2,
    }


def test_an_edited_csv_is_set_aside_and_a_shorter_one_is_not(tmp_path):
    results = Results(tmp_path)
    cell = {"mode": "mmap", "tier_mbps": 5, "tier_lat_ms": 0, "repeat": 1, "name": "a", "engine": "kernel"}
    cell["bench"] = {"n_prompt": 1, "n_gen": 1, "threads": 0}
    cell |= {"tier": {"bandwidth_mbps": 5}, "model": {"name": "m.gguf", "size": 1, "sha256": ""}}
    results.store(run_of({"cell": cell, "error": "no"}))
    text = results.csv_path.read_text()
    assert Results(tmp_path).set_aside_edited_csv() is None
    results.store(run_of({"cell": {**cell, "name": "b", "repeat": 2}, "error": "no"}))
    results.csv_path.write_text(text)
    assert Results(tmp_path).set_aside_edited_csv() is None
    results.csv_path.write_text(text.replace("no", "yes"))
    assert Results(tmp_path).set_aside_edited_csv() == tmp_path / "cells.edited.csv"
    results.csv_path.write_text(text.replace("no", "another"))
    assert Results(tmp_path).set_aside_edited_csv() == tmp_path / "cells.edited.2.csv"
    assert "yes" in (tmp_path / "cells.edited.csv").read_text()


def test_decode_from_the_tier_goes_at_about_the_speed_that_its_bytes_allow(tiny_model, llama_bench, tmp_path):
    size = tiny_model.stat().st_size
    layout = Layout(resident_bytes=size // 2)
    # So slow that the tier is the bottleneck even on a busy machine.
    options = BenchOptions(n_prompt=0, n_gen=3)
    cell = Cell(ModelFile.of(tiny_model), TierSpec(60), mode="stream", bench=options, layout=layout)
    with workspace.lent() as lent:
        run = measuring.run(cell, lent)
    metrics = run.metrics
    assert metrics.bound == "tier"
    assert size * 0.4 < metrics.bytes_per_token < size
    # Tokens cannot come faster than their bytes. Other tests may have used the CPU while compute was
    # measured.
    assert metrics.tg * metrics.tier_seconds_per_token < 1.15
    assert metrics.tg / metrics.predicted_tg > 0.6
    assert metrics.attribution.phases["decode"]["bytes"] > 3 * size * 0.4
    assert run.tier_stats["resident"]["most_resident_bytes"] <= layout.resident_bytes + (2 << 20)
    assert [phase.name for phase in run.llama_bench.phases] == ["decode"]
    assert not lent.mountpoint.parent.exists()
