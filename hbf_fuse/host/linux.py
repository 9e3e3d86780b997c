"""Linux calls that Python does not wrap: mount(2), umount2(2), prctl(2), capset(2), mincore(2), mallopt(3).

Also: opening paths without following links, sd_notify(3), and facts from /proc about a thread, a process or a
descriptor. Failures are OSError with the kernel's errno.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import re
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
"""Flags to open a file for reading. A pipe or a terminal in its place does not block."""

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
OWN_DESCRIPTORS = Path("/proc/self/fd")

# From linux/capability.h.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_NET_BIND_SERVICE = 1, 2, 3, 10
CAP_IPC_LOCK, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_NICE = 14, 19, 21, 23

KEPT_BY_CHILDREN = frozenset({CAP_DAC_OVERRIDE, CAP_IPC_LOCK, CAP_SYS_NICE})
"""What a program that root starts, such as llama-bench, may keep: for its libraries, its model, --mlock,
--prio.
"""

_CAPABILITIES_3 = 0x20080522
_THIS_THREAD = struct.pack("=Ii", _CAPABILITIES_3, 0)
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_TIMERSLACK = 29
_M_ARENA_MAX = -8

_libc = ctypes.CDLL(None, use_errno=True)


class Descriptor:
    """A file descriptor that is closed with the last reference to this object."""

    # When Python ends, `os` may be gone before this object.
    _close = staticmethod(os.close)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        self._close(self.number)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def mount(source: str, directory: int, fstype: str, flags: int, data: str) -> None:
    """Mount as mount(2) does, over the open descriptor `directory`. Its path may have changed meanwhile."""
    target = f"/proc/self/fd/{directory}"
    args = (os.fsencode(source), target.encode(), fstype.encode(), ctypes.c_ulong(flags), os.fsencode(data))
    _check(_libc.mount(*args), target)


def umount(target: str, flags: int = 0) -> None:
    """Unmount as umount2(2) does. MNT_DETACH hides a busy mount at once; it ends with its last user."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def without_links(path: Path) -> Path:
    """The path with its links resolved, as open_unlinked expects it. A path below /proc/self/fd is a
    descriptor of this process and stays as it is.
    """
    return path if is_own_descriptor(path) else path.resolve()


def located(path: Path) -> Path:
    """A path that a person named, with links in its folders resolved. A file that is a link keeps the name
    that it was given. OSError if its folder cannot be reached.
    """
    if is_own_descriptor(path):
        return path
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def is_own_descriptor(path: Path) -> bool:
    return path.parent == OWN_DESCRIPTORS


def open_unlinked(path: Path, flags: int, below: int | None = None) -> int:
    """Open a path from `without_links`. OSError ELOOP if a part of it has become a link since.

    below: an open folder that the path is relative to; / if left out.
    """
    if is_own_descriptor(path):
        return os.open(path, flags | os.O_CLOEXEC)
    folder = _walk(path.parent.parts, frozenset(), below)
    try:
        return os.open(path.name or ".", flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def open_file(path: Path) -> int:
    """Open a regular file for reading; links are followed. OSError EINVAL for anything else."""
    fd = os.open(path, READ)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is not a file", str(path))


def open_folder(path: Path) -> int:
    """Open a folder that a person named; links are followed. Root does not follow the links of untrusted
    users: they must not choose where root goes. OSError ELOOP for such a link.
    """
    if os.geteuid():
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return _walk(path.absolute().parts, _trusted())


class UntrustedLink(OSError):
    """A link of a user who must not choose what this process reads."""


def follow(name: str, below: int, strictly: bool = False) -> int:
    """A descriptor (O_PATH) of what a name in an open folder leads to. Links are followed; root follows those
    of trusted users only, and so does everybody if strictly. UntrustedLink for another user's.
    """
    if os.geteuid() and not strictly:
        return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=below)
    return _follow([name], _trusted(), below)


def may_follow(link: os.stat_result) -> bool:
    """Whether a link may be followed. Root follows only the links of trusted users."""
    return bool(os.geteuid()) or link.st_uid in _trusted()


def _trusted() -> frozenset[int]:
    return frozenset({0, os.geteuid(), _who_called()})


def _who_called() -> int:
    """The user who called sudo(8); root without sudo."""
    caller = os.environ.get("SUDO_UID", "")
    return int(caller) if caller.isdecimal() and len(caller) < 11 else 0


def _walk(parts: Sequence[str], trusted: Collection[int], below: int | None = None) -> int:
    """Open a folder component by component, from / or from `below`. Follows links of trusted users only."""
    folder = _follow(parts, trusted, below)
    try:
        os.close(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder))
    except BaseException:
        os.close(folder)
        raise
    return folder


