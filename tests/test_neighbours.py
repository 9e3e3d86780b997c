"""A mount next to other mounts, locks, namespaces and files."""

import contextlib
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.host import mountinfo
from hbf_fuse.host.residency import resident_bytes
from hbf_fuse.mount import client
from hbf_fuse.traces.trace import Trace

HBF = [sys.executable, "-m", "hbf_fuse"]
MIB = 1 << 20
ENGINES = pytest.mark.parametrize("engine", ["kernel", "fusepy"])
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="other mounts and namespaces are made by root")


def hbf(*arguments, **options):
    line = [*HBF, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **options)


def run(*command):
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=30)


@pytest.fixture
def point(tmp_path):
    """A mountpoint. All mounts on it, and beside it, are unmounted at the end."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while left := [place for place in mountpoints() if place.startswith(f"{tmp_path}/")]:
        run("umount", "-l", left[-1])


def mountpoints():
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def mounted(*arguments, **options):
    said = hbf("mount", *arguments, **options)
    assert said.returncode == 0, said.stderr
    return said


def server_of(point):
    return client.read_hidden(point, "spec.json")["pid"]


def wait_until(condition, what, seconds=15):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)


def is_running(pid):
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


@AS_ROOT
@ENGINES
def test_a_mount_below_a_busy_mount_stays_when_the_server_ends(point, noise, engine):
    run("mount", "-t", "tmpfs", "hbf-test", point)
    mounted("--engine", engine, noise(100_000), point)
    server = server_of(point)
    with (point / "model.gguf").open("rb"):
        os.kill(server, signal.SIGTERM)
        wait_until(lambda: not is_running(server), "the server goes")
    assert mountinfo.find(point).fstype == "tmpfs"


@AS_ROOT
@ENGINES
def test_a_server_whose_mount_was_detached_leaves_the_next_one_alone(point, noise, engine):
    mounted("--engine", engine, noise(100_000), point)
    old = server_of(point)
    with (point / "model.gguf").open("rb"):
        run("umount", "-l", point)
        mounted("--engine", engine, noise(200_000), point)
        os.kill(old, signal.SIGTERM)
        wait_until(lambda: not is_running(old), "the old server goes")
    assert (point / "model.gguf").stat().st_size == 200_000
    assert hbf("umount", point).returncode == 0


@ENGINES
def test_a_mountpoint_named_by_a_link_is_unmounted_by_that_name(point, noise, engine):
    link = point.with_name("link")
    link.symlink_to(point.name)
    mounted("--engine", engine, noise(100_000), link)
    assert hbf("mount", noise(100_000), link).returncode == 1
    said = hbf("umount", link)
    assert said.returncode == 0, said.stderr
    assert not mountinfo.find(point)


@AS_ROOT
def test_a_mount_that_another_namespace_holds_is_reported(point, noise, monkeypatch):
    monkeypatch.setattr(client, "_END_SECONDS", 1.0)
    mounted(noise(100_000), point)
    server = server_of(point)
    with subprocess.Popen(["unshare", "--mount", "sleep", "60"]) as holder:
        try:
            theirs, ours = (Path(f"/proc/{pid}/ns/mnt") for pid in (holder.pid, "self"))
            wait_until(lambda: theirs.readlink() != ours.readlink(), "a namespace")
            with pytest.raises(HbfError, match=f"kill {server}"):
                client.unmount(point, force=False)
            os.kill(server, signal.SIGTERM)
            wait_until(lambda: not is_running(server), "the server goes")
        finally:
            holder.kill()


@AS_ROOT
@ENGINES
@pytest.mark.parametrize("part", ["", "model.gguf"], ids=["whole", "file"])
def test_a_bind_mount_of_a_mount_is_told_as_that(point, noise, tmp_path, monkeypatch, engine, part):
    """Whichever of the two is ended first."""
    other = tmp_path / "other"
    (other.touch if part else other.mkdir)()
    mounted("--engine", engine, noise(100_000), point)
    server = server_of(point)
    run("mount", "--bind", point / part, other)
    try:
        # Nobody waits for what will not come: this would be longer than the test may take.
        monkeypatch.setattr(client, "_END_SECONDS", 1000.0)
        with pytest.raises(HbfError, match=f"also mounted on {other}.*`umount {other}`"):
            client.unmount(point, force=False)
        assert is_running(server) and not mountinfo.find(point)
    finally:
        run("umount", other)
    wait_until(lambda: not is_running(server), "the server goes")


@AS_ROOT
@ENGINES
def test_ending_a_bind_mount_tells_where_the_mount_goes_on(point, noise, tmp_path, engine):
    other = tmp_path / "other"
    other.mkdir()
    mounted("--engine", engine, noise(100_000), point)
    run("mount", "--bind", point, other)
    said = hbf("umount", other)
    assert said.returncode == 1 and f"also mounted on {point}" in said.stderr
    assert (point / "model.gguf").stat().st_size == 100_000 and not mountinfo.find(other)
    run("mount", "--bind", point, point)
    assert f"also mounted on {point}" in hbf("umount", point).stderr
    said = hbf("umount", point)
    assert said.returncode == 0, said.stderr


@AS_ROOT
@ENGINES
@pytest.mark.parametrize("named", ["whole", "relative"])
def test_an_overlay_over_a_mount_is_told_as_that(point, noise, tmp_path, monkeypatch, engine, named):
    monkeypatch.setattr(client, "_END_SECONDS", 1.0)
    lower, over = tmp_path / "a,b:c", tmp_path / "over"
    lower.mkdir()
    over.mkdir()
    mounted("--engine", engine, noise(100_000), point)
    server = server_of(point)
    name = point if named == "whole" else point.relative_to(tmp_path)
    line = ["mount", "-t", "overlay", "hbf-test", over, "-o", f"lowerdir={name}:a\\,b\\:c"]
    if subprocess.run(
        [*map(str, line)], cwd=tmp_path, capture_output=True, timeout=20, check=False
    ).returncode:
        hbf("umount", point)
        pytest.skip("no overlay can be made here")
    try:
        assert (over / "model.gguf").stat().st_size == 100_000
        with pytest.raises(HbfError, match=f"the overlay on {over} lies over it.*`umount [^`]*{over}"):
            client.unmount(point, force=False)
    finally:
        run("umount", over)
    wait_until(lambda: not is_running(server), "the server goes")


@AS_ROOT
@ENGINES
def test_what_is_mounted_over_a_mount_is_told_as_that(point, noise, engine):
    mounted("--engine", engine, noise(100_000), point)
    run("mount", "-t", "tmpfs", "hbf-test", point)
    said = hbf("umount", point)
    assert said.returncode == 1 and "is a tmpfs mount over one of hbf" in said.stderr
    run("umount", point)
    assert hbf("umount", point).returncode == 0


def test_the_layers_of_an_overlay_are_found_whatever_their_names():
    begin = rb"36 1 0:50 / /o rw - overlay o rw,"
    line = begin + rb"lowerdir=/a\134:b:/c\134,d:rel/e\040f,upperdir=/u,workdir=/w,index=off"
    assert mountinfo.layers(*mountinfo.parse(line)) == ["/a:b", "/c,d", "rel/e f", "/u", "/w"]
    line = begin + rb"lowerdir+=/a,lowerdir+=/b:,datadir+=/d"
    assert mountinfo.layers(*mountinfo.parse(line)) == ["/a", "/b", "/d"]


def test_a_lock_and_a_pipe_of_the_caller_are_not_kept(point, noise, tmp_path):
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    read_end, write_end = os.pipe()
    mounted(noise(100_000), point, pass_fds=[lock, write_end])
    os.close(write_end)
    assert os.read(read_end, 1) == b""
    os.close(lock)
    again = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)
    os.close(read_end)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_caller_without_standard_streams_gets_its_mount(point, noise, closed):
    script = f'exec "$@" {closed}'
    said = subprocess.run(
        ["sh", "-c", script, "sh", *HBF, "mount", str(noise(100_000)), str(point)], timeout=60, check=False
    )
    assert said.returncode == 0
    assert (point / "model.gguf").stat().st_size == 100_000
    assert hbf("umount", point).returncode == 0


EARLY = """
import os, sys, time
print("waits", flush=True)
while True:
    try:
        file = open(sys.argv[1], "rb", buffering=0)
        break
    except OSError:
        pass
