"""A llama-bench that is missing, fails, prints wrong figures or hangs: one line, results kept, nothing left
behind.
"""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
from sandbox import BIN, Box, names, wait_until, write_script

QUICK = ("-p", 1, "-n", 1)
ROW = (
    '{"build_commit": "x", "build_number": 1, "cpu_info": "x", "gpu_info": "", "backends": "CPU", '
    '"model_filename": "m", "model_type": "qwen2", "model_size": 104329216, "model_n_params": 168864768, '
    '"n_batch": 2048, "n_ubatch": 512, "n_threads": 2, "type_k": "f16", "type_v": "f16", "n_gpu_layers": -1, '
    '"n_prompt": %d, "n_gen": %d, "n_depth": 0, "test_time": "2026-01-01T00:00:00Z", "avg_ns": 7000000, '
    '"stddev_ns": 0, "avg_ts": 140.0, "stddev_ts": 0.0, "samples_ns": [7000000], "samples_ts": [140.0]}'
)
WORKS = f"cat \"$2\" >/dev/null\necho '{ROW % (1, 0)}'\necho '{ROW % (0, 1)}'"

pytestmark = pytest.mark.usefixtures("fuse")


def test_no_llama_bench_says_how_to_get_one(box: Box, tiny: Path) -> None:
    empty = box.folder / "empty"
    empty.mkdir()
    for command in ("bench", "sweep"):
        result = box.run("hbf", command, "-m", tiny, *QUICK, "-o", "results", PATH=str(empty))
        result.fails("no llama-bench", "PATH", "$HBF_LLAMA_BENCH")
    box.assert_clean()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'out of luck' >&2; exit 3", ("exit code 3", "out of luck")),
        ("echo 'argle bargle'", ("llama-bench", "argle")),
        ("echo '[]'", ("llama-bench",)),
        ("echo '{\"a\": 1}'", ("llama-bench",)),
        ("exit 0", ("llama-bench",)),
        ("kill -SEGV $$", ("llama-bench",)),
    ],
    ids=["exits 3", "nonsense", "empty list", "other JSON", "silence", "crash"],
)
def test_a_failing_llama_bench_gives_one_line(
    box: Box, tiny: Path, body: str, words: tuple[str, ...]
) -> None:
    fake = write_script(box.work / "fake", body)
    result = box.run("hbf", "bench", "-m", tiny, *QUICK, "-o", "results", HBF_LLAMA_BENCH=str(fake))
    result.fails(*words)
    assert list((box.work / "results").rglob("*.gguf")) == []
    box.assert_clean()


def test_a_llama_bench_that_cannot_be_run_gives_one_line(box: Box, tiny: Path) -> None:
    fake = write_script(box.work / "fake", WORKS)
    fake.chmod(0o644)
    for path in (fake, box.work / "missing"):
        result = box.run("hbf", "bench", "-m", tiny, *QUICK, "-o", "results", HBF_LLAMA_BENCH=str(path))
        result.fails("$HBF_LLAMA_BENCH", str(path), "executable")
    box.assert_clean()


def test_a_llama_bench_that_hangs_is_ended_with_its_children(box: Box, tiny: Path) -> None:
    fake = write_script(box.work / "fake", "sleep 300 &\nsleep 301")
    result = box.run(
        "hbf", "bench", "-m", tiny, *QUICK, "--timeout", 2, "-o", "results", HBF_LLAMA_BENCH=str(fake)
    )
    result.fails("2 s", "--timeout")
    assert result.seconds < 10
    box.assert_clean()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_leaves_nothing(box: Box, tiny: Path, stop: int) -> None:
    begun = box.folder / "begun"
    fake = write_script(box.work / "fake", f"touch {begun}\nsleep 300")
    argv = (BIN / "hbf", "bench", "-m", tiny, *QUICK, "-o", "results")
    process = box.start(*argv, HBF_LLAMA_BENCH=str(fake))
    assert wait_until(begun.exists, 15)
    process.send_signal(stop)
    _, err = process.communicate(timeout=10)
    assert process.returncode != 0
    assert "Traceback" not in err
    box.assert_clean()


