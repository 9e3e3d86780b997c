"""Errors for the user: one line with what is wrong and what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_NEEDED = {"/proc/": "mount -t proc proc /proc", "/sys/": "mount -t sysfs sysfs /sys"}
"""What a bare chroot lacks."""


_DESCRIPTORS = "/proc/self/fd/"


class HbfError(Exception):
    """Anything the program cannot do. what: what is wrong. remedy: what to do; empty if `what` says it all.
    The command line prints both in one line and exits with 1.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


@contextmanager
def naming(file: object) -> Iterator[None]:
    """An OSError in the block names this file, unless it names one by its whole path."""
    try:
        yield
    except OSError as error:
        named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        # A descriptor's path says nothing to a person; without /proc, that is what is wrong.
        if named.startswith("/") and not (named.startswith(_DESCRIPTORS) and os.path.exists(_DESCRIPTORS)):
            raise
        code = error.errno if error.errno is not None else errno.EIO
        raise OSError(code, error.strerror or str(error), str(file)) from error


def of_system(error: OSError) -> HbfError:
    """An HbfError for a system error that was not explained closer to its cause."""
    file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if error.errno == errno.ENOENT and not file and error.strerror == os.strerror(errno.ENOENT):
        return HbfError("the current directory is gone", "go to another one (cd)")
    for needed, remedy in _NEEDED.items():
        if file.startswith(needed) and not os.path.exists(f"{needed}{'self' if 'proc' in needed else 'fs'}"):
            return HbfError(f"{needed[:-1]} is not mounted here", f"mount it with `{remedy}`")
    return HbfError(
        f"cannot use {file or 'input or output'}: {error.strerror or error}",
        "docs/troubleshooting.md says where to look",
    )


def of_defect(error: Exception) -> HbfError:
    """An HbfError for what nobody expected: with the place in the code, for a report."""
    # Not at the top: almost no command needs it.
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "hbf_fuse" in frame.filename] or frames
    place = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}" if ours else "an unknown place"
    return HbfError(
        f"a defect of hbf: {type(error).__name__}: {error} ({place})",
        "please report it, with what it prints with HBF_TRACEBACK=1",
    )
