"""Child processes that are gone when we are: each in a group of its own, ended whole, however this ends."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, TextIO

from hbf_fuse import signals
from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.units import format_size

_LOOK_MS = 100
_LISTEN_SECONDS = 2.0

MAX_SAID_BYTES = 16 << 20
"""On stdout, and on stderr: a llama-bench says some kilobytes."""

_MAX_LINE, _LINE_COSTS = 4096, 128


class Watch(Protocol):
    """Who wants to know more of a process than its exit code."""

    def look(self, pid: int) -> None:
        """Called every 100 ms while it runs."""

    def ended(self, pid: int) -> None:
        """Called when it has ended, before it is waited for: the kernel's counters still have it."""


@dataclass
class Ended:
    """A process that has ended. lines: what it said on stderr, each with when (CLOCK_MONOTONIC, ns)."""

    returncode: int = -1
    wall_seconds: float = 0.0
    stdout: str = ""
    lines: list[tuple[int, str]] = field(default_factory=list)

    @property
    def stderr(self) -> str:
        return "".join(line for _, line in self.lines)


def run_group(
    line: list[str],
    timeout_seconds: float | None = None,
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
    enter: Callable[[], None] | None = None,
    require: Callable[[], None] | None = None,
    unprivileged: bool = False,
) -> Ended:
    """Run to the end and leave nobody of the group behind, not even if this process is killed.

    enter: called by the child before anything of it runs; system calls only, for it may run beside threads.
    require: called every 100 ms while it runs; what it raises ends the run.
    unprivileged: of what root may do, it may do what linux.KEPT_BY_CHILDREN names.
    Raises OSError, subprocess.TimeoutExpired, or HbfError if it talks without end.
    """
    ended = Ended()
    read_end, write_end = os.pipe()
    with (
        os.fdopen(read_end, errors="replace") as pipe,
        os.fdopen(write_end, "wb") as their_end,
        tempfile.TemporaryFile("w+", errors="replace") as said,
    ):
        begin = time.monotonic()
        listener = threading.Thread(target=_listen, args=(pipe, ended.lines), daemon=True)
        listener.start()
        with contextlib.ExitStack() as at_end:
            # Who has left the group may hold our pipe for as long as it likes.
            at_end.callback(listener.join, _LISTEN_SECONDS)
            # Interrupted between its start and the note of it, it would be left behind.
            with signals.deferred(), their_end:
                process = _start(line, pass_fds, said, their_end, enter, unprivileged)
                at_end.callback(_end_group, process)
            _await_end(
                process,
                timeout_seconds,
                watch,
                [_require_brevity(line[0], said), *([require] if require else [])],
            )
            ended.wall_seconds = time.monotonic() - begin
            if watch:
                watch.ended(process.pid)
        said.seek(0)
        ended.stdout = said.read(MAX_SAID_BYTES)
    ended.returncode = process.returncode
    return ended


def _start(
    line: list[str],
    pass_fds: Sequence[int],
    stdout: IO[str],
    stderr: IO[bytes],
    enter: Callable[[], None] | None,
    unprivileged: bool,
) -> "subprocess.Popen[bytes]":
    kept = linux.only(linux.KEPT_BY_CHILDREN) if unprivileged else b""

    def before_exec() -> None:
        linux.die_with_parent()
        if enter:
            enter()
        if unprivileged:
            linux.give_up_at_exec(kept)

    return subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        # Ctrl-C is for us: we end the group.
        start_new_session=True,
        pass_fds=pass_fds,
        # Safe beside threads: system calls, nothing imported, no lock that another thread may hold.
        preexec_fn=before_exec,  # noqa: PLW1509
    )


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _await_end(
    process: "subprocess.Popen[bytes]",
    timeout_seconds: float | None,
    watch: Watch | None,
    requirements: Sequence[Callable[[], None]],
) -> None:
    """Return at the moment when it ends, without waiting for it as wait(2) does."""
    give_up = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    fd = os.pidfd_open(process.pid)
    try:
        end = select.poll()
        end.register(fd, select.POLLIN)
        while not end.poll(_LOOK_MS):
            if watch:
                watch.look(process.pid)
            for require in requirements:
                require()
            if give_up is not None and timeout_seconds is not None and time.monotonic() > give_up:
                raise subprocess.TimeoutExpired(process.args, timeout_seconds)
    finally:
        os.close(fd)


def _require_brevity(program: str, said: IO[str]) -> Callable[[], None]:
    def require() -> None:
        if os.fstat(said.fileno()).st_size > MAX_SAID_BYTES:
            name = Path(program).name
            raise HbfError(
                f"{name} printed more than {format_size(MAX_SAID_BYTES)}, which is no result; use another"
            )

    return require


def _listen(pipe: TextIO, lines: list[tuple[int, str]]) -> None:
    """What is said beyond MAX_SAID_BYTES is read and forgotten."""
    left = MAX_SAID_BYTES
    while line := pipe.readline(_MAX_LINE):
        left -= len(line) + _LINE_COSTS
        if left > 0:
            lines.append((time.monotonic_ns(), line))
