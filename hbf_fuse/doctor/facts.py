"""Collects what `hbf doctor` judges. Changes nothing, except for one small mount of its own."""

import ctypes
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hbf_fuse import compiled
from hbf_fuse.calibrate import envelope
from hbf_fuse.calibrate.envelope import Envelope
from hbf_fuse.doctor import surroundings
from hbf_fuse.doctor.surroundings import Surroundings
from hbf_fuse.engine.kernel import mounting
from hbf_fuse.engine.memory import floor
from hbf_fuse.errors import HbfError, naming, of_system
from hbf_fuse.fs.tree import Tree
from hbf_fuse.gguf import kinds
from hbf_fuse.host import linux, machine, mountinfo, pressure, taskstats
from hbf_fuse.host.machine import State
from hbf_fuse.host.mountinfo import Mount
from hbf_fuse.models import split, stores
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe.status import Spec
from hbf_fuse.sweep import conditions
from hbf_fuse.sweep.conditions import Concern
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload.program import BENCH, SERVER

_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
_PROBE_BYTES = 1 << 16


@dataclass(frozen=True)
class Cgroups:
    """Controllers in cgroup v2, None if it is not mounted, and in v1."""

    v2: frozenset[str] | None
    v1: frozenset[str]


@dataclass(frozen=True)
class Bench:
    """The llama-bench that sweeps would run."""

    path: Path
    version: str
    flags: frozenset[str]


@dataclass(frozen=True)
class Source:
    """Where a model is: type and options of its file system, None if there is no such file.

    defect: why llama.cpp will not load it; "" if its header is sound and its tensors are all there.
    """

    path: Path
    fstype: str | None
    options: str = ""
    size: int = 0
    defect: str = ""


@dataclass(frozen=True)
class Facts:
    """A machine at one moment. A fact that is not available is the error that says why.

    mount: spec.json of a real mount. device_failure: why /dev/fuse could not be opened, or "".
    delay_accounting: the switch, None if the kernel has none. no_taskstats, no_pressure: why the kernel does
    not count these, else None. uncompiled: why the read path is not compiled, else None. envelope: see
    calibrate/envelope.py. now: see host/machine.py. around: see surroundings.py. fault_ns: what a fault of
    the memory engine takes here; None if it was not tried.
    """

    kernel: str
    machine: str
    proc_version: str
    container: bool
    systemd: bool
    root: bool
    device_failure: str
    mount: Spec | HbfError
    fusermount: bool
    libfuse2: bool
    user_allow_other: bool
    max_pages_limit: int | None
    cgroups: Cgroups
    delay_accounting: str | None
    no_taskstats: HbfError | None
    no_pressure: HbfError | None
    now: State
    memory_bytes: int
    cores: int | None
    busy: tuple[Concern, ...]
    bench: Bench | HbfError
    server: Path | HbfError
    envelope: Envelope | HbfError
    source: Source | None = None
    uncompiled: HbfError | None = None
    around: Surroundings = field(default_factory=Surroundings)
    fault_ns: int | HbfError | None = None
    unprivileged_userfaultfd: int | None = None


def collect(source: Path | None = None) -> Facts:
    """Collect everything, in about two seconds. A defect of the machine never raises."""
    device_failure = _device_failure()
    # Before the mount: its server would count as load.
    busy = tuple(conditions.busy())
    mount = HbfError("there is no FUSE") if device_failure == "missing" else _try_mount()
    known, no_envelope = envelope.load()
    facts = machine.facts()
    return Facts(
        kernel=platform.release(),
        machine=platform.machine(),
        proc_version=_content(Path("/proc/version")) or "",
        container=any(Path(mark).exists() for mark in _CONTAINER_MARKS),
        systemd=Path("/run/systemd/system").is_dir(),
        root=os.geteuid() == 0,
        device_failure=device_failure,
        mount=mount,
        fusermount=shutil.which("fusermount3") is not None,
        libfuse2=_has_libfuse2(),
        user_allow_other=_user_allow_other(Path("/etc/fuse.conf")),
        max_pages_limit=_number(Path("/proc/sys/fs/fuse/max_pages_limit")),
        cgroups=cgroups(machine.told(mountinfo.mounts, [])),
        delay_accounting=_content(taskstats.SWITCH),
        no_taskstats=taskstats.unreachable(),
        no_pressure=pressure.totals()[1],
        now=machine.now(),
        memory_bytes=facts["memory_bytes"],
        cores=facts["cores"],
        busy=busy,
        bench=_bench(),
        server=_server(),
        envelope=known or no_envelope or HbfError("not measured yet", "hbf calibrate"),
        source=_source(source) if source else None,
        uncompiled=compiled.why_not(),
        around=surroundings.collect(),
        fault_ns=_fault_ns(),
        unprivileged_userfaultfd=_number(Path("/proc/sys/vm/unprivileged_userfaultfd")),
    )


