"""The workload serve: llama-server under load, from a cold start."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import Layout
from hbf_fuse.gguf.reader import Tensor
from hbf_fuse.mount import client
from hbf_fuse.observe.phases import MOST_PHASES, Phases
from hbf_fuse.report import page, summary
from hbf_fuse.report.html import render
from hbf_fuse.runs import results
from hbf_fuse.runs.metrics import Served, ServeLevel
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.schema import run_of
from hbf_fuse.sweep import grid as grids
from hbf_fuse.sweep import measuring, serving, workloads, workspace
from hbf_fuse.sweep.cell import Cell, ModelFile
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces import experts
from hbf_fuse.traces.trace import Read
from hbf_fuse.workload import serve
from hbf_fuse.workload.llama import BenchOptions
from hbf_fuse.workload.load import Answer, Level, digest, prompts
from hbf_fuse.workload.program import SERVER
from hbf_fuse.workload.serve import ServeOptions

PAGE = Path(__file__).parents[1] / "docs/definitions.md"
REQUEST = BenchOptions(n_prompt=16, n_gen=8, threads=1)
FEW = ServeOptions(concurrency=(1, 2), requests=2, request_timeout=60)
MS = 1_000_000


@pytest.fixture(scope="session")
def llama_server():
    """The binary; building one takes long, so a machine without it skips."""
    try:
        return SERVER.find()
    except HbfError:
        pytest.skip("no llama-server: build one with tools/llama-bench-build --server")


def lockstep(users, tokens=5, step_ms=10, first_ms=50):
    """Answers of users who all get their tokens at the same moments."""
    came = [(first_ms + step_ms * number) * MS for number in range(tokens)]
    return [Answer(number, 0, list(came), list(range(tokens))) for number in range(users)]


def test_a_level_in_lockstep_has_one_window_of_whole_steps():
    level = Level(2, 0, 200 * MS, lockstep(2), 0.0)
    assert level.full_windows() == [(50 * MS, 90 * MS)]
    assert level.step_seconds(level.full_windows()) == pytest.approx(0.010)


def test_a_window_is_only_where_all_users_decode():
    late = Answer(1, 0, [70 * MS, 80 * MS, 90 * MS, 100 * MS, 110 * MS], [])
    level = Level(2, 0, 200 * MS, [lockstep(1)[0], late], 0.0)
    assert level.full_windows() == [(70 * MS, 90 * MS)]
    failed = Answer(2, 0, [], [], "no answer")
    assert Level(2, 0, 1, [failed, failed], 0.0).full_windows() == []
    assert Level(2, 0, 1, [failed, failed], 0.0).step_seconds([]) is None


def test_times_of_an_answer():
    (answer,) = lockstep(1)
    assert answer.ttft_seconds == pytest.approx(0.050)
    assert answer.tpot_seconds == pytest.approx(0.010)
    assert Answer(0, 0).ttft_seconds is None
    assert Answer(0, 0, [1]).tpot_seconds is None


def test_a_digest_does_not_depend_on_who_was_first():
    one, other = Answer(0, 0, [], [1, 2]), Answer(1, 0, [], [3])
    assert digest([one, other]) == digest([other, one])
    assert digest([one, other]) != digest([one, Answer(1, 0, [], [4])])


def test_prompts_are_the_same_for_a_seed_and_differ_from_each_other():
    first, again = prompts(1000, 8, 7), prompts(1000, 8, 7)
    found = [next(first) for _ in range(20)]
    assert found == [next(again) for _ in range(20)]
    assert len({prompt[0] for prompt in found}) > 10
    assert all(len(prompt) == 8 and max(prompt) < 1000 for prompt in found)
    assert next(prompts(1000, 8, 8)) != found[0]


@pytest.mark.parametrize(("users", "requests"), [(1, 8), (3, 9), (8, 8), (16, 16)])
def test_a_level_has_whole_rounds(users, requests):
    assert ServeOptions(requests=8).requests_of(users) == requests


def test_a_context_that_does_not_fit_is_refused_with_what_would():
    assert ServeOptions(concurrency=(1, 4)).context(160) == 4 * 160
    assert ServeOptions(concurrency=(1, 4), ctx_size=1024).context(160) == 1024
    with pytest.raises(HbfError, match=r"leaves 128 to each of 4 slots; give at least --ctx-size 640"):
        ServeOptions(concurrency=(1, 4), ctx_size=512).context(160)
    with pytest.raises(HbfError, match="--ctx-size"):
        grids.from_fields({"workload": ["serve"], "ctx_size": 64})


@pytest.mark.parametrize("word", ["-m", "--port", "--host=1.2.3.4", "-np", "--ctx-size", "-hf", "--api-key"])
def test_options_that_hbf_gives_itself_are_refused(word):
    with pytest.raises(HbfError, match="cannot stand after --"):
        serve.check(BenchOptions(16, 8, extra=(word, "1")))


@pytest.mark.parametrize(("n_prompt", "n_gen"), [(0, 8), (8, 0), (8, 1)])
def test_a_request_without_tokens_is_refused(n_prompt, n_gen):
    with pytest.raises(HbfError, match="a prompt and at least two tokens"):
        serve.check(BenchOptions(n_prompt, n_gen))


def test_a_grid_of_both_workloads_has_cells_of_each():
    model = ModelFile((Path("m.gguf"),), 1 << 20, "")
    fields = {"workload": ["bench", "serve"], "mbps": [500], "lat": [0], "n_prompt": [64, 128], "repeats": 1}
    cells = grids.from_fields({**fields, "concurrency": [1, 2], "input_tokens": 32}).cells(model)
    names = [cell.name for cell in cells]
    assert sorted(names) == [
        "mmap-500mbps-0ms-p128-n256-r1",
        "mmap-500mbps-0ms-p64-n256-r1",
        "mmap-500mbps-0ms-serve-p32-n32-c1_2-r1",
    ]
    (served,) = [cell for cell in cells if cell.serve]
    assert served.serve.concurrency == (1, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"workload": ["serves"]},
        {"concurrency": []},
        {"concurrency": [0]},
        {"output_tokens": 1},
        {"requests": 0},
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(fields):
    with pytest.raises(HbfError):
        grids.from_fields({"workload": ["serve"], **fields})


def read(at_ms, offset, nbytes):
    due = (at_ms + 1) * MS
    return Read(at_ms * MS, due, due, offset, nbytes, reader=1, ino=1, tier=0)


def test_experts_of_a_step_and_of_a_batch():
    """Four experts of 1000 bytes; a user's step reads one of them, each as often as another."""
    tensors = [Tensor("blk.0.ffn_up_exps.weight", (10, 10, 4), "Q8_0", 0, 4000)]
    steps = [(number * 10 * MS, (number + 1) * 10 * MS) for number in range(4)]
    reads = [read(number * 10 + 1, number * 1000, 1000) for number in range(4)]
    # A tenth of a neighbour is readahead, not a use.
    found = experts.routing([*reads, read(2, 3000, 100)], tensors, steps)
    assert found.per_step == 1.0
    assert found.per_step_of(1) == pytest.approx(1.0)
    assert found.per_step_of(2) == pytest.approx(4 * (1 - 0.75**2))
    assert found.bytes_of(2) == pytest.approx(1000 * found.per_step_of(2) + 25)
    assert experts.routing(reads, [Tensor("a", (10, 10), "Q8_0", 0, 4000)], steps) is None
    assert experts.routing([], tensors, steps) is None


