"""Fixtures of the black-box tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import BIN, Box, mounts_under, write_bytes


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    here = Box(tmp_path)
    yield here
    problems = here.close()
    if not mounts_under(tmp_path):
        shutil.rmtree(tmp_path, ignore_errors=True)
    assert problems == []


@pytest.fixture
def fuse() -> None:
    """Used by tests that mount."""
    if not Path("/dev/fuse").exists():
        pytest.skip("no /dev/fuse on this machine")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) and not shutil.which("fusermount3"):
        pytest.skip("/dev/fuse is not open to this user and there is no fusermount3")


@pytest.fixture
def source(box: Box) -> Path:
    """A file of 1_000_003 bytes, cheap to serve; a mount does not parse it."""
    return write_bytes(box.work / "weights.gguf", 1_000_003)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The synthetic model `tiny`, seed 0, made once."""
    folder = tmp_path_factory.mktemp("tiny")
    file = folder / "tiny.gguf"
    command = [str(BIN / "hbf"), "model", "make", "tiny", "-o", str(file)]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=True)
    yield file
    shutil.rmtree(folder, ignore_errors=True)