begin = time.monotonic()
while file.read(1 << 20):
    pass
print(time.monotonic() - begin)
"""


@ENGINES
def test_a_read_before_the_mount_is_ready_takes_the_tiers_time(point, noise, engine):
    early = subprocess.Popen(
        [sys.executable, "-c", EARLY, point / "model.gguf"], stdout=subprocess.PIPE, text=True
    )
    assert early.stdout.readline()
    mounted("--engine", engine, "--mbps", 4, noise(6 * MIB), point)
    said, _ = early.communicate(timeout=60)
    assert float(said) > 6 * MIB / 4e6 * 0.9
    assert client.read_hidden(point, "stats.json")["bytes_read"] >= 6 * MIB


def test_a_mapping_of_a_file_opened_for_direct_reads_counts_towards_the_budget(point, noise):
    mounted("--resident", "20M", noise(64 * MIB), point)
    script = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
        "view = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)\n"
        "[view[at] for at in range(0, len(view), 4096)]"
    )
    subprocess.run([sys.executable, "-c", script, point / "model.gguf"], check=True, timeout=60)
    held = client.read_hidden(point, "stats.json")["resident"]
    assert held["evicted_bytes"] >= 30 * MIB
    assert resident_bytes(point / "model.gguf") < 40 * MIB


@ENGINES
def test_files_older_than_1970_keep_their_time(point, noise, engine):
    source = noise(100_000)
    os.utime(source, (-86_400, -86_400))
    mounted("--engine", engine, source, point)
    assert (point / "model.gguf").stat().st_mtime == -86_400
    assert (point / "model.gguf").read_bytes() == source.read_bytes()


def test_a_trace_is_never_written_over_something_else(point, noise):
    source = noise(100_000)
    said = hbf("mount", "--trace", source, source, point)
    assert said.returncode == 1 and "not a trace" in said.stderr
    assert source.stat().st_size == 100_000 and not mountinfo.find(point)


def test_a_trace_is_written_over_an_older_one(point, noise, tmp_path):
    for _ in range(2):
        mounted("--trace", tmp_path / "reads.trace", noise(100_000), point)
        (point / "model.gguf").read_bytes()
        assert hbf("umount", point).returncode == 0
    assert len(Trace.read(tmp_path / "reads.trace")) == 1


def test_names_that_are_not_utf8_reach_a_supervisor(point, noise, tmp_path):
    source = tmp_path / os.fsdecode(b"bad\xff\n.bin")
    noise(100_000).rename(source)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        mounted(source, point, env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")})
        supervisor.settimeout(20)
        ready, status = supervisor.recv(4096).split(b"\n")
    assert ready == b"READY=1" and b"bad\xff?.bin" in status
    assert hbf("umount", point).returncode == 0
    said = hbf("mount", "--trace", tmp_path / os.fsdecode(b"none/\xff"), source, point)
    assert said.returncode == 1 and "cannot write the trace" in said.stderr


def test_more_files_can_be_open_than_the_soft_limit_of_descriptors(point, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(150):
        (folder / f"{number}").write_bytes(b"x" * 10)
    line = ["prlimit", "--nofile=100:4000", *HBF, "mount", str(folder), str(point)]
    subprocess.run(line, check=True, timeout=60, capture_output=True)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((point / f"{number}").open("rb")) for number in range(150)]
        assert all(file.read() == b"x" * 10 for file in files)


def test_a_tree_too_deep_or_a_file_too_large_is_refused_in_a_line(point, tmp_path):
    deep = tmp_path / "deep"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    said = hbf("mount", deep, point)
    assert said.returncode == 1 and "folders deep" in said.stderr and len(said.stderr.splitlines()) == 1
    run("rm", "-r", deep)


def test_aborted_scrapes_are_not_logged(point, noise, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        line = [*HBF, "mount", "-f", "--metrics", str(port), str(noise(100_000)), str(point)]
        server = subprocess.Popen(line, stderr=stderr)
    try:
        wait_until(lambda: "is served" in log.read_text(), "it is served")
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as scrape:
                scrape.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                scrape.send(b"GET /metrics HTTP/1.1\r\n")
                time.sleep(0.1)
    finally:
        server.terminate()
        server.wait(20)
    assert "Traceback" not in log.read_text()


def test_a_first_pass_that_ends_unthrottled_is_not_valid(point, noise):
    mounted("--mbps", 20, noise(4 * MIB), point)
    with (point / "model.gguf").open("rb", buffering=0) as file:
        file.read(2 * MIB)
        (point / ".hbf/control").write_text(json.dumps({"mbps": None, "lat": 0}))
        while file.read(MIB):
            pass
    (file,) = client.read_hidden(point, "stats.json")["files"].values()
    assert file["staging"]["valid"] is False and "tier-changed" in file["staging"]["reasons"]


def test_parts_of_pages_do_not_count_as_pages(point, noise):
    size = 40_000
    mounted("--mbps", 10, noise(size), point)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    for at in range(0, size, 4096):
        os.pread(fd, 1, at)
    os.close(fd)
    (file,) = client.read_hidden(point, "stats.json")["files"].values()
    assert not file["complete"] and file["arrived_bytes"] == 0


def test_a_source_cut_within_a_page_gives_no_zeros(point, tmp_path):
    source = tmp_path / "ones"
    source.write_bytes(b"\1" * (4 * MIB))
    mounted("--lat", 200, "--no-preload", source, point)
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    cached = os.open(point / "model.gguf", os.O_RDONLY)
    try:
        os.truncate(source, MIB + 1000)
        with pytest.raises(OSError, match="Input/output"):
            os.preadv(fd, [buffer], MIB)
        with pytest.raises(OSError, match="Input/output"):
            os.pread(cached, 4096, MIB)
        # No reply was late: the next read takes the tier's whole time.
        time.sleep(0.3)
        begin = time.monotonic()
        assert os.preadv(fd, [buffer], 0) == 4096
        assert time.monotonic() - begin > 0.15
    finally:
        os.close(fd)
        os.close(cached)
    assert hbf("umount", point).returncode == 0


@ENGINES
def test_a_source_replaced_by_a_pipe_blocks_nobody(point, tmp_path, engine):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"a" * 100_000)
    (folder / "b.bin").write_bytes(b"b" * 100_000)
    mounted("--engine", engine, folder, point)
    (folder / "a.bin").unlink()
    os.mkfifo(folder / "a.bin")
    said = subprocess.run(["cat", point / "a.bin"], capture_output=True, text=True, timeout=20, check=False)
    assert said.returncode == 1 and "Stale" in said.stderr
    assert (point / "b.bin").read_bytes() == b"b" * 100_000
    assert hbf("umount", point).returncode == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_mount_is_ended_wherever_its_folder_was_moved_to(noise, tmp_path, end):
    (tmp_path / "before/mnt").mkdir(parents=True)
    mounted(noise(100_000), tmp_path / "before/mnt")
    server = server_of(tmp_path / "before/mnt")
    (tmp_path / "before").rename(tmp_path / "after")
    try:
        os.kill(server, end)
        wait_until(lambda: not mountinfo.find(tmp_path / "after/mnt"), "the mount goes")
    finally:
        subprocess.run(["umount", "-l", tmp_path / "after/mnt"], capture_output=True, check=False)


CROWD = """
import mmap, os, sys, threading, time
from pathlib import Path
path = Path(sys.argv[1])
def wait_and_read():
    buffer = mmap.mmap(-1, 4096)
    while not path.exists():
        time.sleep(0.02)
    os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [buffer], 0)
