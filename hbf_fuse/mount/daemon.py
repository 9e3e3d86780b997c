"""Puts a mount into the background: returns when it answers, or raises what went wrong there.

Fork first, threads after: the server's threads start in the child.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hbf_fuse.errors import HbfError, in_one_line
from hbf_fuse.mount.server import MountConfig, serve

_READY = b"ready"


def start(config: MountConfig, tell: Callable[[str], None]) -> None:
    """Serve in a new background process; returns once the mount answers. HbfError if it cannot begin."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _detach()
        _run(config, write_end, tell)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    if said == _READY:
        return
    raise HbfError(
        said.decode(errors="replace") or "the server ended before the mount answered; try -f to see why"
    )


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

    def answer(message: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(write_end, message)
            os.close(write_end)

    def when_ready() -> None:
        Path(config.mountpoint).stat()
        # From here on, no terminal can end it.
        os.setsid()
        answer(_READY)
        # The terminal is the parent's: keep it for remarks only until the mount answers.
        os.dup2(0, 2)

    try:
        serve(config, when_ready, tell)
        code = 0
    except HbfError as error:
        answer(str(error).encode())
        code = 1
    except OSError as error:
        answer(in_one_line(error).encode())
        code = 1
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        answer(f"the server failed ({reason}): please report it, with what -f prints".encode())
        code = 1
    sys.stderr.flush()
    os._exit(code)
