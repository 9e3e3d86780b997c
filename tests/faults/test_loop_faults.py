"""The compiled loop (engine/kernel/loop.pyx) with thousands of reads in flight, and faults during them."""

import errno
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from failing_disk import BAD, SLOW, SLOW_SECONDS
from refusals import error_of
from served import MIB, SOON, digest, hbf, run, seconds_until
from test_server_faults import connections

from hbf_fuse import compiled
from hbf_fuse.errors import HbfError
from hbf_fuse.limits import devices, hierarchy
from hbf_fuse.mount import client

pytestmark = pytest.mark.skipif(bool(compiled.why_not()), reason=str(compiled.why_not()))

CROWD = Path(__file__).with_name("crowd_reader.py")
PAGE = 4096
READS = int(os.environ.get("HBF_FAULT_READS", "4096"))
"""10,000 reads pass as well, and take twice as long."""

SOON_KILLED = 5.0
"""Seconds. A killed reader is gone within 0.1 s on an idle machine."""


@pytest.fixture
def crowd():
    """crowd(served, source, 4096) -> a process that makes this many reads at once; see crowd_reader.py."""
    begun = []

    def begin(served, source, reads, *period):
        line = [sys.executable, "-I", "-S", str(CROWD), served.file, source, reads, *period]
        process = subprocess.Popen([str(word) for word in line], stdout=subprocess.PIPE, text=True)
        begun.append(process)
        assert process.stdout.readline() == "begun\n"
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait(20)
        process.stdout.close()


def told(process):
    """The results of its reads."""
    said, _ = process.communicate(timeout=60)
    return json.loads(said)


def stats(served):
    return client.read_hidden(served.point, "stats.json")


def until_in_flight(served, reads):
    """Wait until this many reads are in flight."""
    seconds_until(lambda: stats(served)["in_flight"] == reads, 3 * SOON, f"{reads} reads in flight")


def until_idle(served):
    seconds_until(served.is_idle, SOON, "no read is in flight")


def direct(file, offset, nbytes=PAGE):
    """Read past the page cache; returns the bytes."""
    fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, nbytes) as buffer:
            return buffer[: os.preadv(fd, [buffer], offset)]
    finally:
        os.close(fd)


# Many reads at once


def test_thousands_of_reads_wait_at_once_without_threads_or_memory(serve, crowd, noise):
    reads = READS
    source = noise(MIB)
    # A ms for each: the time that a busy machine needs to start their threads.
    served = serve(source, "--lat", max(reads, 3000))
    server = psutil.Process(served.process.pid)
    stats(served)
    before = server.memory_info().rss
    process = crowd(served, source, reads)
    until_in_flight(served, reads)
    assert server.memory_info().rss - before < 8 * MIB
    assert server.num_threads() < 40
    assert told(process) == {"right": reads}
    until_idle(served)
    found = stats(served)
    assert (found["in_flight_max"], found["reads"]) == (reads, reads)


def test_a_tier_changed_while_thousands_wait_applies_to_later_reads_alone(serve, crowd, noise):
    reads, seconds = 2000, 4
    source = noise(MIB)
    served = serve(source, "--lat", seconds * 1000)
    begin = time.monotonic()
    process = crowd(served, source, reads)
    until_in_flight(served, reads)
    for file in (served.point / ".hbf").iterdir():
        if file.name != "control":
            assert file.read_bytes() or file.name == "trace", file
    client.send(served.point, {"lat": 0})
    assert direct(served.file, 0) == source.read_bytes()[:PAGE]
    assert stats(served)["in_flight"] >= reads
    assert time.monotonic() - begin < seconds
    assert told(process) == {"right": reads}
    assert time.monotonic() - begin >= seconds
    until_idle(served)


# The end of the mount


def by_unmounting(served, tmp_path):
    assert hbf("umount", "--force", served.point).returncode == 0


def by_abort(served, tmp_path):
    number = os.minor(served.file.stat().st_dev)
    with connections(tmp_path / "connections") as folder:
        (folder / str(number) / "abort").write_text("1")


def by_kill(served, tmp_path):
    served.process.kill()


@pytest.mark.parametrize("end", [by_unmounting, by_abort, by_kill])
def test_thousands_of_readers_get_an_error_when_the_mount_ends(serve, crowd, noise, tmp_path, end):
    if end is by_abort and os.geteuid():
        pytest.skip("fusectl is mounted by root")
    reads = 2000
    source = noise(MIB)
    served = serve(source, "--lat", 60_000)
    process = crowd(served, source, reads)
    until_in_flight(served, reads)
    end(served, tmp_path)
    errors = told(process)
    assert set(errors) <= {"ECONNABORTED", "ENOTCONN", "EIO"} and sum(errors.values()) == reads
    served.process.wait(SOON)
    seconds_until(served.is_free, SOON, "mount and watcher are gone")


