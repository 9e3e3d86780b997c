"""Names and attributes, as in the tests of libfuse and sshfs, under both engines.

The tests call system calls by name, since these are tested.
"""
# ruff: noqa: PTH115, PTH116, PTH208

import ctypes
import errno
import os
import stat
import struct
from functools import partial

import pytest
from refusals import error_of
from served_folder import EVERY_BYTE, LONGEST, MANY, SIZE

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.mark.parametrize("name", ["file", "empty", "private", "runs", "link", "names"])
def test_stat_equals_the_stat_of_the_source(point, source, name):
    here, there = (point / name).lstat(), (source / name).lstat()
    assert stat.S_IFMT(here.st_mode) == stat.S_IFMT(there.st_mode)
    assert here.st_size == there.st_size or name == "names"
    assert (here.st_uid, here.st_gid) == (there.st_uid, there.st_gid)
    if name != "link":
        readable = 0o555 if name == "names" else 0o444
        assert stat.S_IMODE(here.st_mode) == stat.S_IMODE(there.st_mode) & readable
        assert here.st_mtime_ns == there.st_mtime_ns
    assert here.st_nlink == 1
    assert here.st_blocks * 512 >= here.st_size
    assert here.st_blocks * 512 < here.st_size + 512
    assert here.st_blksize >= 4096 and here.st_ino and here.st_dev == point.stat().st_dev


def test_stat_does_not_change_by_reading(point, fd):
    before = [(point / name).lstat() for name in os.listdir(point)], point.stat()
    os.pread(fd, SIZE, 0)
    os.fsync(fd)
    assert ([(point / name).lstat() for name in os.listdir(point)], point.stat()) == before
    assert os.fstat(fd) == (point / "file").stat()


def test_inodes_are_distinct_and_names_are_kept(point):
    inodes = [entry.inode() for entry in os.scandir(point / "many")]
    assert len(set(inodes)) == MANY
    assert len({(point / "many" / name).stat().st_ino for name in os.listdir(point / "many")}) == MANY


def test_statfs_tells_what_is_served_and_is_not_that_of_a_full_disk(point):
    told = os.statvfs(point)
    assert told.f_bsize >= 4096 and told.f_namemax == 255
    assert SIZE <= (told.f_blocks - told.f_bfree) * told.f_frsize < 100 * SIZE
    assert told.f_bavail == told.f_bfree and told.f_bavail / told.f_blocks > 0.99
    assert MANY < told.f_files - told.f_ffree < 2 * MANY + 1000 and told.f_ffree / told.f_files > 0.99
    assert told.f_favail == told.f_ffree
    assert os.statvfs(point / "file").f_blocks == told.f_blocks


def test_permissions_hold(point):
    assert os.access(point / "file", os.R_OK) and os.access(point / "many", os.X_OK)
    assert not os.access(point / "runs", os.X_OK)
    # For root, access() allows more than the mode. Then open() must refuse.
    if os.geteuid():
        assert not os.access(point / "file", os.W_OK)
    for name in ("file", "runs", "many/an-entry-of-many-00000"):
        assert error_of(partial(os.open, point / name, os.O_WRONLY)) in (errno.EROFS, errno.EACCES)


def test_there_are_no_extended_attributes(point):
    refused = {errno.EOPNOTSUPP, errno.ENODATA, errno.EROFS}
    assert error_of(lambda: os.getxattr(point / "file", "user.a")) in refused
    assert error_of(lambda: os.setxattr(point / "file", "user.a", b"b")) in refused
    assert error_of(lambda: os.removexattr(point / "file", "user.a")) in refused
    try:
        assert os.listxattr(point / "file") == []
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP


def test_a_directory_has_every_name_once(point, source):
    for folder in ("", "many", "names"):
        served = os.listdir(os.fsencode(point / folder))
        there = os.listdir(os.fsencode(source / folder))
        assert sorted(served) == sorted(there)


@pytest.mark.parametrize("size", [64, 300, 4096, 1 << 20])
def test_a_directory_is_complete_with_any_buffer_size(point, size):
    """Calls getdents64 with its own buffer, which must hold at least one entry."""
    fd = os.open(point / "many", os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = [name for name, _, _ in entries(fd, size)]
    finally:
        os.close(fd)
    assert sorted(names) == sorted([b".", b"..", *os.listdir(os.fsencode(point / "many"))])


def test_reading_a_directory_can_continue_from_any_offset(point):
    fd = os.open(point / "many", os.O_RDONLY | os.O_DIRECTORY)
    try:
        first = list(entries(fd, 4096))
        offsets = [offset for _, offset, _ in first]
        assert len(set(offsets)) == len(offsets)
        for place in (0, 1, 17, 600, len(first) - 2):
            os.lseek(fd, offsets[place], os.SEEK_SET)
            assert list(entries(fd, 4096)) == first[place + 1 :]
        os.lseek(fd, 0, os.SEEK_SET)
        assert list(entries(fd, 4096)) == first
    finally:
        os.close(fd)


def entries(fd, size):
    """Name, offset of the next one, and type of every entry from the descriptor's place on."""
    buffer = ctypes.create_string_buffer(size)
    while True:
        count = _libc.syscall(GETDENTS64, fd, buffer, size)
        assert count >= 0, os.strerror(ctypes.get_errno())
        if not count:
            return
        at = 0
        while at < count:
            _, offset, length, kind = struct.unpack_from("=QqHB", buffer, at)
            yield buffer.raw[at + 19 : at + length].split(b"\0")[0], offset, kind
            at += length


GETDENTS64 = {"x86_64": 217, "aarch64": 61}.get(os.uname().machine, 217)


def test_entries_have_their_kind(point):
    kinds = {
        entry.name: (entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in os.scandir(point)
    }
    assert kinds["file"] == (False, False)
    assert kinds["many"] == (True, False)
    assert kinds["link"] == (False, True)


@pytest.mark.parametrize("name", [*EVERY_BYTE, LONGEST], ids=lambda name: name[1:2].hex() + f"-{len(name)}")
def test_a_name_may_have_any_byte(point, name):
    path = os.fsencode(point / "names") + b"/" + name
    assert os.stat(path).st_size == 0
    with open(path, "rb") as file:
        assert file.read() == b""


def test_impossible_names_give_the_usual_errors(point):
    assert error_of(lambda: os.stat(point / ("n" * 256))) == errno.ENAMETOOLONG
    assert error_of(lambda: os.stat(f"{point}/" + "n/" * 3000)) == errno.ENAMETOOLONG
    assert error_of(lambda: os.stat(point / "nowhere")) == errno.ENOENT
    assert error_of(lambda: os.stat(point / "file" / "x")) == errno.ENOTDIR
    assert error_of(lambda: os.stat(f"{point}/file/")) == errno.ENOTDIR
    assert error_of(lambda: os.listdir(point / "file")) == errno.ENOTDIR
    assert error_of(lambda: os.open(point / "many", os.O_WRONLY)) == errno.EISDIR
    assert error_of(lambda: os.readlink(point / "file")) == errno.EINVAL


def test_symlinks_lead_where_they_say(point, whole):
    assert os.readlink(point / "link") == "file"
    assert (point / "link").read_bytes() == (point / "up").read_bytes() == whole
    assert error_of(lambda: os.open(point / "link", os.O_RDONLY | os.O_NOFOLLOW)) == errno.ELOOP
