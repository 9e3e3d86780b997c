"""Kernel limits: real cgroups of the version that is here. Trees in a temporary folder stand for other
machines.
"""

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hbf_fuse.cli.app import app_of
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.backing import Uncached
from hbf_fuse.fs.tree import Tree
from hbf_fuse.host import linux, mountinfo, residency
from hbf_fuse.limits import devices, files, group, hierarchy
from hbf_fuse.limits.devices import Disk
from hbf_fuse.limits.files import Limits, Setting
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.report import against_cgroup, html, page
from hbf_fuse.sweep import grid as grids
from hbf_fuse.sweep import measuring, workspace
from hbf_fuse.sweep.cell import Cell, ModelFile
from hbf_fuse.sweep.modes import cgroup
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload.llama import BenchOptions

HBF = [sys.executable, "-m", "hbf_fuse"]
DISK = Disk("8:0", "sda")
COUNTING = """
trap 'got=$got+' $0
echo ready
while [ -z "$got" ]; do sleep 0.05; done
sleep 0.2
echo $got
exit 5
"""
"""Prints how often it got the signal that its argument names."""


@pytest.fixture
def on_disk(tmp_path):
    """A directory on a disk whose reads can be limited here."""
    try:
        hierarchy.places(["io", "memory"])
        devices.of(tmp_path)
    except HbfError as error:
        pytest.skip(str(error))
    return tmp_path


@pytest.fixture
def cold(on_disk):
    """Makes a file on the disk that is not in the page cache."""

    def make(size):
        path = on_disk / f"cold-{size}"
        path.write_bytes(os.urandom(size))
        if residency.drop(path):
            pytest.skip("the page cache would not let go of a file")
        return path

    return make


@pytest.fixture(autouse=True)
def nothing_left():
    """Every test leaves no group of this process or of its children."""
    yield
    give_up = time.monotonic() + 5
    while (left := ours()) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not left


def ours():
    """Groups that this test's processes made: their owners are us, or dead."""
    try:
        parents = {place.parent for place in hierarchy.places(["io", "memory"])}
    except HbfError:
        return []
    found = [path for parent in parents for path in parent.glob("hbf-*")]
    return [
        path for path in found if path.name.split("-")[1] == str(os.getpid()) or group._is_leftover(path.name)
    ]


def hbf_run(*arguments, **options):
    line = [*HBF, "run", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, errors="replace", timeout=60, check=False, **options
    )


# Devices


def block(sys, number, where, parent=None, partition=False, slaves=()):
    """A block device in a fake /sys."""
    folder = sys / "devices" / (parent or "") / where
    folder.mkdir(parents=True)
    (folder / "dev").write_text(f"{number}\n")
    if partition:
        (folder / "partition").write_text("1\n")
    else:
        (folder / "slaves").mkdir()
    for slave in slaves:
        (folder / "slaves" / slave.name).symlink_to(slave)
    (sys / "dev" / "block").mkdir(parents=True, exist_ok=True)
    (sys / "dev" / "block" / number).symlink_to(folder)
    return folder


def test_partition_luks_and_lvm_lead_to_the_whole_disk(tmp_path):
    block(tmp_path, "259:0", "nvme0n1")
    part = block(tmp_path, "259:3", "nvme0n1p3", parent="nvme0n1", partition=True)
    luks = block(tmp_path, "253:0", "dm-0", slaves=[part])
    block(tmp_path, "253:1", "dm-1", slaves=[luks])
    for number in ("259:0", "259:3", "253:0", "253:1"):
        assert devices.whole_disk(number, tmp_path) == Disk("259:0", "nvme0n1")


def test_two_partitions_of_one_disk_are_one_disk_and_two_disks_are_refused(tmp_path):
    block(tmp_path, "8:0", "sda")
    block(tmp_path, "8:16", "sdb")
    here = [block(tmp_path, f"8:{n}", f"sda{n}", parent="sda", partition=True) for n in (1, 2)]
    there = block(tmp_path, "8:17", "sdb1", parent="sdb", partition=True)
    block(tmp_path, "253:0", "dm-0", slaves=here)
    assert devices.whole_disk("253:0", tmp_path) == Disk("8:0", "sda")
    block(tmp_path, "9:0", "md0", slaves=[here[0], there])
    with pytest.raises(HbfError, match=r"md0 is on several disks .sda, sdb.*single disk"):
        devices.whole_disk("9:0", tmp_path)
    with pytest.raises(HbfError, match="block device 1:1 is not in"):
        devices.whole_disk("1:1", tmp_path)


