"""Real disks as tiers: the jobs, the fit, and a file on a mount whose truth is known."""

import os
import subprocess
import sys
from pathlib import Path
from time import monotonic_ns

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbf_fuse.disks import cold, document, fitting, jobs, measuring, target
from hbf_fuse.disks.jobs import SPREAD, Job, Sample
from hbf_fuse.errors import HbfError
from hbf_fuse.host import residency
from hbf_fuse.mount import lean
from hbf_fuse.tier import Tier, TierSpec, profiles
from hbf_fuse.tier.expect import closed_loop

MS = 1_000_000


SOME = [
    job
    for job in jobs.jobs(1 << 30)
    if job.size in (4 << 10, 64 << 10, 1 << 20) and job.depth in (1, 2, 4, 16)
]


def samples_of(spec, noise=0.0):
    """What a perfect disk of this kind would measure."""
    found = {}
    for number, job in enumerate(SOME):
        rate = fitting.rate_of(spec, job) * (1 + noise * (-1) ** number)
        single_ns = job.size * job.depth * 1e3 / rate
        found[job] = [Sample(rate, single_ns, (round(single_ns),) * len(SPREAD), 1 << 20)]
    return found


@pytest.mark.parametrize(
    "spec",
    [TierSpec(500, 1), TierSpec(7000, 0.05), TierSpec(90, 0.7), TierSpec(3000, 0.02), TierSpec(200, 12)],
    ids=str,
)
def test_the_fit_gives_a_plain_tier_back(spec):
    fit = fitting.fit(samples_of(spec))
    assert fit.form == "bandwidth and latency"
    assert fit.spec.bandwidth_mbps == pytest.approx(spec.bandwidth_mbps, rel=0.01)
    assert fit.spec.latency_ms == pytest.approx(spec.latency_ms, rel=0.05, abs=0.01)
    assert fit.middle_pct < 1
    assert not fit.is_bad


def test_the_fit_finds_a_queue_depth():
    fit = fitting.fit(samples_of(TierSpec(2000, 0.2, depth=4)))
    assert fit.spec.depth == 4
    assert fit.middle_pct < 2


def test_noise_of_a_few_percent_does_not_move_the_fit_far():
    fit = fitting.fit(samples_of(TierSpec(500, 1), noise=0.03))
    assert fit.spec.bandwidth_mbps == pytest.approx(500, rel=0.04)
    assert fit.form == "bandwidth and latency"


def test_times_that_vary_become_jitter_and_the_mean_latency_stays():
    """Rates and times of the same device: 0.1 ms and 0.1 ms more on average."""
    truth = TierSpec(1000, 0.1, jitter="lognormal:0.1,1")
    found = {}
    for job in SOME:
        tier, now, times = Tier(truth), 0, []
        for number in range(2000):
            done = tier.reserve(now, number * job.size, job.size)
            times.append(done - now)
            now = done
        times.sort()
        spread = tuple(times[len(times) * share // 100] for share in SPREAD)
        rate = closed_loop(truth, job.size, job.depth)
        found[job] = [Sample(rate, sum(times) / len(times), spread, 1 << 20)]
    fit = fitting.fit(found)
    assert fit.spec.jitter.startswith("lognormal")
    total_ms = fit.spec.mean_latency_ms + fit.spec.t_read_us / 1e3
    assert total_ms == pytest.approx(0.2, rel=0.07)
    assert fit.spec.bandwidth_mbps == pytest.approx(1000, rel=0.02)
    single = Job(4096, 1, True)
    assert fitting.rate_of(fit.spec, single) == pytest.approx(found[single][0].mbps, rel=0.1)


def test_what_no_tier_explains_is_bad():
    odd = samples_of(TierSpec(500, 1))
    for number, (job, runs) in enumerate(odd.items()):
        odd[job] = [Sample(runs[0].mbps * (0.3 if number % 2 else 3), 1e6, runs[0].spread_ns, 1)]
    assert fitting.fit(odd).is_bad


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(3, 30))
def test_the_rate_does_not_depend_on_how_reads_end(depth, rounds):
    """One after the other on a link, or all at once: 100 MB/s."""
    size, each_ns = 1_000_000, 10 * MS
    in_turn = [
        [0, *((number + 1 + count * depth) * each_ns for count in range(rounds))] for number in range(depth)
    ]
    at_once = [[count * depth * each_ns for count in range(rounds + 1)] for _ in range(depth)]
    assert jobs.rate(size, in_turn) == pytest.approx(100, rel=0.02)
    assert jobs.rate(size, at_once) == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("seed", [0, 7])
def test_timed_reads_end_and_lie_within_the_file(tmp_path, seed):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    fd = os.open(file, os.O_RDONLY)
    try:
        _, _, times = lean.measure(fd, 4096, 100_000, 0, 1, until_ns=monotonic_ns(), seed=seed)
        assert len(times) == 3
        _, _, times = lean.measure(fd, 4096, 100_000, 0, 1, until_ns=1, seed=seed)
        assert len(times) == 1
        _, _, times = lean.measure(fd, 4096, 5000, 0, 1, seed=seed)
        assert len(times) == 5000
    finally:
        os.close(fd)


def test_memory_and_folders_are_refused(tmp_path):
    with pytest.raises(HbfError, match="no file and no disk"), target.opened(tmp_path):
        pass
    file = Path(f"/dev/shm/hbf-test-disks-{os.getpid()}")
    try:
        file.write_bytes(bytes(4096))
        with pytest.raises(HbfError, match="lies in memory"), target.opened(file):
            pass
    finally:
        file.unlink()


def test_a_small_file_is_refused():
    with pytest.raises(HbfError, match="too small"):
        jobs.jobs(1 << 20)


def test_a_file_that_a_process_maps_is_refused(tmp_path):
    import mmap

    file = tmp_path / "mapped"
    file.write_bytes(bytes(1 << 20))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert not any(mapped[at] for at in range(0, 1 << 20, 4096))
        if residency.drop(file) == 0:
            pytest.skip("this file system drops mapped pages")
        with pytest.raises(HbfError, match="a process maps it"), target.opened(file):
            pass


def test_a_disk_that_others_use_is_measured_again(monkeypatch):
    moved = iter([0, 10 << 20, 0, 10 << 20, 0, 1 << 20, *[0, 10 << 20] * 3])

    class Busy(target.Target):
        def transferred(self):
            return next(moved)

    disk = Busy(Path("disk"), -1, 1 << 30, "a disk", None)

    seeds = []

    def run(_fd, _job, seed):
        seeds.append(seed)
        return Sample(1.0, 1.0, (), 1 << 20)

    monkeypatch.setattr(jobs, "run", run)
    assert measuring.undisturbed(disk, Job(4096, 1, False), 30)[1] == measuring.Disturbed(2, 0)
    assert seeds == [30, 31, 32]  # not the bytes that were read just now
    assert measuring.undisturbed(disk, Job(4096, 1, False), 0)[1] == measuring.Disturbed(2, 1)


def test_holes_are_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "JOB_SECONDS", 0.05)
    file = tmp_path / "holes"
    with file.open("wb") as made:
        made.truncate(jobs.LEAST_FILE_BYTES)
    with target.opened(file) as disk:
        if disk.disk is None:
            pytest.skip("this file system names no disk")
        with pytest.raises(HbfError, match="do not reach it"):
            measuring.undisturbed(disk, Job(1 << 20, 2, False), 0)


