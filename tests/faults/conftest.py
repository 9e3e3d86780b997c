"""Every test of this folder is a fault on a real mount, tried HBF_FAULT_TIMES times (see tools/bench)."""

import contextlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from served import MIB, SOON, Served, run, seconds_until, start, start_reader, wait_until_it_answers

TIMES = int(os.environ.get("HBF_FAULT_TIMES", "1"))


@pytest.fixture(autouse=True, params=range(TIMES), ids=lambda count: f"time{count + 1}")
def time_tried(request):
    """The number of this repetition."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    return request.param


@pytest.fixture
def serve(tmp_path):
    """serve(source, "--mbps", 100, engine="fusepy") -> Served; at the end it must leave nothing behind."""
    begun: list[Served] = []

    def make(source, *options, engine="kernel", at="mnt", prefix=(), env=None):
        point = tmp_path / at
        point.mkdir(exist_ok=True)
        log = tmp_path / f"log{len(begun)}"
        served = start(source, point, log, "--engine", engine, *options, prefix=prefix, env=env)
        begun.append(served)
        wait_until_it_answers(served)
        return served

    yield make
    problems = [problem for served in reversed(begun) for problem in served.close()]
    assert not problems, "\n".join(problems)


@pytest.fixture
def reading():
    """reading(way, file, source, passes=0) -> a process that compares what it reads; see steady_reader.py."""
    readers = []

    def begin(way, file, source, passes=0, prefix=()):
        readers.append(start_reader(way, file, source, passes, prefix))
        return readers[-1]

    yield begin
    for reader in readers:
        reader.kill()
        reader.wait(20)
        reader.stdout.close()


LIMITS = {
    "memory": {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"},
    "pids": {"/sys/fs/cgroup/pids": "pids.max", "/sys/fs/cgroup": "pids.max"},
}
"""The folder of a controller's groups and the file of the limit, in cgroup v1 and v2."""


@pytest.fixture
def confined():
    """confined("memory", 24 << 20) -> a prefix for commands that shall run in a cgroup with this limit."""
    groups: list[Path] = []

    def confine(controller, value):
        for root, limit in LIMITS[controller].items():
            if not os.access(f"{root}/cgroup.procs", os.W_OK):
                continue
            group = Path(root) / f"hbf-faults-{os.getpid()}-{len(groups)}"
            group.mkdir()
            groups.append(group)
            if (group / limit).exists():
                (group / limit).write_text(str(value))
                return "sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"
        pytest.skip(f"no {controller} cgroup can be made here: the controller is missing, or it needs root")

    yield confine
    for group in groups:
        seconds_until(partial(_is_empty, group), SOON, "the cgroup is empty")
        group.rmdir()


def _is_empty(group):
    return not (group / "cgroup.procs").read_text()


@pytest.fixture
def failing_disk(tmp_path):
    """failing_disk(kind, content) -> a folder with content as model.gguf; reading BAD in it gives EIO."""
    if os.geteuid() != 0:
        pytest.skip("a disk that fails is mounted by root")
    held, disk, device = tmp_path / "held", tmp_path / "disk", tmp_path / "device"
    for folder in (held, disk, device):
        folder.mkdir()
    with contextlib.ExitStack() as stack:

        def make(kind, content):
            files = held
            if kind == "block device":
                files = tmp_path / "files"
                files.mkdir()
            (files / "model.gguf").write_bytes(content)
            if kind == "block device":
                size = f"{len(content) // MIB + 8}M"
                run("mkfs.ext2", "-q", "-d", files, held / "image", size)
            stack.callback(_serve_failing_disk(held, disk))
            if kind == "fuse":
                return disk
            try:
                run("mount", "-o", "loop,ro", disk / "image", device)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no loop devices here: {error.stderr}")
            stack.callback(run, "umount", device)
            return device

        yield make


def _serve_failing_disk(folder, point):
    command = [sys.executable, str(Path(__file__).with_name("failing_disk.py")), str(folder), str(point)]
    process = subprocess.Popen(command)
    seconds_until(lambda: point.is_mount() or process.poll() is not None, SOON, "the disk is mounted")

    def end():
        run("umount", "-l", point)
        process.wait(SOON)

    return end