def test_a_real_device_mapper_leads_to_its_origin(tmp_path):
    if os.geteuid() or not shutil.which("dmsetup") or not Path("/dev/mapper/control").exists():
        pytest.skip("needs root and device mapper")
    image, name = tmp_path / "image", f"hbf-test-{os.getpid()}"
    image.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    loop = made.stdout.strip()
    try:
        table = f"0 2048 linear {loop} 0"
        line = ["dmsetup", "create", name, "--noudevsync", "--table", table]
        if subprocess.run(line, capture_output=True, check=False).returncode:
            pytest.skip("device mapper refuses a linear target")
        try:
            found = subprocess.run(
                ["dmsetup", "info", "-c", "--noheadings", "-o", "major,minor", name],
                capture_output=True,
                text=True,
                check=True,
            )
            assert devices.whole_disk(found.stdout.strip()).name == Path(loop).name
        finally:
            subprocess.run(["dmsetup", "remove", "--noudevsync", "--retry", name], check=True)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


def test_a_file_on_disk_has_its_disk_and_others_are_refused_with_what_to_do(on_disk, mount, noise):
    assert Path(f"/sys/block/{devices.of(on_disk).name}").exists()
    served = mount(noise(4096)) / "model.gguf"
    for path, why in (
        (Path("/proc/version"), "proc, which the kernel generates"),
        (Path("/sys/kernel"), "sysfs, which the kernel generates"),
        (served, "fuse.hbf, which a process serves"),
        (Path("/nosuch"), "No such file"),
    ):
        with pytest.raises(HbfError, match=why):
            devices.of(path)
    with pytest.raises(HbfError, match=r"tmpfs, which is memory.*; use a file on a local disk"):
        devices.of(Path("/dev/shm"))


# Files


def test_limits_become_the_lines_that_each_version_reads():
    limits = Limits(100, 500, 1 << 30)
    assert files.settings(limits, DISK, {"io": 2, "memory": 2}) == [
        Setting("io", "io.max", "8:0 rbps=100000000 riops=500"),
        Setting("memory", "memory.max", "1073741824"),
    ]
    assert files.settings(limits, DISK, {"io": 1, "memory": 1}) == [
        Setting("io", "blkio.throttle.read_bps_device", "8:0 100000000"),
        Setting("io", "blkio.throttle.read_iops_device", "8:0 500"),
        Setting("memory", "memory.limit_in_bytes", "1073741824"),
    ]
    high = Limits(memory_high_bytes=1 << 30)
    assert files.settings(high, None, {"memory": 2}) == [Setting("memory", "memory.high", "1073741824")]
    with pytest.raises(HbfError, match=r"memory\.high of cgroup v2"):
        files.settings(high, None, {"memory": 1})


def test_v2_limits_are_read_back_and_the_tightest_counts(tmp_path):
    (tmp_path / "io.max").write_text(
        "8:16 rbps=1 wbps=1 riops=1 wiops=1\n8:0 rbps=max wbps=max riops=9 wiops=max\n"
    )
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.high").write_text("1048576\n")
    found = files.in_force(tmp_path, DISK)
    assert found == Limits(riops=9, memory_high_bytes=1 << 20)
    assert files.tightest([found, Limits(io_mbps=5, riops=12)]) == Limits(5, 9, None, 1 << 20)
    assert files.missing(Limits(10, 9), found) == ["--io-max"]


# Hierarchy


def v2_group(path, controllers, enabled=""):
    path.mkdir()
    (path / "cgroup.controllers").write_text(controllers)
    (path / "cgroup.procs").write_text("")
    (path / "cgroup.subtree_control").write_text(enabled)
    return path


