"""Every change is refused as on a read-only disk, under both engines."""

import ctypes
import errno
import os

import pytest
from refusals import error_of

_libc = ctypes.CDLL(None, use_errno=True)

WRITES = {
    "open to write": lambda m: os.open(m / "file", os.O_WRONLY),
    "open to read and write": lambda m: os.open(m / "file", os.O_RDWR),
    "open to append": lambda m: os.open(m / "file", os.O_WRONLY | os.O_APPEND),
    "open and truncate": lambda m: os.open(m / "file", os.O_RDONLY | os.O_TRUNC),
    "create": lambda m: os.open(m / "new", os.O_WRONLY | os.O_CREAT),
    "create without a name": lambda m: os.open(m, os.O_WRONLY | os.O_TMPFILE),
    "make a directory": lambda m: (m / "new").mkdir(),
    "make a pipe": lambda m: os.mkfifo(m / "new"),
    "make a link": lambda m: os.link(m / "file", m / "new"),
    "make a symlink": lambda m: (m / "new").symlink_to("file"),
    "unlink": lambda m: (m / "file").unlink(),
    "remove a directory": lambda m: (m / "many").rmdir(),
    "rename": lambda m: (m / "file").rename(m / "new"),
    "exchange": lambda m: _rename2(m / "file", m / "empty", 2),
    "truncate": lambda m: os.truncate(m / "file", 5),
    "change the mode": lambda m: (m / "file").chmod(0o777),
    "change the owner": lambda m: os.chown(m / "file", os.getuid(), os.getgid()),
    "change times": lambda m: os.utime(m / "file", (1, 1)),
}


def _rename2(one, other, flags):
    if _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


@pytest.mark.parametrize("what", WRITES)
def test_every_change_is_refused_as_on_a_read_only_disk(point, whole, what):
    # libfuse 2 knows neither O_TMPFILE nor the flags of renameat2.
    unknown = {errno.EOPNOTSUPP, errno.EINVAL} if what in ("create without a name", "exchange") else set()
    allowed = {errno.EROFS} | unknown | ({errno.EACCES, errno.EPERM} if os.geteuid() else set())
    assert error_of(lambda: WRITES[what](point)) in allowed
    assert (point / "file").read_bytes() == whole


def test_a_descriptor_for_reading_refuses_writes(fd):
    assert error_of(lambda: os.write(fd, b"x")) == errno.EBADF
    assert error_of(lambda: os.ftruncate(fd, 5)) == errno.EINVAL
    assert error_of(lambda: os.posix_fallocate(fd, 0, 5)) == errno.EBADF
    assert error_of(lambda: os.fchmod(fd, 0o777)) in (errno.EROFS, errno.EPERM)
