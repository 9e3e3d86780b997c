"""`hbf predict`: one answer by arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import GgufFile, Tensor, presets, read, synth, weights
from hbf_fuse.pacing.resident import WINDOW_BYTES
from hbf_fuse.predict import answer, arithmetic
from hbf_fuse.tier import TierSpec

MIB = 1 << 20


def model_of(*sizes, name="blk.{}.ffn_up.weight"):
    """A dense model of tensors of so many MiB."""
    tensors, offset = [], 0
    for number, size in enumerate(sizes):
        tensors.append(Tensor(name.format(number), (size * MIB // 2,), "F16", offset, size * MIB))
        offset += size * MIB
    tensors.append(Tensor("token_embd.weight", (1024, 512), "F16", offset, MIB))
    return GgufFile(Path("model.gguf"), offset + MIB, 3, {"general.architecture": "llama"}, tensors, 0)


def lines_of(model, **changed):
    fields = {
        "spec": TierSpec(1000),
        "resident_bytes": None,
        "compute_seconds": 0.1,
        "compute_how": "given",
        "context": 8192,
        **changed,
    }
    question = answer.Question(**fields)
    return {line.name: line for line in answer.lines(model, model.size, question)}, question


def test_a_dense_model_by_hand():
    """101 MiB with tied embeddings at 1000 MB/s: 0.1059 s a token, and 0.1 s of compute."""
    lines, _ = lines_of(model_of(60, 40))
    reading = 101 * MIB / 1e9
    assert lines["bytes_per_token"].value == 101 * MIB
    assert lines["tier_rate"].value == pytest.approx(1000, rel=1e-3)
    assert lines["first_load"].value == pytest.approx(reading, rel=1e-3)
    assert lines["tg_none_resident"].value == pytest.approx(1 / (0.1 + reading), rel=1e-3)
    assert lines["tg_none_resident_overlapped"].value == pytest.approx(1 / reading, rel=1e-3)
    assert lines["tg_all_resident"].value == pytest.approx(10)
    assert lines["break_even"].value == pytest.approx(101 * MIB / 1e5, rel=1e-3)


def test_what_comes_first_in_the_file_stays():
    model = model_of(60, 40)
    assert arithmetic.missing_bytes(model, 0, MIB) == 101 * MIB
    assert arithmetic.missing_bytes(model, 50 * MIB + WINDOW_BYTES, MIB) == pytest.approx(51 * MIB)
    assert arithmetic.missing_bytes(model, 1 << 40, MIB) == 0


def test_more_dram_is_never_slower():
    model, speeds = model_of(30, 30, 30), []
    for size in range(20, 130, 10):
        lines, _ = lines_of(model, resident_bytes=size * MIB)
        speeds.append(lines["tg_part_resident"].value)
    assert speeds == sorted(speeds)
    assert speeds[-1] == pytest.approx(10)


def test_experts_that_a_token_does_not_use_are_not_read(tmp_path):
    path = tmp_path / "tiny-moe.gguf"
    synth.write(presets.load("tiny-moe"), path)
    model = read(path)
    lines, _ = lines_of(model)
    assert "dense" in lines["bytes_per_token"].how
    assert lines["bytes_per_token"].value == weights.active_bytes(model) < model.tensor_bytes / 2
    assert "experts" in lines["bytes_per_token"].how
    # The window of readahead brings their neighbours.
    assert weights.active_bytes(model) < lines["bytes_read"].value <= model.tensor_bytes


@pytest.mark.parametrize(
    ("spec", "compute", "word"),
    [
        (TierSpec(1000), 1e-4, "bandwidth"),
        (TierSpec(1000), 10.0, "compute"),
        (TierSpec(10_000, 5), 1e-4, "latency"),
        (TierSpec(10_000, planes=2, t_read_us=100), 1e-4, "planes"),
    ],
)
def test_what_binds(spec, compute, word):
    model = model_of(60, 40)
    _, question = lines_of(model, spec=spec, compute_seconds=compute)
    assert answer.binds(model, question) == word


def test_every_line_says_how_well_its_kind_has_held():
    lines, _ = lines_of(model_of(60, 40), resident_bytes=50 * MIB)
    assert all(line.how and line.held for line in lines.values())


def test_a_projector_decodes_nothing():
    projector = GgufFile(Path("mmproj.gguf"), MIB, 3, {"general.architecture": "clip"}, [], 0)
    with pytest.raises(HbfError, match="decodes nothing"):
        answer.require_decoder(projector)


def hbf(*line):
    command = [sys.executable, "-P", "-m", "hbf_fuse", "predict", *map(str, line)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_fits_a_screen(tiny_model):
    done = hbf(tiny_model, "--profile", "nvme-gen4", "--resident", "50%")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert len(shown) <= 40
    assert max(map(len, shown)) <= 100
    assert "assumed" in done.stdout  # how long computing takes
    assert "assumed" not in hbf(tiny_model, "--mbps", "500", "--compute-ms", "10").stdout


def test_its_json_has_every_line(tiny_model):
    done = hbf(tiny_model, "--mbps", "500", "--resident", "64M", "--compute-ms", "10", "--json")
    document = json.loads(done.stdout)
    assert document["binds"] == "bandwidth"
    assert {"tg_none_resident", "tg_part_resident", "first_load"} <= {
        each["name"] for each in document["lines"]
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "which tier"),
        (["--mbps", "500", "--resident", "much"], "not a size"),
        (["--mbps", "500", "--resident", "300%"], "no share"),
        (["--profile", "none-such"], "unknown profile"),
        (["--mbps", "-3"], "bandwidth"),
        (["--mbps", "500", "--compute-ms", "nan"], "--compute-ms must be"),
        (["--mbps", "500", "--compute-ms", "-5"], "--compute-ms must be"),
        (["--mbps", "500", "--chunk", "0"], "--chunk must be"),
        (["--mbps", "500", "--compute-ms", "5", "--dram-mbps", "50"], "--dram-mbps is for"),
        (["--mbps", "500", "--resident", "1M"], "less than a mount takes"),
    ],
)
def test_wrong_usage_is_told(tiny_model, options, words):
    done = hbf(tiny_model, *options)
    assert done.returncode in (1, 2)
    assert words in " ".join(done.stderr.split())
