"""hbf doctor: judged from given facts of other machines, and run on this machine."""

import dataclasses
import io
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from hbf_fuse import doctor
from hbf_fuse.calibrate.envelope import Envelope
from hbf_fuse.cli import doctor as screen
from hbf_fuse.doctor import FAIL, OK, WARN, facts, serving
from hbf_fuse.doctor.facts import Bench, Cgroups, Facts, Source
from hbf_fuse.engine.kernel import abi
from hbf_fuse.engine.kernel.session import Session
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.host import machine, mountinfo
from hbf_fuse.observe.status import Spec
from hbf_fuse.sweep.conditions import Concern
from hbf_fuse.tier import TierSpec

DEBIAN = "Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) #1 SMP"
WSL2 = "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@941d701f84f1) #1 SMP"
WSL1 = "Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com) #1-Microsoft"

NO_MOUNT = HbfError("there is no FUSE")

GOOD = Facts(
    kernel="6.1.0-18-amd64",
    machine="x86_64",
    proc_version=DEBIAN,
    container=False,
    systemd=True,
    root=True,
    device_failure="",
    mount=cast(Spec, {"fuse_protocol": "7.38", "fuse_protocol_kernel": "7.38", "readahead_kib": 4096}),
    fusermount=True,
    libfuse2=True,
    user_allow_other=False,
    max_pages_limit=None,
    cgroups=Cgroups(frozenset({"cpu", "io", "memory"}), frozenset()),
    delay_accounting="0",
    no_taskstats=None,
    no_pressure=None,
    now={
        **machine.now(),
        "governors": ["performance"],
        "on_mains": None,
        "memory_available_bytes": 8 << 30,
        "load_1min": 0.25,
    },
    memory_bytes=16 << 30,
    cores=8,
    busy=(),
    bench=Bench(
        Path("/opt/llama.cpp/llama-bench"),
        "version: 6000",
        frozenset(("--no-warmup", "--progress", "--repack")),
    ),
    server=Path("/opt/llama.cpp/llama-server"),
    envelope=cast(Envelope, {"engines": {"kernel": {"ceiling_mbps": 2400.0}}}),
)


def line_of(name, **changes):
    """The line of that name for a good machine with these changes; None if there is none."""
    lines = doctor.examine(dataclasses.replace(GOOD, **changes))
    return next((line for line in lines if line.name == name), None)


def now(**changes):
    return {"now": {**GOOD.now, **changes}}


def test_an_uncompiled_read_path_is_reported_with_its_remedy():
    assert line_of("read path").state == OK
    line = line_of("read path", uncompiled=HbfError("the compiled modules were not built", "install gcc"))
    assert line.state == WARN and "not built" in line.message and line.remedy == "install gcc"


def test_a_good_machine_has_nothing_to_fix():
    lines = doctor.examine(GOOD)
    assert {line.state for line in lines} == {OK}
    assert not any(line.remedy for line in lines)
    assert len(lines) <= 23


def test_a_llama_server_is_named_and_missing_none():
    assert line_of("llama-server").message == "llama.cpp/llama-server"
    line = line_of("llama-server", server=HbfError("no llama-server found"))
    assert line.state == OK and "--workload serve" in line.message


def test_every_line_that_is_not_ok_says_how_to_fix_it():
    worst = dataclasses.replace(
        GOOD,
        kernel="4.19.0",
        proc_version=WSL1,
        device_failure="missing",
        mount=HbfError("there is no FUSE"),
        root=False,
        fusermount=False,
        libfuse2=False,
        max_pages_limit=32,
        cgroups=Cgroups(None, frozenset()),
        no_taskstats=HbfError("TASKSTATS needs root", "run as root"),
        no_pressure=HbfError("this kernel counts no PSI", "boot it with psi=1"),
        **now(governors=["powersave"], on_mains=False, memory_available_bytes=1, load_1min=9.0),
        busy=(Concern("load", "other processes use a core: x (90%)", "end them"),),
        bench=HbfError("no llama-bench found", "build one"),
        envelope=HbfError("not measured yet", "hbf calibrate"),
        source=Source(Path("/no/such.gguf"), None),
    )
    lines = doctor.examine(worst)
    assert all(line.remedy for line in lines if line.state != OK)
    assert {line.name for line in lines if line.state == FAIL} == {
        "kernel", "WSL", "/dev/fuse", "mount", "fusermount3", "llama-bench", "source",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "state"),
    [("4.19.0", FAIL), ("5.3.18", FAIL), ("5.4.0", OK), ("5.10.0-28-amd64", OK), ("10.0", OK), ("odd", OK)],
)
def test_kernels_before_5_4_are_too_old(kernel, state):
    assert line_of("kernel", kernel=kernel).state == state


