"""llama-bench's own options: passed on, part of a cell's identity, and refused in its own words."""

import json
import subprocess
import sys

import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.sweep import grid as grids
from hbf_fuse.sweep.cell import Cell, ModelFile, describe
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import failure, llama
from hbf_fuse.workload.llama import BenchOptions


def hbf(*arguments, cwd=None):
    line = [sys.executable, "-m", "hbf_fuse", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=110, check=False)


def test_what_stands_after_the_dashes_reaches_llama_bench(tiny_model, llama_bench, tmp_path):
    said = hbf(
        "bench",
        "-m",
        tiny_model,
        "-p",
        8,
        "-n",
        2,
        "-o",
        tmp_path,
        "--json",
        "--",
        "-fa",
        "on",
        "-ctk",
        "q8_0",
    )
    assert said.returncode == 0, said.stderr
    run = json.loads(said.stdout)
    assert run["cell"]["bench"]["extra"] == ["-fa", "on", "-ctk", "q8_0"]
    assert run["command"][-4:] == ["-fa", "on", "-ctk", "q8_0"]
    assert {record["type_k"] for record in run["llama_bench"]["records"]} == {"q8_0"}
    assert "-fa_on_ctk_q8_0-" in run["cell"]["name"]


def test_llama_benchs_own_words_tell_of_an_option_that_it_refuses(tiny_model, llama_bench, tmp_path):
    said = hbf("bench", "-m", tiny_model, "-o", tmp_path, "--", "--no-such-option", "3")
    assert said.returncode == 1
    assert "error: invalid parameter for argument: --no-such-option" in said.stderr


@pytest.mark.parametrize("word", ["-m", "-p", "--n-gen", "-o", "-r", "-lm", "--load-mode=dio"])
def test_an_option_that_is_ours_is_refused_after_the_dashes(llama_bench, word):
    with pytest.raises(HbfError, match="cannot stand after --"):
        llama.check(BenchOptions(extra=(word,)), llama_bench)


def test_load_modes_are_those_of_llama_benchs_help(llama_bench):
    assert {"mmap", "none"} <= set(llama.load_modes(llama_bench))
    with pytest.raises(HbfError, match=r"no load mode 'fast'.*mmap"):
        llama.check(BenchOptions(load_mode="fast"), llama_bench)


@pytest.mark.parametrize("mode", ["none", "dio"])
def test_a_load_mode_reads_the_tier_once_and_is_told(tiny_model, llama_bench, tmp_path, mode):
    if mode not in llama.load_modes(llama_bench):
        pytest.skip(f"this llama-bench has no load mode {mode}")
    said = hbf(
        "bench", "-m", tiny_model, "-p", 8, "-n", 2, "-lm", mode, "--mbps", 800, "-o", tmp_path, "--json"
    )
    assert said.returncode == 0, said.stderr
    run = json.loads(said.stdout)
    assert f"-lm {mode}: weights are" in said.stderr
    assert run["cell"]["bench"]["load_mode"] == mode
    assert run["metrics"]["tier_bytes_read"] >= run["cell"]["model"]["size"]


def test_axes_of_a_grid_are_cells_with_names_of_their_own():
    fields = {"mbps": [100], "lat": [0], "repeats": 1, "load_mode": ["mmap", "dio"], "llama": ["", "-fa on"]}
    cells = grids.from_fields(fields).cells(ModelFile((), 1 << 30, ""))
    assert len({cell.name for cell in cells}) == 4
    assert {(cell.bench.load_mode, cell.bench.extra) for cell in cells} == {
        ("mmap", ()), ("mmap", ("-fa", "on")), ("dio", ()), ("dio", ("-fa", "on")),
    }  # fmt: skip


def test_a_usual_cell_has_the_name_that_it_always_had(tiny_model):
    cell = Cell(ModelFile((tiny_model,), 1, ""), TierSpec(100, 1), bench=BenchOptions(8, 4, 2))
    assert cell.name == "mmap-100mbps-1ms-p8-n4-t2-r1"
    assert describe(cell).bench.label == "-t 2"


def test_long_options_make_no_long_file_names():
    extra = tuple(f"-ot=blk.{number}=CPU" for number in range(100))
    other = (*extra[:-1], "-ot=blk.7=CPU")
    names = {
        Cell(ModelFile((), 1, ""), TierSpec(), bench=BenchOptions(extra=each)).name for each in (extra, other)
    }
    assert len(names) == 2 and all(len(name) < 160 for name in names)


def test_stream_decodes_from_a_mapping_alone(tiny_model):
    with pytest.raises(HbfError, match="its load mode is mmap"):
        grids.from_fields({"mode": ["stream"], "load_mode": ["dio"]})
    said = hbf("bench", "-m", tiny_model, "--mode", "stream", "-lm", "dio")
    assert said.returncode == 2 and "its load mode is mmap" in " ".join(said.stderr.split())


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("x.cpp:26: GGML_ASSERT(n % 8 == 0) failed\n#1 0x00 in main ()", "GGML_ASSERT(n % 8 == 0) failed"),
        (
            "llama_model_load: error loading model: missing tensor 'a'\nllama_bench: error: failed",
            "error loading model: missing tensor 'a'",
        ),
        (
            "gguf_init: tensor 'a' has invalid ggml type 1000\nllama_model_load: error loading model: "
            "llama_model_loader: failed to load model from m.gguf\n",
            "error loading model: gguf_init: tensor 'a' has invalid ggml type 1000",
        ),
        ("error: invalid parameter: -x\nusage: llama-bench", "error: invalid parameter: -x"),
        ("nothing that is known", ""),
    ],
)  # fmt: skip
def test_the_reason_is_llama_cpps_own_line(output, why):
    assert failure.reason(output) == why


def test_a_backtrace_is_never_the_reason():
    assert failure.last_line("died\n#1 0x00 in main ()\n[Inferior 1 detached]\n| model | size |") == "died"
    assert failure.last_line("", "") == "no message"
