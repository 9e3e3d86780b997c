"""Readers that are killed or short of memory."""

import os
import time

import pytest
from served import MIB, read_right


@pytest.mark.parametrize(
    ("engine", "way"),
    [
        *(("kernel", way) for way in ("read", "direct", "mmap", "scattered")),
        # libfuse 2 heeds no interrupt: a reader past the page cache ends when the tier has answered.
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


@pytest.mark.parametrize("way", ["read", "mmap", "scattered"])
def test_a_reader_short_of_memory(confined, serve, reading, noise, way):
    source = noise(48 * MIB)
    served = serve(source)
    # 48 MiB do not fit into 24: pages are reclaimed while the reader goes on.
    read_right(reading(way, served.file, source, passes=1, prefix=confined("memory", 24 * MIB)))