def test_jobs_that_measured_the_cpus_are_not_fitted():
    odd = samples_of(TierSpec(500, 1))
    small = [job for job in odd if job.size == 4096 and job.depth > 4]
    for job in small:
        odd[job] = [Sample(odd[job][0].mbps / 3, 1e6, odd[job][0].spread_ns, 1, busy=0.99)]
    fit = fitting.fit(odd)
    assert fit.cpu_bound == len(small)
    assert fit.spec.bandwidth_mbps == pytest.approx(500, rel=0.01)


def test_a_mount_is_measured_as_what_it_is(mount, noise, monkeypatch, tmp_path):
    """Fewer and shorter jobs than usual; the benchmark has the exact figures."""
    monkeypatch.setattr(jobs, "SIZES", (4 << 10, 64 << 10, 1 << 20))
    monkeypatch.setattr(jobs, "DEPTHS", (1, 2, 8))
    monkeypatch.setattr(jobs, "JOB_SECONDS", 0.1)
    source = noise(jobs.LEAST_FILE_BYTES)
    with target.opened(mount(source, mbps=300, lat=2) / "model.gguf") as disk:
        assert disk.disk is None
        measured = measuring.measure(disk, 2, lambda: None)
        fit = fitting.fit(measured.samples)
        text = document.profile("mine", disk, fit)
    assert fit.spec.bandwidth_mbps == pytest.approx(300, rel=0.1)
    assert fit.spec.mean_latency_ms == pytest.approx(2, rel=0.15)
    profile = profiles.parse("mine", text)
    assert {known.label for known in profile.values.values()} == {"measured"}
    assert str(tmp_path) not in text
    own = tmp_path / "mine.toml"
    own.write_text(text)
    line = [sys.executable, "-P", "-m", "hbf_fuse", "profile", "show", str(own)]
    assert "measured: " in subprocess.run(line, capture_output=True, text=True, check=True).stdout


def test_both_sides_of_a_check_are_the_same_reads(noise, monkeypatch):
    monkeypatch.setattr(jobs, "SIZES", (64 << 10,))
    monkeypatch.setattr(jobs, "DEPTHS", (2,))
    monkeypatch.setattr(jobs, "JOB_SECONDS", 0.05)
    source = noise(jobs.LEAST_FILE_BYTES)
    spec = TierSpec(200, 1)
    with target.opened(source) as disk, cold.mounted(disk, spec) as mounted:
        compared, _ = measuring.compare(disk, mounted, 2, lambda: None)
    assert len(compared) == 2
    for each in compared:
        assert each.emulated_mbps == pytest.approx(fitting.rate_of(spec, each.job), rel=0.2)
    with pytest.raises(HbfError, match="no model"):
        cold.loads(disk, spec, 1)


def test_a_profile_from_a_file_is_checked(tmp_path):
    own = tmp_path / "mine.toml"
    good = 'about = "mine"\n[bandwidth_mbps]\nvalue = 500\nmeasured = "today"\n'
    for text, words in (
        ("about = 3", "`about` is missing"),
        (good + '[capacity_gb]\nvalue = "big"\nassumed = "x"\n', "capacity_gb must be a number"),
        (good + '[speed]\nvalue = 3\nassumed = "x"\n', "unknown key 'speed'"),
        (good.replace("measured", "guessed"), "needs `value` and one of"),
        ("about = [", "is not TOML"),
    ):
        own.write_text(text)
        line = [sys.executable, "-P", "-m", "hbf_fuse", "profile", "show", str(own)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr
