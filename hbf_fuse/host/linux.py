"""The few calls that Python does not wrap: mount(2), umount2(2), prctl(2), capset(2), mincore(2), mallopt(3).
Paths that are opened without following links. And sd_notify, and what /proc says of a thread, a process or
a descriptor.

Each raises OSError with the kernel's errno.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import socket
import stat
import struct
from collections.abc import Collection, Sequence
from pathlib import Path

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""A pipe or a terminal in place of a file is not waited for."""

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
_OWN_DESCRIPTORS = Path("/proc/self/fd")

# Of linux/capability.h.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_NET_BIND_SERVICE = 1, 2, 3, 10
CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_NICE = 14, 21, 23

KEPT_BY_CHILDREN = frozenset({CAP_DAC_OVERRIDE, CAP_IPC_LOCK, CAP_SYS_NICE})
"""By what a command starts as root, such as llama-bench: its libraries, its model, --mlock, --prio."""

_CAPABILITIES_3 = 0x20080522
_THIS_THREAD = struct.pack("=Ii", _CAPABILITIES_3, 0)
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
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


def mount(source: str, directory: int, fstype: str, flags: int, data: str) -> None:
    """Mount over the directory of a descriptor, whatever it is called by now, as mount(2) does."""
    target = f"/proc/self/fd/{directory}"
    args = (os.fsencode(source), target.encode(), fstype.encode(), ctypes.c_ulong(flags), os.fsencode(data))
    _check(_libc.mount(*args), target)


def umount(target: str, flags: int = 0) -> None:
    """Unmount as umount2(2) does; MNT_DETACH hides a busy mount at once and ends it with its last user."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def without_links(path: Path) -> Path:
    """Where a path leads, as open_unlinked takes it. What is below /proc/self/fd is a descriptor of ours, and
    stays one.
    """
    return path if is_own_descriptor(path) else path.resolve()


def is_own_descriptor(path: Path) -> bool:
    return path.parent == _OWN_DESCRIPTORS


def open_unlinked(path: Path, flags: int, below: int | None = None) -> int:
    """Open a path `without_links`, in which no part may be one by now. OSError ELOOP if there is one.

    below: an open folder that the path begins in; without it, in /.
    """
    if is_own_descriptor(path):
        return os.open(path, flags | os.O_CLOEXEC)
    folder = _walk(path.parent.parts, frozenset(), below)
    try:
        return os.open(path.name or ".", flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def open_file(path: Path) -> int:
    """Open a regular file to be read, links and all. OSError EINVAL for anything else."""
    fd = os.open(path, READ)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is not a file", str(path))


def open_folder(path: Path) -> int:
    """A folder that somebody named, links and all; for root, links of strangers aside: who may put one
    where root goes does not decide where that is. OSError ELOOP where one is in the way.
    """
    if os.geteuid():
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return _walk(path.absolute().parts, _trusted())


def may_follow(link: os.stat_result) -> bool:
    """Whether a link may decide where a file is: for root, one of a stranger's may not."""
    return bool(os.geteuid()) or link.st_uid in _trusted()


def _trusted() -> frozenset[int]:
    return frozenset({0, os.geteuid(), _who_called()})


def _who_called() -> int:
    """The user for whom sudo(8) made us root; else root itself."""
    caller = os.environ.get("SUDO_UID", "")
    return int(caller) if caller.isdecimal() and len(caller) < 11 else 0


def _walk(parts: Sequence[str], trusted: Collection[int], below: int | None = None) -> int:
    """Open a folder part by part, from / or an open one, following links of trusted users alone."""
    left, links = [part for part in parts if part != "/"], 0
    folder = os.open("/", _STEP) if below is None else os.dup(below)
    try:
        while left:
            step = os.open(left.pop(0), _STEP, dir_fd=folder)
            info = os.fstat(step)
            if stat.S_ISLNK(info.st_mode):
                links += 1
                leads_to = os.readlink("", dir_fd=step)
                os.close(step)
                if info.st_uid not in trusted or links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), leads_to)
                left = [part for part in Path(leads_to).parts if part != "/"] + left
                step = os.open("/", _STEP) if leads_to.startswith("/") else os.dup(folder)
            os.close(folder)
            folder = step
        os.close(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder))
    except BaseException:
        os.close(folder)
        raise
    return folder


def path_of(fd: int) -> Path:
    """What is open, by its name of this moment."""
    return Path(f"/proc/self/fd/{fd}").readlink()


def mount_id(fd: int) -> int:
    """Of the mount that what is open lies on."""
    facts = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    return int(facts["mnt_id"])


def sharpen_timers() -> None:
    """Let this thread's sleeps end within 1 ns of slack instead of the default 50 us."""
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends, however that happens."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def give_up_at_exec(kept: bytes) -> None:
    """What this process executes has no capabilities but `kept` (see only), and gains none: not by setuid
    programs, and not by being root's, which no_new_privs keeps from what it gave up before (capabilities(7)).
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
    _check(_libc.capset(_THIS_THREAD, kept), "capset")


def only(kept: Collection[int]) -> bytes:
    """The capabilities of this thread, without all others, as capset(2) takes them."""
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(_THIS_THREAD, data), "capget")
    words = struct.unpack("=6I", data.raw)
    mask = sum(1 << number for number in kept)
    masks = (mask & 0xFFFFFFFF,) * 3 + (mask >> 32,) * 3
    return struct.pack("=6I", *(word & mask for word, mask in zip(words, masks, strict=True)))


def keep_capabilities(kept: Collection[int]) -> None:
    """Give up all others, in this thread and those that it starts later, and in what these execute. Nothing
    to do for who has none.
    """
    for capability in range(_last_capability() + 1):
        if capability not in kept:
            _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    _check(_libc.capset(_THIS_THREAD, only(kept)), "capset")


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


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
