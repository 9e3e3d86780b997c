"""Start, end, signals, crashes: a mount starts on request and always ends cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from sandbox import BIN, ENGINES, Box, digest, wait_until

pytestmark = pytest.mark.usefixtures("fuse")


@pytest.mark.parametrize("engine", ENGINES)
def test_mount_goes_on_in_the_background_and_umount_ends_it(box: Box, source: Path, engine: str) -> None:
    point = box.mount(source, "--mbps", 500, "--lat", 1, "--engine", engine)
    assert box.servers()
    assert digest(point / "model.gguf") == digest(source)
    box.run("hbf-umount", point).succeeds()
    assert not box.is_mounted(point)
    assert box.processes() == {}
    assert list(point.iterdir()) == []
    box.assert_clean()


def test_mount_can_be_begun_again_after_umount(box: Box, source: Path) -> None:
    for _ in range(3):
        point = box.mount(source)
        box.run("hbf-umount", point).succeeds()
    box.assert_clean()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_to_a_foreground_server_unmounts(box: Box, source: Path, engine: str, stop: int) -> None:
    server, point = box.mount_in_foreground("--engine", engine, source)
    server.send_signal(stop)
    _, err = server.communicate(timeout=5)
    assert server.returncode == 0, err
    assert "Traceback" not in err
    assert not box.is_mounted(point)
    box.assert_clean()


def test_sigterm_to_a_background_server_unmounts(box: Box, source: Path) -> None:
    point = box.mount(source)
    for pid in box.servers():
        os.kill(pid, signal.SIGTERM)
    assert wait_until(lambda: not box.is_mounted(point), 3)
    box.assert_clean()


def test_umount_ends_a_foreground_server(box: Box, source: Path) -> None:
    server, point = box.mount_in_foreground(source)
    box.run("hbf-umount", point).succeeds()
    assert server.wait(timeout=5) == 0
    box.assert_clean()


def test_a_mount_in_use_ends_only_by_force(box: Box, source: Path) -> None:
    point = box.mount(source)
    with (point / "model.gguf").open("rb"):
        box.run("hbf-umount", point).fails("--force")
        assert box.is_mounted(point)
        box.run("hbf-umount", "--force", point).succeeds()
        assert not box.is_mounted(point)
    box.assert_clean()


def test_two_mounts_at_once_on_one_directory_make_one_mount(box: Box, source: Path) -> None:
    point = box.mountpoint()
    both = [box.start(BIN / "hbf-mount", source, point) for _ in range(2)]
    for process in both:
        process.wait(timeout=20)
    assert sorted(process.returncode for process in both) == [0, 1]
    box.run("hbf-umount", point).succeeds()
    box.assert_clean()


@pytest.mark.parametrize("looked_at", [False, True], ids=["untouched", "looked at"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_server_s_mount_is_gone_within_3_s(
    box: Box, source: Path, engine: str, looked_at: bool
) -> None:
    point = box.mount("--engine", engine, source)
    if looked_at:
        assert (point / "model.gguf").stat().st_size == source.stat().st_size
    for pid in box.servers():
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not box.is_mounted(point), 3)
    assert wait_until(lambda: not box.processes(), 2)
    box.run("hbf-mount", "--engine", engine, source, point).succeeds()
    assert digest(point / "model.gguf") == digest(source)


@pytest.mark.parametrize("looked_at", [False, True], ids=["untouched", "looked at"])
@pytest.mark.parametrize("engine", ENGINES)
def test_mount_repairs_a_stale_mount_and_says_so(
    box: Box, source: Path, engine: str, looked_at: bool
) -> None:
    point = box.mount("--engine", engine, source)
    if looked_at:
        assert (point / "model.gguf").stat().st_size == source.stat().st_size
    for pid in [*box.watchers(), *box.servers()]:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not box.processes(), 2)
    assert box.is_mounted(point)
    result = box.run("hbf-mount", "--engine", engine, source, point).succeeds()
    said = [line for line in result.err.splitlines() if str(point) in line]
    assert len(said) >= 2, result
    assert digest(point / "model.gguf") == digest(source)
    box.run("hbf-umount", point).succeeds()
    box.assert_clean()


def test_a_source_that_is_not_a_gguf_is_served_with_a_remark(box: Box, tiny: Path) -> None:
    folder = box.work / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("no model")
    for served, words in ((folder / "README.md", "is not a GGUF"), (folder, "holds no GGUF")):
        point = box.mountpoint()
        remarks = [
            line for line in box.run("hbf-mount", served, point).succeeds().err.splitlines() if words in line
        ]
        assert len(remarks) == 1 and str(served) in remarks[0]
        box.run("hbf-umount", point).succeeds()
    (folder / "model.gguf").symlink_to(tiny)
    for served in (tiny, folder):
        assert "GGUF" not in box.run("hbf-mount", served, point).succeeds().err
        box.run("hbf-umount", point).succeeds()


def test_status_says_of_a_stale_mount_that_umount_clears_it(box: Box, source: Path) -> None:
    point = box.mount(source)
    for pid in [*box.watchers(), *box.servers()]:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not box.processes(), 2)
    box.run("hbf", "status", point).fails("its server died", f"`hbf-umount {point}`")
    lines = box.run("hbf", "status").succeeds().out.splitlines()
    (line,) = [line for line in lines if str(point) in line]
    assert line.startswith(f"{point} is not a live hbf mount: its server died")
    box.run("hbf-umount", point).succeeds()


def test_umount_clears_a_stale_mount(box: Box, source: Path) -> None:
    point = box.mount(source)
    for pid in [*box.watchers(), *box.servers()]:
        os.kill(pid, signal.SIGKILL)
    box.run("hbf-umount", point).succeeds()
    box.assert_clean()


@pytest.mark.parametrize(
    ("engine", "deadly"),
    [
        ("kernel", signal.SIGKILL),
        ("kernel", signal.SIGTERM),
        ("kernel", signal.SIGINT),
        ("fusepy", signal.SIGKILL),
    ],
)
def test_a_waiting_reader_dies_at_once(box: Box, source: Path, engine: str, deadly: int) -> None:
    point = box.mount("--lat", 10000, "--engine", engine, source)
    reader = box.start("cat", point / "model.gguf")
    time.sleep(0.3)
    assert reader.poll() is None
    begin = time.monotonic()
    reader.send_signal(deadly)
    assert reader.wait(timeout=8) == -deadly
    assert time.monotonic() - begin < 1.5


@pytest.mark.parametrize("engine", ENGINES)
def test_force_frees_a_waiting_reader(box: Box, source: Path, engine: str) -> None:
    point = box.mount("--lat", 10000, "--engine", engine, source)
    reader = box.start("cat", point / "model.gguf")
    time.sleep(0.3)
    result = box.run("hbf-umount", "--force", point).succeeds()
    assert result.seconds < 4, result
    try:
        assert reader.wait(timeout=3) != 0
    except subprocess.TimeoutExpired:
        pytest.fail("the reader still waits 3 s after hbf-umount --force")
    box.assert_clean()


def test_status_shows_a_live_mount_and_then_none(box: Box, source: Path) -> None:
    point = box.mount("--mbps", 500, "--lat", 1, source)
    words = box.run("hbf", "status").succeeds().out
    assert str(point) in words
    assert "500 MB/s" in words
    assert str(source) in box.run("hbf", "status", point).succeeds().out
    one = json.loads(box.run("hbf", "status", point, "--json").succeeds().out)
    assert one["mountpoint"] == str(point)
    assert one["spec"]["tier"]["bandwidth_mbps"] == 500.0
    assert one["spec"]["tier"]["latency_ms"] == 1.0
    assert one["stats"]["reads"] == 0
    everything = json.loads(box.run("hbf", "status", "--json").succeeds().out)
    assert str(point) in [mount["mountpoint"] for mount in everything]
    box.run("hbf-umount", point).succeeds()
    box.run("hbf", "status", point).fails("hbf status")
    everything = json.loads(box.run("hbf", "status", "--json").succeeds().out)
    assert str(point) not in [mount["mountpoint"] for mount in everything]


def test_status_names_a_mount_the_same_however_it_is_called(box: Box, source: Path) -> None:
    point = box.mount(source)
    relative = os.path.relpath(point, box.work)
    one = json.loads(box.run("hbf", "status", relative, "--json").succeeds().out)
    assert one["mountpoint"] == str(point)