def test_bench_without_model_gguf_says_so(box: Box, tiny: Path) -> None:
    fake = write_script(box.work / "fake", WORKS)
    (box.work / "text.gguf").write_text("hello")
    with tiny.open("rb") as stream:
        (box.work / "cut.gguf").write_bytes(stream.read(50_000_000))
    for name, words in {
        "text.gguf": ("not a GGUF",),
        "cut.gguf": ("cut short",),
        "nosuch.gguf": ("does not exist",),
    }.items():
        result = box.run("hbf", "bench", "-m", name, *QUICK, "-o", "results", HBF_LLAMA_BENCH=str(fake))
        result.fails(name, *words)
    box.assert_clean()


@pytest.mark.parametrize(("option", "value"), [("--mbps", "-1"), ("--mbps", "0"), ("--lat", "nan")])
def test_an_impossible_tier_is_refused(box: Box, tiny: Path, option: str, value: str) -> None:
    fake = write_script(box.work / "fake", WORKS)
    for command in ("bench", "sweep"):
        argv = ("hbf", command, "-m", tiny, *QUICK, f"{option}={value}", "-o", "results")
        box.run(*argv, HBF_LLAMA_BENCH=str(fake)).fails(option)
    box.assert_clean()


@pytest.mark.parametrize("command", ["bench", "sweep"])
def test_an_unknown_engine_is_wrong_usage(box: Box, tiny: Path, command: str) -> None:
    fake = write_script(box.work / "fake", WORKS)
    argv = ("hbf", command, "-m", tiny, *QUICK, "--engine", "steam", "-o", "results")
    box.run(*argv, HBF_LLAMA_BENCH=str(fake)).is_wrong_usage("kernel", "fusepy")
    box.assert_clean()


@pytest.mark.parametrize("grid", ["500,fast"])
def test_a_text_in_a_grid_is_wrong_usage(box: Box, tiny: Path, grid: str) -> None:
    fake = write_script(box.work / "fake", WORKS)
    argv = ("hbf", "sweep", "-m", tiny, "--mbps", grid, "-o", "results")
    box.run(*argv, HBF_LLAMA_BENCH=str(fake)).is_wrong_usage("--mbps", "fast")


def test_a_bench_that_works_prints_its_result_as_json(box: Box, tiny: Path) -> None:
    fake = write_script(box.work / "fake", WORKS)
    argv = ("hbf", "bench", "-m", tiny, *QUICK, "--mbps", 2000, "--json", "-o", "results")
    assert json.loads(box.run(*argv, HBF_LLAMA_BENCH=str(fake)).succeeds().out)
    box.assert_clean()


def test_a_sweep_goes_on_after_a_failing_cell_and_tries_it_again(box: Box, tiny: Path) -> None:
    count = box.folder / "count"
    counts = f"echo x >>{count}\n"
    fails_first = f'if [ "$(wc -l <{count})" = 1 ]; then echo unlucky >&2; exit 3; fi\n'
    fake = write_script(box.work / "fake", counts + fails_first + WORKS)
    argv = ("hbf", "sweep", "-m", tiny, *QUICK, "--mbps", "1000,2000", "--lat", "0", "--repeats", 1)
    result = box.run(*argv, "-o", "results", HBF_LLAMA_BENCH=str(fake))
    assert result.code == 1, result
    assert "Traceback" not in result.out + result.err, result
    assert [line for line in result.err.splitlines() if line.startswith("hbf: ") and "1 of 2" in line], result
    assert len(count.read_text().split()) == 2, "the sweep stopped at the failing cell"
    runs = names(box.work / "results" / "runs")
    assert len([name for name in runs if name.endswith(".json")]) == 2
    with (box.work / "results" / "cells.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2
    assert len([row for row in rows if "unlucky" in row["why"]]) == 1
    assert "unlucky" in (box.work / "results" / "report.md").read_text()
    box.assert_clean()

    again = box.run(*argv, "-o", "results", HBF_LLAMA_BENCH=str(fake))
    assert again.code == 0, again
    assert len(count.read_text().split()) == 3, "only the failed cell is measured again"
    box.assert_clean()
