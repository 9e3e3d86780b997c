"""Verdicts: a mount never reports a wrong figure silently."""

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import cast

import pytest

from hbf_fuse.calibrate import envelope
from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.host import machine, starved
from hbf_fuse.host.starved import Starved
from hbf_fuse.mount import client, floor, server
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe import Counters
from hbf_fuse.pacing.coverage import Coverage
from hbf_fuse.pacing.credit import Credit
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.runs.metrics import Decoding, Staging
from hbf_fuse.sweep import decode
from hbf_fuse.tier import TierSpec
from hbf_fuse.verdict import AGREES, OFF, UNSURE, Evidence, rules, words

# Reads come in real time, and a verdict judges exactly that.
GB = 1_000_000_000
READER, SERVER = 101, 102


def judge(spec, seconds=1.0, model_seconds=1.0, **known):
    return rules.judge([spec], Evidence(GB, seconds, model_seconds, **known))


def test_agreement_within_one_percent_is_valid():
    told = judge(TierSpec(1000), 1.009)
    assert told.valid and told.verdict == AGREES and told.bound_pct == 0 and not told.reasons
    assert told.error_pct == pytest.approx(-0.89, abs=0.01)


def test_error_and_bound_count_together():
    paused = {"pause_seconds": 0.5, "contention_seconds": 0.005}
    told = judge(TierSpec(1000), 1.004, **paused)
    assert told.verdict == AGREES and told.bound_pct == pytest.approx(0.5, abs=0.01)
    told = judge(TierSpec(1000), 1.007, **paused)
    assert told.verdict == UNSURE and told.reasons == ("cpu-contention",)
    told = judge(TierSpec(1000), 1.02, **paused)
    assert told.verdict == OFF and "cpu-contention" in told.reasons


def test_while_the_link_is_busy_delays_of_readers_do_not_count():
    disturbed = {"contention_seconds": 0.9, "memory_seconds": 0.9, "late_seconds": 0.9, "floor_seconds": 0.9}
    for more in ({}, {"floor_known": False}, {"replies_seen": False}, {"nameless": 3}):
        assert judge(TierSpec(1000), pause_seconds=0.002, **disturbed, **more).verdict == AGREES
        assert judge(TierSpec(1000), pause_seconds=0.02, **disturbed, **more).verdict == UNSURE


