"""The few calls that Python does not wrap: mount(2), umount2(2), prctl(2), mincore(2), mallopt(3). And
sd_notify, and what /proc says of a thread or a process.

Each raises OSError with the kernel's errno.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import socket
from pathlib import Path

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MNT_FORCE = 1
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_M_ARENA_MAX = -8

_libc = ctypes.CDLL(None, use_errno=True)


class Descriptor:
    """A descriptor that is closed when nobody has this any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """Mount as mount(2) does."""
    args = (os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_libc.mount(*args), target)


def umount(target: str, flags: int = 0) -> None:
    """Unmount as umount2(2) does; MNT_DETACH hides a busy mount at once and ends it with its last user."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def sharpen_timers() -> None:
    """Let this thread's sleeps end within 1 ns of slack instead of the default 50 us."""
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends, however that happens."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def share_one_heap() -> None:
    """Let all threads of this process allocate from one heap, where the C library (glibc) has more.

    It has eight a core, and each keeps what the largest crowd of threads ever needed of it.
    """
    with contextlib.suppress(AttributeError):
        _libc.mallopt(_M_ARENA_MAX, 1)


def is_dying(thread: int) -> bool:
    """Whether a thread is being killed, as /proc/TID/status shows it (proc(5)); False if hidden from us.

    The kernel gives SIGKILL to all threads of a process that any signal is to end without a core dump.
    """
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            pending = next(int(line[7:], 16) for line in status if line.startswith(b"SigPnd:"))
    except (OSError, StopIteration):
        return False
    return bool(pending & 1 << signal.SIGKILL - 1)


def start_time(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since boot; None if it is dead. See proc_pid_stat(5)."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else int(rest[18])


def pid_namespace() -> int:
    """Which one this process is in: numbers of processes mean something to others in it alone."""
    return Path("/proc/self/ns/pid").stat().st_ino


def tell_supervisor(*lines: str) -> None:
    """Send "READY=1", "STATUS=..." or "STOPPING=1" to whoever supervises this process, as sd_notify(3) does.

    Nothing where nobody does ($NOTIFY_SOCKET is not set); a supervisor that does not listen is no failure.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # An abstract address begins with a zero byte, which no environment variable can hold.
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
        channel.sendto(b"\n".join(os.fsencode(line.replace("\n", "?")) for line in lines), name)


def resident_pages(file: mmap.mmap, offset: int = 0, nbytes: int | None = None) -> bytes:
    """For each page of a file mapped with ACCESS_COPY, 1 if the page cache holds it and 0 if not, as
    mincore(2) says. offset: of whole pages; left out with nbytes: the whole file.

    For a file that the caller neither owns nor may write, the kernel calls every page resident.
    """
    length = len(file) - offset if nbytes is None else min(nbytes, len(file) - offset)
    found = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    start = ctypes.c_char.from_buffer(file)
    try:
        address = ctypes.c_void_p(ctypes.addressof(start) + offset)
        _check(_libc.mincore(address, ctypes.c_size_t(length), found), "mincore")
    finally:
        del start
    # Only the lowest bit of each byte is defined.
    return bytes(found).translate(_EVEN_OR_ODD)


_EVEN_OR_ODD = bytes(value & 1 for value in range(256))
