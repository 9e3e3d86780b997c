"""The installed commands, run in a directory of their own, with checks and cleanup after them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
ENGINES = ("kernel", "fusepy")
READER = Path(__file__).parent / "reader.py"
MARK = "HBF_BLACKBOX_MARK"


def wait_until(condition: Callable[[], bool], seconds: float, step: float = 0.05) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step)
    return condition()


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes. The input has one character per byte."""
    return os.fsdecode(text.encode("latin-1").decode("unicode_escape").encode("latin-1"))


def mounts_under(folder: Path) -> list[Path]:
    """Mountpoints at or below a folder, read from the kernel's table without touching them."""
    table = Path("/proc/self/mountinfo").read_text("latin-1")
    points = [Path(_unescape(line.split(" ")[4])) for line in table.split("\n") if line]
    return sorted((point for point in points if point.is_relative_to(folder)), reverse=True)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"exit {self.code} after {self.seconds:.2f} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def fails(self, *words: str) -> str:
        """The one line of a failure: exit 1, `hbf: ` and something readable, no traceback."""
        assert self.code == 1, self
        assert "Traceback" not in self.out + self.err, self
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self
        assert lines[0].startswith("hbf: "), self
        assert sum(char.isalpha() for char in lines[0]) >= 15, self
        for word in words:
            assert word in lines[0], self
        return lines[0]

    def is_wrong_usage(self, *words: str) -> None:
        assert self.code == 2, self
        assert "Traceback" not in self.out + self.err, self
        for word in words:
            assert word in self.err, self

    def succeeds(self) -> Result:
        assert self.code == 0, self
        assert "Traceback" not in self.out + self.err, self
        return self


@dataclass
class Box:
    """The commands in a sandbox: home, cache, config, temporary files and mounts in one folder."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("home", "cache", "config", "tmp", "work"):
            (self.folder / name).mkdir()

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def env(self, **extra: str) -> dict[str, str]:
        left_out = {"HBF_MODEL", "HBF_LLAMA_BENCH"}
        return {
            **{name: value for name, value in os.environ.items() if name not in left_out},
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.cache),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "TMPDIR": str(self.temporary),
            MARK: self.mark,
            **extra,
        }

    def run(
        self, command: str, *args: object, timeout: float = 30, prefix: tuple[str, ...] = (), **env: str
    ) -> Result:
        argv = [*prefix, str(BIN / command), *map(str, args)]
        # Output goes to files: a server in the background could keep pipes open.
        with (self.folder / "out").open("w+") as out, (self.folder / "err").open("w+") as err:
            begin = time.monotonic()
            code = subprocess.run(
                argv,
                env=self.env(**env),
                cwd=self.work,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=timeout,
                check=False,
            ).returncode
            seconds = time.monotonic() - begin
            out.seek(0)
            err.seek(0)
            return Result(code, out.read(), err.read(), seconds)

    def start(self, *argv: object, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(arg) for arg in argv],
            env=self.env(**env),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def mountpoint(self, name: str = "mnt") -> Path:
        point = self.folder / name
        point.mkdir(exist_ok=True)
        return point

    def mount(self, *args: object, at: str = "mnt", **env: Any) -> Path:
        point = self.mountpoint(at)
        self.run("hbf-mount", *args, point, **env).succeeds()
        assert self.is_mounted(point)
        return point

    def mount_in_foreground(self, *args: object, at: str = "mnt") -> tuple[subprocess.Popen[str], Path]:
        point = self.mountpoint(at)
        process = self.start(BIN / "hbf-mount", "-f", *args, point)
        assert wait_until(lambda: self.is_mounted(point) and (point / "model.gguf").exists(), 10)
        return process, point

    def is_mounted(self, point: Path) -> bool:
        return point in mounts_under(self.folder)

    def read(self, file: Path, source: Path) -> Result:
        """Compare a served file with its source in every way of reading (see reader.py), in a process."""
        return self.run("python", "-I", READER, file, source)

    def processes(self) -> dict[int, str]:
        """Running processes that this box started. Zombies do not count: some containers never reap them."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_text(errors="replace").rstrip("\0").replace("\0", " ")
                state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
                ours = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                if state not in "ZX" and (ours or str(self.folder) in command):
                    found[int(entry.name)] = command
        return found

    def watchers(self) -> list[int]:
        return [pid for pid, command in self.processes().items() if "reaper.py" in command]

    def servers(self) -> list[int]:
        return [pid for pid, command in self.processes().items() if "reaper.py" not in command]

    def is_clean(self, seconds: float = 2) -> bool:
        return wait_until(lambda: not self.processes() and not mounts_under(self.folder), seconds)

    def assert_clean(self) -> None:
        """Check that the commands left no mount, no process and no temporary file."""
        assert self.is_clean(), (self.processes(), mounts_under(self.folder))
        assert [path for path in self.temporary.rglob("*") if not path.is_dir()] == []

    def close(self) -> list[str]:
        problems = []
        for process in self.started:
            if process.poll() is None:
                process.kill()
        for point in mounts_under(self.folder):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run("hbf-umount", "--force", point, timeout=10)
        for point in mounts_under(self.folder):
            problems.append(f"hbf-umount --force left {point} mounted")
            for last_way in (["umount", "-l"], ["fusermount3", "-u", "-z"]):
                if self.is_mounted(point):
                    with contextlib.suppress(OSError):
                        subprocess.run([*last_way, str(point)], capture_output=True, timeout=10, check=False)
        if not self.is_clean():
            problems.append(f"left behind: {self.processes()} {mounts_under(self.folder)}")
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=5)
        return problems


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_bytes(file: Path, size: int) -> Path:
    """Write bytes in which no two blocks are equal, the same every time, with the first bytes of a GGUF."""
    out = bytearray(b"GGUF"[:size])
    counter = 0
    while len(out) < size:
        out += hashlib.sha512(counter.to_bytes(8, "little")).digest() * 8
        out += counter.to_bytes(8, "little")
        counter += 1
    file.write_bytes(bytes(out[:size]))
    return file


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_script(file: Path, body: str) -> Path:
    """A llama-bench as a shell script that answers --help and otherwise runs the given lines."""
    file.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--help*) echo "usage: llama-bench"; echo "  -m, --model <file>"; exit 0;; esac\n'
        f"{body}\n"
    )
    file.chmod(0o755)
    return file
