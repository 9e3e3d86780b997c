"""Standard input, output and error as they are found: closed, full, or with nobody who reads."""

import io
import os
import sys
from contextlib import suppress
from typing import Any

_STDERR = 2


def occupy() -> None:
    """Open /dev/null for standard streams that the caller closed: no other file may get their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - as long as the process


class _Output(io.FileIO):
    """Standard output whose errors name it. After the first one, nothing is written there any more."""

    def write(self, data: Any) -> int:
        """As of any file."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            raise OSError(error.errno, error.strerror, "standard output") from error


def name_output() -> None:
    """From now on an error in printing says that it is one."""
    usual = sys.stdout
    own = io.BufferedWriter(_Output(usual.fileno(), "w", closefd=False))
    sys.stdout = io.TextIOWrapper(
        own, encoding=usual.encoding, errors=usual.errors, line_buffering=bool(usual.line_buffering)
    )


def say(line: str) -> None:
    """A line on stderr; nothing if it cannot be written there."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stderr.fileno())
