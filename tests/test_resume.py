"""A sweep that is killed repeatedly, in ways that a real user has."""

import csv
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hbf_fuse.host import mountinfo

KILLS = 6
MBPS, LATS, REPEATS = (600, 1200), (0, 1), 1


@pytest.mark.timeout(400)
def test_a_sweep_killed_at_random_moments_ends_with_each_cell_once(tiny_model, llama_bench, tmp_path):
    results = tmp_path / "results"
    line = [sys.executable, "-m", "hbf_fuse", "sweep", "-m", str(tiny_model), "-p", "8", "-n", "2"]
    line += ["--mode", "mmap,stage", "--mbps", ",".join(map(str, MBPS)), "--lat", ",".join(map(str, LATS))]
    line += ["--repeats", str(REPEATS), "-o", str(results)]
    (tmp_path / "scratch").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    chance = random.Random(5)
    seen: dict[str, str] = {}
    for number in range(KILLS):
        sweep = subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )
        # Even on a slow machine, every second sweep finishes a run. The next one must not measure that run
        # again.
        give_up = time.monotonic() + 60
        while number % 2 and len(_runs(results)) == len(seen) and sweep.poll() is None:
            assert time.monotonic() < give_up, "no run was over within 60 s"
            time.sleep(0.02)
        time.sleep(chance.uniform(0.2, 3.0))
        sweep.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        said = sweep.communicate(timeout=30)[1]
        assert "Traceback" not in said, said
        _wait_until_gone(tmp_path)
        for run in _runs(results):
            text = run.read_text()
            assert seen.setdefault(run.name, text) == text, f"{run.name} was measured twice"
    assert len(seen) >= KILLS // 2
    subprocess.run(line, check=True, capture_output=True, timeout=200, env=environment)
    _wait_until_gone(tmp_path)
    expected = 2 * len(MBPS) * len(LATS) * REPEATS
    kept = {run.name: run.read_text() for run in (results / "runs").glob("*.json")}
    assert len(kept) == expected
    assert all(kept[name] == text for name, text in seen.items())
    with (results / "cells.csv").open() as file:
        rows = [
            (row["mode"], row["tier_mbps"], row["tier_lat_ms"], row["repeat"]) for row in csv.DictReader(file)
        ]
    assert len(rows) == len(set(rows)) == expected
    assert not list(tmp_path.glob("scratch/*"))


def _runs(results):
    """The files of finished runs."""
    return list((results / "runs").glob("[!.]*.json"))


def _wait_until_gone(folder):
    """Wait until no mount is below the folder, and no process of ours uses it."""
    deadline = time.monotonic() + 15
    while True:
        mounts = [entry for entry in mountinfo.mounts() if entry.mountpoint.is_relative_to(folder)]
        users = [process.pid for process in psutil.process_iter(["cmdline"]) if _uses(process, folder)]
        if not mounts and not users:
            return
        assert time.monotonic() < deadline, f"left behind: {mounts} {users}"
        time.sleep(0.1)


def _uses(process, folder):
    line = process.info["cmdline"] or []
    return process.pid != os.getpid() and any(str(folder) in part for part in line)
