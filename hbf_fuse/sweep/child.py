"""Child processes that are gone when we are: each in a group of its own, ended whole, however this ends."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

from hbf_fuse import linux


def run_group(
    line: list[str], timeout_seconds: float | None = None, pass_fds: Sequence[int] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run to the end and leave nobody of the group behind, not even if this process is killed.

    Raises OSError or subprocess.TimeoutExpired.
    """
    process = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Ctrl-C is for us: we end the group.
        start_new_session=True,
        pass_fds=pass_fds,
        # Safe beside threads: one system call, nothing imported, no lock that another thread may hold.
        preexec_fn=linux.die_with_parent,  # noqa: PLW1509
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(line, process.returncode, stdout, stderr)
