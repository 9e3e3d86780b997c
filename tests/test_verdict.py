"""Nothing silently wrong: what a mount says of itself."""

import mmap
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem, verdict
from hbf_fuse.mount import envelope, floor, live, server
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe import Counters, machine
from hbf_fuse.pacing.coverage import Coverage, Disturbances, FirstPass
from hbf_fuse.pacing.credit import Credit
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.tier import TierSpec

GB = 1_000_000_000


def judge(
    spec,
    seconds,
    model_seconds,
    copy_ns=100_000,
    late_ns=0,
    idle_cores=1.0,
    unsure_share=0.0,
    timed=True,
    facts=None,
    **disturbances,
):
    counters = Counters()
    counters.began(0, 1 << 20, 1)
    counters.finished(0, 0, late_ns - copy_ns, late_ns, 1 << 20)
    meanwhile = Disturbances(**disturbances)
    reads = FirstPass(
        GB, seconds, model_seconds, meanwhile, unsure_share=unsure_share, timed=timed, idle_cores=idle_cores
    )
    return verdict.judge([spec], reads, counters, **facts or {})


def test_agreement_within_one_percent_is_valid():
    told = judge(TierSpec(1000), 1.009, 1.0)
    assert told.valid and not told.why
    assert told.error_pct == pytest.approx(-0.89, abs=0.01)


def test_reads_that_may_have_waited_unseen_make_a_figure_invalid():
    told = judge(TierSpec(1000), 1.0, 1.0, unseen_ns=GB // 50)
    assert not told.valid and "more may have waited" in told.why


@pytest.mark.skipif(os.geteuid() != 0, reason="another PID namespace needs root")
def test_readers_that_cannot_be_told_apart_make_a_figure_invalid(tmp_path, noise):
    """A server in a container, its readers outside: FUSE gives it 0 for their thread ids."""
    source, point = noise(4 << 20), tmp_path / "mnt"
    point.mkdir()
    hbf = [sys.executable, "-m", "hbf_fuse"]
    mount = [*hbf, "mount", "-f", "--mbps", "200", str(source), str(point)]
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *mount]) as server:
        try:
            give_up = time.monotonic() + 20
            while not (point / "model.gguf").exists():
                assert server.poll() is None and time.monotonic() < give_up
                time.sleep(0.05)
            time.sleep(1)  # It measures its floor first, and begins to count then.
            assert (point / "model.gguf").read_bytes() == source.read_bytes()
            (file,) = live.read_hidden(point, "stats.json")["files"].values()
            assert file["staging"]["valid"] is False and "PID namespace" in file["staging"]["why"]
        finally:
            subprocess.run([*hbf, "umount", "--force", str(point)], check=False)
            server.kill()


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ({"starved_ns": 50_000_000}, "CPU starved"),
        ({"copy_ns": 5_000_000}, "source too slow"),
        ({"late_ns": 8_000_000}, "ceiling"),
        ({}, "lateness"),
    ],
)
def test_what_is_off_the_model_is_marked_with_the_reason(case, word):
    told = judge(TierSpec(1000), 1.1, 1.0, **case)
    assert not told.valid
    assert word in told.why


def test_fast_tiers_are_allowed_three_percent():
    assert judge(TierSpec(2000), 0.514, 0.5).valid
    assert not judge(TierSpec(1000), 1.028, 1.0).valid


def test_a_reader_with_too_little_in_flight_is_correct_and_says_so():
    told = judge(TierSpec(1000, 5), 2.0, 2.0)
    assert told.valid
    assert "readahead window" in told.why


def test_a_slow_reader_on_a_starved_machine_is_not_believed_to_be_slow_by_itself():
    assert "CPU starved" in judge(TierSpec(1000), 2.0, 2.0, starved_ns=GB).why
    assert not judge(TierSpec(1000), 2.0, 2.0, starved_ns=GB).valid
    assert judge(TierSpec(1000), 1.0, 1.0, starved_ns=GB).valid