def test_a_detached_mount_serves_waiting_readers_and_ends(serve, crowd, noise):
    reads = 1000
    source = noise(MIB)
    served = serve(source, "--lat", 2000)
    process = crowd(served, source, reads)
    until_in_flight(served, reads)
    run("umount", "-l", served.point)
    assert told(process) == {"right": reads}
    served.process.wait(SOON)
    seconds_until(served.is_free, SOON, "the watcher is gone")


# Readers that are killed


@pytest.mark.parametrize("reads", [1, 1000])
def test_readers_killed_while_they_wait(serve, crowd, noise, reads):
    source = noise(MIB)
    served = serve(source, "--lat", 60_000)
    process = crowd(served, source, reads)
    until_in_flight(served, reads)
    process.kill()
    process.wait(SOON_KILLED)
    until_idle(served)
    found = stats(served)
    assert (found["interrupted"], found["failed"]) == (reads, 0)
    client.send(served.point, {"lat": 0})
    assert direct(served.file, 0) == source.read_bytes()[:PAGE]


def test_readers_killed_before_their_requests_were_taken(serve, noise):
    source = noise(MIB)
    served = serve(source, "--lat", 100)
    fd = os.open(served.file, os.O_RDONLY | os.O_DIRECT)
    try:
        served.process.send_signal(signal.SIGSTOP)
        code = "import mmap, os, sys; os.preadv(int(sys.argv[1]), [mmap.mmap(-1, 4096)], 0)"
        readers = [subprocess.Popen([sys.executable, "-c", code, str(fd)], pass_fds=(fd,)) for _ in range(8)]
        seconds_until(
            lambda: all("request_wait_answer" in _waits_in(each.pid) for each in readers),
            SOON,
            "all readers wait for the server",
        )
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(SOON_KILLED)
    finally:
        served.process.send_signal(signal.SIGCONT)
        os.close(fd)
    until_idle(served)
    assert stats(served)["reads"] == 0
    assert direct(served.file, 0) == source.read_bytes()[:PAGE]


def _waits_in(pid):
    """The kernel function in which a process waits."""
    return Path(f"/proc/{pid}/wchan").read_text()


def test_a_reader_killed_while_its_data_is_sent(failing_disk, serve, crowd, noise):
    whole = bytearray(noise(4 * MIB).read_bytes())
    whole[: len(SLOW)] = SLOW
    source = failing_disk("fuse", whole) / "model.gguf"
    served = serve(source, "--no-preload", "--lat", 1)
    process = crowd(served, noise(4 * MIB), 1)
    until_in_flight(served, 1)
    time.sleep(0.3)
    process.kill()
    process.wait(SLOW_SECONDS + SOON_KILLED)
    until_idle(served)
    assert direct(served.file, 3 * MIB) == whole[3 * MIB : 3 * MIB + PAGE]


def test_a_timer_whose_signal_is_handled_leaves_a_read_whole(serve, crowd, noise):
    source = noise(MIB)
    served = serve(source, "--lat", 1000)
    counts = told(crowd(served, source, 1, 7))
    assert counts["right"] == 1 and counts["signals"] >= 1 and set(counts) == {"right", "signals"}
    until_idle(served)
    assert (stats(served)["reads"], stats(served)["interrupted"]) == (1, 0)


# Sources


