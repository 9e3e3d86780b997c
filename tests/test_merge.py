"""Runs of several machines, dates and commits in one report, and in other people's tables."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import grid, run

from hbf_fuse.errors import HbfError
from hbf_fuse.report import alike, html, machines, page, sql, summary
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.run import Run

HBF = [sys.executable, "-P", "-m", "hbf_fuse"]
RECORD = {
    "build_commit": "aaaa111",
    "build_number": 1,
    "cpu_info": "A CPU",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": "MOUNT/model.gguf",
    "model_type": "llama 1B Q4_K - Medium",
    "n_prompt": 64,
    "n_gen": 0,
    "n_depth": 0,
    "cpu_strict": False,
    "flash_attn": 0,
    "test_time": "2026-11-27T14:59:38Z",
    "avg_ts": 100.0,
    "samples_ns": [1, 2],
}
_KEYS = """
n_gpu_layers n_cpu_moe tensor_buft_overrides n_batch n_ubatch embeddings cpu_mask poll n_threads type_k type_v
load_mode no_kv_offload split_mode main_gpu tensor_split fit_target fit_min_ctx
"""
"""What compare-llama-bench.py needs besides."""


def on(name, runs, **environment):
    """The same runs as if this machine had measured them."""
    for each in runs:
        each.conditions.machine = name
        each.environment = each.environment.model_copy(update=environment)
    return runs


def slower(runs, factor):
    for each in runs:
        each.metrics = each.metrics.model_copy(update={"pp": each.metrics.pp * factor})
    return runs


def told(runs):
    return {finding.code: str(finding) for finding in machines.findings(runs)}


def test_one_machine_has_no_section_of_machines():
    assert not machines.rows(grid()) and not machines.findings(grid())
    assert "## Machines" not in page.markdown(grid())


def test_what_is_the_machines_and_what_the_tiers_is_said():
    runs = [*on("fast", grid()), *on("slow", slower(grid(), 0.8))]
    rows = {row["machine"]: row for row in machines.rows(runs)}
    assert rows["fast"]["cells"] == 18 and rows["fast"]["agrees"] == "18/18"
    assert rows["fast"]["pp_ratio"] / rows["slow"]["pp_ratio"] == pytest.approx(1.25)
    assert rows["fast"]["tg_ratio"] == rows["slow"]["tg_ratio"] == pytest.approx(1)
    said = told(runs)
    assert "within the tolerance of the tier model" in said["machines-stage_seconds"]
    assert "pp differs by 25% on the same cells" in said["machines-pp"]
    assert "slow 0.889, fast 1.11" in said["machines-pp"] and "that is the machines'" in said["machines-pp"]
    assert "chance can do as much" in said["machines-tg"]
    text, _ = html.render(runs)
    assert "<h2>Machines</h2>" in text and 'data-code="machines-pp"' in text


def test_few_shared_cells_prove_no_difference():
    runs = [*on("fast", grid()[:3]), *on("slow", slower(grid()[:3], 0.8))]
    assert "of so few cells nobody knows" in told(runs)["machines-pp"]
    runs = [*on("one", grid()[:9]), *on("two", grid()[9:])]
    assert set(told(runs)) == {"nothing-shared"}


def test_a_machine_with_few_cells_is_blamed_for_nothing():
    few = slower(grid()[:1], 0.2)
    runs = [*on("one", grid()), *on("two", slower(grid(), 0.8)), *on("three", few)]
    said = told(runs)["machines-pp"]
    assert "three" not in said and "that is the machines'" in said


def test_cells_that_are_not_the_same_are_not_compared():
    placed = slower(grid(layout={"place": ["ffn=dram", ".*=hbf"], "tiers": {}}), 0.5)
    assert "machines-pp" not in told([*on("one", grid()), *on("two", placed)])
    older = slower(grid(), 0.5)
    for each in older:
        each.llama_bench = each.llama_bench.model_copy(update={"version": "0"})
    assert "machines-pp" not in told([*on("one", grid()), *on("two", older)])


def test_figures_of_unlike_machines_are_not_averaged():
    alike_ = [*on("one", grid()), *on("two", grid())]
    (series,) = summary.series_of(alike_)
    assert all(len(point.runs) == 6 for point in series.points) and series.setting == ""
    unlike = [*on("one", grid()), *on("two", grid(), kernel="6.18")]
    first, second = summary.series_of(unlike)
    assert (first.setting, second.setting) == ("kernel 6.1", "kernel 6.18")
    assert "; kernel 6.18" in second.title
    assert all(len(point.runs) == 3 for series in (first, second) for point in series.points)
    assert "Not the same everywhere: kernel: 6.1 | 6.18." in told(unlike)["unlike"]
    assert {row["setting"] for row in summary.summarize(unlike)} == {"kernel 6.1", "kernel 6.18"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"environment": {"cpu": "Another"}}, "CPU"),
        ({"environment": {"hbf_fuse": "2"}}, "hbf-fuse"),
        ({"llama_bench": {"version": "version: 2"}}, "llama-bench"),
    ],
)
def test_what_must_not_differ(change, what):
    other = grid()
    for each in other:
        for part, values in change.items():
            setattr(each, part, getattr(each, part).model_copy(update=values))
    assert set(alike.differing([*grid(), *other])) == {what}
    assert len(summary.series_of([*grid(), *other])) == 2


def test_a_failed_run_belongs_to_its_machines_others():
    failed = Run(cell=run(500, repeat=4).cell, error="it fell over")
    assert len(summary.series_of([*grid(), failed])) == 1
    failed.conditions.machine = "two"
    unlike = [*on("one", grid()), *on("two", grid(), kernel="6.18"), failed]
    counts = {
        series.setting: sum(len(point.runs) for point in series.points)
        for series in summary.series_of(unlike)
    }
    assert counts == {"kernel 6.1": 18, "kernel 6.18": 19}


def stored(folder, runs):
    results = Results(folder)
    for each in runs:
        results.store(each)
    return folder


WITHOUT_PLOTS = "import sys; sys.modules['jinja2'] = None; from hbf_fuse.cli.app import main; main()"


def report(*arguments, code=0, plots=False):
    command = HBF if plots else [sys.executable, "-P", "-c", WITHOUT_PLOTS]
    said = subprocess.run([*command, "report", *arguments], capture_output=True, text=True, check=False)
    assert said.returncode == code, said.stderr
    return said


def test_folders_are_merged_into_one_report(tmp_path):
    one = stored(tmp_path / "one", grid())
    two = stored(tmp_path / "two", list(on("", slower(grid(), 0.5), kernel="6.18")))
    merged = tmp_path / "merged"
    said = report(one, two, "-o", merged, plots=True)
    assert "not averaged over different values of kernel: 6.1 | 6.18" in said.stderr
    text = (merged / "report.md").read_text()
    assert "kernel 6.18" in text and f"| {one} | 18 |" in text
    assert (merged / "report.html").exists() and not (merged / "runs").exists()
    assert len((merged / "cells.csv").read_text().splitlines()) == 37
    # Two are compared unless they are to be merged; three are merged.
    assert "against" in report(one, two).stdout
    assert "unlike things are compared: not the same kernel" in report(one, two).stderr
    three = stored(tmp_path / "three", slower(grid(), 0.7))
    # Of one machine, as far as anybody can tell: a section about machines would say what days differ in.
    report(one, three, "-o", tmp_path / "days")
    assert "## Machines" not in (tmp_path / "days/report.md").read_text()
    rows = json.loads(report(one, two, three, "-o", merged, "--json").stdout)
    assert {(row["setting"], row["repeats"]) for row in rows} == {("kernel 6.1", 6), ("kernel 6.18", 3)}


def test_what_cannot_be_merged_is_refused(tmp_path):
    one = stored(tmp_path / "one", grid())
    copy = stored(tmp_path / "copy", grid())
    assert "a copy is no repeat" in report(one, copy, "-o", tmp_path / "merged", code=1).stderr
    for twice in (("-o", tmp_path / "merged"), ("--sql", tmp_path / "t.sqlite")):
        assert "a copy is no repeat" in report(one, one, *twice, code=1).stderr
    other = stored(tmp_path / "other", slower(grid(), 0.9))
    for folder in (one, other):
        stored(folder, [Run(cell=run(500, repeat=4).cell, error="it fell over")])
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "report.md").write_text("precious")
    assert "of something else" in report(one, other, "-o", precious, code=1).stderr
    assert (precious / "report.md").read_text() == "precious"
    report(one, other, "-o", tmp_path / "failed-alike")
    assert "holds runs of its own" in report(one, other, "-o", one, code=1).stderr
    assert "holds no runs" in report(one, tmp_path / "nothing", "-o", tmp_path / "merged", code=1).stderr
    assert not (tmp_path / "merged").exists()


def benched(commit, factor, **fields):
    runs = grid()
    for each in runs:
        tokens = {
            **RECORD,
            **dict.fromkeys(_KEYS.split(), 0),
            "build_commit": commit,
            "avg_ts": 100 * factor,
            **fields,
        }
        each.llama_bench.records = [tokens, {**tokens, "n_prompt": 0, "n_gen": 16, "avg_ts": 10 * factor}]
    return runs


def test_llama_cpps_own_script_compares_two_commits_on_each_tier(tmp_path):
    script = subprocess.run(
        [Path(__file__).parents[1] / "tools/llama-bench-build", "--script"],
        capture_output=True,
        text=True,
        check=False,
    )
    if script.returncode:
        pytest.skip(f"llama.cpp's source cannot be fetched: {script.stderr[-200:]}")
    old = stored(tmp_path / "old", benched("aaaa111", 1.0))
    new = stored(tmp_path / "new", benched("bbbb222", 1.1))
    said = report(old, new, "--sql", tmp_path / "both.sqlite")
    assert "commits of llama.cpp: aaaa111, bbbb222" in said.stderr
    line = [sys.executable, script.stdout.strip(), "-i", "both.sqlite", "-b", "aaaa111", "-c", "bbbb222"]
    compared = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    rows = [line for line in compared.splitlines() if "1.10" in line]
    # Six tiers, two tests each: none is averaged with another.
    assert len(rows) == 12
    assert any("llama 1B Q4_K_M, mmap, 250 MB/s + 1 ms" in row and "tg16" in row for row in rows)


def test_the_table_has_the_tiers_columns_and_no_null_where_the_script_compares(tmp_path):
    older = benched("aaaa111", 1.0)
    for each in older:
        for record in each.llama_bench.records:
            del record["fit_target"]
    (tmp_path / "t.sqlite").write_bytes(sql.database([*older, *benched("bbbb222", 1.0)]))
    with sqlite3.connect(tmp_path / "t.sqlite") as known:
        rows = known.execute(
            "SELECT hbf_cell, tier_mbps, tier_lat_ms, verdict, stage_seconds, fit_target, model_filename,"
            " llama_model_type, cpu_strict FROM llama_bench"
        ).fetchall()
    assert len(rows) == 72
    assert {row[5] for row in rows} == {0} and {row[6] for row in rows} == {"model.gguf"}
    assert {row[7] for row in rows} == {RECORD["model_type"]} and {row[8] for row in rows} == {0}
    assert ("mmap-500-1-r1", 500.0, 1.0, "agrees", 4.0004) in {row[:5] for row in rows}


def test_only_a_table_of_ours_is_replaced(tmp_path):
    folder = stored(tmp_path / "one", benched("aaaa111", 1.0))
    for name, make in (("a.sqlite", _foreign), ("b.txt", lambda path: path.write_text("precious"))):
        make(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        assert "is no table of hbf's" in report(folder, "--sql", tmp_path / name, code=1).stderr
        assert (tmp_path / name).read_bytes() == before
    for _ in range(2):
        report(folder, "--sql", tmp_path / "ours.sqlite", "--json")
    with pytest.raises(HbfError, match="no run of llama-bench"):
        sql.database(grid())


def _foreign(path):
    with sqlite3.connect(path) as known:
        known.execute("CREATE TABLE llama_bench (build_commit TEXT)")


def test_a_hostile_record_breaks_nothing():
    runs = benched(
        "x'); DROP TABLE llama_bench; --",
        1.0,
        **{'a"b': "c", "machine": "theirs", "MODE": 1, "order": 1 << 70, "group": None},
    )
    content = sql.database(runs)
    with sqlite3.connect(":memory:") as known:
        known.deserialize(content)
        assert known.execute("SELECT count(*) FROM llama_bench").fetchone() == (36,)
