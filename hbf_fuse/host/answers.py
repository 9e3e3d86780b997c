"""Questions to file systems that may never answer: a FUSE mount whose server is stuck, a network.

A process that waits for one takes no signal, and mostly cannot even be killed. So another process asks.
"""

import json
import os
import select
import signal
import stat
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux, mountinfo

ANSWER_SECONDS = 5.0
"""How long a mount may take to answer before it counts as stuck. A live one takes about 1 ms."""

_PIECE = 1 << 20
_MOST_LINKS = 40
"""As Linux follows them."""

_OTHERS = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "autofs", "virtiofs")
"""How the types of file systems begin that wait for a server."""

_SAID, _FAILED = b"+", b"-"
_left: set[int] = set()
"""Processes that have asked and not been waited for: even their end may wait for the mount."""


class NoAnswer(HbfError):
    """The mount is there, but its server does not answer."""


def answer(path: Path, question: Callable[[], bytes], patience: float = ANSWER_SECONDS) -> bytes:
    """What a question about a path returns, or its OSError. NoAnswer after `patience` seconds.

    Where a mount on the way may never answer, the question is asked in a copy of this process that shares no
    open file with it: what it changes in memory is lost.
    """
    if not _meets_a_server(path.absolute()):
        return question()
    _reap()
    end, pipe = os.pipe()
    with warnings.catch_warnings():
        # The copy calls nothing that another thread could have locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        asking = os.fork()
    if asking == 0:
        _ask(question, pipe)
    _left.add(asking)
    try:
        os.close(pipe)
        said = _received(end, patience)
    finally:
        os.close(end)
        if asking in _left:
            with suppress(ProcessLookupError):
                os.kill(asking, signal.SIGKILL)
        _reap()
    if said is None:
        raise _silent(path)
    if said[:1] == _FAILED:
        raise OSError(*json.loads(said[1:]))
    if said[:1] != _SAID:
        raise OSError(f"the question about {path} was not answered")
    return said[1:]


def require(path: Path) -> None:
    """NoAnswer if nothing can be known of a path, or read there, because a mount on the way is stuck. That
    there is nothing, or nothing to be read, is an answer, too.
    """
    path = path.absolute()
    # Else nothing is touched: what is to stay out of the page cache does.
    if _meets_a_server(path):
        answer(path, lambda: _look(path))


def _look(path: Path) -> bytes:
    with suppress(OSError):
        _glance(path)
    return b""


def _meets_a_server(path: Path) -> bool:
    """Whether a file system that waits for a server lies on the way to a path, links followed. A name is
    looked at only when no such mount lies above it.
    """
    try:
        waiting = {mount.mountpoint for mount in mountinfo.mounts() if mount.fstype.startswith(_OTHERS)}
    except (OSError, ValueError):
        return True
    if Path("/") in waiting:
        return True
    at, left = Path("/"), list(reversed(path.parts[1:]))
    links = _MOST_LINKS
    while left and links and waiting:
        part = left.pop()
        at = at.parent if part == ".." else at / part
        if at in waiting:
            return True
        with suppress(OSError):
            target = at.readlink()
            links -= 1
            at = Path("/") if target.is_absolute() else at.parent
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    return not links


def _glance(path: Path) -> None:
    """What any command begins with: it is found, its mount answers, and a first byte or name is read. Where
    nothing is, that is asked of the folder.
    """
    try:
        found = linux.follow(path.name or ".", linux.open_folder(path.parent))
    except FileNotFoundError:
        _glance(path.parent)
        return
    kind = os.fstat(found).st_mode
    again = f"/proc/self/fd/{found}"
    os.statvfs(again)
    if stat.S_ISDIR(kind):
        with os.scandir(again) as entries:
            next(entries, None)
    elif stat.S_ISREG(kind):
        fd = os.open(again, linux.READ)
        # Of a file that is to stay out of the page cache, one page is enough.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(fd, 1, 0)


def _ask(question: Callable[[], bytes], pipe: int) -> None:
    """Ask in this process, write the answer into the pipe, and end."""
    try:
        # A lock or a pipe must not stay open as long as this process waits.
        os.closerange(0, pipe)
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
        try:
            said = memoryview(_SAID + question())
        except OSError as error:
            told = error.errno, error.strerror or str(error), error.filename and os.fsdecode(error.filename)
            said = memoryview(_FAILED + json.dumps(told[: 3 if told[2] else 2]).encode())
        while said:
            said = said[os.write(pipe, said) :]
    finally:
        os._exit(0)


def _received(pipe: int, patience: float) -> bytes | None:
    """All that comes until the other end closes; None if that takes too long."""
    give_up = time.monotonic() + patience
    received = bytearray()
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    while waiting.poll(max(0.0, give_up - time.monotonic()) * 1000):
        if not (piece := os.read(pipe, _PIECE)):
            return bytes(received)
        received += piece
    return None


def _reap() -> None:
    for asking in list(_left):
        with suppress(ChildProcessError):
            if os.waitpid(asking, os.WNOHANG)[0] == 0:
                continue
        _left.discard(asking)


def _silent(path: Path) -> NoAnswer:
    """For a path whose mount is stuck. No mount is asked for this."""
    mount = None
    with suppress(OSError):
        mount = mountinfo.above(path)
    if mount is not None and mount.fstype == mountinfo.FSTYPE:
        return NoAnswer(
            f"{mount.mountpoint} does not answer: its server is suspended or stuck",
            f"let it go on with `kill -CONT`, or end the mount with `hbf-umount --force {mount.mountpoint}`",
        )
    if mount is not None and mount.fstype.startswith(_OTHERS):
        return NoAnswer(
            f"{path} does not answer: {mount.mountpoint} ({mount.fstype}) is stuck",
            f"bring its server back, or end it with `umount --force --lazy {mount.mountpoint}`",
        )
    return NoAnswer(
        f"{path} does not answer: a mount on the way there is stuck",
        "bring its server back, or use another place",
    )
