"""The few system calls that Python does not wrap: mount(2), umount2(2), prctl(2).

Each raises OSError with the kernel's errno.
"""

import ctypes
import os

MS_NOSUID = 2
MS_NODEV = 4
MNT_DETACH = 2

_PR_SET_TIMERSLACK = 29

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """Mount as mount(2) does."""
    args = (source.encode(), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_libc.mount(*args), target)


def umount(target: str, flags: int = 0) -> None:
    """Unmount as umount2(2) does; MNT_DETACH hides a busy mount at once and ends it with its last user."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def sharpen_timers() -> None:
    """Let this thread's sleeps end within 1 ns of slack instead of the default 50 us."""
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
