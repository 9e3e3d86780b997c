"""Readers that are killed, get signals or are short of memory."""

import os
import signal
import time

import pytest
from served import ENGINES, MIB, SOON, read_right, seconds_until

from hbf_fuse.mount import client

WAYS = ("read", "direct", "mmap", "scattered")


@pytest.mark.parametrize(
    ("engine", "way"),
    [
        *(("kernel", way) for way in WAYS),
        # libfuse 2 ignores interrupts: a reader past the page cache ends when the tier has answered.
        *(("fusepy", way) for way in ("read", "mmap")),
    ],
)
def test_a_reader_killed_in_mid_read(serve, reading, noise, engine, way, record_property):
    source = noise(MIB)
    served = serve(source, "--lat", 10_000, engine=engine)
    reader = reading(way, served.file, source)
    time.sleep(0.5)
    assert reader.poll() is None
    begin = time.monotonic()
    reader.kill()
    reader.wait(5)
    record_property("seconds until the reader was gone", time.monotonic() - begin)
    assert os.statvfs(served.point).f_blocks


@ENGINES
@pytest.mark.parametrize("way", WAYS)
def test_a_reader_that_gets_signals(serve, reading, noise, engine, way):
    """For example from a profiler's timer. A handled signal cuts no read short, and restarts none forever."""
    source = noise(MIB // 8)
    served = serve(source, "--lat", 80, engine=engine)
    reader = reading(way, served.file, source, passes=2)
    seconds_until(lambda: client.read_hidden(served.point, "stats.json")["reads"] > 0, SOON, "it reads")
    give_up = time.monotonic() + 60
    while reader.poll() is None and time.monotonic() < give_up:
        time.sleep(0.005)
        reader.send_signal(signal.SIGUSR1)
    read_right(reader, within=1)
    assert not client.read_hidden(served.point, "stats.json")["interrupted"]


@pytest.mark.parametrize("way", ["read", "mmap", "scattered"])
def test_a_reader_short_of_memory(confined, serve, reading, noise, way):
    source = noise(48 * MIB)
    served = serve(source)
    # 48 MiB do not fit into 24 MiB: pages are reclaimed while the reader continues.
    read_right(reading(way, served.file, source, passes=1, prefix=confined("memory", 24 * MIB)))
