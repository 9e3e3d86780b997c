"""The kernel's delay accounting: decoded right, reported only if plausible, else absent with a reason."""

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hbf_fuse.host import pressure, restorer, taskstats
from hbf_fuse.host.taskstats import SWITCH, Wait
from hbf_fuse.runs.metrics import Waiting
from hbf_fuse.workload import child, stalls

SECOND = 1_000_000_000
MAPPED = "import mmap, os, sys; m = mmap.mmap(os.open(sys.argv[1], 0), 0, prot=1); sum(m[::4096])"
DIRECT = (
    "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_DIRECT); b = mmap.mmap(-1, 1 << 20); "
    "all(os.preadv(fd, [b], at << 20) for at in range(os.fstat(fd).st_size >> 20))"
)
THREADED = (
    "import threading as t, time; b = t.Barrier(4, timeout=20)\n"
    "def work():\n"
    "    b.wait()\n"
    "    for _ in range(500): time.sleep(0.0005)\n"
    "    b.wait()\n"
    "threads = [t.Thread(target=work) for _ in range(4)]\n"
    "for each in threads: each.start()\n"
    "for each in threads: each.join()"
)


@pytest.fixture
def root():
    if os.geteuid():
        pytest.skip("delay accounting needs root")
    if not SWITCH.exists():
        pytest.skip("this kernel has no switch for delay accounting (Linux 5.14)")


def packed(version, size=None, **values):
    """A struct taskstats in the layout of that version."""
    words = [values.get(name, 0) for name in taskstats.fields(version)]
    raw = struct.pack(f"={len(words)}Q", version | 7 << 32, *words[1:])
    return raw[:size]


def wait_until(condition, seconds=10):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.01)


def watched(*line, **options):
    with stalls.counted() as watch:
        ended = child.run_group([str(part) for part in line], watch=watch, **options)
        metrics = watch.metrics(ended.wall_seconds)
    assert ended.returncode == 0, ended.stderr
    return metrics, ended, watch


# The struct


@pytest.mark.parametrize("version", range(9, 19))
def test_every_version_since_linux_4_20_is_decoded_as_far_as_it_is_known(version):
    raw = packed(version, blkio_delay_total=11, freepages_count=3, thrashing_delay_total=13)
    for longer in (b"", bytes(64), bytes(3)):
        words = taskstats.parse(raw + longer)
        assert words["version"] == version
        assert (words["blkio_delay_total"], words["freepages_count"]) == (11, 3)
        assert words["thrashing_delay_total"] == 13


def test_a_struct_may_end_before_the_waits_that_came_later():
    through_thrashing = (taskstats.fields(9).index("thrashing_delay_total") + 1) * 8
    words = taskstats.parse(packed(9, through_thrashing, thrashing_count=5))
    assert words["thrashing_count"] == 5
    assert "compact_count" not in words


@pytest.mark.parametrize(
    "raw", [b"", b"\x10", packed(8), packed(1), packed(16, 100), b"\xff" * 80, bytes(600)], ids=len
)
def test_bytes_that_are_not_a_struct_or_older_than_linux_4_20_are_refused(raw):
    with pytest.raises(ValueError, match=r"struct"):
        taskstats.parse(raw)


def test_fields_lie_where_the_c_compiler_puts_them(tmp_path):
    header = Path("/usr/include/linux/taskstats.h")
    if not shutil.which("cc") or not header.exists():
        pytest.skip("needs a C compiler and linux/taskstats.h (linux-libc-dev)")
    version = int(header.read_text().partition("#define TASKSTATS_VERSION")[2].split()[0])
    known = taskstats.fields(version)
    names = [name for name in known if name != "flags" and name in header.read_text()]
    lines = [f'printf("{name} %zu\\n", offsetof(struct taskstats, {name}));' for name in names]
    source = tmp_path / "facts.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/taskstats.h>\n"
        f"int main(void) {{ {' '.join(lines)} }}\n"
    )
    subprocess.run(["cc", "-o", str(tmp_path / "facts"), str(source)], check=True)
    printed = subprocess.run([str(tmp_path / "facts")], check=True, capture_output=True, text=True).stdout
    for name, offset in (line.split() for line in printed.splitlines()):
        assert known.index(name) * 8 == int(offset), name


# Plausible figures


def waits(**seconds):
    return {kind: Wait(1, 0, 0) for kind in stalls.REPORTED} | {
        kind: Wait(count, int(total * SECOND), int(total * SECOND) // count)
        for kind, (count, total) in seconds.items()
    }


def test_a_wait_within_wall_time_and_threads_is_reported():
    figures = stalls.judged(waits(blkio=(100, 7.5)), "", threads=8, wall_seconds=1.0)
    assert figures["delays"] == "ok"
    assert figures["delay_blkio_seconds"] == 7.5
    assert figures["delay_reclaim_seconds"] == 0


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (waits(blkio=(500, 49.0)), "blkio waits of 49.0 s in 1.2 s of 8 threads"),
        (waits(blkio=(1, 3947.0)), "one blkio wait of 3947.0 s in 1.2 s"),
        (waits(thrashing=(1, 1.5)), "one thrashing wait of 1.5 s"),
        (waits() | {"freepages": Wait(0, 30 * SECOND, 0)}, "reclaim waits of 30.0 s"),
    ],
)
def test_an_impossible_wait_is_implausible_and_gives_no_figure(found, words):
    figures = stalls.judged(found, "", threads=8, wall_seconds=1.2)
    assert figures["delays"].startswith("implausible: ")
    assert words in figures["delays"]
    assert {value for key, value in figures.items() if key != "delays"} == {None}


