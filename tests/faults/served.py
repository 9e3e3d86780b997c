"""A mount's server in a separate process, watched from outside: its output and its remains."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hbf_fuse.host import mountinfo
from hbf_fuse.mount import client

ENGINES = pytest.mark.parametrize("engine", ["kernel", "fusepy"])
MIB = 1 << 20
SOON = 10.0
"""Seconds, for steps that take less than 2 s on an idle machine. The measured time is kept with the result.
"""

READER = Path(__file__).with_name("steady_reader.py")
END_SECONDS = 20.0


def seconds_until(condition: Callable[[], bool], within: float, what: str) -> float:
    """Seconds until a condition holds; fails if that takes too long."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within, f"not within {within:g} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - begin


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(*command: object) -> None:
    """Run a command that must not fail."""
    line = [str(word) for word in command]
    subprocess.run(line, check=True, capture_output=True, text=True, timeout=30)


def hbf(*arguments: object, timeout: float = 30) -> "subprocess.CompletedProcess[str]":
    """Run `hbf` to its end."""
    line = [sys.executable, "-m", "hbf_fuse", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False)


def start_reader(
    way: str, file: Path, source: Path, passes: int = 0, prefix: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    """A process that reads and compares, see steady_reader.py."""
    command = [sys.executable, "-I", "-S", str(READER), way, str(file), str(source), str(passes)]
    return subprocess.Popen([*prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def seconds_until_ended(readers: "list[subprocess.Popen[str]]") -> float:
    """Wait for readers. All must get an error (SIGBUS for a mapping) and no wrong byte."""
    took = seconds_until(lambda: None not in [reader.poll() for reader in readers], SOON, "an error")
    for reader in readers:
        said = reader.stdout.read() if reader.stdout else ""
        assert reader.returncode in (2, -signal.SIGBUS), said
    return took


def read_right(reader: "subprocess.Popen[str]", within: float = 60) -> None:
    """Wait for a reader that must finish with every byte right."""
    reader.wait(within)
    said = reader.stdout.read() if reader.stdout else ""
    assert reader.returncode == 0, said


@dataclass
class Served:
    """A server in the foreground; its stderr goes to `log`."""

    point: Path
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def file(self) -> Path:
        return self.point / "model.gguf"

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def is_mounted(self) -> bool:
        return mountinfo.find(self.point) is not None

    def is_idle(self) -> bool:
        """Whether no read counts as in flight. A read counts until shortly after its reader has its bytes."""
        return bool(client.read_hidden(self.point, "stats.json")["in_flight"] == 0)

    def is_free(self) -> bool:
        """Whether both the mount and its watcher are gone."""
        return not self.is_mounted() and not _watchers_of(self.point)

    def close(self) -> list[str]:
        """End it in any state, and report problems of its end."""
        problems = []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            problems.append(f"the server did not end within {END_SECONDS:g} s of SIGTERM")
            self.process.kill()
            self.process.wait()
        try:
            seconds_until(self.is_free, 10, "the mountpoint is free")
        except AssertionError:
            problems.append(f"left behind at {self.point}: {_watchers_of(self.point) or 'the mount'}")
            subprocess.run(["umount", "-l", str(self.point)], capture_output=True, check=False)
        if "Traceback" in self.said():
            problems.append(self.said())
        return problems


def start(
    source: Path,
    point: Path,
    log: Path,
    *options: object,
    prefix: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> Served:
    """Start `hbf mount -f`, through `prefix` and with `env` added. It may not answer yet."""
    line = [sys.executable, "-m", "hbf_fuse", "mount", "-f", *map(str, options), str(source), str(point)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*prefix, *line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    return Served(point, process, log)


def wait_until_it_answers(served: Served) -> None:
    """Fails with the server's own words if it ends instead."""

    def begun() -> bool:
        return "is served at" in served.said() or served.process.poll() is not None

    seconds_until(begun, END_SECONDS, "the mount answers")
    assert served.process.poll() is None, served.said()


def _watchers_of(point: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(word.endswith("reaper.py") for word in words) and str(point) in words:
                    found.append(" ".join(words))
    return found
