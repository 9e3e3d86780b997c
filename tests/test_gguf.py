"""Synthetic models and the reader of real ones."""

import contextlib
import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbf_fuse import gguf
from hbf_fuse.gguf import cursor, kv, presets, synth


def test_the_reference_presets_geometry_gives_its_published_size():
    plans = list(synth._tensors(presets.load("qwen2.5-3b-q4_k_m")))
    assert sum(plan.nbytes for plan in plans) / 2**30 == pytest.approx(1.95, abs=0.015)


def test_tiny_has_the_documented_geometry(tiny_model):
    model = gguf.read(tiny_model)
    assert model.size == pytest.approx(100e6, rel=0.1)
    assert model.architecture == "qwen2"
    assert model.tensors[-1].offset + model.tensors[-1].nbytes <= model.size
    assert kv.bytes_per_token(model) == 2 * 12 * 4 * 64 * 2


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny_model, tmp_path):
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    again, other = tmp_path / "again.gguf", tmp_path / "other.gguf"
    synth.write(presets.load("tiny"), again)
    synth.write(presets.load("tiny"), other, seed=1)
    assert digest(again) == digest(tiny_model) != digest(other)


@pytest.mark.parametrize(
    ("make", "words"),
    [(os.mkfifo, "is neither a file nor a directory"), (os.mkdir, "is a directory; name a GGUF")],
    ids=["pipe", "directory"],
)
def test_a_path_that_is_not_a_file_is_refused_at_once(tmp_path, make, words):
    make(tmp_path / "model.gguf")
    line = [sys.executable, "-m", "hbf_fuse", "model", "info", tmp_path / "model.gguf"]
    said = subprocess.run(line, capture_output=True, text=True, timeout=20, check=False)
    assert said.returncode == 1 and words in said.stderr and "Traceback" not in said.stderr


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth.write(presets.load("tiny"), tmp_path / "model.gguf", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", presets.names())
def test_k_quant_rows_fit_their_blocks(name):
    for plan in synth._tensors(presets.load(name)):
        assert plan.type.name == "F32" or plan.shape[-1] % 256 == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_header_gives_an_answer_or_an_error_and_never_more(tiny_model, tmp_path, data):
    with tiny_model.open("rb") as file:
        header = bytearray(file.read(4096))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(header) - 1))
        header[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(header[: data.draw(st.integers(0, len(header)))])
    with contextlib.suppress(gguf.GgufError):
        gguf.read(path)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**40) + b"x" * 64,
        struct.pack("<4sIQQ", b"GGUF", 99, 0, 0),
        b"GGML" + bytes(60),
        b"",
    ],
)
def test_a_hostile_header_is_refused_at_once(header, tmp_path):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(header)
    with pytest.raises(gguf.GgufError):
        gguf.read(path)


def test_a_model_that_is_cut_short_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    pairs = (struct.pack("<Q1sIQ", 1, b"%d" % n, 8, 60_000) + bytes(60_000) for n in range(9))
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 9) + b"".join(pairs))
    assert len(gguf.read(path).metadata) == 9
    name = cursor.Cursor.name

    def name_and_cut(self):
        os.truncate(path, 100_000)
        return name(self)

    monkeypatch.setattr(cursor.Cursor, "name", name_and_cut)
    with pytest.raises(gguf.GgufError, match="runs past"):
        gguf.read(path)


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0o077, 0o600), (0o022, 0o644)])
def test_a_model_has_the_mode_that_the_umask_leaves(tmp_path, mask, mode):
    path = tmp_path / "made.gguf"
    line = f"umask {mask:o}; exec {sys.executable} -m hbf_fuse model make tiny -o {path}"
    subprocess.run(["sh", "-c", line], check=True, capture_output=True, timeout=60)
    assert path.stat().st_mode & 0o777 == mode