def test_wsl2_without_systemd_is_told_how_to_get_it():
    line = line_of("WSL", proc_version=WSL2, systemd=False)
    assert (line.state, "/etc/wsl.conf" in line.remedy) == (WARN, True)
    assert line_of("WSL", proc_version=WSL2).state == OK


def test_wsl1_has_no_fuse_and_plain_linux_has_no_line_about_windows():
    assert line_of("WSL", proc_version=WSL1).state == FAIL
    assert line_of("WSL") is None
    assert [serving.wsl(text) for text in (DEBIAN, WSL1, WSL2)] == [0, 1, 2]


def test_a_container_without_fuse_gets_its_options():
    no_fuse = {"device_failure": "missing", "mount": NO_MOUNT}
    inside = line_of("/dev/fuse", container=True, **no_fuse)
    assert inside.state == FAIL
    assert "--device /dev/fuse --cap-add SYS_ADMIN" in inside.remedy
    assert line_of("/dev/fuse", **no_fuse).remedy == "modprobe fuse"
    assert line_of("mount", **no_fuse).state == FAIL
    assert line_of("readahead", **no_fuse) is None
    refused = line_of("/dev/fuse", container=True, device_failure="operation not permitted", mount=NO_MOUNT)
    assert "--cap-add SYS_ADMIN" in refused.remedy


def test_a_user_who_cannot_open_the_device_may_still_mount():
    assert line_of("/dev/fuse", root=False, device_failure="permission denied").state == OK
    assert line_of("/dev/fuse", root=False, device_failure="permission denied", mount=NO_MOUNT).state == FAIL


def test_a_device_that_is_closed_to_a_user_is_opened_by_its_mode_and_not_by_options_of_a_container():
    closed = {"root": False, "mount": NO_MOUNT, "device_failure": "permission denied"}
    for container in (False, True):
        assert "chmod 666" in line_of("/dev/fuse", container=container, **closed).remedy
    ruled = line_of("/dev/fuse", **{**closed, "device_failure": "operation not permitted"})
    assert "--device /dev/fuse" in ruled.remedy


def test_a_mount_that_failed_says_why_and_what_to_do():
    line = line_of("mount", mount=HbfError("cannot mount on /x: no", "run it as root"))
    assert (line.state, line.message, line.remedy) == (FAIL, "cannot mount on /x: no", "run it as root")


def test_lines_differ_for_root_and_ordinary_users():
    assert line_of("fusermount3", fusermount=False).state == WARN
    assert line_of("fusermount3", fusermount=False, root=False).state == FAIL
    assert "user_allow_other" in line_of("permissions", root=False).remedy
    assert line_of("permissions", root=False, user_allow_other=True).state == OK
    assert "sysctl" in line_of("delays", root=False).remedy
    low = {"readahead_kib": 128}
    assert line_of("readahead", root=False, mount=low).state == WARN


def test_small_requests_and_missing_packages_are_warned_about():
    assert "sysctl fs.fuse.max_pages_limit=256" in line_of("request size", max_pages_limit=32).remedy
    assert line_of("request size", max_pages_limit=1024).state == OK
    assert "libfuse2" in line_of("libfuse2", libfuse2=False).remedy


@pytest.mark.parametrize(
    ("found", "state", "words"),
    [
        (Cgroups(frozenset({"io", "memory"}), frozenset()), OK, "io (v2), memory (v2)"),
        (Cgroups(None, frozenset({"blkio", "memory"})), OK, "blkio (v1), memory (v1)"),
        (Cgroups(frozenset({"memory"}), frozenset({"blkio"})), OK, "blkio (v1), memory (v2)"),
        (Cgroups(frozenset({"memory"}), frozenset()), WARN, "no io"),
        (Cgroups(None, frozenset()), WARN, "no io and no memory"),
    ],
)
def test_cgroup_controllers_count_in_v1_and_v2(found, state, words):
    line = line_of("cgroups", cgroups=found)
    assert line.state == state
    assert words in line.message


def test_missing_controllers_get_the_remedy_of_the_environment():
    nothing = Cgroups(frozenset(), frozenset())
    assert ".wslconfig" in line_of("cgroups", cgroups=nothing, proc_version=WSL2).remedy
    assert "docker" in line_of("cgroups", cgroups=nothing, container=True).remedy
    assert "boot" in line_of("cgroups", cgroups=nothing).remedy
    assert "mount" in line_of("cgroups", cgroups=Cgroups(None, frozenset())).remedy


