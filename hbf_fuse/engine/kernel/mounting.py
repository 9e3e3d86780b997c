"""A mountpoint and its /dev/fuse descriptor: mount(2) as root, fusermount3 as any other user."""

import array
import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.host.mountinfo import FSTYPE, Mount, by_number, find

DEVICE = "/dev/fuse"
FUSE_CONF = Path("/etc/fuse.conf")
CONFINEMENT = Path("/etc/apparmor.d/fusermount3")
"""AppArmor's profile of fusermount3, in Ubuntu 25.04 and newer."""
MAX_REQUEST = 1 << 20
_MOVED_TIMES = 20
_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def mount(mountpoint: Path, directory: int, allow_other: bool, source: Path) -> "tuple[int, Placed]":
    """Mount over a directory. Returns the descriptor for requests, and the mount. HbfError says what is
    missing.

    directory: the open directory of the mountpoint; its path may have changed meanwhile. source: the name in
    mount tables, by which `mount -a` recognises what is mounted already.
    """
    if not Path(DEVICE).exists():
        raise HbfError(
            f"there is no {DEVICE}", f"load it with `modprobe fuse`; a container needs --device {DEVICE}"
        )
    options = ["default_permissions", f"max_read={MAX_REQUEST}", *(["allow_other"] if allow_other else [])]
    if os.geteuid() == 0:
        return _mount_as_root(mountpoint, directory, options, source)
    return _mount_as_user(mountpoint, [*options, f"fsname={escaped(source)}"]), Placed.at(mountpoint)


def escaped(source: Path) -> str:
    """A path as libfuse and fusermount3 expect it in a list of options."""
    return str(source).replace("\\", "\\\\").replace(",", "\\,")


def unmount(mount: Mount, lazy: bool = False) -> None:
    """End a mount. OSError: EBUSY if it is in use and lazy is off, EINVAL if it is not where it was, EPERM if
    it is another user's.
    """
    if os.geteuid() == 0:
        _umount(mount, linux.MNT_DETACH if lazy else 0)
        return
    command = [_fusermount(), "-u", *(["-z"] if lazy else []), "--", str(mount.mountpoint)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        denied = errno.EINVAL if _is_free(mount.mountpoint) else errno.EPERM
        code = errno.EBUSY if "busy" in result.stderr else denied
        raise OSError(code, os.strerror(code), str(mount.mountpoint))


def _umount(mount: Mount, flags: int) -> None:
    """Unmount this mount only, even if another user replaces folders meanwhile: the mountpoint itself cannot
    be renamed, and its parent is held open.
    """
    point = mount.mountpoint
    folder = linux.open_unlinked(point.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        if _number_at(folder, point.name) != mount.number:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(point))
        linux.umount(f"/proc/self/fd/{folder}/{point.name}", linux.UMOUNT_NOFOLLOW | flags)
    finally:
        os.close(folder)


def _is_free(mountpoint: Path) -> bool:
    """Whether nothing is mounted there. If that cannot be checked (dead mount, or another user's), it is
    mounted.
    """
    try:
        return os.lstat(mountpoint).st_dev == os.lstat(mountpoint.parent).st_dev
    except OSError:
        return False


def abort(mount: Mount) -> None:
    """End all requests with an error if the server does not answer.

    Root uses umount2(2); other users the kernel's control file, where that is mounted.
    """
    with contextlib.suppress(OSError):
        if os.geteuid() == 0:
            _umount(mount, linux.MNT_FORCE)
        else:
            number = mount.device.partition(":")[2]
            Path(f"/sys/fs/fuse/connections/{number}/abort").write_text("1")


class Placed:
    """A mount that was just made, to be ended later. It is known by its id: its path may hold another mount
    by then.
    """

    def __init__(self, number: int) -> None:
        """number: the mount's id."""
        self.number = number
        found = by_number(number)
        self._known_by = (found.device, found.source) if found else ()

    @classmethod
    def at(cls, mountpoint: Path) -> "Placed":
        """The mount on a path. mountpoint: without links, as mount tables name it."""
        found = find(mountpoint)
        return cls(found.number if found else 0)

    def unmount(self, lazy: bool) -> None:
        """See unmount_or_explain. Does nothing if the mount has ended, was detached, or is under another
        mount.

        A folder above it may have been renamed meanwhile.
        """
        for _ in range(_MOVED_TIMES):
            found = by_number(self.number)
            # The kernel reuses ids, and devices.
            if not found or (found.device, found.source) != self._known_by:
                return
            # False if it is under another mount, or was moved between the two look-ups.
            if find(found.mountpoint) == found:
                unmount_or_explain(found, lazy)
                return


def unmount_or_explain(mount: Mount, lazy: bool = False) -> None:
    """End a mount if it exists, wherever it was moved to. HbfError says what keeps it."""
    for _ in range(_MOVED_TIMES):
        if _is_unmounted(mount, lazy):
            return
        left = by_number(mount.number)
        # The kernel gives id and device of an ended mount to the next one, which may be anybody's.
        if left is None or (left.device, left.source) != (mount.device, mount.source):
            return
        mount = left
    raise HbfError(
        f"{mount.mountpoint} keeps moving while it is being unmounted",
        "end the program that moves it, and try again",
    )


def _is_unmounted(mount: Mount, lazy: bool) -> bool:
    """Whether the mount was ended; False if it is not where it was. HbfError says what keeps it."""
    try:
        unmount(mount, lazy)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise HbfError(
                f"{mount.mountpoint} is in use", "end its users, or unmount with --force"
            ) from error
        if error.errno == errno.EPERM:
            raise HbfError(f"cannot unmount {mount.mountpoint}: only its owner or root can") from error
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ELOOP):
            raise HbfError(f"cannot unmount {mount.mountpoint}: {error.strerror}") from error
        return False
    return True


