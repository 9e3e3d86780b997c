"""The units, their directives, and the server's messages to systemd."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from namespace import entered

from hbf_fuse.host import linux

UNITS = Path(__file__).parent.parent / "systemd"
SERVICES = ["hbf-mount@.service", "hbf-sweep@.service", "hbf-worker.service"]
MOST_EXPOSED = {"hbf-mount@.service": 45, "hbf-sweep@.service": 35, "hbf-worker.service": 45}
"""Exposure in tenths, from `systemd-analyze security`: 4.2 and 3.0 with systemd 252, where 10 is the worst.
"""

NAMESPACED = set(
    re.findall(
        r"\w+",
        "ProtectSystem ProtectHome PrivateTmp PrivateDevices PrivateNetwork PrivateIPC ProtectKernelTunables"
        " ProtectKernelModules ProtectKernelLogs ProtectControlGroups ProtectProc ProcSubset ReadOnlyPaths"
        " InaccessiblePaths TemporaryFileSystem BindPaths RootDirectory DynamicUser",
    )
)
"""Directives for which systemd.exec(5) makes a mount namespace."""


def directives(name):
    """A unit's lines as (directive, value), without comments."""
    lines = (UNITS / name).read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


@pytest.fixture
def analyze(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")

    def run(*arguments):
        line = ["systemd-analyze", "--no-pager", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def installed(tmp_path):
    """The units, with the paths of the commands on this machine."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/local/bin/", f"{Path(sys.executable).parent}/")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def test_systemd_finds_nothing_wrong_with_the_units(analyze, installed):
    units = [
        path for path in installed.iterdir() if path.suffix in (".service", ".slice", ".mount", ".automount")
    ]
    assert len(units) == 6
    said = analyze("verify", "--man=no", *units)
    ours = [line for line in said.stderr.splitlines() if "hbf" in line]
    assert said.returncode == 0 and not ours, said.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_are_not_more_exposed_than_they_need_to_be(analyze, name):
    said = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED[name]}", UNITS / name)
    if "unrecognized option" in said.stderr or "Unknown option" in said.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    assert said.returncode == 0, said.stdout[-2000:]


@pytest.mark.parametrize("name", SERVICES)
def test_every_hardening_directive_is_explained(name):
    hardening = (UNITS / name).read_text().split("--- Hardening")[1].split("[Install]")[0]
    paragraphs = re.split(r"^(?=#)", hardening.partition("\n")[2], flags=re.MULTILINE)
    assert len(paragraphs) > 2
    for paragraph in filter(str.strip, paragraphs):
        assert paragraph.startswith("#") and paragraph.count("\n") <= 9


def test_the_mount_service_keeps_its_mount_visible():
    asked = {name for name, _ in directives("hbf-mount@.service")}
    assert not asked & NAMESPACED
    assert dict(directives("hbf-mount@.service"))["PrivateMounts"] == "no"


@pytest.mark.parametrize(("propagation", "seen"), [("slave", False), ("shared", True)])
def test_a_mount_is_seen_outside_only_without_a_namespace_of_its_own(propagation, seen):
    """Directives such as ProtectSystem make a mount namespace without propagation to the host ("slave")."""
    with entered() as outside:
        outside.sh("mkdir mnt; echo model > m.gguf; mount --bind mnt mnt; mount --make-shared mnt", uid=0)
        line = f"unshare -m --propagation {propagation} {outside.python} -m hbf_fuse mount -f m.gguf mnt"
        if propagation == "shared":
            line = f"{outside.python} -m hbf_fuse mount -f m.gguf mnt"
        server = subprocess.Popen(
            outside.argv("sh", "-c", f"exec {line}", uid=0), stderr=subprocess.PIPE, text=True
        )
        try:
            assert any("is served at" in line for line in iter(server.stderr.readline, ""))
            assert ("fuse.hbf" in outside.sh(f"grep {outside.work} /proc/self/mountinfo || true")) == seen
        finally:
            server.terminate()
            server.communicate(timeout=20)


def hardened(name):
    """A command prefix that restricts a process as a service does: capabilities, NoNewPrivileges, and
    MemoryDenyWriteExecute if the kernel has it (6.3).
    """
    asked = dict(directives(name))
    capabilities = asked["CapabilityBoundingSet"].lower().replace("cap_", "+").split()
    assert asked["NoNewPrivileges"] == "yes"
    line = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{','.join(capabilities)}"]
    if asked.get("MemoryDenyWriteExecute") == "yes":
        line += [sys.executable, "-c", DENY_WRITE_EXECUTE]
    return line


DENY_WRITE_EXECUTE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, ctypes.c_ulong(1), 0, 0, 0)  # PR_SET_MDWE; older kernels know none
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="services run as root")
@pytest.mark.parametrize("engine", ["kernel", "fusepy"])
def test_the_mount_service_works_with_the_privileges_it_has(noise, tmp_path, engine):
    source, point = noise(3_000_001), tmp_path / "mnt"
    point.mkdir()
    hbf = [*hardened("hbf-mount@.service"), sys.executable, "-m", "hbf_fuse"]
    command = [*hbf, "mount", "-f", "--engine", engine, "--priority", "-5", "--mbps", "500", source, point]
    server = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    try:
        said = [server.stderr.readline()]
        while "is served at" not in said[-1] and said[-1]:
            said.append(server.stderr.readline())
        assert (point / "model.gguf").read_bytes() == source.read_bytes(), said
        # On a busy machine the floor cannot be measured.
        # And libfuse prints its own message when the mount for the floor ends.
        expected = ("too busy", "fuse: reading device")
        about_privileges = [line for line in said[:-1] if not any(word in line for word in expected)]
        assert not about_privileges, "with these privileges, priority and readahead are as wanted"
        ended = subprocess.run([*hbf, "umount", str(point)], timeout=20, check=False)
        assert ended.returncode == 0 and server.wait(timeout=20) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("engine", ["kernel", "fusepy"])
def test_reloading_the_mount_service_changes_the_tier_of_the_live_mount(mount, noise, engine):
    """Runs the line of ExecReload as systemd does: $HBF_OPTIONS is what NAME.env has now, split at spaces."""
    point = mount(noise(100_000), mbps=500, lat=1, engine=engine)
    asked = dict(directives("hbf-mount@.service"))["ExecReload"].replace("${HBF_MOUNTPOINT}", str(point))
    for options, tier, words in (
        ("--mbps 250 --metrics 9464 --no-preload", [250, 1], ["250 MB/s", "--metrics, --no-preload"]),
        ("--mbps 100 --lat 3", [100, 3], ["was 250 MB/s"]),
        ("", [100, 3], []),
    ):
        command, *arguments = asked.replace("$HBF_OPTIONS", options).split()
        assert command == "/usr/local/bin/hbf-mount"
        line = [sys.executable, "-m", "hbf_fuse", "mount", *arguments]
        said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == 0 and said.stderr.count("\n") == len(words), said.stderr
        assert all(word in said.stderr for word in words)
        now = json.loads((point / ".hbf/control").read_text())
        assert [now["mbps"], now["lat"]] == tier


@pytest.mark.skipif(os.geteuid() != 0, reason="services run as root")
def test_the_sweep_service_measures_with_the_privileges_it_has(tiny_model, llama_bench, tmp_path):
    line = [*hardened("hbf-sweep@.service"), sys.executable, "-m", "hbf_fuse", "bench", "-m", tiny_model]
    line += ["--mbps", "500", "-p", "8", "-n", "8", "-o", tmp_path / "results"]
    said = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=100, check=False)
    assert said.returncode == 0, said.stderr
    assert len(list((tmp_path / "results/runs").glob("*.json"))) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="services run as root")
def test_all_system_calls_of_the_server_are_allowed(analyze, noise, tmp_path):
    if not shutil.which("strace"):
        pytest.skip("there is no strace")
    log, source, point = tmp_path / "log", noise(2_000_001), tmp_path / "mnt"
    point.mkdir()
    command = ["hbf_fuse", "mount", "-f", "--mbps", "500", "--metrics", free_port(), source, point]
    server = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(log), sys.executable, "-m", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("is served at" in line for line in iter(server.stderr.readline, ""))
        assert (point / "model.gguf").read_bytes() == source.read_bytes()
        subprocess.run([sys.executable, "-m", "hbf_fuse", "umount", str(point)], timeout=30, check=True)
        server.wait(timeout=30)
    finally:
        server.kill()
        server.communicate()
    made = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)[( ]", log.read_text(), re.MULTILINE))
    assert {"mount", "writev"} <= made
    for name in SERVICES:
        assert made - allowed_calls(analyze, dict(directives(name))["SystemCallFilter"].split()) == set()


def allowed_calls(analyze, sets):
    """Every system call in these sets, as `systemd-analyze syscall-filter` lists them."""
    found = {name for name in sets if not name.startswith("@")}
    waiting = [name for name in sets if name.startswith("@")]
    while waiting:
        said = analyze("syscall-filter", waiting.pop()).stdout
        for line in said.splitlines()[1:]:
            word = line.strip()
            if word.startswith("@"):
                waiting.append(word)
            elif word and not word.startswith("#"):
                found.add(word)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def supervisor(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        channel.settimeout(20)
        yield lambda: channel.recv(4096).decode().splitlines()


@pytest.fixture(params=["path", "abstract"])
def notify_socket(request, tmp_path):
    return f"@hbf-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")


def test_a_supervisor_hears_when_the_mount_answers_and_when_it_ends(noise, tmp_path, notify_socket):
    point = tmp_path / "mnt"
    point.mkdir()
    source = noise(100_000)
    with supervisor(notify_socket) as hear:
        server = subprocess.Popen(
            [sys.executable, "-m", "hbf_fuse", "mount", "-f", "--mbps", "500", str(source), str(point)],
            env={**os.environ, "NOTIFY_SOCKET": notify_socket},
            stderr=subprocess.DEVNULL,
        )
        try:
            ready, status = hear()
            assert ready == "READY=1"
            assert (point / "model.gguf").read_bytes() == source.read_bytes(), "ready means that it answers"
            assert status.startswith("STATUS=serving") and str(point) in status and "500 MB/s" in status
            server.send_signal(signal.SIGTERM)
            assert hear() == ["STOPPING=1"]
            assert server.wait(timeout=20) == 0
        finally:
            server.kill()
            server.wait()
    assert not point.is_mount()


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all", "@hbf-nobody-listens"])
def test_without_a_supervisor_no_message_is_sent(monkeypatch, address):
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    linux.tell_supervisor("READY=1")


def test_a_mount_of_a_sweep_does_not_notify_for_the_sweep(mount, noise, tmp_path, monkeypatch):
    address = str(tmp_path / "notify")
    with supervisor(address) as hear:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        mount(noise(100))
        linux.tell_supervisor("STATUS=mine")
        assert hear() == ["STATUS=mine"]


@pytest.mark.skipif(os.geteuid() != 0, reason="services run as root")
def test_a_server_that_dies_leaves_nothing_even_if_the_watcher_is_asked_to_end_first(noise, tmp_path):
    """systemd does this to the rest of a service whose main process died: SIGTERM, and only later SIGKILL."""
    point = tmp_path / "mnt"
    point.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "hbf_fuse", "mount", "-f", str(noise(100)), str(point)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("is served at" in line for line in iter(server.stderr.readline, ""))
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert children
        for pid in map(int, children):
            assert wait_until(lambda pid=pid: ignores(pid, signal.SIGTERM), 10)
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
    finally:
        server.kill()
        server.communicate()
    assert wait_until(lambda: str(point) not in Path("/proc/self/mountinfo").read_text(), 10)


@pytest.mark.parametrize("nice", ["0", "10"])
def test_a_server_that_dies_leaves_nothing_however_nice_it_was_started(noise, tmp_path, nice):
    """Its watcher has no right to ask for more than it was started with."""
    point = tmp_path / "mnt"
    point.mkdir()
    server = subprocess.Popen(
        ["nice", "-n", nice, sys.executable, "-m", "hbf_fuse", "mount", "-f", str(noise(100)), str(point)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("is served at" in line for line in iter(server.stderr.readline, ""))
    finally:
        server.kill()
        server.communicate()
    assert wait_until(lambda: str(point) not in Path("/proc/self/mountinfo").read_text(), 30)


def ignores(pid, number):
    (mask,) = re.findall(r"SigIgn:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) >> (number - 1) & 1)


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()