@pytest.mark.parametrize(
    ("fstype", "options", "state", "words"),
    [
        ("ext4", "/dev/sda1 rw", OK, "ext4"),
        ("tmpfs", "tmpfs rw", OK, "in memory"),
        ("9p", "C:\\134 rw,aname=drvfs;path=C:\\;uid=1000", WARN, "Windows drive"),
        ("drvfs", "C: rw", WARN, "Windows drive"),
        ("9p", "host rw,trans=virtio", WARN, "folder of the host"),
        ("nfs4", "server:/export rw", WARN, "network"),
        ("cifs", "//server/share rw", WARN, "network"),
        ("fuse.hbf", "hbf rw", WARN, "tier on a tier"),
    ],
)
def test_the_place_of_the_source_is_judged(fstype, options, state, words):
    line = line_of("source", source=Source(Path("/m/model.gguf"), fstype, options, 1 << 20))
    assert line.state == state
    assert words in line.message
    assert (line.remedy != "") == (state == WARN)


def test_a_source_that_llama_cpp_will_not_load_is_a_warning(tiny_model, tmp_path):
    content = tiny_model.read_bytes()
    (tmp_path / "short.gguf").write_bytes(content[:-1])
    (tmp_path / "README.md").write_text("# No model\n" * 9)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/README.md").write_text("# No model\n")
    told = {"short.gguf": "is cut short: tensor", "README.md": "is not a GGUF", "folder": "holds no GGUF"}
    for name, words in told.items():
        line = line_of("model", source=facts._source(tmp_path / name))
        assert line.state == WARN and words in line.message and line.remedy
    (tmp_path / "folder/model.gguf").symlink_to(tiny_model)
    for source in (tiny_model, tmp_path / "folder"):
        assert line_of("model", source=facts._source(source)).state == OK
    assert line_of("model", source=Source(Path("/no/such.gguf"), None)) is None


def test_memory_is_compared_with_the_source():
    large = Source(Path("/m/model.gguf"), "ext4", "", 6 << 30)
    assert line_of("memory", source=large).state == WARN
    assert line_of("memory").state == OK
    assert line_of("memory", **now(memory_available_bytes=100 << 20)).state == WARN


def test_a_disturbed_machine_gets_warnings():
    assert "cpupower" in line_of("CPU governor", **now(governors=["powersave"])).remedy
    assert line_of("power", **now(on_mains=False)).remedy == "plug in"
    assert line_of("power", **now(on_mains=True)).message == "on mains"
    busy = (Concern("load", "x uses a core", "end it"), Concern("page cache", "DAMON", "use /dev/shm"))
    assert line_of("load", busy=busy).remedy == "end it"
    assert line_of("page cache", busy=busy).state == WARN
    assert line_of("page cache") is None


def test_lines_for_an_older_llama_bench_say_what_is_missing():
    bare = Bench(Path("/usr/bin/llama-bench"), "unknown", frozenset({"-m"}))
    line = line_of("llama-bench", bench=bare)
    assert line.state == WARN
    assert "--progress" in line.message
    assert line_of("llama-bench", bench=HbfError("none", "build one")).state == FAIL


def test_an_envelope_of_another_machine_is_ignored():
    line = line_of("envelope", envelope=HbfError("it was measured with another cpu", "run"))
    assert (line.state, line.message, line.remedy) == (
        WARN, "it was measured with another cpu", "hbf calibrate",
    )  # fmt: skip
    assert (
        line_of("envelope", envelope=HbfError("not measured yet", "hbf calibrate")).message
        == "not measured yet"
    )


# Collecting facts

MOUNTINFO = b"""\
22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:1 / /mnt/c rw - 9p C:\\134 rw,aname=drvfs;path=C:\\
24 22 0:2 / /home/me/my\\040disk rw - xfs /dev/sdb rw
25 22 0:3 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
26 22 0:4 / /nowhere/unified rw - cgroup2 cgroup2 rw
"""


def test_a_windows_drive_is_recognised_by_its_options():
    """Its options contain backslashes that are not escapes."""
    drive = mountinfo.parse(MOUNTINFO)[1]
    assert (drive.fstype, str(drive.mountpoint), drive.source) == ("9p", "/mnt/c", "C:\\")
    assert drive.options == ("rw", "aname=drvfs;path=C:\\")
    assert str(mountinfo.parse(MOUNTINFO)[2].mountpoint) == "/home/me/my disk"