@pytest.mark.parametrize(
    ("known", "batch"),
    [
        ([(1, 1.0, 3.0), (4, 2.0, 3.0), (8, 4.0, 3.0)], 6.0),
        ([(1, 5.0, 3.0)], 1.0),
        ([(1, 1.0, 3.0)], None),
        ([(1, 1.0, 3.0), (2, 1.5, 3.0)], 5.0),
        ([(1, 1.0, 3.0), (2, 1.0, 3.0)], None),
        ([], None),
    ],
)
def test_the_batch_from_which_compute_binds(known, batch):
    levels = [
        ServeLevel(concurrency=count, compute_step_seconds=compute, tier_step_seconds=tier)
        for count, compute, tier in known
    ]
    found = serving._break_even(levels)
    assert found == (batch if batch is None else pytest.approx(batch))


def test_phases_count_what_came_meanwhile():
    phases = Phases()
    assert phases.status(0, 0, 0) == {}
    phases.begin("load", 10**9, 5, 100)
    phases.begin("decode", 2 * 10**9, 7, 300)
    phases.begin("load", 4 * 10**9, 8, 350)
    found = phases.status(5 * 10**9, 9, 400)
    assert found["load"] == {"seconds": 2.0, "reads": 3, "bytes_read": 250}
    assert found["decode"] == {"seconds": 2.0, "reads": 1, "bytes_read": 50}
    for bad in ("", "x" * 41, "a\nb"):
        with pytest.raises(ValueError, match="letters"):
            phases.begin(bad, 0, 0, 0)
    for number in range(MOST_PHASES - 2):
        phases.begin(str(number), 0, 0, 0)
    with pytest.raises(ValueError, match="phases already"):
        phases.begin("one more", 0, 0, 0)


