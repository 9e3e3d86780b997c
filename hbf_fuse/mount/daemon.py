"""Puts a mount into the background. Returns when the mount answers, or raises the background process's error.

Forks first and starts threads after: the server's threads start in the child.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hbf_fuse import signals, streams
from hbf_fuse.errors import HbfError, of_system
from hbf_fuse.mount.server import MountConfig, serve

_READY = "ready\n"
_STDERR = 2


def start(config: MountConfig, tell: Callable[[str], None]) -> str:
    """Serve in a new background process. Returns once the mount answers, with a remark on what is served, or
    "". HbfError if it cannot begin.
    """
    streams.occupy()
    signals.unwatch()
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
    if said:
        raise HbfError(*json.loads(said))
    raise HbfError("the server ended before the mount answered", "try -f to see why")


def _close_all_but(kept: int) -> None:
    """Close inherited descriptors: a lock or a pipe of the calling script must not stay open."""
    os.closerange(_STDERR + 1, kept)
    os.closerange(max(_STDERR, kept) + 1, os.sysconf("SC_OPEN_MAX"))


def _detach() -> None:
    """Leave the parent, but stay in the process group: an automount in progress admits no other group."""
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)


def _run(config: MountConfig, write_end: int, tell: Callable[[str], None]) -> NoReturn:
    """Serve, and tell the waiting parent once: ready, or why not. Never returns."""
    os.set_inheritable(write_end, False)
    told = False

    def answer(message: str) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(write_end, message.encode(errors="backslashreplace"))
            os.close(write_end)

    def refuse(error: HbfError) -> None:
        answer(json.dumps(error.args))

    def when_ready(remark: str) -> None:
        Path(config.mountpoint).stat()
        signals.unwatch()
        # From here on, a terminal's signals do not reach it.
        os.setsid()
        answer(_READY + remark)
        # Remarks go to the parent's terminal only until the mount answers.
        os.dup2(0, 2)

    signals.watch()
    try:
        serve(config, when_ready, tell)
        code = 0
    except HbfError as error:
        refuse(error)
        code = 1
    except OSError as error:
        refuse(of_system(error))
        code = 1
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        refuse(HbfError(f"the server failed ({reason})", "please report it, with what -f prints"))
        code = 1
    sys.stderr.flush()
    os._exit(code)
