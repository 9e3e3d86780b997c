"""Security: another user, or another user's file, must not misuse this program.

Each testable promise of SECURITY.md is tested here.
"""

import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hbf_fuse import documents
from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import Folder
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.placement import Layout, Rule, placements_of
from hbf_fuse.fs.tree import Tree
from hbf_fuse.gguf import reader
from hbf_fuse.host import linux, mountinfo
from hbf_fuse.mount import client, mountpoint, preload, server
from hbf_fuse.report import tables
from hbf_fuse.runs.results import Results
from hbf_fuse.sweep import loop
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import child, llama

HBF = [sys.executable, "-P", "-m", "hbf_fuse"]
RACES = 200

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts for root in a folder of somebody else's")


@contextmanager
def exchanging(one, other, least=10):
    """Two names are exchanged repeatedly (renameat2(2), RENAME_EXCHANGE), at least so many times."""
    over = threading.Event()

    done = []

    def run():
        while not over.is_set():
            # EBUSY while something is mounted there.
            if linux._libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0:
                done.append(1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert len(done) >= least


@contextmanager
def a_tmpfs(point):
    point.mkdir(exist_ok=True)
    directory = os.open(point, os.O_RDONLY)
    linux.mount("none", directory, "tmpfs", 0, "")
    os.close(directory)
    number = mountinfo.find(point).number
    try:
        yield number
    finally:
        if mountinfo.by_number(number):
            linux.umount(str(mountinfo.by_number(number).mountpoint), linux.MNT_DETACH)


# Code from the current directory


@pytest.mark.parametrize("command", [["doctor"], ["bench", "--mbps", "max"], ["mount", "source", "mnt"]])
def test_nothing_in_the_current_directory_is_run(noise, tmp_path, command):
    (tmp_path / "mnt").mkdir()
    noise(4096).rename(tmp_path / "source")
    for name in ("hbf_fuse/__init__.py", "dataclasses.py", "json.py", "pip.py", "sitecustomize.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"open({str(tmp_path / 'run')!r}, 'a').write('x')\n")
    subprocess.run([*HBF, *command], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    subprocess.run([*HBF, "umount", str(tmp_path / "mnt")], capture_output=True, check=False)
    assert not (tmp_path / "run").exists()


# Results folders that others may write to


def test_writing_below_a_folder_follows_no_link(tmp_path):
    """Meanwhile, names are exchanged for links to somewhere else."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs/runs").mkdir(parents=True)
    (tmp_path / "theirs/link").symlink_to(tmp_path / "mine")
    tried = written = 0
    give_up = time.monotonic() + 30
    with exchanging(tmp_path / "theirs/runs", tmp_path / "theirs/link"):
        folder = Folder.at(tmp_path / "theirs")
        # On a busy machine the link may lie there for as long as many tries take.
        while tried < RACES or not written:
            assert time.monotonic() < give_up, "nothing could be written"
            tried += 1
            with suppress(OSError):
                folder.below("runs").write(f"{tried}.json", "{}")
                written += 1
    assert not list((tmp_path / "mine").iterdir())


def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/cells.csv").symlink_to(tmp_path / "mine")
    documents.write_whole(tmp_path / "results/cells.csv", "a,b\n")
    assert (tmp_path / "mine").read_text() == "precious"
    assert not (tmp_path / "results/cells.csv").is_symlink()


@pytest.mark.parametrize("name", ["runs", "sweep.json", "cells.csv", "report.md", "plots"])
def test_a_results_folder_with_links_in_it_is_refused_or_repaired(tiny_model, llama_bench, tmp_path, name):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).symlink_to(tmp_path / "mine")
    grid = ["--mbps", "max", "--lat", "0", "--repeats", "1", "-p", "8", "-n", "1"]
    said = subprocess.run(
        [*HBF, "sweep", *grid, "-m", str(tiny_model), "-o", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not list((tmp_path / "mine").iterdir())
    assert "Traceback" not in said.stderr


def test_a_folder_of_too_many_runs_is_not_read(tmp_path):
    (tmp_path / "runs").mkdir()
    for number in range(65):
        with (tmp_path / f"runs/{number}.json").open("wb") as file:
            file.truncate(8 << 20)
    with pytest.raises(HbfError, match="move some"):
        Results(tmp_path).all()


def test_names_from_results_lead_nowhere_else(tmp_path):
    for name in ("../x", "a/b", "", "..", "."):
        with pytest.raises(ValueError, match="not a file name"):
            Folder.at(tmp_path).write(name, "")


@as_root
def test_a_folder_that_is_another_users_link_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "mine")
    assert Folder.at(tmp_path / "results").path
    os.chown(tmp_path / "results", 65534, 65534, follow_symlinks=False)
    for path in ("results", "results/below"):
        with pytest.raises(HbfError, match="another user's link"):
            Folder.at(tmp_path / path)
        with pytest.raises(HbfError, match="another user's link"):
            mountpoint.absolute(tmp_path / path / "mnt")
    monkeypatch.setenv("SUDO_UID", "65534")
    assert Folder.at(tmp_path / "results").path


# Mountpoints


@as_root
def test_the_mount_is_made_over_the_directory_that_was_checked(tmp_path):
    """Meanwhile, the mountpoint is exchanged for a link to another directory."""
    (tmp_path / "theirs/mnt").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs/link").symlink_to(tmp_path / "mine")
    mounted = refused = 0
    with exchanging(tmp_path / "theirs/mnt", tmp_path / "theirs/link"):
        for _ in range(RACES):
            try:
                with mountpoint.claimed(tmp_path / "theirs/mnt") as directory:
                    fd, placed = mounting.mount(tmp_path / "theirs/mnt", directory, False, tmp_path)
            except (HbfError, OSError):
                refused += 1
                continue
            mounted += 1
            point = mountinfo.by_number(placed.number).mountpoint
            os.close(fd)
            placed.unmount(lazy=True)
            assert point.parent == tmp_path / "theirs"
    assert mounted and refused


@as_root
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "umount"])
def test_only_our_own_mount_is_ended(noise, tmp_path, how):
    """The parent folder was exchanged, so another file system lies at the path of our mount."""
    (tmp_path / "theirs/mnt").mkdir(parents=True)
    line = [*HBF, "mount", "-f", str(noise(1 << 20)), str(tmp_path / "theirs/mnt")]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as server:
        assert any("is served at" in said for said in iter(server.stderr.readline, ""))
        ours = mountinfo.find(tmp_path / "theirs/mnt")
        (tmp_path / "theirs").rename(tmp_path / "away")
        (tmp_path / "theirs").mkdir()
        with a_tmpfs(tmp_path / "theirs/mnt") as other:
            if how == "umount":
                line = [*HBF, "umount", "--force", str(tmp_path / "theirs/mnt")]
                assert subprocess.run(line, capture_output=True, check=False).returncode
                assert mountinfo.by_number(other) and mountinfo.by_number(ours.number)
                with pytest.raises(OSError, match="Invalid"):
                    mounting.unmount(ours, lazy=True)
                server.terminate()
            else:
                server.send_signal(getattr(signal, how))
            server.wait(20)
            _wait_until(lambda: not mountinfo.by_number(ours.number))
            assert mountinfo.by_number(other)


@as_root
def test_nothing_but_ours_is_unmounted_while_folders_are_exchanged(tmp_path):
    for name in ("theirs/mnt", "other"):
        (tmp_path / name).mkdir(parents=True)
    with a_tmpfs(tmp_path / "other/mnt") as other:
        for _ in range(RACES):
            with mountpoint.claimed(tmp_path / "theirs/mnt") as directory:
                fd, placed = mounting.mount(tmp_path / "theirs/mnt", directory, False, tmp_path)
            os.close(fd)
            with exchanging(tmp_path / "theirs", tmp_path / "other", least=0):
                placed.unmount(lazy=True)
            # Another test's mount may have got the number by now.
            gone = mountinfo.by_number(placed.number)
            assert mountinfo.by_number(other) and not (gone and gone.mountpoint.is_relative_to(tmp_path))
            if mountinfo.by_number(other).mountpoint.parent.name == "theirs":
                linux._libc.renameat2(
                    -100, os.fsencode(tmp_path / "theirs"), -100, os.fsencode(tmp_path / "other"), 2
                )


def _wait_until(condition, seconds=10):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


# Sources


@as_root
def test_a_file_of_another_file_system_is_not_the_source(tmp_path):
    """It has the same inode, size and time, on a tmpfs that is mounted over the first one."""

    def made(content):
        file = tmp_path / "sub/model.gguf"
        file.write_bytes(content * 4096)
        os.utime(file, ns=(1, 1))
        return file.stat().st_ino

    with a_tmpfs(tmp_path / "sub"):
        inode = made(b"a")
        tree = Tree(tmp_path, ())
        node = next(tree.files())
        os.close(tree.open(node))
        with a_tmpfs(tmp_path / "sub"):
            assert made(b"b") == inode
            with pytest.raises(OSError, match="changed"):
                tree.open(node)
        os.close(tree.open(node))


@pytest.mark.parametrize("what", ["pipe", "link", "device"])
def test_a_file_that_replaces_the_source_is_not_read(noise, tmp_path, what):
    """Nothing waits for it either: not the preload, not the check of its disk, not placement."""
    (tmp_path / "served").mkdir()
    model = tmp_path / "served/model.gguf"
    noise(1 << 20).rename(model)
    fs = Filesystem(tmp_path / "served", TierSpec(500), Layout(place=("nothing=dram",)))
    model.rename(tmp_path / "away")
    if what == "pipe":
        os.mkfifo(model)
    else:
        model.symlink_to(tmp_path / "away" if what == "link" else "/dev/zero")
    with pytest.raises(HbfError, match="cannot read"):
        preload.into_page_cache(fs.tree, print)
    assert preload.doubt(fs.tree, TierSpec(500)) == ""
    with pytest.raises(OSError):
        fs.open(next(fs.tree.files()).ino, os.O_RDONLY)


def test_a_folder_that_is_exchanged_while_a_tree_is_made_shows_nothing_of_others(tmp_path):
    (tmp_path / "served/sub").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/secret").write_text("secret")
    (tmp_path / "served/sub/open").write_text("open")
    (tmp_path / "served/link").symlink_to(tmp_path / "theirs")
    seen = set()
    with exchanging(tmp_path / "served/sub", tmp_path / "served/link"):
        for _ in range(RACES):
            with suppress(HbfError, OSError):
                seen |= {node.name for node in Tree(tmp_path / "served", ()).files()}
    assert seen == {b"open"}


def test_no_link_is_followed_when_a_source_is_opened_again(noise, tmp_path, mount):
    (tmp_path / "served/sub").mkdir(parents=True)
    noise(8192).rename(tmp_path / "served/sub/model.bin")
    point = mount(tmp_path / "served")
    assert len((point / "sub/model.bin").read_bytes()) == 8192
    (tmp_path / "served/sub").rename(tmp_path / "elsewhere")
    (tmp_path / "served/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        (point / "sub/model.bin").open()


# Input is bounded


@pytest.mark.parametrize("kind", ["endless", "pipe", "sparse", "nested", "digits"])
@pytest.mark.parametrize("name", ["cells.csv", "runs/x.json", "sweep.json", "grid.toml"])
def test_hostile_files_cost_little_and_end_in_a_line(tiny_model, llama_bench, tmp_path, kind, name):
    file = tmp_path / "results" / name
    (tmp_path / "results/runs").mkdir(parents=True)
    if kind == "endless":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "sparse":
        file.touch()
        os.truncate(file, 1 << 43)
    else:
        file.write_text({"nested": "[" * 100_000, "digits": '{"a": ' + "9" * 5000 + "}"}[kind])
    command = ["report", str(tmp_path / "results")]
    if name != "runs/x.json":
        grid = [str(file)] if name == "grid.toml" else ["--mbps", "max", "--lat", "0", "--repeats", "1"]
        model = ["-p", "8", "-n", "1", "-m", str(tiny_model)]
        command = ["sweep", *grid, *model, "-o", str(tmp_path / "results")]
    code = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    begin = time.monotonic()
    said = subprocess.run(
        [sys.executable, "-c", code, *HBF, *command], capture_output=True, text=True, check=False, timeout=60
    )
    assert time.monotonic() - begin < 30
    assert "Traceback" not in said.stderr and "MemoryError" not in said.stderr


@pytest.mark.parametrize(
    "output",
    [
        "{" * 100_000,
        '{"n_prompt": 8, "n_gen": 0, "avg_ts": NaN, "samples_ns": [1]}',
        '{"n_prompt": 8, "n_gen": 0, "avg_ts": 1e999, "samples_ns": [1]}',
        '{"n_prompt": 8, "n_gen": 0, "avg_ts": 1, "samples_ns": [' + "9" * 4000 + "]}",
        '{"a":' * 100_000,
    ],
)
def test_llama_benchs_output_is_checked(output):
    with pytest.raises(HbfError, match="not a result"):
        llama._parse(output)


@pytest.mark.parametrize("stream", [1, 2])
def test_a_program_with_endless_output_is_ended_or_ignored(stream):
    code = f"import os\nfor _ in range({1000 if stream == 1 else 60}): os.write({stream}, b'x' * (1 << 20))"
    begin = time.monotonic()
    line = [sys.executable, "-c", code]
    if stream == 1:
        with pytest.raises(HbfError, match="printed more than"):
            child.run_group(line)
    else:
        assert len(child.run_group(line).stderr) <= child.MAX_SAID_BYTES
    assert time.monotonic() - begin < 60


def test_a_regular_expression_that_takes_forever_is_refused(tiny_model):
    model = reader.read(tiny_model)
    begin = time.monotonic()
    with pytest.raises(HbfError, match="takes too long"):
        placements_of([model], [Rule.parse(r"^(?:(?:\w|\w\w|\.)+)+k$=dram")] * 3)
    assert time.monotonic() - begin < 10


def test_any_answer_of_another_users_mount_is_handled(noise, mount, monkeypatch):
    """For endless or nested answers, one line says that it is not a live mount of ours."""
    point = mount(noise(4096))
    monkeypatch.setattr(documents, "MAX_JSON_BYTES", 100)
    with pytest.raises(HbfError, match="not a live hbf mount of yours"):
        client.read_hidden(point, "stats.json")


# Metrics, and many clients


def test_slow_clients_do_not_lock_others_out(noise, tmp_path, monkeypatch):
    pytest.importorskip("prometheus_client")
    from hbf_fuse.mount import metrics

    monkeypatch.setattr(metrics, "_SECONDS_EACH", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    metrics.serve(Filesystem(noise(4096), TierSpec(100)), str(port))
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(16)]
    over = threading.Event()

    def drip():
        while not over.wait(0.2):
            for client in slow:
                with suppress(OSError):
                    client.send(b"G")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        time.sleep(2)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.send(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"200" in client.recv(100)
    finally:
        over.set()
        thread.join()
        for client in slow:
            client.close()


def test_clients_of_one_address_leave_room_for_others(noise):
    pytest.importorskip("prometheus_client")
    from hbf_fuse.mount import metrics

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    metrics.serve(Filesystem(noise(4096), TierSpec(100)), f"0.0.0.0:{port}")

    def client(address):
        return socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(address, 0))

    crowd = [client("127.0.0.2") for _ in range(40)]
    try:
        with client("127.0.0.3") as other:
            other.send(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"200" in other.recv(100)
    finally:
        for each in crowd:
            each.close()


def test_mounts_that_do_not_answer_are_waited_for_concurrently(noise, tmp_path):
    """One after the other, three mounts would take three times five seconds."""
    servers = []
    try:
        for number in range(3):
            (tmp_path / f"mnt{number}").mkdir()
            line = [*HBF, "mount", "-f", str(noise(4096)), str(tmp_path / f"mnt{number}")]
            servers.append(subprocess.Popen(line, stderr=subprocess.PIPE, text=True))
            assert any("is served at" in said for said in iter(servers[-1].stderr.readline, ""))
        for server_process in servers:
            server_process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        said = subprocess.run([*HBF, "status"], capture_output=True, text=True, check=True).stdout
        assert time.monotonic() - begin < 13
        assert sum(str(tmp_path) in line and "does not answer" in line for line in said.splitlines()) == 3
    finally:
        for server_process in servers:
            server_process.kill()
            server_process.communicate()
    _wait_until(lambda: not any(tmp_path in mount.mountpoint.parents for mount in mountinfo.mounts()))


def test_a_crowd_of_readers_does_not_delay_a_stat(noise, mount):
    point = mount(noise(64 << 20), mbps=5)
    file = point / "model.gguf"

    def read(number):
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(fd, [mmap.mmap(-1, 1 << 16)], number << 16)
        except OSError:
            pass
        finally:
            os.close(fd)

    crowd = [threading.Thread(target=read, args=(number,)) for number in range(300)]
    for thread in crowd:
        thread.start()
    time.sleep(0.2)
    begin = time.monotonic()
    os.statvfs(point)
    took = time.monotonic() - begin
    for thread in crowd:
        thread.join()
    assert took < 0.5


# Privileges


def capabilities(status):
    (line,) = (line for line in status.splitlines() if line.startswith("CapEff"))
    mask = int(line.split()[1], 16)
    return {number for number in range(64) if mask >> number & 1}


@as_root
def test_programs_that_a_sweep_starts_have_few_privileges():
    said = child.run_group(["cat", "/proc/self/status"], unprivileged=True)
    assert capabilities(said.stdout) <= linux.KEPT_BY_CHILDREN
    assert "NoNewPrivs:\t1" in said.stdout


@as_root
def test_a_server_keeps_only_the_privileges_it_needs(noise, mount):
    point = mount(noise(4096))
    pid = client.read_hidden(point, "spec.json")["pid"]
    assert capabilities(Path(f"/proc/{pid}/status").read_text()) <= server._KEPT
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            assert capabilities((task / "status").read_text()) <= server._KEPT


# Output


HOSTILE = "\x1b]0;owned\x07<img src=x onerror=alert(1)>|[click](javascript:alert(1))\n# Heading"


def test_markdown_escapes_foreign_markup():
    text = tables.inert(HOSTILE)
    assert not set(text) & set("<|[]\x1b\n\x07")
    assert "&lt;img" in text


def test_a_csv_holds_no_formulas():
    for value in ("=1+1", "+1", "-1", "@x", "\tx"):
        assert documents.inert_cell(value).startswith("'")
    assert documents.inert_cell(-1.5) == -1.5 and documents.inert_cell("agrees") == "agrees"


def test_two_commands_of_one_folder_still_exclude_each_other(tmp_path):
    with (
        loop.locked(tmp_path / "results"),
        pytest.raises(HbfError, match="another process"),
        loop.locked(tmp_path / "results"),
    ):
        pass
    with loop.locked(tmp_path / "results") as results:
        assert isinstance(results, Results)