@pytest.mark.parametrize(
    ("known", "code"),
    [
        ({"contention_seconds": 0.02}, "cpu-contention"),
        ({"contention_seconds": None, "idle_cores": 0.01}, "cpu-contention"),
        ({"contention_seconds": None}, "cpu-contention"),
        ({"late_seconds": 0.02}, "late-replies"),
        ({"floor_seconds": 0.02}, "short-reads"),
        ({"memory_seconds": 0.02}, "memory-pressure"),
        ({"floor_known": False}, "floor-unknown"),
        ({"replies_seen": False}, "replies-unseen"),
        ({"nameless": 1}, "readers-unnamed"),
        ({"unseen_seconds": 0.02}, "unseen-reads"),
        ({"owed_seconds": 0.02}, "first-read-owed"),
        ({"stops": 1}, "server-stopped"),
        ({"exchanges": 1}, "tier-changed"),
        ({"overfills": 1}, "over-budget"),
        ({"uncounted_bytes": GB // 50}, "parts-of-pages"),
    ],
)
def test_each_reason_has_its_code_and_words(known, code):
    told = judge(TierSpec(1000), pause_seconds=0.5, **known)
    assert told.verdict == UNSURE and told.reasons == (code,)
    assert words.of(code) != code and told.why == words.of(code)


def test_without_run_queue_figures_a_verdict_holds_while_a_core_is_idle():
    assert judge(TierSpec(1000), pause_seconds=0.5, contention_seconds=None, idle_cores=0.5).verdict == AGREES


def test_codes_of_other_versions_are_shown_as_they_are():
    assert words.sentence(["tier-changed", "no-such-code"]).endswith("; no-such-code")


@pytest.mark.skipif(os.geteuid() != 0, reason="another PID namespace needs root")
def test_readers_that_cannot_be_distinguished_make_a_figure_invalid(tmp_path, noise):
    """The server is in a container, its readers are outside: FUSE gives it 0 for their thread ids."""
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
            time.sleep(1)  # It first measures its floor, then begins to count.
            assert (point / "model.gguf").read_bytes() == source.read_bytes()
            (file,) = client.read_hidden(point, "stats.json")["files"].values()
            assert file["staging"]["evidence"]["nameless"] > 0
        finally:
            subprocess.run([*hbf, "umount", "--force", str(point)], check=False)
            server.kill()


def test_an_off_verdict_names_the_source_first():
    assert judge(TierSpec(1000), 1.1, sending_ns_per_mib=5_000_000).reasons == ("source-slow",)
    assert judge(TierSpec(1000), 1.1).reasons == ("late-replies",)


def test_fast_tiers_are_allowed_three_percent():
    assert judge(TierSpec(2000), 0.514, 0.5).valid
    assert judge(TierSpec(1000), 1.028).verdict == OFF


def test_a_reader_with_too_little_in_flight_is_correct_and_says_so():
    told = judge(TierSpec(1000, 5), 2.0, 2.0, window_seconds=1.0)
    assert told.valid and told.reasons == ("window-bound",)
    assert told.shares == {"busy": 0.5, "window": 0.5, "pause": 0.0}


def test_a_reader_that_pauses_is_correct_and_says_so():
    told = judge(TierSpec(1000), 2.0, 2.0, pause_seconds=1.0, window_seconds=0.5)
    assert told.valid and told.reasons == ("window-bound", "reader-paused")
    assert sum(told.shares.values()) == pytest.approx(1)


def test_a_rate_above_the_link_is_never_believed():
    told = judge(TierSpec(1000), 0.985, 0.985)
    assert told.verdict == OFF and told.reasons == ("too-fast",)


def test_a_window_bound_walk_on_a_real_mount_is_reported_as_correct(mount, noise):
    path = mount(noise(48 << 20), mbps=800, lat=20)
    with (
        (path / "model.gguf").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        for at in range(0, len(view), mmap.PAGESIZE):
            view[at]
    staging = client.read_hidden(path, "stats.json")["files"]["model.gguf"]["staging"]
    assert staging["model_mbps"] < 700
    assert abs(staging["error_pct"]) < 10
    assert staging["reasons"]
    assert sum(staging["shares"].values()) == pytest.approx(1) and staging["shares"]["window"] > 0.05


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def an_envelope(**changes):
    figures = dict.fromkeys(envelope.EnvelopeCell.__annotations__, 1)
    cell = {**figures, "engine": "kernel", "mbps": 1000, "valid": True, "error_pct_runs": [], "reasons": []}
    engine = {**dict.fromkeys(envelope.EngineFacts.__annotations__, 1), "ceiling_mbps": 3000}
    return {
        "machine": {**machine.facts(), **changes},
        "measured": machine.now(),
        "complete": True,
        "runs": 1,
        "engines": {"kernel": engine},
        "cells": [cell],
    }


def test_a_tier_outside_the_envelope_gets_a_warning(cache):
    envelope.store(an_envelope(), envelope.path())
    known, ignored = envelope.load()
    assert not ignored
    assert "ceiling" in envelope.doubt(TierSpec(4000), known, "kernel")
    assert "1000 MB/s" in envelope.doubt(TierSpec(2000), known, "kernel")
    assert not envelope.doubt(TierSpec(900), known, "kernel")
    assert not envelope.doubt(TierSpec(), known, "kernel")


@pytest.mark.parametrize("change", [{"kernel": "2.4"}, {"hbf_fuse": "0.0"}, {"memory_bytes": 1}])
def test_an_envelope_of_another_machine_or_version_is_ignored_with_a_message(cache, change):
    envelope.store(an_envelope(**change), envelope.path())
    known, ignored = envelope.load()
    assert known is None
    assert "ignoring" in str(ignored)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"machine": 3, "engines": 1, "cells": 2}'])
def test_a_damaged_envelope_is_ignored_with_a_message(cache, text):
    envelope.path().parent.mkdir(parents=True)
    envelope.path().write_text(text)
    known, ignored = envelope.load()
    assert known is None
    assert "damaged" in str(ignored)


def test_an_envelope_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HbfError):
        envelope.store(cast(envelope.Envelope, {}), tmp_path / "file" / "envelope.json")


def test_more_lateness_than_tier_time_does_not_agree():
    """Lateness that is not given back is summed over readers: four readers can be late by more than the whole
    time.
    """
    told = judge(TierSpec(100), 13.4, -4.6, forgiven_seconds=18.0)
    assert told.verdict == UNSURE and told.model_mbps is None and told.reasons == ("late-replies",)
    # Data in DRAM takes no tier time.
    assert judge(TierSpec(100), 3.4, -0.001, timed=False).valid


def test_a_suspended_server_makes_the_figures_of_many_readers_invalid(mount, noise):
    point = mount(noise(24 << 20), mbps=100, lat=1)
    server = client.read_hidden(point, "spec.json")["pid"]
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
    (file,) = client.read_hidden(point, "stats.json")["files"].values()
    assert (
        file["complete"] and not file["staging"]["valid"] and "server-stopped" in file["staging"]["reasons"]
    )


def test_events_before_and_after_a_files_first_pass_do_not_count():
    # Without servers: the threads of this process may wait for a CPU.
    counters, credit, idle = Counters(), Credit(), Idle()
    coverage = Coverage([4096, 8192], counters, credit, idle)
    counters.unseen_ns, counters.stops, credit.forgiven_ns = 1, 1, GB
    for part in range(2):
        arrival = 20 * GB + part * 1_000_000
        coverage.begin(1, arrival, arrival, 0, 0)
        coverage.look([])
        coverage.add(1, part * 4096, 4096, arrival + 800_000, arrival + 800_100, 800_100, 8000)
    coverage.look([])
    counters.unseen_ns, counters.stops, credit.forgiven_ns = 2, 2, 2 * GB
    coverage.begin(1, 29 * GB, 29 * GB, 0, 0)
    coverage.add(1, 0, 4096, 29 * GB, 29 * GB + 1, 1, 1)
    coverage.look([])
    reads = coverage.first_pass(1)
    assert reads.contention_seconds == 0
    assert reads.unseen_seconds == reads.stops == reads.forgiven_seconds == 0
    assert (reads.nbytes, reads.seconds) == (8192, 1_800_100 / 1e9)
    assert reads.timed and reads.floor_seconds == 8000 / 1e9
    assert coverage.begun() == [1]


def test_run_queue_delay_counts_beyond_the_compensated_part(monkeypatch):
    """Of readers and servers, less the floor and less the lateness of threads that waited for a deadline."""
    counters, credit, idle = Counters(), Credit(), Idle()
    coverage = Coverage([4096], counters, credit, idle)
    waited = {READER: 0, SERVER: 0}
    monkeypatch.setattr(Starved, "ns", lambda _, threads: sum(waited[thread] for thread in threads))
    coverage.begin(0, GB, GB, 0, READER)
    credit.sending(READER, GB, time.monotonic_ns())
    coverage.look([SERVER])
    waited.update({READER: 5_000_000, SERVER: 4_000_000})
    counters.floored_ns, counters.woken_late_ns = 1_000_000, 2_000_000
    coverage.add(0, 0, 4096, GB + 900_000_000, GB + 900_000_000, 900_000_000, 8000)
    coverage.look([SERVER])
    assert coverage.first_pass(0).contention_seconds == pytest.approx(0.006)


def test_a_pass_between_two_looks_counts_the_delay_since_its_file_was_mapped(monkeypatch):
    """Of the threads that were there then, and of those that were born since; not from before."""
    waited = {READER: 70_000_000}
    monkeypatch.setattr(starved, "_waited_ns", lambda thread: waited[thread])
    counters, credit, idle = Counters(), Credit(), Idle()
    coverage = Coverage([4096], counters, credit, idle)
    coverage.ready(0, [READER])
    waited.update({READER: 73_000_000, READER + 1: 2_000_000})
    for reader in (READER, READER + 1):
        credit.sending(reader, GB, time.monotonic_ns())
    coverage.begin(0, GB, GB, 0, READER)
    coverage.add(0, 0, 4096, GB + 900_000_000, GB + 900_000_000, 900_000_000, 8000)
    coverage.look([])
    assert coverage.first_pass(0).contention_seconds == pytest.approx(0.005)


def test_an_impossible_thread_id_is_ignored():
    assert Starved().ns([1 << 31, (1 << 32) - 1]) == 0


@pytest.mark.parametrize(
    ("late_ms", "seen_ms", "unseen_ms"),
    [
        (5, [], 0),  # not later than a busy machine makes it
        (30, [], 30),
        (30, [20], 0),  # a read was seen meanwhile: only this thread was kept waiting
        (30, [29], 30),  # just now: it may have waited, too
        (30, range(-5, 30), 0),  # just now, as all the time
        (30, [*range(-5, 1), *range(25, 30)], 30),  # just now, after none had for a while
        (30, range(-5, 12), 0),
    ],
)
def test_a_late_heartbeat_means_that_the_server_was_stopped(late_ms, seen_ms, unseen_ms):
    pacer = Pacer({"hbf": TierSpec(100)}, [(1, 4096)], {})
    assert pacer.next_beat(GB // 2) == GB // 2 + 5_000_000
    assert pacer.next_beat(3 * GB) == 3 * GB + 100_000_000
    for at_ms in seen_ms:
        pacer.counters.began(3 * GB + at_ms * 1_000_000, 4096, READER)
    pacer.beat(3 * GB, 3 * GB + late_ms * 1_000_000)
    assert pacer.counters.unseen_ns == unseen_ms * 1_000_000


def test_an_unknown_floor_is_reported(tmp_path, monkeypatch, noise):
    def too_busy(*_, **__):
        raise floor._TooBusy

    monkeypatch.setattr(floor, "_unseen", too_busy)
    assert not floor.measure("kernel").known
    told: list[str] = []
    (tmp_path / "mnt").mkdir()
    source = noise(4 << 20)
    fs = Filesystem(source, TierSpec(1000))
    config = MountConfig(source, tmp_path / "mnt", TierSpec(1000))
    with server.mounted_here(fs, config, told.append, Floor(known=False)):
        assert len(told) == 1 and "too busy" in told[0]
    assert not fs.hidden.stats_document()["floor"]["known"]
    assert judge(TierSpec(), 1.0, 0.0, timed=False, floor_known=False).valid


def staging_of(point):
    (file,) = client.read_hidden(point, "stats.json")["files"].values()
    return file


def test_parts_of_pages_do_not_arrive_and_the_last_page_has_its_own_size(mount, noise):
    point = mount(noise((8 << 20) + 100), lat=20)
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.preadv(fd, [memoryview(buffer)[:512]], 100) == 512
        file = staging_of(point)
        assert file["arrived_bytes"] == 0 and file["staging"]["seconds"] == 0
        assert not file["staging"]["valid"] and file["staging"]["reasons"] == ["nothing-arrived"]
        assert os.preadv(fd, [buffer], 8 << 20) == 100
        assert staging_of(point)["arrived_bytes"] == 100
    finally:
        os.close(fd)


def test_reads_that_begin_within_pages_are_not_believed(mount, noise):
    """A page that two replies share counts for neither, but the time of both counts."""
    point = mount(noise(2 << 20), mbps=10)
    buffer = mmap.mmap(-1, 10_000)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    try:
        for place in range(0, 1 << 20, 10_000):
            os.preadv(fd, [buffer], place)
    finally:
        os.close(fd)
    staging = staging_of(point)["staging"]
    assert not staging["valid"] and "parts-of-pages" in staging["reasons"]


def test_a_server_that_was_stopped_between_reads_is_reported(mount, tmp_path):
    """A read that came meanwhile was not seen waiting. Reads a second later are not affected."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(os.urandom(1 << 20))
    point = mount(folder, mbps=20)
    server = client.read_hidden(point, "spec.json")["pid"]
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
        verdicts[name] = client.read_hidden(point, "stats.json")["files"][name]["staging"]
        time.sleep(1.1)
    assert not verdicts["a.gguf"]["valid"] and "server-stopped" in verdicts["a.gguf"]["reasons"]
    assert "server-stopped" not in verdicts["b.gguf"]["reasons"]
    assert client.read_hidden(point, "stats.json")["stops"] == 1


@pytest.mark.skipif(
    not os.access("/sys/fs/cgroup/freezer", os.W_OK), reason="no freezer (cgroup v1) to write to"
)
def test_a_frozen_server_is_reported(mount, noise):
    """No signal reports it. Reads that came meanwhile look as if their reader had paused."""
    point = mount(noise(8 << 20), mbps=40)
    server = client.read_hidden(point, "spec.json")["pid"]
    root = Path("/sys/fs/cgroup/freezer")
    group = root / f"hbf-test-{os.getpid()}"
    group.mkdir()
    state = group / "freezer.state"
    buffer = mmap.mmap(-1, 1 << 20)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    try:
        (group / "cgroup.procs").write_text(str(server))
        for place in range(0, 8 << 20, 1 << 20):
            if place == 4 << 20:
                state.write_text("FROZEN")
                threading.Timer(0.3, state.write_text, ("THAWED",)).start()
            os.preadv(fd, [buffer], place)
    finally:
        os.close(fd)
        state.write_text("THAWED")
        (root / "cgroup.procs").write_text(str(server))
        group.rmdir()
    staging = staging_of(point)["staging"]
    assert staging["verdict"] != AGREES
    assert staging["evidence"]["unseen_seconds"] > 0.2


def test_the_model_of_a_single_read_is_the_requested_latency(mount, noise):
    """Also if the machine's floor is subtracted: it lies before the arrival that the server sees."""
    point = mount(noise(1 << 20), lat=20)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(fd, [mmap.mmap(-1, 1 << 20)], 0)
    finally:
        os.close(fd)
    assert client.read_hidden(point, "stats.json")["reads"] == 1
    staging = staging_of(point)["staging"]
    assert staging["model_mbps"] == pytest.approx((1 << 20) / 0.020 / 1e6, rel=0.002)


def test_earlier_run_queue_delay_of_a_thread_is_not_a_readers_time(mount, noise):
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
    """Read a whole file as an engine does. late_s: lateness of the reply. Returns its verdict."""
    handle = fs.open(fs.lookup(1, name.encode()).ino, os.O_RDONLY)
    read = fs.read(fs.opened(handle), 0, size, reader, time.monotonic_ns(), direct=True)
    read.serve(fs.served.pacer, lambda: time.sleep(late_s))
    fs.release(handle)
    return fs.hidden.stats_document()["files"][name]["staging"]


@pytest.fixture
def two_files(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(os.urandom(1 << 20))
    return folder


def test_a_files_first_read_may_have_waited_for_a_thread(two_files):
    fs = Filesystem(two_files, TierSpec(latency_ms=20))
    counters = fs.served.pacer.counters
    counters.unseen_ns, counters.blind_ns = GB, time.monotonic_ns()
    assert {"unseen-reads", "source-slow"} & set(served(fs, "a.gguf", 1 << 20)["reasons"])
    counters.blind_ns -= 2 * GB
    assert "unseen-reads" not in served(fs, "b.gguf", 1 << 20)["reasons"]


def test_an_abandoned_read_is_not_a_files_first(two_files):
    fs = Filesystem(two_files, TierSpec(latency_ms=1))
    place = fs.served.place(fs.lookup(1, b"a.gguf"))
    fs.served.pacer.admit(place, 0, 4096, 1, True, time.monotonic_ns())
    fs.served.pacer.abandon(place, 4096, 1, True, False)
    time.sleep(0.3)
    assert served(fs, "a.gguf", 1 << 20)["seconds"] < 0.3


def test_credit_from_one_file_makes_no_other_file_fast(two_files):
    fs = Filesystem(two_files, TierSpec(100, 5))
    served(fs, "a.gguf", 1 << 20, late_s=0.5)
    staging = served(fs, "b.gguf", 1 << 20)
    assert staging["seconds"] > 0.4
    # On a busy machine the reply itself may be slow. Then that is named first.
    assert not staging["valid"] and {"first-read-owed", "source-slow"} & set(staging["reasons"])


def test_a_file_that_comes_in_one_read_is_not_taken_for_a_busy_machine(two_files):
    fs = Filesystem(two_files, TierSpec(latency_ms=300))
    staging = served(fs, "a.gguf", 1 << 20)
    assert "cpu-contention" not in staging["reasons"]


def test_a_tier_with_some_of_the_tensors_is_compared_with_its_model_too():
    specs = [TierSpec(), TierSpec(100, 1)]
    told = rules.judge(specs, Evidence(GB, 10.0, 1.0))
    assert told.verdict == OFF and told.model_mbps == 1000
    # The slowest tier determines the tolerance.
    close = Evidence(GB, 1.02, 1.0)
    assert rules.judge(specs, close).verdict == OFF
    assert rules.judge(specs[:1], close).valid


def idle_of(*events):
    """Idle time after arrivals (began, owed), each with the tier's answer (carried, due, late)."""
    idle = Idle()
    for (began, owed), (carried, due, late) in events:
        idle.ended(began, owed, 50)
        idle.taken(carried, due)
        idle.replied(due + late, late)
    return idle.window_ns, idle.pause_ns, idle.floor_ns, idle.late_ns


def test_idle_time_is_split_into_latency_and_pauses():
    assert idle_of(((1000, 0), (2000, 2500, 0)), ((3000, 0), (4000, 4500, 0))) == (500, 500, 50, 0)
    # A link that is busy all the time has no idle time, however late the replies are.
    assert idle_of(((1000, 0), (2000, 2500, 900)), ((1900, 0), (3000, 3500, 900))) == (0, 0, 0, 0)
    # Compensated lateness causes no uncertainty; another reader's lateness does.
    assert idle_of(((1000, 0), (2000, 2000, 300)), ((3000, 300), (4000, 4000, 0)))[3] == 0
    assert idle_of(((1000, 0), (2000, 2000, 300)), ((3000, 0), (4000, 4000, 0)))[3] == 300
    # Never more than the idle time itself.
    assert idle_of(((1000, 0), (2000, 2000, 300)), ((2070, 0), (4000, 4000, 0)))[2:] == (50, 20)


def test_if_nothing_can_be_mounted_the_floor_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(mounting, "DEVICE", str(tmp_path / "none"))
    assert not floor.measure("kernel").known


def test_a_mountpoint_within_its_source_is_not_read_through(tmp_path):
    source = tmp_path / "models"
    point = source / "inside"
    point.mkdir(parents=True)
    # The name is not model.gguf: a GGUF of that name would be looked for, and found before this one.
    (source / "z.gguf").write_bytes(b"GGUF" + os.urandom(1 << 20))
    hbf = [sys.executable, "-m", "hbf_fuse"]
    subprocess.run([*hbf, "mount", "--lat", "200", str(source), str(point)], check=True, timeout=30)
    try:
        assert client.read_hidden(point, "stats.json")["reads"] == 0
    finally:
        subprocess.run([*hbf, "umount", "--force", str(point)], check=True, timeout=30)


def test_decode_is_judged_by_its_tokens_and_the_worse_verdict_counts():
    def said(error, bound=0.5, staged=AGREES, overfills=0, binds="tier"):
        decoding = Decoding.model_construct(tg_error_pct=error, tg_bound_pct=bound, bound=binds)
        staging = Staging.model_construct(verdict=staged, reasons=["reader-paused"])
        told = decode.judged(staging, decoding, overfills)
        return told.verdict, told.reasons[0]

    assert said(-1.0) == (AGREES, "reader-paused")
    assert said(-37.0) == (OFF, "decode-slower")
    assert said(-4.0, bound=2.0) == said(-4.0, bound=None) == (UNSURE, "cpu-contention")
    assert said(-1.0, staged=OFF)[0] == OFF
    assert said(-1.0, overfills=1) == (UNSURE, "over-budget")
    assert said(20.0, binds="compute")[0] == AGREES
    assert said(None) == (UNSURE, "evidence-missing")
