"""Cells and sweeps with the real llama-bench."""

import csv
import json

import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.report import page, summary
from hbf_fuse.sweep import cell as cells
from hbf_fuse.sweep import grid as grids
from hbf_fuse.sweep import llama
from hbf_fuse.sweep.llama import BenchOptions
from hbf_fuse.sweep.results import Results
from hbf_fuse.tier import TierSpec

QUICK = BenchOptions(n_prompt=8, n_gen=4, timeout_seconds=60)


def test_a_cell_measures_what_the_tier_gives(tiny_model, llama_bench, tmp_path):
    cell = cells.Cell(tiny_model, TierSpec(200, 0), bench=QUICK)
    document = cells.run(cell, tmp_path / "scratch")
    metrics = document["metrics"]
    assert 150 < metrics["stage_effective_mbps"] < 206
    assert metrics["tier_bytes_read"] >= tiny_model.stat().st_size
    assert metrics["total_first_run_seconds"] >= metrics["stage_seconds"]
    assert metrics["pp"] > 0 and metrics["tg"] > 0
    assert not (tmp_path / "scratch").exists()
    json.dumps(document)


def test_the_mixture_of_experts_preset_runs(llama_bench, tmp_path):
    from hbf_fuse.gguf import presets, synth

    synth.write(presets.load("tiny-moe"), tmp_path / "moe.gguf")
    assert llama.run(llama_bench, tmp_path / "moe.gguf", QUICK).tg > 0


def test_a_sweep_goes_on_where_it_stopped_and_repeats_nothing(tiny_model, llama_bench, tmp_path):
    grid = grids.Grid(tiny_model, (None, 800.0), (0.0,), repeats=2, bench=QUICK)
    results = Results(tmp_path / "results")
    seen = []

    def stop_after_two(document, known):
        seen.append(document["cell"]["name"])
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grids.run(grid, results, stop_after_two)
    known = []
    measured, failed = grids.run(grid, results, lambda document, was_known: known.append(was_known))
    assert (measured, failed) == (2, 0)
    assert known.count(True) == 2
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
    grid = grids.Grid(tiny_model, (500.0, 900.0), (0.0,), repeats=1, bench=QUICK)
    results = Results(tmp_path / "results")
    measured, failed = grids.run(grid, results, lambda document, known: None)
    assert (measured, failed) == (2, 2)
    assert "oh no" in results.all()[0]["error"]
    assert "oh no" in page.markdown(results.all())


def test_a_folder_of_another_sweep_is_refused(tiny_model, tmp_path):
    results = Results(tmp_path)
    grids._claim(results, grids.Grid(tiny_model, (500.0,), (0.0,), bench=QUICK))
    with pytest.raises(HbfError, match="another sweep"):
        grids._claim(results, grids.Grid(tiny_model, (500.0,), (0.0,), bench=BenchOptions(n_prompt=9)))


def test_an_empty_grid_is_refused(tiny_model):
    with pytest.raises(HbfError, match="empty"):
        grids.Grid(tiny_model, (), (0.0,)).cells()
