"""Looks at this machine: what `hbf doctor` judges. Changes nothing but for one small mount of its own."""

import ctypes
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbf_fuse import compiled, gguf
from hbf_fuse.calibrate import envelope
from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError, in_one_line
from hbf_fuse.fs.tree import Tree
from hbf_fuse.host import machine, mountinfo, pressure, taskstats
from hbf_fuse.host.mountinfo import Mount
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.sweep import conditions
from hbf_fuse.sweep.conditions import Concern
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import llama

_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
_PROBE_BYTES = 1 << 16


@dataclass(frozen=True)
class Cgroups:
    """Controllers as cgroup v2 offers them, None if it is not mounted, and as v1 has them."""

    v2: frozenset[str] | None
    v1: frozenset[str]


@dataclass(frozen=True)
class Bench:
    """The llama-bench that would run, or why there is none."""

    path: Path | None
    version: str = ""
    flags: frozenset[str] = frozenset()
    why: str = ""


@dataclass(frozen=True)
class Source:
    """Where a model lies: the type and the options of its file system, None if there is no such file.

    defect: why llama.cpp will not load it, "" if its header is sound and its tensors are all there.
    """

    path: Path
    fstype: str | None
    options: str = ""
    size: int = 0
    defect: str = ""


@dataclass(frozen=True)
class Facts:
    """A machine at one moment. An empty `..._failure` or `no_...` says that all is well.

    mount: what a real mount said of itself (its spec.json), None if there was none. delay_accounting: the
    switch, None where the kernel has none. uncompiled: why, if so. envelope: see calibrate/envelope.py. now:
    see host/machine.py.
    """

    kernel: str
    machine: str
    proc_version: str
    container: bool
    systemd: bool
    root: bool
    device_failure: str
    mount: dict[str, Any] | None
    mount_failure: str
    fusermount: bool
    libfuse2: bool
    user_allow_other: bool
    max_pages_limit: int | None
    cgroups: Cgroups
    delay_accounting: str | None
    no_taskstats: str
    no_pressure: str
    now: dict[str, Any]
    memory_bytes: int
    cores: int
    busy: tuple[Concern, ...]
    bench: Bench
    envelope: dict[str, Any] | None
    no_envelope: str
    source: Source | None = None
    uncompiled: str = ""


def collect(source: Path | None = None) -> Facts:
    """Look at everything, in about two seconds. Never raises for what it finds."""
    device_failure = _device_failure()
    # Before the mount, which would be among the busy ones.
    busy = tuple(conditions.busy())
    mount, mount_failure = (None, "there is no FUSE") if device_failure == "missing" else _try_mount()
    known, no_envelope = envelope.load()
    facts = machine.facts()
    return Facts(
        kernel=platform.release(),
        machine=platform.machine(),
        proc_version=Path("/proc/version").read_text(),
        container=any(Path(mark).exists() for mark in _CONTAINER_MARKS),
        systemd=Path("/run/systemd/system").is_dir(),
        root=os.geteuid() == 0,
        device_failure=device_failure,
        mount=mount,
        mount_failure=mount_failure,
        fusermount=shutil.which("fusermount3") is not None,
        libfuse2=_has_libfuse2(),
        user_allow_other=_user_allow_other(Path("/etc/fuse.conf")),
        max_pages_limit=_number(Path("/proc/sys/fs/fuse/max_pages_limit")),
        cgroups=cgroups(mountinfo.mounts()),
        delay_accounting=_said(taskstats.SWITCH),
        no_taskstats=taskstats.unreachable(),
        no_pressure=pressure.totals()[1],
        now=machine.now(),
        memory_bytes=facts["memory_bytes"],
        cores=facts["cores"],
        busy=busy,
        bench=_bench(),
        envelope=known,
        no_envelope=no_envelope,
        source=_source(source) if source else None,
        uncompiled=compiled.why_not(),
    )


def cgroups(mounts: Iterable[Mount]) -> Cgroups:
    """What is mounted: nothing is guessed from paths."""
    v2: frozenset[str] | None = None
    v1: set[str] = set()
    for mount in mounts:
        if mount.fstype == "cgroup2":
            v2 = frozenset((_said(mount.mountpoint / "cgroup.controllers") or "").split())
        elif mount.fstype == "cgroup":
            v1 |= set(mount.options)
    return Cgroups(v2, frozenset(v1))


def _try_mount() -> tuple[dict[str, Any] | None, str]:
    """Mount a small file, read it back, unmount."""
    content = os.urandom(_PROBE_BYTES)
    try:
        with tempfile.TemporaryDirectory(prefix="hbf-doctor-") as folder:
            source, mountpoint = Path(folder) / "noise", Path(folder) / "mnt"
            source.write_bytes(content)
            mountpoint.mkdir()
            with child.mounted(MountConfig(source, mountpoint, TierSpec())) as mount:
                if (mount / "model.gguf").read_bytes() != content:
                    return None, "the mount gave other bytes than its source has"
                return client.read_hidden(mount, "spec.json"), ""
    except HbfError as error:
        return None, " ".join(str(error).split())
    except OSError as error:
        return None, f"{error.filename or 'a file'}: {error.strerror}"


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
    return any(line.strip() == "user_allow_other" for line in (_said(file) or "").splitlines())


def _bench() -> Bench:
    try:
        path = llama.find()
        return Bench(path, llama.version(path), llama.flags(path))
    except HbfError as error:
        return Bench(None, why=str(error))


def _source(path: Path) -> Source:
    with suppress(OSError):
        found = path.resolve(strict=True)
        mount = mountinfo.mount_of(found)
        size = 0 if found.is_dir() else found.stat().st_size
        return Source(path, mount.fstype, ",".join(mount.options), size, _defect(found))
    return Source(path, None)


def _defect(found: Path) -> str:
    try:
        if found.is_dir():
            return Tree(found, ()).doubt()
        gguf.read(found)
    except (HbfError, gguf.GgufError) as error:
        return str(error)
    except OSError as error:
        return in_one_line(error)
    return ""


def _said(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(file: Path) -> int | None:
    said = _said(file)
    return int(said) if said and re.fullmatch(r"\d+", said) else None
