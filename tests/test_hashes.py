"""Hashes of models are kept, and believed only where no byte can have changed."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hbf_fuse import documents
from hbf_fuse.cli.app import app_of
from hbf_fuse.errors import HbfError
from hbf_fuse.models import hashes, places
from hbf_fuse.sweep import measuring
from hbf_fuse.sweep.cell import ModelFile


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Names of files that were read for their hash, in the order of reading. Files age at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "YOUNG_NS", 0)
    names, usual = [], Path.open

    def opening(path, *arguments, **options):
        if arguments == ("rb",):  # not read_bytes() and the like, which name their mode
            names.append(path.name)
        return usual(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opening)
    return names


@pytest.fixture
def model(tmp_path):
    return file(tmp_path, "model.gguf", b"one")


def file(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def kept():
    return places.cache_dir() / hashes.NAME


def entries():
    return json.loads(kept().read_text())["models"]


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once(opened, model):
    asked = []
    assert [hashes.of([model], lambda: asked.append(1)) for _ in range(3)] == [sha256(b"one")] * 3
    assert opened == ["model.gguf"] and asked == [1]


def test_a_split_models_hash_is_that_of_all_bytes_and_is_kept_whole(opened, tmp_path):
    parts = [file(tmp_path, f"m-0000{n}-of-00002.gguf", bytes([n]) * 5000) for n in (1, 2)]
    whole = sha256(b"\1" * 5000 + b"\2" * 5000)
    assert ModelFile.of(parts[1]).sha256 == whole == ModelFile.of(parts[0]).sha256
    assert opened == [part.name for part in parts]
    assert [len(entry["files"]) for entry in entries()] == [2]
    assert hashes.of(parts[::-1]) == sha256(b"\2" * 5000 + b"\1" * 5000), "the order counts"
    parts[1].write_bytes(b"\3" * 5000)
    assert ModelFile.of(parts[0]).sha256 == sha256(b"\1" * 5000 + b"\3" * 5000)


def test_a_changed_file_is_read_again_even_if_its_time_was_set_back(opened, model):
    hashes.of([model])
    before = model.stat()
    model.write_bytes(b"two")
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert model.stat().st_mtime_ns == before.st_mtime_ns
    assert hashes.of([model]) == sha256(b"two")


@pytest.mark.parametrize("seconds", [0, 3600], ids=["now", "in the future"])
def test_a_young_file_is_always_read(opened, model, monkeypatch, seconds):
    os.utime(model, (model.stat().st_mtime + seconds,) * 2)
    monkeypatch.setattr(hashes, "YOUNG_NS", 2_000_000_000)
    for _ in range(2):
        hashes.of([model])
    assert opened == ["model.gguf"] * 2 and not kept().exists()


def test_a_kept_hash_is_not_believed_while_the_file_is_young(opened, model, monkeypatch):
    hashes.of([model])
    monkeypatch.setattr(hashes, "YOUNG_NS", 60_000_000_000)
    hashes.of([model])
    assert opened == ["model.gguf"] * 2


def test_a_file_that_changes_while_it_is_read_is_not_kept(opened, model, monkeypatch):
    usual = hashes._read

    def reading(parts):
        model.write_bytes(b"three")
        return usual(parts)

    monkeypatch.setattr(hashes, "_read", reading)
    assert hashes.of([model]) == sha256(b"three")
    assert not kept().exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda: places.cache_dir().chmod(0o777),
        lambda: places.cache_dir().chmod(0o775),
        lambda: kept().chmod(0o666),
        lambda: kept().rename(kept().with_name("other")) and kept().symlink_to("other"),
    ],
    ids=["folder of all", "folder of a group", "file", "link"],
)
def test_what_another_user_may_write_is_not_believed(opened, model, damage):
    hashes.of([model])
    false = kept().read_text().replace(sha256(b"one"), "0" * 64)
    kept().write_text(false)
    assert hashes.of([model]) == "0" * 64, "only to see that it counts"
    damage()
    assert hashes.of([model]) == sha256(b"one")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("whose", [places.cache_dir, kept])
def test_what_another_user_owns_is_not_believed(opened, model, whose):
    hashes.of([model])
    kept().write_text(kept().read_text().replace(sha256(b"one"), "0" * 64))
    os.chown(whose(), 12_345, -1)
    assert hashes.of([model]) == sha256(b"one")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "[]",
        '{"models": 5}',
        '{"models": [1]}',
        '{"models": [{"sha256": "x"}]}',
        '{"models": [{"files": [[1, 2, 3, 4, 5]], "sha256": "x"}]}',
        '{"models": [{"files": [], "sha256": "' + "0" * 64 + '"}]}',
        '{"models": [{"files": [[1, 2, [], 4, 5]], "sha256": "' + "0" * 64 + '"}]}',
        '{"models": [{"files": [[1, 2, 3]], "sha256": "' + "0" * 64 + '"}]}',
        " " * 9_000_000,
    ],
    ids=range(11),
)
def test_a_damaged_file_of_hashes_is_written_anew(opened, model, text):
    hashes.of([model])
    kept().write_text(text)
    assert hashes.of([model]) == sha256(b"one")
    assert [entry["sha256"] for entry in entries()] == [sha256(b"one")]


def test_only_the_newest_are_kept(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "MOST_FILES", 3)
    paths = [file(tmp_path, f"{n}.gguf", bytes([n])) for n in range(5)]
    for path in paths:
        hashes.of([path])
    assert [entry["sha256"] for entry in entries()] == [sha256(bytes([n])) for n in (2, 3, 4)]
    hashes.of(paths[:2])
    assert [len(entry["files"]) for entry in entries()] == [1, 2]
    hashes.of(paths)
    assert entries() == [], "larger than all that is kept"


def test_a_folder_that_cannot_be_made_is_no_error(opened, model, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(model))
    assert hashes.of([model]) == sha256(b"one")


def test_a_disk_that_is_full_is_no_error(opened, model, monkeypatch):
    def full(*arguments):
        raise HbfError("cannot write hashes.json: No space left on device")

    monkeypatch.setattr(documents, "write_in", full)
    assert hashes.of([model]) == sha256(b"one")


def test_the_cache_folder_is_made_for_its_user_alone(opened):
    before = os.umask(0)
    try:
        assert not places.made_cache_dir().is_shared
    finally:
        os.umask(before)


def test_two_benchmarks_read_their_model_once(opened, tiny_model, tmp_path, monkeypatch):
    measured = []

    def stop(cell, lent):
        measured.append(cell.model.sha256)
        raise HbfError("measured enough")

    monkeypatch.setattr(measuring, "run", stop)
    for _ in range(2):
        CliRunner().invoke(app_of(), ["bench", str(tiny_model), "-o", str(tmp_path / "results")])
    assert measured == [sha256(tiny_model.read_bytes())] * 2
    assert opened == [tiny_model.name]
