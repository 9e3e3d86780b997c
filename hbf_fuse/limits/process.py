"""Runs a command in our place: with our terminal, our signals and its exit code."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes, as in shells."""

_SENT_BY_KERNEL = 0x80
"""SI_KERNEL: a signal from the terminal. The command gets it directly. See sigaction(2)."""

_FORWARDED = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}


class CannotStart(HbfError):
    """The program does not exist or cannot be run. exit_code: the exit code of a shell in this case."""

    def __init__(self, what: str, remedy: str, exit_code: int) -> None:
        super().__init__(what, remedy)
        self.exit_code = exit_code


def check(program: str) -> None:
    """Raise CannotStart if the failure can be foreseen."""
    if shutil.which(program):
        return
    if "/" in program and Path(program).is_dir():
        raise CannotStart(f"{program} is a directory", "name a program", NOT_EXECUTABLE)
    if "/" in program and Path(program).exists():
        remedy = f"make it executable with `chmod +x {program}`"
        raise CannotStart(f"{program} is not executable", remedy, NOT_EXECUTABLE)
    raise CannotStart(f"{program} is not found", "name a program on PATH, or its whole path", NOT_FOUND)


@contextmanager
def started(
    line: Sequence[str],
    enter: Callable[[], None],
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that calls `enter` before it begins to run. At the end of the block it is killed if it still
    runs. environment: what the command has besides ours.

    Signals for us are held back during the block: passed_through forwards them.
    """
    # With SIGCHLD ignored, the kernel does not report a child's end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Blocked before the start: no signal gets lost between the two processes.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD})

    def before_exec() -> None:
        linux.die_with_parent()
        enter()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        process = _start(line, before_exec, pass_fds, {**os.environ, **(environment or {})})
        try:
            yield process
        finally:
            process.kill()
            process.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def passed_through(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the command from `started` and forward signals. Returns the exit code as a shell has it."""
    while (code := process.poll()) is None:
        came = signal.sigwaitinfo({*_FORWARDED, signal.SIGCHLD})
        if came.si_signo != signal.SIGCHLD and came.si_code != _SENT_BY_KERNEL:
            process.send_signal(came.si_signo)
    return code if code >= 0 else 128 - code


def _start(
    line: Sequence[str],
    before_exec: Callable[[], None],
    pass_fds: Sequence[int],
    environment: Mapping[str, str],
) -> "subprocess.Popen[bytes]":
    try:
        # No other thread runs yet, so no lock can be held in the child.
        return subprocess.Popen(line, preexec_fn=before_exec, pass_fds=pass_fds, env=environment)  # noqa: PLW1509
    except OSError as error:
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        why = error.strerror or os.strerror(error.errno or 0)
        raise CannotStart(f"cannot run {line[0]}: {why}", "name a program of this machine", code) from error
    except subprocess.SubprocessError as error:
        raise HbfError(
            "the command could not enter its cgroup", "run as root, or try a looser limit"
        ) from error
