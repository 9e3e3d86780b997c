"""Child processes that never outlive this one: each has its own process group, which is ended as a whole."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, TextIO

from hbf_fuse import signals
from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.units import format_size

LOOK_MS = 100
NO_VARIABLES: Mapping[str, str] = {}
_LISTEN_SECONDS = 2.0

MAX_SAID_BYTES = 16 << 20
"""Output limit for stdout and for stderr: llama-bench prints some kilobytes."""

_MAX_LINE, _LINE_COSTS = 4096, 128


class Watch(Protocol):
    """An observer of a process."""

    def look(self, pid: int) -> None:
        """Called at every look while it runs, each 100 ms."""

    def ended(self, pid: int) -> None:
        """Called after it has ended and before wait(2): the kernel still has its counters."""


@dataclass
class Ended:
    """A process that has ended. lines: its stderr, each line with its time (CLOCK_MONOTONIC, ns)."""

    returncode: int = -1
    wall_seconds: float = 0.0
    stdout: str = ""
    lines: list[tuple[int, str]] = field(default_factory=list)

    @property
    def stderr(self) -> str:
        return "".join(line for _, line in self.lines)


@dataclass
class Group:
    """A process that runs, with all that it starts. ended: filled in as far as it is known."""

    process: "subprocess.Popen[bytes]"
    ended: Ended
    pidfd: int
    watch: Watch | None
    requirements: Sequence[Callable[[], None]]

    def look(self, wait_ms: int = 0) -> bool:
        """Whether it still runs after that time. Calls the watch and what is required; what that raises goes
        to the caller.
        """
        end = select.poll()
        end.register(self.pidfd, select.POLLIN)
        if end.poll(wait_ms):
            return False
        if self.watch:
            self.watch.look(self.process.pid)
        for require in self.requirements:
            require()
        return True

    def terminate(self, patience_seconds: float) -> None:
        """Ask it to end and wait so long; the end of `running` kills what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        give_up = time.monotonic() + patience_seconds
        while self.look(LOOK_MS) and time.monotonic() < give_up:
            pass


def run_group(
    line: list[str],
    timeout_seconds: float | None = None,
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
    enter: Callable[[], None] | None = None,
    require: Callable[[], None] | None = None,
    unprivileged: bool = False,
    environment: Mapping[str, str] = NO_VARIABLES,
) -> Ended:
    """Run to the end. See `running`. Raises subprocess.TimeoutExpired, too."""
    with running(line, pass_fds, watch, enter, require, unprivileged, environment) as group:
        give_up = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while group.look(LOOK_MS):
            if give_up is not None and timeout_seconds is not None and time.monotonic() > give_up:
                raise subprocess.TimeoutExpired(line, timeout_seconds)
    return group.ended


@contextmanager
def running(
    line: list[str],
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
    enter: Callable[[], None] | None = None,
    require: Callable[[], None] | None = None,
    unprivileged: bool = False,
    environment: Mapping[str, str] = NO_VARIABLES,
) -> Iterator[Group]:
    """Run for a `with` block. No process of the group remains after it, not even if this process is killed.

    enter: called in the child before the program runs; system calls only, since other threads may run here.
    require: called at every look; what it raises ends the run.
    unprivileged: drop all of root's capabilities except linux.KEPT_BY_CHILDREN.
    environment: variables besides those that this process has.
    Raises OSError, or HbfError if it prints without end.
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
            # A process that has left the group may keep our pipe open for any time.
            at_end.callback(listener.join, _LISTEN_SECONDS)
            # A signal here would leak the process.
            with signals.deferred(), their_end:
                process = _start(line, pass_fds, said, their_end, enter, unprivileged, environment)
                at_end.callback(_end_group, process)
            pidfd = os.pidfd_open(process.pid)
            at_end.callback(os.close, pidfd)
            requirements = [_require_brevity(line[0], said), *([require] if require else [])]
            group = Group(process, ended, pidfd, watch, requirements)
            yield group
            ended.wall_seconds = time.monotonic() - begin
            # Not reaped yet, as by wait(2): the kernel still has its counters.
            if watch and not group.look():
                watch.ended(process.pid)
        said.seek(0)
        ended.stdout = said.read(MAX_SAID_BYTES)
    ended.returncode = process.returncode


def _start(
    line: list[str],
    pass_fds: Sequence[int],
    stdout: IO[str],
    stderr: IO[bytes],
    enter: Callable[[], None] | None,
    unprivileged: bool,
    environment: Mapping[str, str],
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
        # Ctrl-C must reach only this process, which ends the group.
        start_new_session=True,
        pass_fds=pass_fds,
        env={**os.environ, **environment},
        # Safe with other threads: system calls only, no import, no lock that another thread may hold.
        preexec_fn=before_exec,  # noqa: PLW1509
    )


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _require_brevity(program: str, said: IO[str]) -> Callable[[], None]:
    def require() -> None:
        if os.fstat(said.fileno()).st_size > MAX_SAID_BYTES:
            name = Path(program).name
            raise HbfError(
                f"{name} printed more than {format_size(MAX_SAID_BYTES)}, which is not a result",
                "use another",
            )

    return require


def _listen(pipe: TextIO, lines: list[tuple[int, str]]) -> None:
    """Keep lines up to MAX_SAID_BYTES; read and drop the rest."""
    left = MAX_SAID_BYTES
    while line := pipe.readline(_MAX_LINE):
        left -= len(line) + _LINE_COSTS
        if left > 0:
            lines.append((time.monotonic_ns(), line))