def test_a_slow_reader_is_not_believed_when_no_core_was_idle():
    assert "CPU starved" in judge(TierSpec(1000), 2.0, 2.0, idle_cores=0.0).why
    assert judge(TierSpec(1000), 2.0, 2.0, idle_cores=None).valid
    assert judge(TierSpec(1000), 1.0, 1.0, idle_cores=0.0).valid


def test_more_than_the_link_is_never_believed():
    told = judge(TierSpec(1000), 0.985, 0.985)
    assert not told.valid
    assert "faster than the link" in told.why


def test_an_engine_that_cannot_see_its_replies_is_not_believed_below_the_link():
    assert not judge(TierSpec(1000), 2.0, 2.0, facts={"replies_seen": False}).valid
    assert judge(TierSpec(1000), 1.0, 1.0, facts={"replies_seen": False}).valid


def test_a_window_bound_walk_on_a_real_mount_is_reported_as_correct(mount, noise):
    path = mount(noise(48 << 20), mbps=800, lat=20)
    with (
        (path / "model.gguf").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        for at in range(0, len(view), mmap.PAGESIZE):
            view[at]
    staging = live.read_hidden(path, "stats.json")["files"]["model.gguf"]["staging"]
    assert staging["model_mbps"] < 700
    assert abs(staging["error_pct"]) < 10
    assert staging["why"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def an_envelope(**changes):
    cell = {"engine": "kernel", "mbps": 1000, "valid": True}
    facts = {**machine.facts(), **changes}
    return {"machine": facts, "engines": {"kernel": {"ceiling_mbps": 3000}}, "cells": [cell]}


def test_a_tier_outside_the_envelope_is_doubted(cache):
    envelope.store(an_envelope(), envelope.path())
    known, ignored = envelope.load()
    assert not ignored
    assert "ceiling" in envelope.doubt(TierSpec(4000), known, "kernel")
    assert "1000 MB/s" in envelope.doubt(TierSpec(2000), known, "kernel")
    assert not envelope.doubt(TierSpec(900), known, "kernel")
    assert not envelope.doubt(TierSpec(), known, "kernel")


@pytest.mark.parametrize("change", [{"kernel": "2.4"}, {"hbf_fuse": "0.0"}, {"memory_bytes": 1}])
def test_an_envelope_of_another_machine_or_version_is_ignored_with_a_word(cache, change):
    envelope.store(an_envelope(**change), envelope.path())
    known, ignored = envelope.load()
    assert known is None
    assert "ignoring" in ignored


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"machine": 3, "engines": 1, "cells": 2}'])
def test_a_damaged_envelope_is_ignored_with_a_word(cache, text):
    envelope.path().parent.mkdir(parents=True)
    envelope.path().write_text(text)
    known, ignored = envelope.load()
    assert known is None
    assert "damaged" in ignored


def test_an_envelope_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HbfError):
        envelope.store({}, tmp_path / "file" / "envelope.json")


def test_more_lateness_than_the_tier_takes_time_is_no_agreement():
    """Lateness that is not given back is summed over readers: four can be late by more than all time."""
    told = judge(TierSpec(100), 3.4, -4.6, forgiven_ns=8 * GB)
    assert not told.valid and told.model_mbps is None and "late by 8.0 s" in told.why
    # What lies in DRAM takes no time of the tier's at all.
    assert judge(TierSpec(100), 3.4, -0.001, timed=False).valid


