"""Child processes that are gone when we are: each in a group of its own, ended whole, however this ends."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from hbf_fuse import linux


@dataclass
class Ended:
    """A process that has ended. lines: what it said on stderr, each with when (CLOCK_MONOTONIC, ns)."""

    returncode: int = -1
    stdout: str = ""
    lines: list[tuple[int, str]] = field(default_factory=list)

    @property
    def stderr(self) -> str:
        return "".join(line for _, line in self.lines)


def run_group(line: list[str], timeout_seconds: float | None = None, pass_fds: Sequence[int] = ()) -> Ended:
    """Run to the end and leave nobody of the group behind, not even if this process is killed.

    Raises OSError or subprocess.TimeoutExpired.
    """
    ended = Ended()
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, errors="replace") as pipe:
        try:
            process = _start(line, pass_fds, write_end)
        finally:
            os.close(write_end)
        listener = threading.Thread(target=_listen, args=(pipe, ended.lines), daemon=True)
        listener.start()
        try:
            ended.stdout, _ = process.communicate(timeout=timeout_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            listener.join()
    ended.returncode = process.returncode
    return ended


def _start(line: list[str], pass_fds: Sequence[int], stderr: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        # Ctrl-C is for us: we end the group.
        start_new_session=True,
        pass_fds=pass_fds,
        # Safe beside threads: one system call, nothing imported, no lock that another thread may hold.
        preexec_fn=linux.die_with_parent,  # noqa: PLW1509
    )


def _listen(pipe: TextIO, lines: list[tuple[int, str]]) -> None:
    for line in pipe:
        lines.append((time.monotonic_ns(), line))