@pytest.mark.parametrize("engine", ["kernel", "fusepy"])
def test_a_reader_names_its_phases(mount, noise, engine):
    point = mount(noise(300_000), engine=engine)
    client.send(point, {"phase": "first"})
    (point / "model.gguf").read_bytes()
    client.send(point, {"phase": "second"})
    stats = client.read_stats(point)
    assert stats["phase"] == "second"
    assert stats["phases"]["first"]["bytes_read"] >= 300_000
    assert stats["phases"]["second"]["bytes_read"] == 0
    assert stats["exchanges"] == 0
    with pytest.raises(HbfError, match="refused"):
        client.send(point, {"phase": 5})
    said = subprocess.run(
        [sys.executable, "-m", "hbf_fuse", "set", str(point), "--phase", "third"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'third'" in said.stderr
    assert client.read_stats(point)["phase"] == "third"


def test_every_column_of_a_served_cell_is_defined_and_nothing_else():
    section = PAGE.read_text().partition("## The workload serve")[2].partition("\n## ")[0]
    tables = section.split("|---|---|")[1:]
    first, second = (
        {
            name
            for line in text.partition("\n\n")[0].splitlines()
            for name in re.findall(r"`(\w+)`", line.split(" | ")[0])
        }
        for text in tables
    )
    assert first == set(Served.model_fields)
    percentiles = {f"{name}_{key}" for name in ("ttft", "tpot", "itl") for key in ("p50", "p95", "p99")}
    assert second == set(ServeLevel.model_fields) - {"ttft", "tpot", "itl"} | percentiles


@pytest.fixture(scope="module")
def served_cells(tiny_model, llama_server, tmp_path_factory):
    """Runs of a mapped model and of one whose weights stay in the tier, stored."""
    folder = Results(tmp_path_factory.mktemp("serve"))
    model = ModelFile.of(tiny_model)
    layout = Layout(model.size // 2)
    cells = [
        Cell(model, TierSpec(400, 0), bench=REQUEST, serve=FEW),
        Cell(model, TierSpec(400, 0), bench=REQUEST, serve=FEW, mode="stream", layout=layout),
    ]
    with workspace.lent() as lent:
        for cell in cells:
            folder.store(measuring.run(cell, lent))
        assert not (lent.mountpoint.parent / serve.SOCKET).exists()
    return folder


def test_a_cold_start_in_parts(served_cells):
    mapped = next(run for run in served_cells.all() if run.cell.mode == "mmap").metrics
    assert mapped.same_output is True
    assert 0 < mapped.ready_seconds < mapped.cold_ttft_seconds
    assert mapped.cold_ttft_seconds == pytest.approx(
        mapped.ready_seconds + mapped.first_prefill_seconds, rel=0.05
    )
    # 100 MB at 400 MB/s take a quarter of a second.
    assert mapped.cold_ttft_seconds > 0.24
    assert 0 < mapped.memory_ttft_seconds < mapped.predicted_ttft_seconds
    assert mapped.bytes_by_phase["load"] >= 0.9 * mapped.tier_bytes_read
    assert mapped.warm_ttft_seconds < mapped.cold_ttft_seconds
    for level in mapped.levels:
        assert level.failed == 0
        assert level.requests == 2
        assert level.ttft.p50 > 0
        assert level.itl.p99 is None  # of so few tokens there is none
        assert level.decode_tokens_per_second > 0
        assert level.predicted_tokens_per_second is None


def test_weights_that_stay_in_the_tier_are_read_at_each_step(served_cells):
    stream = next(run for run in served_cells.all() if run.cell.mode == "stream").metrics
    assert stream.same_output is True
    one, two = stream.levels
    assert one.bytes_per_step == pytest.approx(two.bytes_per_step, rel=0.3)
    assert two.bytes_per_token < 0.7 * one.bytes_per_token
    for level in stream.levels:
        assert level.bytes_per_step > 10e6
        assert level.predicted_tokens_per_second > 0
        assert level.verdict in {"agrees", "unsure", "off"}
        assert level.error_pct is not None


def test_a_served_run_is_stored_read_again_and_reported(served_cells):
    again = Results(served_cells.folder).all()
    for run in again:
        assert run_of(json.loads(served_cells.path_of(run.cell.name).read_text())) == run
    rows = list(csv.DictReader((served_cells.folder / results.LEVELS_CSV).open()))
    assert [row["concurrency"] for row in rows] == ["1", "2"] * 2
    cells = list(csv.DictReader((served_cells.folder / results.CSV).open()))
    assert {row["workload"] for row in cells} == {"serve"}
    assert all(float(row["cold_ttft_seconds"]) > 0 for row in cells)
    assert not any(name.startswith(("pp", "tg1", "tg8")) for name in cells[0])
    text, drawn = render(again)
    assert "By users" in text
    assert {plot.name.split("-")[0] for plot in drawn} == {"ttft", "batch", "itl"}
    markdown = page.markdown(again)
    assert "The first answer was the same as from memory, token by token, in 1 of 1 runs." in markdown
    assert "served by llama-server" in markdown
    assert len(summary.series_of(again)) == 2


def test_a_request_that_takes_too_long_is_counted(tiny_model, llama_server, tmp_path):
    long = BenchOptions(n_prompt=16, n_gen=4000, threads=1)
    hurried = ServeOptions(concurrency=(1,), requests=1, request_timeout=0.3)
    with pytest.raises(HbfError, match=r"failed the first request: no answer within 0\.3 s"):
        serve.run(llama_server, tiny_model, long, hurried, 1000, tmp_path, 60)
    assert not list(tmp_path.iterdir())


def test_a_server_that_dies_while_loading_says_why(tiny_model, llama_server, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_model.read_bytes()[:104])
    with pytest.raises(HbfError, match=r"llama-server ended while loading: .*file size"):
        serve.run(llama_server, broken, REQUEST, FEW, 1000, tmp_path, 60)


def test_a_context_that_is_too_large_for_memory_says_why(tiny_model, llama_server, tmp_path):
    huge = ServeOptions(concurrency=(1,), requests=1, ctx_size=20_000_000)
    with pytest.raises(HbfError, match=r"llama-server ended while loading: .*insufficient memory"):
        serve.run(llama_server, tiny_model, REQUEST, huge, 1000, tmp_path, 60)


def test_no_server_says_how_to_get_one(tiny_model, tmp_path):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HBF_LLAMA_SERVER": ""}
    line = [
        sys.executable,
        "-m",
        "hbf_fuse",
        "bench",
        str(tiny_model),
        "--workload",
        "serve",
        "-o",
        str(tmp_path / "r"),
    ]
    said = subprocess.run(line, check=False, capture_output=True, text=True, env=env, timeout=60)
    assert said.returncode == 1
    assert "tools/llama-bench-build --server" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--concurrency", "4"], "add --workload serve"),
        (["--workload", "serves"], "unknown workload"),
        (["--workload", "serve", "--concurrency", "a"], "--concurrency"),
        (["--workload", "serve", "--ctx-size", "100"], "--ctx-size"),
        (["--workload", "serve", "--", "--port", "80"], "socket of its own"),
    ],
)
def test_wrong_usage_is_refused(tiny_model, llama_server, tmp_path, options, said):
    line = [sys.executable, "-m", "hbf_fuse", "bench", str(tiny_model), "-o", str(tmp_path / "r"), *options]
    ended = subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (1, 2)
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("after_seconds", [0.4, 1.5, 3.0])
def test_ctrl_c_leaves_nothing_running(tiny_model, llama_server, tmp_path, after_seconds):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    line = [sys.executable, "-m", "hbf_fuse", "bench", str(tiny_model), "--workload", "serve", "--mbps", "50"]
    line += ["--concurrency", "1,2", "--requests", "50", "-o", str(tmp_path / "r")]
    env = {**os.environ, "TMPDIR": str(scratch)}
    bench = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    time.sleep(after_seconds)
    bench.send_signal(signal.SIGINT)
    said = bench.communicate(timeout=30)[1]
    assert bench.returncode in (130, -signal.SIGINT), said
    assert "Traceback" not in said
    deadline = time.monotonic() + 15
    while left := [each for each in psutil.process_iter(["cmdline"]) if _uses(each, scratch)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not list(scratch.iterdir())


def _uses(process, folder):
    return any(str(folder) in part for part in process.info["cmdline"] or [])


def test_the_vocabulary_is_the_models_own(tiny_model):
    cell = Cell(ModelFile.of(tiny_model), TierSpec(400, 0), serve=FEW)
    assert workloads._vocabulary(cell) > 100
