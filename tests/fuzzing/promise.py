"""The promise for any input: a valid object or one line of the project's own, in bounded time."""

import functools
import linecache
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hbf_fuse
from hbf_fuse.errors import HbfError

MAX_SECONDS = 1.0
"""CPU time that an input may cost."""

_PACKAGE = str(Path(hbf_fuse.__file__).parent)


@dataclass(frozen=True)
class Target:
    """Code that reads input of others. run: takes any bytes and raises if a promise is broken.
    seeds: valid inputs from real data.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def check(target: Target, data: bytes, seconds: float = MAX_SECONDS) -> None:
    """Run a target, and check its CPU time."""
    begin = time.thread_time()
    target.run(data)
    spent = time.thread_time() - begin
    assert spent < seconds, f"{spent:.1f} s of CPU time for {len(data)} bytes"


def accepted(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call, or None if it refused with one line of the project's own. Other errors are
    raised.
    """
    try:
        return call(*arguments)
    except OSError as error:
        # The command line names the file and the reason; see cli.common.guarded.
        assert error.strerror
    except Exception as error:
        if not _is_ours(error):
            raise
        assert str(error).strip()
    return None


def _is_ours(error: Exception) -> bool:
    """Whether an error was written for users: an HbfError, or a ValueError that our code raises."""
    if isinstance(error, HbfError):
        return True
    where = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(where.filename, where.lineno or 0).strip()
    return isinstance(error, ValueError) and where.filename.startswith(_PACKAGE) and line.startswith("raise ")


def scratch() -> Path:
    """A folder for this process, removed at its end."""
    return Path(_folder().name)


def file_of(name: str, content: bytes) -> Path:
    """A file in it."""
    path = scratch() / name
    path.write_bytes(content)
    return path


@functools.cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="hbf-fuzz-", dir=os.environ.get("TMPDIR") or memory())


def memory() -> str | None:
    """A folder in memory, if there is one: many runs are written, each with an fsync."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