def test_the_nearest_group_that_may_have_groups_is_chosen_and_its_controllers_enabled(tmp_path):
    root = v2_group(tmp_path / "root", "cpu io memory", "memory")
    middle = v2_group(root / "user", "memory", "memory")
    own = v2_group(middle / "session", "memory")
    (own / "cgroup.procs").unlink()  # not ours to change
    assert hierarchy._delegated(root, own, ["memory"]) == middle
    assert hierarchy._delegated(root, own, ["io", "memory"]) == root
    assert (root / "cgroup.subtree_control").read_text() == "+io"
    with pytest.raises(hierarchy.NotPermitted, match="run as root"):
        hierarchy._delegated(root, own, ["pids"])


# Groups


def test_a_group_enforces_what_it_says_and_is_gone_afterwards(on_disk):
    wanted = Limits(io_mbps=7, riops=70, memory_bytes=64 << 20)
    with pytest.raises(KeyError), group.made(wanted, devices.of(on_disk)) as made:
        assert made.in_force() == wanted
        assert all(path.is_dir() for path in made.directories)
        raise KeyError
    assert not any(path.exists() for path in made.directories)


def test_a_process_that_joined_is_back_where_it_was(on_disk):
    before = Path("/proc/self/cgroup").read_text()
    with group.made(Limits(io_mbps=1e6), devices.of(on_disk)) as made:
        with made.joined():
            assert made.name in Path("/proc/self/cgroup").read_text()
        assert Path("/proc/self/cgroup").read_text() == before


def test_only_groups_of_dead_owners_are_removed(on_disk):
    (place,) = hierarchy.places(["memory"])
    sleeper = subprocess.Popen(["sleep", "1000"])
    ended = subprocess.Popen(["true"])
    ended.wait()
    space = linux.pid_namespace()
    left = place.parent / f"hbf-{ended.pid}-1-{space}-abcdef"
    alive = place.parent / group._new_name()
    foreign = place.parent / f"hbf-{ended.pid}-1-{space + 1}-abcdef"
    try:
        for path in (left, alive, foreign):
            path.mkdir()
        (left / "cgroup.procs").write_text(str(sleeper.pid))
        with group.made(Limits(memory_bytes=1 << 30), None):
            assert sleeper.wait(timeout=5) == -signal.SIGKILL
            assert not left.exists() and alive.exists() and foreign.exists()
    finally:
        sleeper.kill()
        sleeper.wait()
        for path in (left, alive, foreign):
            if path.exists():
                path.rmdir()


# hbf run


def test_a_command_reads_at_the_rate_in_force_which_is_reported(cold):
    file = cold(16_000_000)
    begin = time.monotonic()
    said = hbf_run("--io-max", "20", "--json", "--", "cat", file.name, cwd=file.parent)
    assert 0.6 < time.monotonic() - begin < 20
    assert len(said.stderr.splitlines()) == 1
    document = json.loads(said.stderr)
    assert document["in_force"]["io_mbps"] == 20
    assert document["disk"]["number"] == devices.of(file).number


def test_a_file_in_the_page_cache_is_warned_about(cold):
    file = cold(1 << 20)
    file.read_bytes()
    said = hbf_run("--io-max", "20", "--", "cat", str(file))
    assert "1.00 MiB of" in said.stderr and "are in the page cache" in said.stderr


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -USR1 $$"], 128 + signal.SIGUSR1, ""),
        (["nosuchprogram"], 127, "not found"),
        (["/etc/passwd"], 126, "not executable"),
        (["/etc"], 126, "a directory"),
    ],
)
def test_the_exit_code_is_the_commands(on_disk, line, code, words):
    said = hbf_run("--mem", "1G", "--", *line)
    assert said.returncode == code
    assert words in said.stderr
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "true"], "--io-max, --riops, --mem"),
        (["--io-max", "1"], "CMD"),
        (["--io-max", "0", "--", "true"], "--io-max must be"),
        (["--io-max", "-3", "--", "true"], "--io-max must be"),
        (["--io-max", "nan", "--", "true"], "--io-max must be"),
        (["--io-max", "1e30", "--", "true"], "--io-max must be"),
        (["--riops", "0", "--", "true"], "--riops must be"),
        (["--mem", "0", "--", "true"], "--mem must be"),
        (["--mem", "9999999T", "--", "true"], "is too large"),
        (["--mem", "much", "--", "true"], "not a size"),
        (["--mem", "1G", "--mem-high", "2G", "--", "true"], "never be reached"),
        (["--mem", "1G", "--device", "/", "--", "true"], "--device is of use"),
    ],
)
def test_wrong_usage_is_named(arguments, words):
    said = CliRunner().invoke(app_of(), ["run", *arguments], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert said.exit_code == 2
    assert words in said.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--io-max", "1", "--device", "/proc/version", "--", "true"], "no disk is read"),
        (["--io-max", "1", "--device", "/nosuch", "--", "true"], "No such file"),
    ],
)
def test_impossible_limits_are_refused_in_one_line(on_disk, arguments, words):
    said = hbf_run(*arguments)
    assert said.returncode == 1
    assert words in said.stderr
    assert len(said.stderr.splitlines()) == 1


