"""Calibration with few points."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from hbf_fuse.calibrate import envelope
from hbf_fuse.calibrate.calibration import Calibration
from hbf_fuse.calibrate.plan import Plan
from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.report import accuracy
from hbf_fuse.tier import TierSpec, expect

HBF = [sys.executable, "-m", "hbf_fuse"]
SMALL = Plan((200, 400), (0, 1), (1 << 17,), (1, 2), runs=1)


@pytest.fixture
def calibration(noise, tmp_path):
    (tmp_path / "mnt").mkdir()
    return Calibration(SMALL, noise(32 << 20), tmp_path / "mnt", print)


def test_a_calibration_measures_every_point_near_the_model(calibration):
    assert sum(1 for _ in calibration.run()) == calibration.steps == 9
    document = calibration.document()
    assert document["complete"]
    rates = [cell for cell in document["cells"] if cell["mbps"] and cell["reasons"] != ["floor-unknown"]]
    if not rates:
        pytest.skip("the machine was too busy to measure its floor")
    assert all(abs(cell["error_pct"]) < 25 for cell in rates)
    assert all(cell["server_mbps"] == pytest.approx(cell["client_mbps"], rel=0.25) for cell in rates)
    assert document["engines"]["kernel"]["ceiling_mbps"] > 400
    assert accuracy.markdown(document, "kernel").count("\n") == 2 + 9
    assert list(accuracy.findings(document))


def test_an_interrupted_calibration_keeps_its_finished_points(calibration, tmp_path):
    running = calibration.run()
    for _ in range(3):
        next(running)
    running.close()
    document = calibration.document()
    assert len(document["cells"]) == 3
    assert not document["complete"]
    assert accuracy.heat_map(document, "kernel").row_count
    assert not (tmp_path / "mnt").is_mount()


def test_a_mount_that_ends_under_its_readers_ends_the_calibration_in_one_line(calibration, tmp_path):
    def unmount():
        while not (tmp_path / "mnt").is_mount():
            time.sleep(0.01)
        time.sleep(0.3)
        linux.umount(str(tmp_path / "mnt"), linux.MNT_FORCE)

    running = calibration.run()
    next(running)
    with (
        ThreadPoolExecutor() as pool,
        pytest.raises(HbfError, match="could not read from the mount any more"),
    ):
        pool.submit(unmount)
        for _ in running:
            pass
    assert not (tmp_path / "mnt").is_mount()


def test_the_model_of_a_point_is_the_device_itself_in_virtual_time():
    spec = TierSpec(400, 1)
    assert expect.closed_loop(spec, 1 << 17, 2) == pytest.approx(spec.chunked_mbps(1 << 17, 2), rel=0.01)


def test_an_interrupt_while_a_mount_begins_leaves_nothing(noise, tmp_path, monkeypatch):
    """The interrupt comes when the kernel has the mount and the engine has not recorded it yet."""
    (tmp_path / "mnt").mkdir()
    placed = mounting.Placed.__init__

    def interrupted(self, number):
        signal.raise_signal(signal.SIGINT)
        placed(self, number)

    monkeypatch.setattr(mounting.Placed, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(Calibration(SMALL, noise(32 << 20), tmp_path / "mnt", print).run())
    assert not (tmp_path / "mnt").is_mount()


def test_ctrl_c_ends_a_calibration_in_one_line(tmp_path):
    """The terminal's Ctrl-C reaches its readers, too."""
    command = [*HBF, "calibrate", "-o", tmp_path / "envelope.json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    # An earlier interrupt ends Python itself: see test_an_early_interrupt_ends_a_command_without_a_traceback.
    give_up = time.monotonic() + 60
    while not list(tmp_path.glob("hbf-calibrate-*")):
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode in (1, 130)
    assert "Traceback" not in said
    assert not list(tmp_path.glob("hbf-calibrate-*"))


def test_mappings_of_the_memory_engine_are_measured_by_touches(noise, tmp_path):
    plan = Plan((500,), (0.1,), (1 << 18,), (1, 2), 1, ("memory",))
    measured = Calibration(plan, noise(32 << 20), tmp_path, print)
    assert sum(1 for _ in measured.run()) == 3
    document = measured.document()
    rates = [cell for cell in document["cells"] if cell["mbps"] and cell["reasons"] != ["floor-unknown"]]
    if not rates:
        pytest.skip("the machine was too busy to measure its floor")
    assert all(abs(cell["error_pct"]) < 25 for cell in rates)
    assert document["engines"]["memory"]["ceiling_mbps"] > 500


def test_other_engines_results_are_kept(calibration, tmp_path):
    next(calibration.run())
    first, file = calibration.document(), tmp_path / "envelope.json"
    envelope.store(first, file)
    cells = [{**cell, "engine": "fusepy"} for cell in first["cells"]]
    engines = {"fusepy": first["engines"]["kernel"]}
    renamed = cast(envelope.Envelope, {**first, "engines": engines, "cells": cells})
    both = envelope.merged(renamed, file)
    assert set(both["engines"]) == {"kernel", "fusepy"}
    assert len(both["cells"]) == 2 * len(first["cells"])
    assert envelope.merged(first, file) == first