def test_a_server_that_was_suspended_marks_what_many_readers_read(mount, noise):
    point = mount(noise(24 << 20), mbps=100, lat=1)
    server = live.read_hidden(point, "spec.json")["pid"]
    reader = (
        "import mmap, os, sys\n"
        "fd, b = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 262144)\n"
        "for at in range(int(sys.argv[2]), int(sys.argv[2]) + (6 << 20), 262144): os.preadv(fd, [b], at)"
    )
    line = [sys.executable, "-c", reader, str(point / "model.gguf")]
    readers = [subprocess.Popen([*line, str(part * (6 << 20))]) for part in range(4)]
    time.sleep(0.15)
    os.kill(server, signal.SIGSTOP)
    time.sleep(2)
    os.kill(server, signal.SIGCONT)
    assert [each.wait(30) for each in readers] == [0] * 4
    (file,) = live.read_hidden(point, "stats.json")["files"].values()
    assert file["complete"] and not file["staging"]["valid"] and file["staging"]["why"]


@pytest.mark.parametrize("spec", [TierSpec(latency_ms=1), TierSpec(1000, 1)])
@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"facts": {"replies_seen": False}}, "libfuse"),
        ({"starved_ns": GB // 10}, "busy"),
        ({"idle_cores": 0.0}, "no core was idle"),
        ({"unsure_share": 0.031}, "known to 3.1% of their time only"),
    ],
)
def test_where_no_link_vouches_a_busy_machine_is_doubted(spec, facts, word):
    told = judge(spec, 2.0, 2.0, **facts)
    assert not told.valid and word in told.why
    assert judge(spec, 2.0, 2.0).valid