def cgroups(mounts: Iterable[Mount]) -> Cgroups:
    """The controllers of the mounted cgroup versions; nothing is guessed from paths."""
    v2: frozenset[str] | None = None
    v1: set[str] = set()
    for mount in mounts:
        if mount.fstype == "cgroup2":
            v2 = frozenset((_content(mount.mountpoint / "cgroup.controllers") or "").split())
        elif mount.fstype == "cgroup":
            v1 |= set(mount.options)
    return Cgroups(v2, frozenset(v1))


def _try_mount() -> Spec | HbfError:
    """Mount a small file, read it back, and unmount."""
    content = os.urandom(_PROBE_BYTES)
    try:
        with tempfile.TemporaryDirectory(prefix="hbf-doctor-") as folder:
            source, mountpoint = Path(folder) / "noise", Path(folder) / "mnt"
            with naming(source):
                source.write_bytes(content)
            mountpoint.mkdir()
            with child.mounted(MountConfig(source, mountpoint, TierSpec())) as mount:
                if (mount / "model.gguf").read_bytes() != content:
                    return HbfError("bytes from the mount differ from its source")
                return client.read_spec(mount)
    except HbfError as error:
        return error
    except OSError as error:
        return of_system(error)


def _fault_ns() -> int | HbfError:
    """Serve a small file by the memory engine, to a program of its own."""
    try:
        return floor.measure().of(0, 0)
    except HbfError as error:
        return error
    except OSError as error:
        return of_system(error)


def _device_failure() -> str:
    try:
        os.close(os.open(mounting.DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _has_libfuse2() -> bool:
    try:
        ctypes.CDLL("libfuse.so.2")
    except OSError:
        return False
    return True


def _user_allow_other(file: Path) -> bool:
    return any(line.strip() == "user_allow_other" for line in (_content(file) or "").splitlines())


def _server() -> Path | HbfError:
    try:
        return SERVER.find()
    except HbfError as error:
        return error


def _bench() -> Bench | HbfError:
    try:
        path = BENCH.find()
        return Bench(path, BENCH.version(path), BENCH.flags(path))
    except HbfError as error:
        return error


def _source(path: Path) -> Source:
    if stores.is_name(str(path)):
        path = stores.find(str(path))
    with suppress(OSError):
        found = linux.located(path.absolute())
        mount = mountinfo.mount_of(found.resolve(strict=True))
        size = 0 if found.is_dir() else found.stat().st_size
        return Source(path, mount.fstype, ",".join(mount.options), size, _defect(found))
    return Source(path, None)


def _defect(found: Path) -> str:
    try:
        if found.is_dir():
            tree = Tree(found, ())
            return tree.remark or tree.doubt()
        parts = split.parts_of(found)
        for part in parts:
            if defect := kinds.defect(part, is_part=len(parts) > 1):
                return defect
        split.read_model(found)
    except HbfError as error:
        return str(error)
    except OSError as error:
        return str(of_system(error))
    return ""


def _content(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(file: Path) -> int | None:
    content = _content(file)
    return int(content) if content and re.fullmatch(r"\d+", content) else None