def test_controllers_are_read_from_what_is_mounted():
    assert facts.cgroups(mountinfo.parse(MOUNTINFO)) == Cgroups(frozenset(), frozenset({"rw", "blkio"}))
    assert facts.cgroups([]).v2 is None


def hbf(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "hbf_fuse", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_the_doctor_looks_at_this_machine_and_leaves_nothing(tiny_model):
    switch = Path("/proc/sys/kernel/task_delayacct")
    before = switch.exists() and switch.read_text()
    said = hbf("doctor", str(tiny_model), "--json")
    assert "Traceback" not in said.stderr
    document = json.loads(said.stdout)
    states = {line["name"]: line["state"] for line in document["lines"]}
    assert set(states.values()) <= set(doctor.STATES)
    assert said.returncode == (3 if FAIL in states.values() else 0)
    assert document["ok"] == (said.returncode == 0)
    assert states["source"] in (OK, WARN)
    if os.access("/dev/fuse", os.R_OK | os.W_OK) and not os.geteuid():
        assert states["mount"] == OK
    after = [entry for entry in mountinfo.mounts() if "hbf-doctor-" in str(entry.mountpoint)]
    assert not after
    # The kernel setting is for the whole machine: a sweep of a concurrent test may have turned it on.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        assert before == (switch.exists() and switch.read_text())


def test_a_source_that_is_missing_fails_with_exit_code_3():
    said = hbf("doctor", "/no/such/model.gguf")
    assert said.returncode == 3
    assert "does not exist" in said.stdout


def test_an_ordinary_user_gets_lines_and_no_traceback():
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    nobody = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    try:
        said = hbf("doctor", "--json", env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}, **nobody)
    except PermissionError:
        pytest.skip("this Python lies where only root may read")
    lines = {line["name"]: line for line in json.loads(said.stdout)["lines"]}
    assert "Traceback" not in said.stderr
    assert lines["delays"]["state"] == WARN
    assert "root" in lines["permissions"]["message"]


def test_the_screen_fits_80_columns(monkeypatch):
    drawn = io.StringIO()
    monkeypatch.setattr(screen, "Console", lambda **options: Console(file=drawn, width=80, **options))
    worst = dataclasses.replace(GOOD, device_failure="missing", mount=HbfError("x " * 80), container=True)
    screen._show(doctor.examine(worst))
    lines = drawn.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "SYS_ADMIN" in drawn.getvalue()
    assert lines[-1].endswith("2 fail")


# The protocol of older kernels


def initialised(tmp_path, minor, flags=0xFFFFFFFF):
    """A session's answer to the INIT of a kernel with this minor version; and its errno."""
    source = tmp_path / "noise"
    source.write_bytes(bytes(4096))
    fs = Filesystem(source, TierSpec())
    kernel, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, server:
        body = abi.INIT_IN.pack(abi.MAJOR, minor, 1 << 17, flags)
        # Before 7.38 the header ended with 4 bytes of padding; its size has not changed.
        header = struct.pack("=IIQQIIII", 40 + len(body), abi.Opcode.INIT, 1, 0, 0, 0, 0, 0)
        session = Session(server.fileno(), fs, 1 << 20)
        session._dispatch(memoryview(header + body), 0)
        said = kernel.recv(4096)
        _, error, unique = abi.OUT_HEADER.unpack_from(said)
        assert unique == 1
        return said[abi.OUT_HEADER.size :], error, session


LINUX_5_10 = 32


@pytest.mark.parametrize("minor", [31, LINUX_5_10, 34, 38, 45])
def test_the_protocol_is_negotiated_down_to_linux_5_4(tmp_path, minor):
    offered = abi.ASYNC_READ | abi.MAX_PAGES
    said, error, session = initialised(tmp_path, minor, offered)
    major, spoken, _, flags, *_ = answer = abi.INIT_OUT.unpack(said)
    assert error == 0
    assert (major, spoken) == (7, min(minor, abi.MINOR))
    assert flags == offered
    assert answer[-2:] == (0, bytes(28))
    assert session.ready.is_set() and session.refusal is None
    assert session.fs.hidden.facts["fuse_protocol_kernel"] == f"7.{minor}"


def test_a_kernel_before_linux_5_4_is_refused_with_its_protocol(tmp_path):
    said, error, session = initialised(tmp_path, 30)
    assert (said, error < 0) == (b"", True)
    assert "7.30" in session.refusal