def test_a_file_in_memory_is_refused_in_one_line(on_disk):
    file = Path(f"/dev/shm/hbf-test-{os.getpid()}")
    file.write_bytes(b"x" * 100_000)
    try:
        said = hbf_run("--io-max", "1", "--", "cat", str(file))
    finally:
        file.unlink()
    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1 and "tmpfs" in said.stderr


def test_a_command_that_takes_too_much_memory_is_killed(on_disk):
    said = hbf_run("--mem", "30M", "--", sys.executable, "-c", "x = bytearray(200 << 20)")
    assert said.returncode == 128 + signal.SIGKILL


def test_everything_left_in_the_group_is_killed_at_the_end(on_disk):
    said = hbf_run("--mem", "1G", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    assert not alive(said.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command_once(on_disk, number):
    running = subprocess.Popen(
        [*HBF, "run", "--mem", "1G", "--", "sh", "-c", COUNTING, number.name[3:]],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout.readline() == "ready\n"
    running.send_signal(number)
    said, _ = running.communicate(timeout=30)
    assert (said, running.returncode) == ("+\n", 5)


def test_the_terminals_interrupt_reaches_the_command_once(on_disk):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(HBF[0], [*HBF, "run", "--mem", "1G", "--", "sh", "-c", COUNTING, "INT"])
    said = b""
    try:
        while b"ready" not in said:
            said += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        while part := _read(terminal):
            said += part
    except BaseException:
        # Even if the command ignores signals, nothing waits for it beyond the time limit.
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5
    assert said.count(b"+") == 1


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError as error:
        assert error.errno == errno.EIO, "a terminal without users says EIO"
        return b""


def test_hbf_run_killed_hard_leaves_neither_group_nor_command(on_disk):
    running = subprocess.Popen(
        [*HBF, "run", "--io-max", "50", "--mem", "1G", "--", "sh", "-c", "sleep 1000 & echo $! $$; wait"],
        stdout=subprocess.PIPE,
        text=True,
    )
    members = running.stdout.readline().split()
    running.kill()
    running.wait()
    give_up = time.monotonic() + 5
    while (left := [pid for pid in members if alive(pid)]) or ours():
        assert time.monotonic() < give_up, left
        time.sleep(0.01)


def alive(pid):
    return linux.start_time(int(pid)) is not None


# Mounts


def test_uncached_reads_give_the_same_bytes_at_any_offset(on_disk):
    path = on_disk / "source"
    path.write_bytes(os.urandom(100_001))
    tree = Tree(path, ())
    node = next(tree.files())
    backing, expected = Uncached(tree.open(node, os.O_DIRECT)), path.read_bytes()
    for offset, nbytes in (
        (0, 4096),
        (1, 1),
        (4095, 2),
        (5000, 50_000),
        (98_304, 1697),
        (100_000, 1),
        (100_001, 0),
    ):
        assert bytes(backing.slice(offset, nbytes)) == expected[offset : offset + nbytes]
    os.truncate(path, 50_001)
    with pytest.raises(OSError, match="ended early"):
        backing.slice(0, 100_001)
    with pytest.raises(OSError, match="changed"):
        tree.open(node, os.O_DIRECT)


@pytest.mark.parametrize("engine", ["kernel", "fusepy"])
def test_a_mount_reads_its_source_past_the_cache_at_the_kernels_rate(cold, tmp_path, engine):
    source = cold(16_000_003)
    (tmp_path / "mnt").mkdir()
    config = MountConfig(source, tmp_path / "mnt", TierSpec(), engine, io_max_mbps=20)
    with child.mounted(config) as point:
        server = client.read_hidden(point, "spec.json")
        assert server["io_max"]["in_force"]["io_mbps"] == 20
        assert any("hbf-" in line for line in Path(f"/proc/{server['pid']}/cgroup").read_text().splitlines())
        begin = time.monotonic()
        served = (point / "model.gguf").read_bytes()
        assert 0.55 < time.monotonic() - begin < 20
        assert not residency.resident_bytes(source)
    assert served == source.read_bytes()


def test_a_server_killed_hard_leaves_no_group(cold, tmp_path):
    (tmp_path / "mnt").mkdir()
    config = MountConfig(cold(1 << 20), tmp_path / "mnt", TierSpec(), io_max_mbps=20)
    with child.mounted(config) as point:
        server = client.read_hidden(point, "spec.json")["pid"]
        os.kill(server, signal.SIGKILL)
    give_up = time.monotonic() + 5
    while point in [each.mountpoint for each in mountinfo.mounts()]:
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_source_without_a_disk_cannot_be_limited(on_disk, tmp_path):
    file = Path(f"/dev/shm/hbf-test-{os.getpid()}")
    file.write_bytes(b"x" * 10_000)
    (tmp_path / "mnt").mkdir()
    try:
        with (
            pytest.raises(HbfError, match="tmpfs, which is memory"),
            child.mounted(MountConfig(file, tmp_path / "mnt", TierSpec(), io_max_mbps=20)),
        ):
            pass
    finally:
        file.unlink()


# Sweeps


def test_mode_cgroup_measures_the_file_itself_and_stands_beside_fuse(cold, tiny_model, llama_bench, on_disk):
    model = on_disk / "model.gguf"
    shutil.copy(tiny_model, model)
    cell = Cell(ModelFile.of(model), TierSpec(150), mode="cgroup", bench=BenchOptions(8, 4))
    with workspace.lent() as lent:
        run = measuring.run(cell, lent)
    metrics = run.metrics
    assert metrics.io_max_in_force_mbps == 150
    assert metrics.resident_before_bytes == 0
    assert 50 < metrics.stage_effective_mbps < 225
    assert metrics.valid == (abs(metrics.tier_error_pct) <= cgroup.TOLERANCE_PCT)
    assert metrics.valid != ("io.max" in metrics.why)
    assert metrics.lateness_p50_us is None and metrics.stall_seconds is None
    assert str(model) not in json.dumps(run.to_dict())
    runs = [run, run.model_copy(update={"cell": run.cell.model_copy(update={"mode": "mmap"})})]
    (row,) = against_cgroup.rows(runs)
    assert (row["tier_mbps"], row["fuse_mode"]) == (150, "mmap")
    assert "## FUSE against cgroup" in page.markdown(runs)
    assert "FUSE against cgroup" in html.render(runs)[0]


def test_a_staging_off_its_rate_says_why():
    spec = TierSpec(100)
    assert cgroup._staging(100_000_000, 1.01, spec, 0).valid
    assert "in advance" in cgroup._staging(100_000_000, 0.92, spec, 0).why
    assert "not all of it was read" in cgroup._staging(100_000_000, 0.5, spec, 0).why
    assert "too slow" in cgroup._staging(100_000_000, 2.0, spec, 0).why
    assert "not cold" in cgroup._staging(100_000_000, 1.0, spec, 4096).why
    assert cgroup._staging(100_000_000, 1.0, TierSpec(), 0).valid


@pytest.mark.parametrize("fields", [{"lat": [0, 1]}, {"tier": {"planes": 4}}, {"place": [".*=dram"]}])
def test_mode_cgroup_refuses_tiers_that_io_max_cannot_emulate(fields):
    with pytest.raises(HbfError, match=r"io\.max knows a bandwidth only"):
        grids.from_fields({"mode": ["cgroup"], "lat": [0], **fields})