def test_an_uncounted_delay_has_a_reason_and_no_figure():
    figures = stalls.judged(None, "no root", threads=1, wall_seconds=1.0)
    assert figures["delays"] == "not available: no root"
    assert figures["delay_blkio_seconds"] is None


@pytest.mark.parametrize("raw", [b"", packed(8), bytes(560), packed(16, 40)], ids=len)
def test_a_malformed_answer_is_not_available(root, monkeypatch, raw):
    monkeypatch.setattr(taskstats, "_ask", lambda channel, kind, pid: raw)
    with taskstats.accounting():
        found, why = taskstats.of_process(os.getpid())
    assert found is None
    assert "no usable answer" in why


# The kernel setting


def test_the_kernel_setting_is_restored_whatever_happens(root):
    before = SWITCH.read_text()
    try:
        for was in ("0", "1"):
            SWITCH.write_text(was)
            with pytest.raises(KeyboardInterrupt), taskstats.accounting() as why:
                assert not why
                assert SWITCH.read_text().strip() == "1"
                raise KeyboardInterrupt
            assert SWITCH.read_text().strip() == was
    finally:
        SWITCH.write_text(before)


def test_the_kernel_setting_is_restored_when_the_program_is_killed(root):
    before = SWITCH.read_text()
    program = (
        "import sys, time; from hbf_fuse.host import taskstats\n"
        "with taskstats.accounting(): print('on', flush=True); time.sleep(60)"
    )
    try:
        SWITCH.write_text("0")
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as killed:
            assert killed.stdout.readline() == "on\n"
            assert SWITCH.read_text().strip() == "1"
            killed.kill()
        wait_until(lambda: SWITCH.read_text().strip() == "0")
    finally:
        SWITCH.write_text(before)


def test_without_root_there_is_a_reason_and_no_traceback(root):
    program = (
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "with taskstats.accounting() as why: print(why or taskstats.of_process(os.getpid())[1])"
    )
    said = subprocess.run(
        [sys.executable, "-c", f"from hbf_fuse.host import taskstats\n{program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "root" in said.stdout, said.stderr
    assert not said.stderr


def test_a_kernel_setting_that_was_turned_off_meanwhile_is_reported(root):
    with taskstats.accounting():
        SWITCH.write_text("0")
        assert "switched off" in taskstats.of_process(os.getpid())[1]
        SWITCH.write_text("1")


def test_a_process_that_is_gone_is_reported(root):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with taskstats.accounting():
        assert taskstats.of_process(gone.pid) == (None, "the process no longer exists")


# Real processes


def test_threads_that_ended_before_their_process_are_counted(root):
    """Each thread gets the CPU anew after each of its sleeps."""
    _, _, delays = watched(sys.executable, "-c", THREADED)
    assert delays._waits["cpu"].count >= 4 * 500


def test_waiting_for_pages_of_the_mount_counts_as_block_io_and_direct_reads_do_not(root, mount, noise):
    point = mount(noise(24 << 20), mbps=40)
    mapped, ended, _ = watched(sys.executable, "-c", MAPPED, point / "model.gguf")
    if mapped["delays"] != "ok":
        pytest.skip(f"delays are {mapped['delays']} on this machine")
    assert 0.3 < mapped["delay_blkio_seconds"] <= ended.wall_seconds * 1.01
    assert mapped["peak_rss_bytes"] > 20 << 20
    direct, _, _ = watched(sys.executable, "-c", DIRECT, point / "model.gguf")
    assert direct["delay_blkio_seconds"] < 0.3


def test_a_watched_child_has_its_figures(root):
    metrics, ended, _ = watched(sys.executable, "-c", "print(sum(range(5_000_000)))")
    assert ended.stdout.strip() == "12499997500000"
    assert metrics["bench_cpu_seconds"] > 0.02
    assert metrics["major_faults"] >= 0
    assert Waiting.model_fields.keys() <= set(metrics)


def test_a_child_that_takes_too_long_is_ended(root):
    before = SWITCH.read_text()
    with pytest.raises(subprocess.TimeoutExpired):
        watched("sleep", "30", timeout_seconds=0.2)
    assert SWITCH.read_text() == before


# Pressure


def test_pressure_is_read_in_seconds(tmp_path):
    lines = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 total=250000\n"
    for name in pressure.RESOURCES:
        (tmp_path / name).write_text(lines)
    found, why = pressure.totals(tmp_path)
    assert not why
    assert found["io_some"] == 1.5
    assert found["memory_full"] == 0.25
    assert pressure.since({"io_some": 1.0}, found) == {"io_some": 0.5}


def test_no_pressure_is_none_with_a_reason(tmp_path):
    assert pressure.totals(tmp_path / "missing")[0] is None
    assert "psi=1" in str(pressure.totals(tmp_path / "missing")[1])
    for name in pressure.RESOURCES:
        (tmp_path / name).write_text("nonsense\n")
    assert "unknown format" in str(pressure.totals(tmp_path)[1])


def test_the_kernel_setting_is_restored_even_if_all_processes_get_sigterm_at_once(tmp_path):
    """systemd does this when it stops a service."""
    switch = tmp_path / "switch"
    switch.write_text("1")
    script = Path(restorer.__file__)
    process = subprocess.Popen([sys.executable, "-I", "-S", script, switch, "0"], stdin=subprocess.PIPE)
    time.sleep(0.5)
    process.terminate()
    time.sleep(0.2)
    assert process.poll() is None
    process.communicate(timeout=20)
    assert switch.read_text() == "0"