def _mount_as_root(
    mountpoint: Path, directory: int, options: list[str], source: Path
) -> "tuple[int, Placed]":
    fd = _open_device()
    mode = stat.S_IFMT(os.fstat(directory).st_mode)
    data = ",".join([f"fd={fd},rootmode={mode:o},user_id=0,group_id=0", *options])
    try:
        linux.mount(str(source), directory, FSTYPE, _FLAGS, data)
    except OSError as error:
        os.close(fd)
        raise HbfError(f"cannot mount on {mountpoint}: {error.strerror}", _mount_advice(error)) from error
    return fd, Placed(_number_above(directory))


def _number_above(directory: int) -> int:
    """The id of the mount over an open directory. A mountpoint cannot be renamed; its parent folder can."""
    folder = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    try:
        return _number_at(folder, linux.path_of(directory).name)
    finally:
        os.close(folder)


def _number_at(folder: int, name: str) -> int:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        return linux.mount_id(fd)
    finally:
        os.close(fd)


def require_user_allow_other() -> None:
    """HbfError if this user may not let others in. If /etc/fuse.conf cannot be read, fusermount3 decides."""
    if os.geteuid() == 0:
        return
    try:
        lines = FUSE_CONF.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except OSError:
        return
    if "user_allow_other" not in (line.strip() for line in lines):
        raise HbfError(f"--allow-other needs the line user_allow_other in {FUSE_CONF}", "root can add it")


def explain_closed_device(mountpoint: Path) -> None:
    """HbfError if this user may not open the device. Then the mount failed for that reason: fusermount3 opens
    it as the calling user.
    """
    if os.geteuid() != 0 and Path(DEVICE).exists() and not os.access(DEVICE, os.R_OK | os.W_OK):
        raise HbfError(
            f"cannot mount on {mountpoint}: {DEVICE} is closed to you",
            f"open it to all, as udev does, with `chmod 666 {DEVICE}` as root, or mount as root",
        )


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HbfError(f"cannot open {DEVICE}: {error.strerror}", _device_advice(error)) from error


def _device_advice(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"even root may not: a container needs --device {DEVICE}, a systemd unit DeviceAllow={DEVICE}"
    return "load the module with `modprobe fuse`"


def _mount_advice(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "root lacks CAP_SYS_ADMIN here: a container needs --cap-add SYS_ADMIN"
    if error.errno == errno.ENODEV:
        return "load the module with `modprobe fuse`"
    return "use another directory"


def _fusermount() -> str:
    path = shutil.which("fusermount3")
    if path is None:
        raise HbfError(
            "mounts without root need fusermount3", "install it with `apt install fuse3`, or do this as root"
        )
    return path


def _mount_as_user(mountpoint: Path, options: list[str]) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        command = [_fusermount(), "-o", ",".join([*options, "subtype=hbf", "nosuid", "nodev", "noexec"])]
        result = subprocess.run(
            [*command, "--", str(mountpoint)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
        theirs.close()
        fd = _receive_descriptor(ours) if result.returncode == 0 else None
    if fd is None:
        explain_closed_device(mountpoint)
        said = result.stderr.strip().removeprefix(f"{command[0]}: ") or f"exit code {result.returncode}"
        raise HbfError(f"cannot mount on {mountpoint}: fusermount3: {said}", _fusermount_advice(said))
    return fd


def _fusermount_advice(said: str) -> str:
    """A remedy for what fusermount3 said, if one is known; docs/containers.md has more."""
    if "could not determine username" in said:
        return f"/etc/passwd has no line for uid {os.getuid()}: mount and read in a shell of `unshare -Urm`"
    if "ermission denied" in said and CONFINEMENT.exists():
        return f"{CONFINEMENT} lets it mount below ~, /mnt, /media and /tmp only: mount there, or as root"
    if "not permitted" in said:
        return "setuid has no effect here (no_new_privs, or a container): run `unshare -Urm`, or `hbf doctor`"
    return ""


def _receive_descriptor(channel: socket.socket) -> int | None:
    size = array.array("i").itemsize
    _, messages, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(size))
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= size:
            fd = array.array("i", data[:size])[0]
            os.set_inheritable(fd, False)
            return fd
    return None