def _follow(parts: Sequence[str], trusted: Collection[int], below: int | None = None) -> int:
    """The same for what may be anything."""
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
                    kind = OSError if info.st_uid in trusted else UntrustedLink
                    raise kind(errno.ELOOP, os.strerror(errno.ELOOP), leads_to)
                left = [part for part in Path(leads_to).parts if part != "/"] + left
                step = os.open("/", _STEP) if leads_to.startswith("/") else os.dup(folder)
            os.close(folder)
            folder = step
    except BaseException:
        os.close(folder)
        raise
    return folder


def path_of(fd: int) -> Path:
    """The current path of an open descriptor."""
    return Path(f"/proc/self/fd/{fd}").readlink()


def mount_id(fd: int) -> int:
    """The id of the mount that an open descriptor is on."""
    facts = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    return int(facts["mnt_id"])


def sharpen_timers() -> None:
    """Set this thread's timer slack to 1 ns, so that sleeps end on time; the default is 50 us."""
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, for whatever reason."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def give_up_at_exec(kept: bytes) -> None:
    """Limit what this process executes to the capabilities `kept` (see only). no_new_privs keeps it from
    gaining more: neither setuid programs nor being root give back what was dropped (capabilities(7)).
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
    _check(_libc.capset(_THIS_THREAD, kept), "capset")


def only(kept: Collection[int]) -> bytes:
    """This thread's capabilities reduced to `kept`, in the form that capset(2) takes."""
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(_THIS_THREAD, data), "capget")
    words = struct.unpack("=6I", data.raw)
    mask = sum(1 << number for number in kept)
    masks = (mask & 0xFFFFFFFF,) * 3 + (mask >> 32,) * 3
    return struct.pack("=6I", *(word & mask for word, mask in zip(words, masks, strict=True)))


def keep_capabilities(kept: Collection[int]) -> None:
    """Drop all other capabilities: in this thread, in threads that it starts later, and in what these
    execute. Does nothing for a thread without capabilities.
    """
    for capability in range(_last_capability() + 1):
        if capability not in kept:
            _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    _check(_libc.capset(_THIS_THREAD, only(kept)), "capset")


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


class SystemInfo(ctypes.Structure):
    """struct sysinfo of sysinfo(2): what is known without /proc. Sizes in units of mem_unit bytes."""

    _fields_ = (
        ("uptime", ctypes.c_long),
        ("loads", ctypes.c_ulong * 3),
        ("totalram", ctypes.c_ulong),
        ("freeram", ctypes.c_ulong),
        ("sharedram", ctypes.c_ulong),
        ("bufferram", ctypes.c_ulong),
        ("totalswap", ctypes.c_ulong),
        ("freeswap", ctypes.c_ulong),
        ("procs", ctypes.c_ushort),
        ("totalhigh", ctypes.c_ulong),
        ("freehigh", ctypes.c_ulong),
        ("mem_unit", ctypes.c_uint),
        ("reserved", ctypes.c_char * 256),
    )


def sysinfo() -> SystemInfo:
    """As sysinfo(2) tells."""
    found = SystemInfo()
    _check(_libc.sysinfo(ctypes.byref(found)), "sysinfo")
    return found


def share_one_heap() -> None:
    """Let all threads of this process allocate from one heap, if the C library (glibc) has several.

    glibc has eight per core, and each keeps the most memory that its threads ever needed at once.
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


def process_of(thread: int) -> tuple[str, int] | None:
    """The name (comm) and the id of the process that a thread belongs to; None for 0, or if it is dead or
    hidden from us.
    """
    if not thread:
        return None
    try:
        status = Path(f"/proc/{thread}/status").read_bytes()
        pid = next(int(line[5:]) for line in status.splitlines() if line.startswith(b"Tgid:"))
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").removesuffix("\n"), pid
    except (OSError, StopIteration, ValueError):
        return None


def start_time(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since boot; None if it is dead. See proc_pid_stat(5)."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else int(rest[18])


def pid_namespace() -> int:
    """The PID namespace of this process. Process ids are valid only within one."""
    return Path("/proc/self/ns/pid").stat().st_ino


def tracer(pid: int) -> int:
    """The process that traces this one (ptrace(2)), or 0."""
    try:
        said = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^TracerPid:\s+(\d+)$", said, re.MULTILINE)
    return int(found[1]) if found else 0


def tell_supervisor(*lines: str) -> None:
    """Send "READY=1", "STATUS=..." or "STOPPING=1" to the supervisor of this process, as sd_notify(3) does.

    Does nothing without a supervisor ($NOTIFY_SOCKET is not set). A supervisor that does not listen is no
    failure.
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
    mincore(2) says. offset: a multiple of the page size. Without offset and nbytes: the whole file.

    The kernel reports every page as resident if the caller neither owns the file nor may write it.
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
