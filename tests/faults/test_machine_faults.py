"""A machine whose clock jumps, or that has no free descriptors."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time

import pytest
from served import ENGINES, MIB, SOON, read_right, run, seconds_until


@ENGINES
def test_descriptors_exhausted_in_the_server(serve, tmp_path, noise, engine):
    content = noise(100_000).read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(40):
        (folder / f"file{number}").write_bytes(content)
    served = serve(folder, engine=engine, prefix=("prlimit", "--nofile=32"))
    files = [served.point / f"file{number}" for number in range(40)]
    with contextlib.ExitStack() as stack:
        opened, refused = [], []
        for file in files:
            try:
                opened.append(stack.enter_context(file.open("rb", buffering=0)))
            except OSError as error:
                refused.append(error.errno)
        assert len(opened) >= 5 and set(refused) == {errno.EMFILE}
        assert all(file.read() == content for file in opened)
    assert all(file.read_bytes() == content for file in files)
    seconds_until(served.is_idle, SOON, "no read is in flight")


@pytest.mark.parametrize("limit", [6, 8, 10])
def test_descriptors_exhausted_at_the_start(tmp_path, noise, limit):
    point = tmp_path / "mnt"
    point.mkdir()
    command = ["prlimit", f"--nofile={limit}", sys.executable, "-m", "hbf_fuse", "mount"]
    said = subprocess.run(
        [*command, str(noise(5000)), str(point)], capture_output=True, text=True, timeout=30, check=False
    )
    assert said.returncode == 1 and "Too many open files" in said.stderr
    assert "Traceback" not in said.stderr and len(said.stderr.splitlines()) == 1
    assert not point.is_mount()


JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t jump(void) {
    static atomic_int calls;
    return atomic_fetch_add(&calls, 1) % 2 ? 86400 : -86400;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += jump();
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out) *out = exact.tv_sec;
    return exact.tv_sec;
}
"""
"""The wall clock jumps by two days between calls; the monotonic clock does not."""


@pytest.fixture
def jumping_clock(tmp_path):
    """An environment in which the wall clock jumps."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a jumping clock with")
    library = tmp_path / "clock.so"
    (tmp_path / "clock.c").write_text(JUMPING_CLOCK)
    run(compiler, "-shared", "-fPIC", "-o", library, tmp_path / "clock.c")
    env = {"LD_PRELOAD": str(library)}
    look = [sys.executable, "-c", "import time; print(time.time() - time.time())"]
    said = subprocess.run(look, env={**os.environ, **env}, capture_output=True, text=True, check=True)
    assert abs(float(said.stdout)) > 100_000
    return env


@ENGINES
def test_a_clock_that_jumps(jumping_clock, serve, reading, noise, engine):
    size, mbps = 20 * MIB, 40
    source = noise(size)
    served = serve(source, "--mbps", mbps, "--lat", 1, engine=engine, env=jumping_clock)
    begin = time.monotonic()
    read_right(reading("mmap", served.file, source, passes=1))
    assert size / mbps / 1e6 * 0.9 < time.monotonic() - begin < size / mbps / 1e6 * 4 + 1
    assert served.close() == []
