"""A server that is killed, suspended, disconnected, or told to end while it is in use."""

import contextlib
import os
import signal
import time

import psutil
import pytest
from served import ENGINES, MIB, SOON, digest, hbf, read_right, seconds_until, seconds_until_ended

from hbf_fuse.host import linux
from hbf_fuse.mount import client

CYCLES = int(os.environ.get("HBF_FAULT_CYCLES", "4"))


@ENGINES
def test_a_server_killed_under_load(serve, reading, noise, engine, record_property):
    source = noise(16 * MIB)
    served = serve(source, "--mbps", 100, "--lat", 1, engine=engine)
    readers = [reading(way, served.file, source) for way in ("read", "direct", "mmap", "scattered") * 2]
    time.sleep(0.5)
    assert [reader.poll() for reader in readers] == [None] * len(readers)
    served.process.kill()
    begin = time.monotonic()
    record_property("seconds until readers had their error", seconds_until_ended(readers))
    seconds_until(lambda: not served.is_mounted(), SOON, "the mountpoint is free")
    record_property("seconds until the mountpoint was free", time.monotonic() - begin)
    seconds_until(served.is_free, SOON, "the watcher is gone")
    assert digest(serve(source, engine=engine).file) == digest(source)


def test_a_server_suspended_and_continued(serve, reading, noise):
    size, mbps, pause = 20 * MIB, 10, 2.5
    source = noise(size)
    served = serve(source, "--mbps", mbps)
    begin = time.monotonic()
    reader = reading("direct", served.file, source, passes=1)
    time.sleep(0.5)
    served.process.send_signal(signal.SIGSTOP)
    time.sleep(pause)
    assert reader.poll() is None
    served.process.send_signal(signal.SIGCONT)
    read_right(reader)
    # A pause is the emulator's own delay. It gives back at most a second of it, so there is no burst
    # afterwards.
    assert time.monotonic() - begin > (size / mbps / 1e6 + pause - 1) * 0.9
    (file,) = client.read_hidden(served.point, "stats.json")["files"].values()
    assert not file["staging"]["valid"]


@ENGINES
def test_a_server_short_of_memory(confined, serve, reading, noise, engine):
    source = noise(96 * MIB)
    served = serve(source, engine=engine, prefix=confined("memory", 64 * MIB))
    for way in ("read", "scattered", "direct"):
        read_right(reading(way, served.file, source, passes=1))


@ENGINES
def test_a_server_that_may_start_no_more_threads(confined, serve, reading, noise, engine):
    source = noise(MIB)
    served = serve(source, "--lat", 20, engine=engine, prefix=confined("pids", 12))
    for reader in [reading("direct", served.file, source, passes=2) for _ in range(24)]:
        read_right(reader)
    assert psutil.Process(served.process.pid).num_threads() <= 12
    if engine == "kernel":  # libfuse does not report that it was refused a thread.
        (file,) = client.read_hidden(served.point, "stats.json")["files"].values()
        assert not file["staging"]["valid"]


@pytest.mark.skipif(os.geteuid() != 0, reason="fusectl is mounted by root")
@ENGINES
def test_a_connection_aborted_by_the_kernel(serve, reading, noise, tmp_path, engine, record_property):
    source = noise(16 * MIB)
    served = serve(source, "--mbps", 50, engine=engine)
    readers = [reading(way, served.file, source) for way in ("read", "direct", "mmap")]
    time.sleep(0.5)
    number = os.minor(served.file.stat().st_dev)
    with connections(tmp_path / "connections") as folder:
        (folder / str(number) / "abort").write_text("1")
    begin = time.monotonic()
    record_property("seconds until readers had their error", seconds_until_ended(readers))
    seconds_until(served.is_free, SOON, "the mountpoint is free")
    record_property("seconds until the mountpoint was free", time.monotonic() - begin)
    served.process.wait(SOON)
    assert digest(serve(source, engine=engine).file) == digest(source)


@contextlib.contextmanager
def connections(point):
    """The kernel's control files of all FUSE mounts, mounted for this test."""
    point.mkdir()
    directory = os.open(point, os.O_RDONLY)
    linux.mount("none", directory, "fusectl", 0, "")
    os.close(directory)
    try:
        yield point
    finally:
        linux.umount(str(point))


@ENGINES
def test_unmounting_while_it_is_busy(serve, reading, noise, engine):
    source = noise(MIB)
    served = serve(source, "--lat", 10_000, engine=engine)
    reader = reading("read", served.file, source)
    with served.file.open("rb"):
        said = hbf("umount", served.point)
        assert said.returncode == 1 and "in use" in said.stderr and "--force" in said.stderr
        assert served.is_mounted() and served.process.poll() is None
        assert hbf("umount", "--force", served.point).returncode == 0
    assert not served.is_mounted()
    served.process.wait(SOON)
    seconds_until_ended([reader])


@ENGINES
def test_unmounting_while_the_server_is_suspended(serve, reading, noise, engine):
    source = noise(MIB)
    served = serve(source, "--lat", 10_000, engine=engine)
    reader = reading("read", served.file, source)
    time.sleep(0.3)
    served.process.send_signal(signal.SIGSTOP)
    said = hbf("umount", served.point)
    assert said.returncode == 1 and "does not answer" in said.stderr and "--force" in said.stderr
    assert hbf("umount", "--force", served.point).returncode == 0
    assert not served.is_mounted()
    seconds_until_ended([reader])


@pytest.mark.timeout(60 + 10 * CYCLES)
@ENGINES
def test_mounted_and_unmounted_again_and_again(noise, tmp_path, engine, record_property):
    point = tmp_path / "mnt"
    point.mkdir()
    source = noise(100_000)
    whole = source.read_bytes()
    for _ in range(CYCLES):
        said = hbf("mount", "--engine", engine, source, point)
        assert said.returncode == 0, said.stderr
        server = psutil.Process(client.read_hidden(point, "spec.json")["pid"])
        assert (point / "model.gguf").read_bytes() == whole
        said = hbf("umount", point)
        assert said.returncode == 0, said.stderr
        assert not point.is_mount()
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    record_property("cycles", CYCLES)