def test_from_the_tolerance_on_below_the_link_a_busy_machine_is_doubted():
    assert judge(TierSpec(1000), 1.009, 1.009, starved_ns=GB // 10).valid
    assert not judge(TierSpec(1000), 1.02, 1.02, starved_ns=GB // 10).valid
    assert judge(TierSpec(2000), 0.51, 0.51, starved_ns=GB // 10).valid


def test_what_happens_before_and_after_a_files_first_pass_is_not_held_against_it(monkeypatch):
    counters, credit = Counters(), Credit()
    starved_ns = iter((GB, GB + 3, GB + 7, 9 * GB))
    monkeypatch.setattr(machine, "own_threads_starved_ns", lambda: next(starved_ns))
    coverage = Coverage([4096, 8192], counters, credit)
    counters.unseen_ns, counters.stops, credit.forgiven_ns = 1, 1, GB
    for part in range(2):
        arrival = 20 * GB + part * 1_000_000
        coverage.begin(1, arrival, arrival, 0)
        coverage.look()
        coverage.add(1, part * 4096, 4096, arrival + 800_000, arrival + 800_100, 800_100, 8000)
    coverage.look()
    counters.unseen_ns, counters.stops, credit.forgiven_ns = 2, 2, 2 * GB
    coverage.begin(1, 29 * GB, 29 * GB, 0)
    coverage.add(1, 0, 4096, 29 * GB, 29 * GB + 1, 1, 1)
    coverage.look()
    reads = coverage.first_pass(1)
    assert reads.disturbances == Disturbances(starved_ns=7)
    assert (reads.nbytes, reads.seconds) == (8192, 1_800_100 / 1e9)
    assert reads.timed and reads.unsure_share == 2 * 8000 / (2 * 800_100)
    assert coverage.begun() == [1]


def test_a_floor_that_could_not_be_measured_is_told_and_marks_every_figure(tmp_path, monkeypatch, noise):
    def too_busy(*_, **__):
        raise floor._TooBusy

    monkeypatch.setattr(floor, "_unseen", too_busy)
    assert not floor.measure("kernel", TierSpec(1000)).known
    told = []
    (tmp_path / "mnt").mkdir()
    source = noise(4 << 20)
    fs = Filesystem(source, TierSpec(1000))
    config = MountConfig(source, tmp_path / "mnt", TierSpec(1000))
    with server.mounted_here(fs, config, told.append, Floor(known=False)):
        assert len(told) == 1 and "too busy" in told[0]
    assert not fs.stats_document()["floor"]["known"]
    assert judge(TierSpec(1000), 1.0, 1.0, facts={"floor_known": True}).valid
    assert not judge(TierSpec(1000), 1.0, 1.0, facts={"floor_known": False}).valid
    assert judge(TierSpec(), 1.0, 0.0, timed=False, facts={"floor_known": False}).valid


def staging_of(point):
    (file,) = live.read_hidden(point, "stats.json")["files"].values()
    return file


def test_parts_of_pages_are_no_arrival_and_the_last_page_has_its_own_size(mount, noise):
    point = mount(noise((8 << 20) + 100), lat=20)
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.preadv(fd, [memoryview(buffer)[:512]], 100) == 512
        file = staging_of(point)
        assert file["arrived_bytes"] == 0 and file["staging"]["seconds"] == 0
        assert not file["staging"]["valid"] and "no whole page" in file["staging"]["why"]
        assert os.preadv(fd, [buffer], 8 << 20) == 100
        assert staging_of(point)["arrived_bytes"] == 100
    finally:
        os.close(fd)


def test_reads_that_begin_within_pages_are_not_believed(mount, noise):
    """A page of two replies is counted by neither, and the time of both is."""
    point = mount(noise(2 << 20), mbps=10)
    buffer = mmap.mmap(-1, 10_000)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    try:
        for place in range(0, 1 << 20, 10_000):
            os.preadv(fd, [buffer], place)
    finally:
        os.close(fd)
    staging = staging_of(point)["staging"]
    assert not staging["valid"] and "within pages" in staging["why"]


def test_a_server_that_stood_still_between_reads_is_told(mount, tmp_path):
    """The read that came meanwhile was not seen to wait. What is read a second after that is not spoilt."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(os.urandom(1 << 20))
    point = mount(folder, mbps=20)
    server = live.read_hidden(point, "spec.json")["pid"]
    buffer = mmap.mmap(-1, 1 << 18)
    verdicts = {}
    for name in ("a.gguf", "b.gguf"):
        fd = os.open(point / name, os.O_RDONLY | os.O_DIRECT)
        try:
            for place in range(0, 1 << 20, 1 << 18):
                if name == "a.gguf" and place == 1 << 19:
                    os.kill(server, signal.SIGSTOP)
                    threading.Timer(0.5, os.kill, (server, signal.SIGCONT)).start()
                os.preadv(fd, [buffer], place)
        finally:
            os.close(fd)
        verdicts[name] = live.read_hidden(point, "stats.json")["files"][name]["staging"]
        time.sleep(1.1)
    assert not verdicts["a.gguf"]["valid"] and "stopped" in verdicts["a.gguf"]["why"]
    assert "stopped" not in verdicts["b.gguf"]["why"]
    assert live.read_hidden(point, "stats.json")["stops"] == 1


def test_the_model_of_a_single_read_is_the_latency_that_was_asked_for(mount, noise):
    """Also where the machine's floor is taken off: it lies before the arrival that the server sees."""
    point = mount(noise(1 << 20), lat=20)
    with open(point / "model.gguf", "rb", buffering=0) as file:
        buffer = mmap.mmap(-1, 1 << 20)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.readinto(buffer)
    reads = live.read_hidden(point, "stats.json")["reads"]
    staging = staging_of(point)["staging"]
    if reads == 1:
        assert staging["model_mbps"] == pytest.approx((1 << 20) / 0.020 / 1e6, rel=0.002)


def test_what_a_thread_waited_for_a_cpu_before_is_not_a_readers_time(mount, noise):
    point = mount(noise(1 << 20), lat=20)
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            (point / "nothing").exists()
        begin = time.monotonic()
        os.preadv(fd, [buffer], 0)
        assert time.monotonic() - begin > 0.015
    finally:
        os.close(fd)


def served(fs, name, size, late_s=0.0, reader=1):
    """Read a file whole, as an engine does. late_s: by how much the reply comes too late. Its verdict."""
    handle = fs.open(fs.lookup(1, name.encode()).ino, os.O_RDONLY)
    read = fs.read(fs.opened(handle), 0, size, reader, time.monotonic_ns(), direct=True)
    read.serve(fs.pacer, lambda: time.sleep(late_s))
    fs.release(handle)
    return fs.stats_document()["files"][name]["staging"]


@pytest.fixture
def two_files(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(os.urandom(1 << 20))
    return folder


def test_a_files_first_read_may_have_waited_for_a_thread(two_files):
    fs = Filesystem(two_files, TierSpec(latency_ms=20))
    counters = fs.pacer.counters
    counters.unseen_ns, counters.blind_ns = GB, time.monotonic_ns()
    assert "more may have waited" in served(fs, "a.gguf", 1 << 20)["why"]
    counters.blind_ns -= 2 * GB
    assert "more may have waited" not in served(fs, "b.gguf", 1 << 20)["why"]


def test_an_abandoned_read_is_not_a_files_first(two_files):
    fs = Filesystem(two_files, TierSpec(latency_ms=1))
    place = fs.place(fs.lookup(1, b"a.gguf"))
    fs.pacer.admit(place, 0, 4096, 1, True, time.monotonic_ns())
    fs.pacer.abandon(place, 4096, 1, True, False)
    time.sleep(0.3)
    assert served(fs, "a.gguf", 1 << 20)["seconds"] < 0.3


def test_what_a_reader_is_owed_for_one_file_makes_no_other_one_fast(two_files):
    fs = Filesystem(two_files, TierSpec(100, 5))
    served(fs, "a.gguf", 1 << 20, late_s=0.5)
    staging = served(fs, "b.gguf", 1 << 20)
    assert staging["seconds"] > 0.4
    assert not staging["valid"] and "was owed" in staging["why"]


def test_a_file_that_comes_in_one_read_is_not_taken_for_a_busy_machine(two_files):
    fs = Filesystem(two_files, TierSpec(latency_ms=300))
    staging = served(fs, "a.gguf", 1 << 20)
    assert "no core was idle" not in staging["why"] or machine.facts()["cores"] == 1


def test_a_tier_that_holds_some_of_the_tensors_is_held_against_its_model_too():
    specs = [TierSpec(), TierSpec(100, 1)]
    reads = FirstPass(GB, 10.0, 1.0, Disturbances())
    told = verdict.judge(specs, reads, Counters())
    assert not told.valid and told.model_mbps == 1000
    # From the slowest tier comes what the tolerance is of.
    close = FirstPass(GB, 1.02, 1.0, Disturbances())
    assert not verdict.judge(specs, close, Counters()).valid
    assert verdict.judge(specs[:1], close, Counters()).valid


def test_an_error_and_what_is_not_known_count_together():
    assert judge(TierSpec(latency_ms=2), 1.02, 1.0, unsure_share=0.005).valid
    assert not judge(TierSpec(latency_ms=2), 1.02, 1.0, unsure_share=0.015).valid


def test_where_nothing_can_be_mounted_the_floor_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(mounting, "DEVICE", str(tmp_path / "none"))
    assert not floor.measure("kernel", TierSpec(1000)).known


def test_a_mountpoint_within_its_source_is_not_read_through(tmp_path):
    source = tmp_path / "models"
    point = source / "inside"
    point.mkdir(parents=True)
    # Not model.gguf: a GGUF of that name is looked for, and the mount comes before this one.
    (source / "z.gguf").write_bytes(b"GGUF" + os.urandom(1 << 20))
    hbf = [sys.executable, "-m", "hbf_fuse"]
    subprocess.run([*hbf, "mount", "--lat", "200", str(source), str(point)], check=True, timeout=30)
    try:
        assert live.read_hidden(point, "stats.json")["reads"] == 0
    finally:
        subprocess.run([*hbf, "umount", "--force", str(point)], check=True, timeout=30)
