"""Reads through a mount give the source's bytes, for every way of reading, engine and size."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import ENGINES, Box, digest, names, write_bytes

SIZES = (0, 1, 4095, 4097, 1_000_003, 7_340_033)

pytestmark = pytest.mark.usefixtures("fuse")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [0, 1_000_003])
def test_every_way_of_reading_a_file_sees_its_bytes(box: Box, engine: str, size: int) -> None:
    source = write_bytes(box.work / "some.gguf", size)
    point = box.mount("--engine", engine, source)
    result = box.read(point / "model.gguf", source)
    assert result.code == 0, result
    box.run("hbf-umount", point).succeeds()
    box.assert_clean()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_file_of_a_directory_sees_its_bytes(box: Box, engine: str) -> None:
    folder = box.work / "models"
    folder.mkdir()
    files = [write_bytes(folder / f"{size}.bin", size) for size in SIZES]
    point = box.mount("--engine", engine, folder)
    for file in files:
        result = box.read(point / file.name, file)
        assert result.code == 0, result


@pytest.mark.parametrize("engine", ENGINES)
def test_a_throttled_mount_changes_no_bytes(box: Box, source: Path, engine: str) -> None:
    point = box.mount("--mbps", 200, "--lat", 1, "--engine", engine, source)
    result = box.read(point / "model.gguf", source)
    assert result.code == 0, result


@pytest.mark.parametrize("engine", ENGINES)
def test_reading_without_preload_sees_the_bytes(box: Box, source: Path, engine: str) -> None:
    point = box.mount("--no-preload", "--engine", engine, source)
    result = box.read(point / "model.gguf", source)
    assert result.code == 0, result


def test_a_read_takes_the_tier_s_time(box: Box) -> None:
    source = write_bytes(box.work / "some.gguf", 7_340_033)
    point = box.mount("--mbps", 10, source)
    result = box.run("python", "-I", "-c", f"open({str(point / 'model.gguf')!r}, 'rb').read()")
    assert result.code == 0, result
    assert 0.70 < result.seconds < 1.6, result


def test_a_source_with_a_space_and_letters_of_another_alphabet_is_served(box: Box) -> None:
    source = write_bytes(box.work / "мо дель 模型.gguf", 5000)
    point = box.mount(source, at="a point é")
    assert names(point) == ["model.gguf", source.name]
    assert digest(point / source.name) == digest(source)
    box.run("hbf-umount", point).succeeds()
    box.assert_clean()
