"""Readers that are killed or short of memory."""

import os
import time
from functools import partial
from pathlib import Path

import pytest
from served import MIB, SOON, read_right, seconds_until


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


@pytest.fixture
def crowded():
    """A memory cgroup of 24 MiB, as a prefix of commands that are to live in it."""
    limited = [
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ]
    for root, limit in limited:
        group = root / f"hbf-faults-{os.getpid()}"
        if not (root / "cgroup.procs").exists() or not os.access(root, os.W_OK):
            continue
        group.mkdir()
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(24 * MIB))
                yield "sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"
                return
        finally:
            seconds_until(partial(_is_empty, group), SOON, "the cgroup is empty")
            group.rmdir()
    pytest.skip("no memory cgroup that can be made here: the controller is missing, or it needs root")


def _is_empty(group):
    return not (group / "cgroup.procs").read_text()


@pytest.mark.parametrize("way", ["read", "mmap", "scattered"])
def test_a_reader_short_of_memory(crowded, serve, reading, noise, way):
    source = noise(48 * MIB)
    served = serve(source)
    # 48 MiB do not fit into 24: pages are reclaimed while the reader goes on.
    read_right(reading(way, served.file, source, passes=1, prefix=crowded))
