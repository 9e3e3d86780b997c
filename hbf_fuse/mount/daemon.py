"""Puts a mount into the background: returns when it answers, or raises what went wrong there.

Fork first, threads after: the server's threads start in the child.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hbf_fuse.errors import HbfError, in_one_line
from hbf_fuse.mount.server import MountConfig, serve

_READY = "ready\n"
_STDERR = 2


def start(config: MountConfig, tell: Callable[[str], None]) -> str:
    """Serve in a new background process; returns once the mount answers, with a remark on what is served or
    "". HbfError if it cannot begin.
    """
    _occupy_standard_streams()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _detach()
        _close_all_but(write_end)
        _run(config, write_end, tell)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, errors="replace") as pipe:
        said = pipe.read()
    if said.startswith(_READY):
        return said.removeprefix(_READY)
    raise HbfError(said or "the server ended before the mount answered; try -f to see why")


def _occupy_standard_streams() -> None:
    """Whoever started us may have closed some of them: nothing else may come to lie there."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)


def _close_all_but(kept: int) -> None:
    """Close what was inherited: a lock or a pipe of the script that called is not ours to keep."""
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        # One of these was only there to be listed.
        if fd > _STDERR and fd != kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def _detach() -> None:
    """Become nobody's child, but stay in the process group: no other may enter an automount meanwhile."""
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)


def _run(config: MountConfig, write_end: int, tell: Callable[[str], None]) -> NoReturn:
    """Serve, telling the waiting parent one thing: ready, or why not. Never returns into its caller."""
    os.set_inheritable(write_end, False)
    told = False

    def answer(message: str) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(write_end, message.encode(errors="backslashreplace"))
            os.close(write_end)

    def when_ready(remark: str) -> None:
        Path(config.mountpoint).stat()
        # From here on, no terminal can end it.
        os.setsid()
        answer(_READY + remark)
        # The terminal is the parent's: keep it for remarks only until the mount answers.
        os.dup2(0, 2)

    try:
        serve(config, when_ready, tell)
        code = 0
    except HbfError as error:
        answer(str(error))
        code = 1
    except OSError as error:
        answer(in_one_line(error))
        code = 1
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        answer(f"the server failed ({reason}): please report it, with what -f prints")
        code = 1
    sys.stderr.flush()
    os._exit(code)