threads = [threading.Thread(target=wait_and_read) for _ in range(300)]
for thread in threads:
    thread.start()
print("waiting", flush=True)
"""


def test_many_waiting_readers_do_not_block_the_start_of_a_mount(point, noise):
    line = [sys.executable, "-c", CROWD, str(point / "model.gguf")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as crowd:
        try:
            assert crowd.stdout.readline() == "waiting\n"
            begin = time.monotonic()
            mounted("--lat", 1, noise(4 * MIB), point)
            assert time.monotonic() - begin < 30
            assert client.read_hidden(point, "spec.json")["pid"]
            assert crowd.wait(30) == 0
        finally:
            crowd.kill()
    assert hbf("umount", point).returncode == 0


def test_two_mounts_do_not_write_one_trace(point, noise, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    mounted("--trace", tmp_path / "trace", noise(100_000), point)
    said = hbf("mount", "--trace", tmp_path / "trace", noise(200_000), other)
    assert said.returncode == 1 and "another mount is writing the trace" in said.stderr
    assert (point / "model.gguf").read_bytes() == noise(100_000).read_bytes()
    assert hbf("umount", point).returncode == 0
    assert sum(read.nbytes for read in Trace.read(tmp_path / "trace")) >= 100_000


def test_the_trace_of_a_suspended_server_is_not_waited_for(point, noise):
    mounted(noise(100_000), point)
    server = server_of(point)
    os.kill(server, signal.SIGSTOP)
    try:
        said = hbf("trace", "summary", point)
    finally:
        os.kill(server, signal.SIGCONT)
    assert said.returncode == 1 and "does not answer" in said.stderr
    assert hbf("umount", point).returncode == 0


SLOW_STRANGER = """
import encodings.idna, os, socket, sys, time
os.setgroups([]), os.setgid(65534), os.setuid(65534)
held = []
for _ in range(60):
    held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    held[-1].sendall(b"G")
print("connected", flush=True)
time.sleep(60)
"""


@AS_ROOT
def test_silent_clients_of_other_users_block_neither_threads_nor_the_owner(point, noise):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mounted("--metrics", port, noise(100_000), point)
    server = psutil.Process(server_of(point))
    line = [sys.executable, "-c", SLOW_STRANGER, str(port)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as stranger:
        try:
            assert stranger.stdout.readline() == "connected\n"
            time.sleep(0.5)
            assert server.num_threads() < 40
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert answer.status == 200
        finally:
            stranger.kill()
    assert hbf("umount", point).returncode == 0
