"""KV accounting: what hbf-fuse counts is what llama.cpp allocates."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import geometries
import pytest

from hbf_fuse.cli.kv import cached
from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import GgufError, architectures, kv, read
from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import kv_oracle
from hbf_fuse.workload.kv_oracle import Allocated, Question

DATA = Path(__file__).parent / "data"


def expected():
    """Of real models' geometry, in f16: (model, tokens) and what llama.cpp's log has, as MiB and cells."""
    found = defaultdict(list)
    for row in csv.DictReader((DATA / "kv-expected.csv").read_text().splitlines()):
        found[row["model"], int(row["n_ctx"])].append((row["mib"], int(row["cells"])))
    return sorted(found.items())


def asked():
    """Of every geometry that tools/kv_oracle --made asked llama.cpp for: (model, question) and its answer."""
    found = defaultdict(list)
    for row in csv.DictReader((DATA / "kv-oracle.csv").read_text().splitlines()):
        question = Question(
            int(row["context"]),
            int(row["parallel"]),
            row["cache_type_k"],
            row["cache_type_v"],
            row["unified"] == "True",
            int(row["ubatch"]),
        )
        found[row["model"], question].append((row["mib"], int(row["cells"])))
    return found


def ours(name, question):
    parts = kv.parts(geometries.model(name), **dataclasses.asdict(question))
    known = sorted((kv_oracle.mib(part.nbytes), part.cells) for part in parts)
    return [each for each in known if each[0] != "0.00"]


@pytest.mark.parametrize(("asked", "allocated"), expected(), ids=lambda value: str(value[0]))
def test_real_models_take_what_llama_cpp_allocates(asked, allocated):
    name, context = asked
    assert ours(name, Question(context)) == sorted(allocated)


def test_every_architecture_takes_what_llama_cpp_allocates():
    answers = asked()
    wrong = {
        (name, question): (ours(name, question), allocated)
        for (name, question), allocated in answers.items()
        if ours(name, question) != sorted(each for each in allocated if each[0] != "0.00")
    }
    assert not wrong
    known = {geometries.GEOMETRIES[name]["general.architecture"] for name, _ in answers}
    # An encoder, one that llama.cpp makes beside another model alone, and two that need more than keys.
    lacking = {"clip", "gemma4-assistant", "eagle3", "clef", "wavtokenizer-dec"}
    assert set(architectures.table().names()) - known == lacking


def test_the_oracle_says_the_same_today():
    """Where llama.cpp is built. tools/kv_oracle --made asks for all."""
    try:
        binary = kv_oracle.find()
    except HbfError as error:
        pytest.skip(str(error))
    with geometries.files("gemma3-27b", "jamba-mini", "made-deepseek4", "bert-bge-small") as paths:
        for path in paths:
            for question in (Question(8192), Question(3000, 2, "q8_0", "q8_0")):
                allocated = kv_oracle.ask(binary, path, question)
                parts = kv.parts(read(path), **dataclasses.asdict(question))
                assert kv_oracle.agree([(part.nbytes, part.cells) for part in parts], allocated)


# The table


def test_the_table_names_a_source_for_each_architecture():
    table = architectures.table()
    assert len(table.names()) > 150
    assert all(table.of(name).source for name in table.names())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 'x'", "missing"),
        ("version = 'x'\nplain = []\nhints = []\nmore = 1", "more"),
        ("version = 'x'\nplain = ['a']\nhints = []\n[without]\na = 'why'", "twice"),
        ("version = 'x'\nplain = []\nhints = []\n[caches.a]\nwindows = 1", "windows"),
        ("version = 'x'\nplain = []\nhints = []\n[caches.a]\nwindow = {when = 'never'}", "'never'"),
        ("version = ", "Invalid value"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(text, words):
    with pytest.raises(GgufError, match=words):
        architectures.parse(text)


def unknown(**fields):
    metadata = geometries.described("llama9", **geometries.PLAIN | fields)
    return dataclasses.replace(geometries.model("made-llama"), metadata=metadata)


def test_an_unknown_architecture_is_taken_as_plain_unless_it_hints_at_more():
    hints = ("attention__sliding_window", "attention__kv_lora_rank", "attention__shared_kv_layers")
    plain = unknown(**dict.fromkeys((*hints, "full_attention_interval")))
    assert kv.bytes_per_token(plain) == kv.bytes_per_token(geometries.model("made-llama"))
    assert "llama9 is unknown" in kv.remark(plain) and not kv.remark(geometries.model("made-llama"))
    with pytest.raises(GgufError, match=r"llama9 is unknown here, and its attention\.sliding_window says"):
        kv.bytes_per_token(unknown())


# What grows and what does not


def cache_of(name, context, types=("f16", "f16")):
    with geometries.files(name) as (path,):
        (found,) = cached.of_contexts(path, [context], *types)
    return found


def test_windows_stop_growing_and_are_read_by_every_token():
    short, long = cache_of("gemma3-27b", 8192), cache_of("gemma3-27b", 65_536)
    assert short.constant_bytes == long.constant_bytes == 624 << 20
    assert short.growing_bytes == long.growing_bytes == (5120 << 20) // 65_536
    assert short.layers == 10
    assert cache_of("gemma3-27b", 300).constant_bytes < short.constant_bytes
    assert long.moved_bytes == (5120 + 624) << 20


def test_a_state_is_read_and_written_by_every_token():
    cache = cache_of("qwen3next-80b-old", 8192)
    assert cache.growing_bytes == 24_576 and cache.layers == 12
    assert cache.touched_bytes == 2 * cache.constant_bytes


def test_latent_attention_grows_by_a_fixed_size():
    assert cache_of("deepseek-v3-mla", 8192).growing_bytes == 70_272
    with pytest.raises(GgufError, match="keys alone"):
        cache_of("deepseek-v3-mla", 8192, ("q8_0", "f16"))


def test_what_stays_in_memory_takes_its_time_and_is_never_spilled():
    spill = Spill(0, 4, 4096, 0, 0.01, dram_mbps=1000, constant_bytes=10**6, touched_bytes=2 * 10**6)
    assert not spill.spilled_tokens and "grows" in spill.unspilled
    assert spill.busy_seconds == pytest.approx(0.012)
    seconds = simulate(spill, TierSpec(100), tokens=4).seconds
    assert seconds == pytest.approx([0.012] * 4)
    assert simulate(spill, TierSpec(100), tokens=4).to_dict()["constant_bytes"] == 10**6


def test_a_cell_for_several_tokens_is_rounded_up():
    parts = kv.parts(geometries.model("made-deepseek4"), 8192)
    compressed = [part for part in parts if part.kind == "compressed"]
    assert [part.tokens_per_cell for part in compressed] == [4, 128]
    assert all(part.bytes_per_token * part.tokens_per_cell >= part.nbytes / part.cells for part in compressed)


# The command line


def hbf(*arguments, **environment):
    line = [sys.executable, "-m", "hbf_fuse", "kv", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(line, capture_output=True, text=True, timeout=100, check=False, env=env)


def test_info_shows_the_parts_and_their_sum():
    with geometries.files("gemma3-27b") as (path,):
        said = hbf("info", path, "--context", 65_536, "--parallel", 2, "-ctk", "q8_0", "-ctv", "q4_0")
        document = json.loads(hbf("info", path, "--context", 8192, "--json").stdout)
    assert "2 sequences in q8_0 and q4_0" in said.stdout and "2 x 32768" in said.stdout
    assert [part["kind"] for part in document["parts"]] == ["full", "window"]
    assert document["bytes"] == (640 + 624) << 20 and document["bytes_per_token"]["f16"] == 81_920


def test_a_model_without_a_cache_is_refused_by_name():
    with geometries.files("bert-bge-small", "mamba-130m") as (bert, mamba):
        for command in (
            ["sim", "--context", 512],
            ["solve", "--context", 512, "--tps", 5],
            ["ceiling", "--context", 512, "--mbps", 1000],
        ):
            said = hbf(*command, "-m", bert)
            assert said.returncode == 1 and "(bert) has no KV cache" in said.stderr, said.stderr
        said = hbf("info", bert)
        assert said.returncode == 0 and not said.stdout and "(bert) has no KV cache" in said.stderr
        said = hbf("sim", "-m", mamba, "--context", 4096, "--compute-ms", 10)
        assert said.returncode == 0 and "nothing of this model's cache grows" in said.stderr
        said = hbf("solve", "-m", mamba, "--context", 4096, "--compute-ms", 10, "--tps", 5)
        assert said.returncode == 1 and "nothing of this model's cache grows" in said.stderr


def test_the_ceiling_of_a_model_is_that_of_what_a_token_moves():
    with geometries.files("gpt-oss-20b") as (path,):
        said = hbf("ceiling", "-m", path, "--context", "8192,65536", "--mbps", 1000, "--json")
    rows = json.loads(said.stdout)
    assert [row["kv_kb_per_token"] for row in rows] == [mib * 2**20 / 1e3 for mib in (192 + 18, 1536 + 18)]
    assert rows[0]["ceiling_tps"] == pytest.approx(1e9 / (210 << 20))
    assert hbf("ceiling", "--mbps", 1000).returncode == 2


ODD: dict[str, geometries.Metadata] = {
    "adapter": {"general.architecture": "llama", "general.type": "adapter"},
    "imatrix": {"general.type": "imatrix"},
    "an mmproj": {"general.architecture": "clip", "general.type": "mmproj"},
    "not a language model but an mmproj": {"general.architecture": "clip"},
    "part 2 of 3": {"general.architecture": "llama", "split.no": 1, "split.count": 3},
    "names no architecture": {"general.name": "x"},
    "has no llama.block_count": {"general.architecture": "llama"},
    "not a number that a model can have": geometries.made("llama", block_count="eight"),
    "lists no gemma4.attention.sliding_window_pattern": geometries.made(
        "gemma4", attention__sliding_window_pattern=None
    ),
    "lists no deepseek4.attention.compress_ratios": geometries.made(
        "deepseek4", attention__compress_ratios=None
    ),
    "has no cohere2.attention.sliding_window": geometries.made("cohere2", **geometries.NO_WINDOW),
    "has 1025 layers": geometries.made("llama", block_count=1025),
    "loops 1000000 times": geometries.made("nanbeige", num_loops=1_000_000),
    "has no jamba.ssm.conv_kernel": geometries.made("jamba", ssm__conv_kernel=None),
}


@pytest.mark.parametrize("words", ODD)
def test_an_odd_file_gives_one_clear_line(tmp_path, words):
    path = tmp_path / "odd.gguf"
    path.write_bytes(geometries.packed(ODD[words]))
    said = hbf("info", path)
    assert words in said.stderr and len(said.stderr.splitlines()) == 1, said.stderr
    assert not said.stdout


def test_a_big_endian_file_is_told(tmp_path):
    path = tmp_path / "big.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "big") + bytes(40))
    assert "a big-endian GGUF" in hbf("info", path).stderr


# Asking llama.cpp

LOG = """llama_kv_cache: size =  640.00 MiB (  8192 cells,  10 layers,  1/1 seqs), K (f16):  320.00 MiB
llama_kv_cache: size =    0.00 MiB (  8192 cells,   0 layers,  1/1 seqs), K (f16):    0.00 MiB
llama_dsv4_comp_state: csa ratio = 4, state = 8 x 1024, streams = 1, layers = 21, size =    1.31 MiB
llama_memory_recurrent: size =   16.62 MiB (     1 cells,  32 layers,  1 seqs  0 rs_seq), R (f32):    2.62 MiB
made
"""


def test_llama_cpps_log_is_read():
    assert kv_oracle.parse(LOG) == [
        Allocated("llama_dsv4_comp_state", "1.31", 8),
        Allocated("llama_kv_cache", "640.00", 8192),
        Allocated("llama_memory_recurrent", "16.62", 1),
    ]


def oracle(folder, log, code=0):
    program = folder / "kv-oracle"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{log}END\necho 'it is odd' >&2\nexit {code}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("log", "code", "words"),
    [
        (LOG.replace("640", "641"), 1, "llama.cpp allocates 658.93 MiB"),
        ("", 1, "makes no cache for"),
        (
            "llama_kv_cache: size =  640.00 MiB (  8192 cells\n"
            "llama_kv_cache: size =  624.00 MiB (  1536 cells\nmade\n",
            0,
            "",
        ),
    ],
)
def test_a_difference_to_llama_cpp_is_an_error(tmp_path, log, code, words):
    with geometries.files("gemma3-27b") as (path,):
        said = hbf(
            "info", path, "--context", 8192, "--ask-llama", HBF_KV_ORACLE=oracle(tmp_path, log, bool(not log))
        )
    assert said.returncode == code and words in said.stderr, said.stderr


def test_without_a_llama_cpp_it_is_said_what_to_run(tmp_path):
    with geometries.files("gemma3-27b") as (path,):
        said = hbf("info", path, "--ask-llama", HBF_KV_ORACLE="", XDG_CACHE_HOME=str(tmp_path))
        assert said.returncode == 1 and "tools/kv_oracle --build" in said.stderr
        said = hbf("info", path, "--ask-llama", HBF_KV_ORACLE=str(path))
        assert said.returncode == 1 and "not an executable file" in said.stderr
