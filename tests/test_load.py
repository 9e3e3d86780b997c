"""fio verifies mounts, and would notice a wrong byte: a short version of tools/bench load."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools" / "benchmarks"
MIB = 1 << 20

pytestmark = [
    pytest.mark.skipif(shutil.which("fio") is None, reason="no fio on this machine"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no access to /dev/fuse"),
]


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("load")


def test_every_engine_reads_right_bytes_from_both_mounts(tmp_path):
    command = [sys.executable, str(TOOLS / "load.py"), "--size", "8M", "--folder", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    result = json.loads(said.stdout)
    assert result["errors"] == 0 and result["verified_bytes"] >= 8 * MIB
    assert result["rounds"] == 2 * 2 * (5 - len(result["engines_left_out"]))
    for mount in result["mounts"].values():
        assert mount["served_bytes"] > 0 and mount["failed_reads"] == 0


def test_a_wrong_byte_is_noticed_whichever_way_it_is_read(load, mount, tmp_path):
    """Without this, zero counted mismatches would prove nothing: fio's exit code is 0 for a wrong block."""
    source = tmp_path / "source"
    load.write_source(source, 4 * MIB)
    right = load.read_once(source, 4 * MIB, load.Way("", "psync", "read", 64 << 10, 1), 1)
    assert (right.errors, right.nbytes) == (0, 4 * MIB)
    with source.open("r+b") as file:
        file.seek(3 * MIB + 2000)
        file.write(b"wrong")
    file = mount(source) / "model.gguf"
    usable = [engine for engine, why in load.available_engines(source).items() if not why]
    assert "psync" in usable
    for engine in usable:
        for pattern, jobs in (("read", 1), ("randread", 1), ("read", 4)):
            if (engine, jobs) == ("mmap", 4):
                continue  # Its jobs all begin at the start of the file, see load._parts.
            way = load.Way("unthrottled", engine, pattern, 64 << 10, jobs)
            assert load.read_once(file, 4 * MIB, way, 1).errors, way


def test_a_trend_is_that_of_the_values(load):
    assert load.slope([0, 1, 2, 3], [10, 12, 14, 16]) == 2
    assert load.slope([0, 0.5], [10, 12]) is None
