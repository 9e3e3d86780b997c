"""A command that stands in for us: its terminal, its signals and its exit code."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes as shells have them."""

_SENT_BY_KERNEL = 0x80
"""SI_KERNEL: a signal of the terminal, which the command gets itself. See sigaction(2)."""

_FORWARDED = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}


class CannotStart(HbfError):
    """There is no such program, or it cannot be run. exit_code: what a shell would end with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check(program: str) -> None:
    """CannotStart, if that can be told beforehand."""
    if shutil.which(program):
        return
    if "/" in program and Path(program).is_dir():
        raise CannotStart(f"{program} is a directory; name a program", NOT_EXECUTABLE)
    if "/" in program and Path(program).exists():
        raise CannotStart(
            f"{program} is not executable; make it so with `chmod +x {program}`", NOT_EXECUTABLE
        )
    raise CannotStart(f"{program} is not found; name a program on PATH, or its whole path", NOT_FOUND)


@contextmanager
def started(
    line: Sequence[str], enter: Callable[[], None], pass_fds: Sequence[int] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that calls `enter` before anything of it runs, killed at the end if it still does then.

    Signals for us are held meanwhile: passed_through hands them on.
    """
    # Whoever ignores this one is not told of a child's end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Held from before the start: no signal falls between the two processes.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD})

    def before_exec() -> None:
        linux.die_with_parent()
        enter()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        process = _start(line, before_exec, pass_fds)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def passed_through(process: "subprocess.Popen[bytes]") -> int:
    """Wait for what `started` yielded, hand on signals, and return the exit code as a shell has it."""
    while (code := process.poll()) is None:
        came = signal.sigwaitinfo({*_FORWARDED, signal.SIGCHLD})
        if came.si_signo != signal.SIGCHLD and came.si_code != _SENT_BY_KERNEL:
            process.send_signal(came.si_signo)
    return code if code >= 0 else 128 - code


def _start(
    line: Sequence[str], before_exec: Callable[[], None], pass_fds: Sequence[int]
) -> "subprocess.Popen[bytes]":
    try:
        # No other thread runs yet, so none can hold a lock that this one needs.
        return subprocess.Popen(line, preexec_fn=before_exec, pass_fds=pass_fds)  # noqa: PLW1509
    except OSError as error:
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        why = error.strerror or os.strerror(error.errno or 0)
        raise CannotStart(f"cannot run {line[0]}: {why}; name a program of this machine", code) from error
    except subprocess.SubprocessError as error:
        raise HbfError(
            "the command could not enter its cgroup; run as root, or try less of a limit"
        ) from error
