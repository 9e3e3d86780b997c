"""hbf model: synthetic models are the same each time, and complete or absent; info describes a model."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from sandbox import BIN, Box, digest, names, wait_until


def test_make_gives_the_same_bytes_for_a_seed_and_others_for_another(box: Box, tiny: Path) -> None:
    box.run("hbf", "model", "make", "tiny", "-o", "again.gguf").succeeds()
    assert digest(box.work / "again.gguf") == digest(tiny)
    box.run("hbf", "model", "make", "tiny", "--seed", 1, "-o", "other.gguf").succeeds()
    assert digest(box.work / "other.gguf") != digest(tiny)
    assert names(box.work) == ["again.gguf", "other.gguf"]
    box.assert_clean()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_make_leaves_no_file_when_interrupted(box: Box, stop: int) -> None:
    process = box.start(BIN / "hbf", "model", "make", "qwen2.5-3b-q4_k_m", "-o", box.work / "big.gguf")
    assert wait_until(lambda: bool(names(box.work)), 10, step=0.01)
    process.send_signal(stop)
    _, err = process.communicate(timeout=10)
    assert process.returncode != 0
    assert "Traceback" not in err
    assert names(box.work) == []
    box.assert_clean()


def test_make_keeps_the_old_file_when_interrupted(box: Box) -> None:
    old = box.work / "big.gguf"
    old.write_text("old")
    process = box.start(BIN / "hbf", "model", "make", "qwen2.5-3b-q4_k_m", "-o", old)
    assert wait_until(lambda: len(names(box.work)) > 1, 10, step=0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert names(box.work) == ["big.gguf"]
    assert old.read_text() == "old"


def test_make_into_a_missing_folder_names_the_folder(box: Box) -> None:
    target = box.folder / "missing" / "m.gguf"
    line = box.run("hbf", "model", "make", "tiny", "-o", target).fails(str(target.parent))
    assert "/.m.gguf" not in line, "names a temporary file that the user never heard of"


def test_an_unknown_preset_is_refused_with_the_known_ones(box: Box) -> None:
    box.run("hbf", "model", "make", "huge", "-o", "m.gguf").fails("huge", "tiny")
    assert names(box.work) == []


def test_list_shows_the_presets(box: Box) -> None:
    assert "tiny" in box.run("hbf", "model", "make", "list").succeeds().out


def test_info_as_json_shows_tensors_sizes_and_kv(box: Box, tiny: Path) -> None:
    info = json.loads(box.run("hbf", "model", "info", tiny, "--json").succeeds().out)
    assert info["size_bytes"] == tiny.stat().st_size
    assert sum(group["bytes"] for group in info["groups"].values()) == info["tensor_bytes"]
    assert len(info["tensors"]) == info["tensor_count"] > 0
    assert sum(tensor["nbytes"] for tensor in info["tensors"]) <= info["tensor_bytes"] <= info["size_bytes"]
    assert sum(info["bytes_by_type"].values()) == sum(tensor["nbytes"] for tensor in info["tensors"])
    assert all(tensor["offset"] + tensor["nbytes"] <= info["size_bytes"] for tensor in info["tensors"])
    # K and V at f16 for each layer, with the width of the weights that compute them.
    width = {tensor["name"]: tensor["shape"][1] for tensor in info["tensors"] if len(tensor["shape"]) == 2}
    per_token = [
        2 * rows for name, rows in width.items() if name.endswith(("attn_k.weight", "attn_v.weight"))
    ]
    assert info["kv_bytes_per_token_f16"] == sum(per_token) > 0


def test_info_in_words_is_one_screen_and_lists_tensors_when_asked(box: Box, tiny: Path) -> None:
    lines = box.run("hbf", "model", "info", tiny).succeeds().out.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 100
    assert not any("token_embd.weight" in line for line in lines)
    assert "token_embd.weight" in box.run("hbf", "model", "info", tiny, "--tensors").succeeds().out


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello\n", b"\0" * 5000])
def test_info_says_that_a_file_is_not_a_gguf(box: Box, content: bytes) -> None:
    (box.work / "m.gguf").write_bytes(content)
    box.run("hbf", "model", "info", "m.gguf").fails("m.gguf", "GGUF")


@pytest.mark.parametrize("kept", [20, 1000, 8000, 50_000_000])
def test_info_says_that_a_gguf_is_truncated(box: Box, tiny: Path, kept: int) -> None:
    with tiny.open("rb") as stream:
        (box.work / "m.gguf").write_bytes(stream.read(kept))
    box.run("hbf", "model", "info", "m.gguf").fails("m.gguf")


def test_info_of_a_missing_file_or_a_directory_says_so(box: Box) -> None:
    (box.work / "folder").mkdir()
    box.run("hbf", "model", "info", "nosuch.gguf").fails("nosuch.gguf")
    box.run("hbf", "model", "info", "folder").fails("folder")
