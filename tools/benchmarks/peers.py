"""Servers to compare: this checkout's engines, other checkouts of hbf-fuse, and the FUSE limit in C."""

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from hbf_fuse import signals
from hbf_fuse.errors import HbfError
from hbf_fuse.host import mountinfo
from hbf_fuse.tier import TierSpec

HERE = Path(__file__).parents[2]
LIMIT_THREADS = 16
_START_SECONDS = 60.0
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Peer:
    """A server. checkout: a checkout of hbf-fuse, any version. limit: the program of the FUSE limit instead."""

    name: str
    checkout: Path = HERE
    engine: str = "kernel"
    uncompiled: bool = False
    limit: Path | None = None

    def command(self, source: Path, point: Path, spec: TierSpec) -> tuple[list[str], dict[str, str]]:
        """The command that serves the source at the point, and its environment."""
        left_out = ("NOTIFY_SOCKET", "HBF_UNCOMPILED", "MBPS", "LAT_US")
        env = {name: value for name, value in os.environ.items() if name not in left_out}
        if self.limit:
            if spec.bandwidth_mbps:
                env["MBPS"] = f"{spec.bandwidth_mbps:g}"
            if spec.latency_ms:
                env["LAT_US"] = f"{spec.latency_ms * 1000:g}"
            size = source.stat().st_size >> 20
            return [str(self.limit), str(point), str(size), str(LIMIT_THREADS)], env
        if self.uncompiled:
            env["HBF_UNCOMPILED"] = "1"
        env["PYTHONPATH"] = str(self.checkout)
        own = self.checkout / ".venv/bin/python"
        # The command's entry point has moved between versions. Each version names its own.
        scripts = tomllib.loads((self.checkout / "pyproject.toml").read_text())["project"]["scripts"]
        module, _, function = scripts["hbf-mount"].partition(":")
        code = f"from {module} import {function} as begin; begin()"
        line = [str(own) if own.exists() else sys.executable, "-P", "-c", code, "-f", str(source), str(point)]
        if spec.bandwidth_mbps:
            line += ["--mbps", f"{spec.bandwidth_mbps:g}"]
        if spec.latency_ms:
            line += ["--lat", f"{spec.latency_ms:g}"]
        return [*line, "--engine", self.engine], env

    def commit(self) -> str:
        """The version of the checkout as git names it; empty for the limit."""
        if self.limit:
            return ""
        line = ["git", "-C", str(self.checkout), "describe", "--always", "--dirty"]
        said = subprocess.run(line, capture_output=True, text=True, check=False)
        return said.stdout.strip() or "unknown"


@contextmanager
def served(peer: Peer, source: Path, point: Path, spec: TierSpec) -> Iterator[int]:
    """Serve the source as point/model.gguf; yields the server's pid. Unmounts at the end, whatever happens."""
    line, env = peer.command(source, point, spec)
    with tempfile.TemporaryFile() as remarks:
        process = None
        try:
            with signals.deferred():
                process = subprocess.Popen(
                    line,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=remarks,
                    stderr=remarks,
                    start_new_session=True,
                )
            _wait_until_mounted(peer, process, point, remarks.fileno())
            _first_read(point / "model.gguf")
            yield process.pid if process.poll() is None else _session(process.pid)[0]
        finally:
            with signals.deferred():
                if process is not None:
                    _end(process, point)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its threads, including ended ones, in ns resolution (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def compiled_modules(pid: int) -> int:
    """The number of compiled modules of hbf_fuse that a process has loaded."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return len({line.split()[-1] for line in maps if "/hbf_fuse/" in line and line.endswith(".so")})


def _wait_until_mounted(peer: Peer, process: "subprocess.Popen[bytes]", point: Path, remarks: int) -> None:
    give_up = time.monotonic() + _START_SECONDS
    while mountinfo.find(point) is None:
        # The limit's first process ends when it has mounted.
        if process.poll() is not None and not _session(process.pid) and mountinfo.find(point) is None:
            said = os.pread(remarks, 1 << 16, 0).decode(errors="replace").strip().splitlines()
            raise HbfError(f"{peer.name} did not mount: {said[-1] if said else 'it said nothing'}")
        if time.monotonic() > give_up:
            raise HbfError(f"{peer.name} did not mount within {_START_SECONDS:g} s")
        time.sleep(0.02)


def _first_read(path: Path) -> None:
    """One read past the page cache. hbf-fuse answers it after measuring its floor."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as aligned:
            os.preadv(file, [aligned], 0)
    finally:
        os.close(file)


def _session(number: int) -> list[int]:
    """Living processes of a session that one of our commands started."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _end(process: "subprocess.Popen[bytes]", point: Path) -> None:
    """Unmount. Then end remaining processes of the server, gently first."""
    umount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    # A reader that was just killed may keep the mount busy for a moment; after that it is detached.
    for lazy in (*[[]] * 50, ["-l"]):
        if mountinfo.find(point) is None:
            break
        if subprocess.run([*umount, *lazy, str(point)], capture_output=True, check=False).returncode:
            time.sleep(0.1)
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        for pid in _session(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        give_up = time.monotonic() + _END_SECONDS
        while (process.poll() is None or _session(process.pid)) and time.monotonic() < give_up:
            time.sleep(0.02)
        if process.poll() is not None and not _session(process.pid):
            return