@pytest.mark.parametrize("step", [PAGE, 1], ids=["pages", "bytes"])
def test_a_source_that_shrinks_during_reads_gives_right_bytes_or_an_error(serve, noise, step):
    size = 8 * MIB
    source = noise(size)
    whole = source.read_bytes()
    served = serve(source)
    wrong, counts, ends = [], {"right": 0, "EIO": 0}, [size]
    fd = os.open(served.file, os.O_RDONLY | os.O_DIRECT)

    def read(seed):
        draw = random.Random(seed)
        with mmap.mmap(-1, 8 * PAGE) as buffer:
            while ends[0] > size // 2:
                # Near the end, where the file shrinks.
                at = max(0, ends[0] // PAGE - draw.randrange(16)) * PAGE
                try:
                    count = os.preadv(fd, [buffer], at)
                except OSError as error:
                    assert error.errno == errno.EIO
                    counts["EIO"] += 1
                    continue
                if buffer[:count] != whole[at : at + count]:
                    wrong.append((at, count))
                counts["right"] += 1

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 2
    while time.monotonic() < end and not wrong and ends[0] > size // 2:
        ends[0] -= step
        os.truncate(source, ends[0])
        time.sleep(0.0002)
    ends[0] = 0
    for thread in threads:
        thread.join()
    os.close(fd)
    assert not wrong, f"{len(wrong)} of {counts}: {wrong[:3]}"
    assert counts["right"] and counts["EIO"]
    assert served.process.poll() is None
    until_idle(served)


def test_a_slow_disk_delays_no_read_of_other_data(failing_disk, serve, crowd, noise):
    whole = bytearray(noise(4 * MIB).read_bytes())
    whole[: len(SLOW)] = SLOW
    source = failing_disk("fuse", whole) / "model.gguf"
    served = serve(source, "--no-preload", "--lat", 200)
    at = 3 * MIB
    direct(served.file, at)
    process = crowd(served, noise(4 * MIB), 1)
    time.sleep(0.05)
    begin = time.monotonic()
    assert direct(served.file, at) == whole[at : at + PAGE]
    assert time.monotonic() - begin < SLOW_SECONDS / 2
    assert process.poll() is None
    process.wait(SOON)
    until_idle(served)


@pytest.fixture
def limited(tmp_path):
    """A folder on a disk whose reads can be limited."""
    try:
        hierarchy.places(["io"])
        devices.of(tmp_path)
    except HbfError as error:
        pytest.skip(str(error))


def test_reads_past_the_page_cache_bring_right_bytes_at_any_offset(limited, serve, crowd, noise):
    source = noise(MIB + 1001)
    whole = source.read_bytes()
    served = serve(source, "--io-max", 1000, "--lat", 20)
    assert digest(served.file) == digest(source)
    assert told(crowd(served, source, 256)) == {"right": 256}
    draw = random.Random(1)
    with served.file.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(10):
            at, nbytes = draw.randrange(MIB + 1001), draw.randrange(1, 300_000)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), nbytes, at) == whole[at : at + nbytes]
        os.truncate(source, 5001)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert error_of(lambda: os.pread(file.fileno(), PAGE, MIB)) == errno.EIO
    until_idle(served)
    assert stats(served)["failed"] >= 1


def test_a_bad_sector_read_past_the_page_cache_is_an_error(limited, failing_disk, serve, noise):
    bad = 3 * MIB
    whole = bytearray(noise(4 * MIB).read_bytes())
    whole[bad : bad + len(BAD)] = BAD
    source = failing_disk("block device", whole) / "model.gguf"
    served = serve(source, "--io-max", 1000, "--no-preload")
    with served.file.open("rb", buffering=0) as file:
        for _ in range(2):
            assert error_of(lambda: os.pread(file.fileno(), PAGE, bad)) == errno.EIO
        assert os.pread(file.fileno(), PAGE, 4 * MIB - PAGE) == whole[-PAGE:]
    until_idle(served)


# Python

HOLD = """
import ctypes, os, threading, time

def hold():
    while not os.path.exists({trigger!r}):
        time.sleep(0.02)
    ctypes.PyDLL(None).sleep({seconds})

threading.Thread(target=hold, daemon=True).start()
"""
"""A C call that holds the interpreter lock all the time, started when a file appears."""


def test_reads_do_not_notice_that_python_is_busy(serve, noise, tmp_path):
    seconds, trigger = 3, tmp_path / "now"
    (tmp_path / "sitecustomize.py").write_text(HOLD.format(seconds=seconds, trigger=str(trigger)))
    source = noise(MIB)
    whole = source.read_bytes()
    served = serve(source, "--lat", 20, env={"PYTHONPATH": str(tmp_path)})
    fd = os.open(served.file, os.O_RDONLY | os.O_DIRECT)
    try:
        begin = time.monotonic()
        trigger.touch()
        time.sleep(0.3)
        with mmap.mmap(-1, PAGE) as buffer:
            for number in range(40):
                os.preadv(fd, [buffer], number * PAGE)
                assert buffer[:] == whole[number * PAGE : (number + 1) * PAGE]
        assert time.monotonic() - begin < seconds
        stats(served)
        assert time.monotonic() - begin >= seconds, "Python was not busy"
    finally:
        os.close(fd)
    until_idle(served)
