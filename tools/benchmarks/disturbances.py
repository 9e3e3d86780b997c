"""Disturbances of a mount, by name and strength; see verdict.py."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = "quiet"

Disturbance = Callable[[int, Path], Any]
"""Disturbs the server with this pid and mountpoint during a `with` block."""


def _nothing() -> Disturbance:
    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        yield

    return within


def _hogs(count: int, nice: int = 0) -> Disturbance:
    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        line = [sys.executable, "-I", "-c", f"import os\nos.nice({nice})\nwhile True: pass"]
        hogs = [subprocess.Popen(line) for _ in range(count)]
        try:
            time.sleep(0.1)
            yield
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()

    return within


def _repeated(
    seconds: float, every: float, begin: Callable[[int], object], end: Callable[[int], object]
) -> Disturbance:
    """An action of a given length, repeated."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        over = threading.Event()

        def run() -> None:
            while not over.wait(every):
                begin(server)
                time.sleep(seconds)
                end(server)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return within


def _stopped(seconds: float, every: float) -> Disturbance:
    return _repeated(
        seconds, every, lambda pid: os.kill(pid, signal.SIGSTOP), lambda pid: os.kill(pid, signal.SIGCONT)
    )


def _frozen(seconds: float, every: float) -> Disturbance:
    """Freeze and thaw the server in its own cgroup (v1): no signal reports this to the server."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        root = Path("/sys/fs/cgroup/freezer")
        group = root / f"hbf-verdict-{os.getpid()}"
        group.mkdir()
        try:
            (group / "cgroup.procs").write_text(str(server))
            frozen = _repeated(
                seconds,
                every,
                lambda _: (group / "freezer.state").write_text("FROZEN"),
                lambda _: (group / "freezer.state").write_text("THAWED"),
            )
            with frozen(server, mount):
                yield
        finally:
            (group / "freezer.state").write_text("THAWED")
            (root / "cgroup.procs").write_text(str(server))
            group.rmdir()

    return within


def _delayed(microseconds: int) -> Disturbance:
    """strace delays each reply before it is sent. It also slows everything else down a little."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        line = ["strace", "-f", "-qq", "-p", str(server), "-o", "/dev/null", "-e", "trace=writev"]
        tracer = subprocess.Popen([*line, "-e", f"inject=writev:delay_enter={microseconds}"])
        try:
            time.sleep(0.3)
            yield
        finally:
            tracer.terminate()
            tracer.wait()

    return within


def _memory(mebibytes: int) -> Disturbance:
    """Another program allocates memory and frees it."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        code = f"while True:\n    taken = bytearray({mebibytes} << 20)"
        hog = subprocess.Popen([sys.executable, "-I", "-c", code])
        try:
            time.sleep(0.1)
            yield
        finally:
            hog.kill()
            hog.wait()

    return within


def _changed(mbps: float) -> Disturbance:
    """Change the tier a moment after reading began."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        def change() -> None:
            (mount / ".hbf/control").write_text(json.dumps({"mbps": mbps}))

        timer = threading.Timer(0.03, change)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    return within


DISTURBANCES: dict[str, dict[str, Disturbance]] = {
    QUIET: {str(number): _nothing() for number in range(8)},
    "hogs": {"1": _hogs(1), "2": _hogs(2), "4": _hogs(4), "8": _hogs(8)},
    "nice-hogs": {"2": _hogs(2, 19), "4": _hogs(4, 19)},
    "stop": {"5 ms": _stopped(0.005, 0.03), "20 ms": _stopped(0.02, 0.05), "100 ms": _stopped(0.1, 0.05)},
    "freeze": {"20 ms": _frozen(0.02, 0.05), "50 ms": _frozen(0.05, 0.05), "200 ms": _frozen(0.2, 0.02)},
    "delay": {f"{us} us": _delayed(us) for us in (25, 50, 100, 250, 1000)},
    "slow-source": {"0.5": _nothing(), "0.9": _nothing(), "1.5": _nothing()},
    "memory": {"500 MiB": _memory(500), "4000 MiB": _memory(4000)},
    "readers": {"2": _nothing(), "4": _nothing(), "16": _nothing(), "64": _nothing()},
    "changed": {"100": _changed(100), "190": _changed(190), "2000": _changed(2000)},
}
"""Disturbances by name and strength. verdict.py makes `readers` and `slow-source` itself."""
