"""Tests of docs/semantics.md: the promises of a mount to the programs that use it, under both engines."""

import errno
import fcntl
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec

SIZE = 1_000_003
ODD = b"n\xffame \xe4\n,\\"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    (folder / "sub").mkdir()
    (folder / "a.gguf").write_bytes(b"GGUF" + os.urandom(SIZE - 4))
    (folder / "empty").touch()
    (folder / "tool").write_text("#!/bin/sh\n")
    (folder / "tool").chmod(0o755)
    (folder / "sub/b").write_bytes(b"b" * 5000)
    (folder / os.fsdecode(ODD)).write_bytes(b"odd")
    os.link(folder / "a.gguf", folder / "hard.gguf")
    (folder / "link").symlink_to("a.gguf")
    outside = tmp_path_factory.mktemp("outside") / "blob"
    outside.write_bytes(b"out" * 3000)
    (folder / "out").symlink_to(outside)
    (folder / "abroad").symlink_to("/proc")
    os.mkfifo(folder / "pipe")
    os.utime(folder / "a.gguf", ns=(1, 1_600_000_000_123_456_789))
    return folder


@pytest.fixture(scope="module", params=["kernel", "fusepy"])
def mount(request, source, tmp_path_factory):
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    point = tmp_path_factory.mktemp("mnt")
    with child.mounted(MountConfig(source, point, TierSpec(), request.param)):
        yield point


@pytest.fixture
def fd(mount):
    fd = os.open(mount / "a.gguf", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture(scope="module")
def content(source):
    return (source / "a.gguf").read_bytes()


def refused(action, *args):
    with pytest.raises(OSError) as caught:
        action(*args)
    return errno.errorcode[caught.value.errno]


def test_reads_give_the_sources_bytes_however_they_are_made(fd, content, tmp_path):
    assert os.pread(fd, 2 * SIZE, 0) == content
    assert os.pread(fd, 100, SIZE - 3) == content[-3:]
    assert os.pread(fd, 100, SIZE) == b"" == os.pread(fd, 100, 10**12)
    read_end, write_end = os.pipe()
    assert os.splice(fd, write_end, 5000, offset_src=7) == 5000
    assert os.read(read_end, 5000) == content[7:5007]
    with (tmp_path / "copy").open("w+b") as copy:
        assert os.sendfile(copy.fileno(), fd, 3, 1000) == 1000
        assert (tmp_path / "copy").read_bytes() == content[3:1003]
    os.close(read_end)
    os.close(write_end)


def test_o_direct_reads_need_no_alignment(mount, content):
    fd = os.open(mount / "a.gguf", os.O_RDONLY | os.O_DIRECT)
    aligned, odd = mmap.mmap(-1, 8192), bytearray(5)
    try:
        assert os.preadv(fd, [aligned], 4096) == 8192 and aligned[:] == content[4096:12288]
        assert os.preadv(fd, [odd], 3) == 5 and odd == content[3:8]
    finally:
        os.close(fd)


def test_maps_are_read_or_private(fd, content):
    with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        assert view[:] == content
    with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        view[:4] = b"mine"
        assert os.pread(fd, 4, 0) == b"GGUF"
    assert refused(mmap.mmap, fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) == "EACCES"
    assert refused(mmap.mmap, fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC) == "EPERM"


def test_seeking_finds_no_holes(fd):
    assert os.lseek(fd, 5, os.SEEK_DATA) == 5
    assert os.lseek(fd, 5, os.SEEK_HOLE) == SIZE
    assert refused(os.lseek, fd, -1, os.SEEK_SET) == "EINVAL"


def test_attributes_are_the_sources_without_write_and_execute(mount, source):
    seen, real = (mount / "a.gguf").stat(), (source / "a.gguf").stat()
    assert (seen.st_size, seen.st_uid, seen.st_gid) == (real.st_size, real.st_uid, real.st_gid)
    assert seen.st_mtime_ns == seen.st_ctime_ns == seen.st_atime_ns == 1_600_000_000_123_456_789
    assert (mount / "tool").stat().st_mode & 0o777 == 0o444
    assert (mount / "sub").stat().st_mode & 0o777 == 0o555
    assert seen.st_nlink == 1 and (mount / "hard.gguf").stat().st_ino != seen.st_ino
    (mount / "a.gguf").read_bytes()
    assert (mount / "a.gguf").stat().st_atime_ns == seen.st_atime_ns, "times never move"


def test_a_directory_shows_files_folders_and_links_whatever_their_bytes(mount):
    names = {os.fsencode(path.name) for path in mount.iterdir()}
    assert names == {b"a.gguf", b"empty", b"tool", b"sub", ODD, b"hard.gguf", b"link", b"out", b"model.gguf"}
    assert (mount / os.fsdecode(ODD)).read_bytes() == b"odd"
    for entry in os.scandir(mount):
        assert entry.inode() == entry.stat(follow_symlinks=False).st_ino


def test_links_lead_through_the_mount_and_those_that_lead_outside_are_files(mount, content):
    assert (mount / "link").readlink() == Path("a.gguf") == (mount / "model.gguf").readlink()
    assert (mount / "link").read_bytes() == content
    assert not (mount / "out").is_symlink() and (mount / "out").read_bytes() == b"out" * 3000


def test_nothing_can_be_changed(mount, fd):
    file, new = mount / "a.gguf", mount / "new"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_APPEND):
        assert refused(os.open, file, flags) == "EROFS"
    for action in (
        *(lambda: new.write_text("x"), new.mkdir, lambda: new.symlink_to("a"), lambda: os.link(file, new)),
        *(file.unlink, lambda: file.rename(new), (mount / "sub").rmdir, lambda: os.mkfifo(new)),
        *(lambda: file.chmod(0o777), lambda: os.chown(file, 1, 1), lambda: os.utime(file)),
        *(lambda: os.truncate(file, 1), (mount / ".hbf/control").unlink),
    ):
        assert refused(action) == "EROFS"
    assert refused(os.posix_fallocate, fd, 0, 10) == "EBADF"
    os.fsync(fd)


def test_names_fail_as_posix_says(mount):
    assert refused(os.stat, mount / "missing") == "ENOENT"
    assert refused(os.stat, mount / "a.gguf" / "x") == "ENOTDIR"
    assert refused(os.stat, mount / ("x" * 300)) == "ENAMETOOLONG"
    assert refused(os.open, mount / "sub", os.O_RDWR) == "EISDIR"


def test_there_are_no_extended_attributes_and_no_ioctls(mount, fd):
    assert refused(os.listxattr, mount / "a.gguf") == "ENOTSUP"
    assert refused(os.getxattr, mount / "a.gguf", "user.x") == "ENOTSUP"
    assert refused(os.setxattr, mount / "a.gguf", "user.x", b"") in ("ENOTSUP", "EROFS")
    assert refused(fcntl.ioctl, fd, 0x1234) == "ENOTTY"


def test_locks_work_among_the_programs_of_this_machine(mount, fd):
    other = os.open(mount / "a.gguf", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert refused(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.lockf(fd, fcntl.LOCK_SH)
        assert refused(fcntl.lockf, fd, fcntl.LOCK_EX) == "EBADF", (
            "a write lock needs a file open for writing"
        )
    finally:
        os.close(other)


def test_nothing_runs_from_a_mount(mount):
    with pytest.raises(PermissionError):
        subprocess.run([mount / "tool"], check=False)
    assert os.statvfs(mount).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC) == 0xE


def test_df_shows_what_is_served_and_no_alarm(mount, source):
    for column, flag in (("pcent", "--output=pcent"), ("ipcent", "--output=ipcent")):
        said = subprocess.run(["df", flag, mount], capture_output=True, text=True, check=True, timeout=30)
        assert int(said.stdout.split()[-1].rstrip("%")) <= 1, column
    line = ["df", "--block-size=1", "--output=used", mount]
    used = int(
        subprocess.run(line, capture_output=True, text=True, check=True, timeout=30).stdout.split()[-1]
    )
    assert 2 * SIZE < used < 2 * SIZE + 100_000


def test_link_counts_of_directories_make_no_program_miss_a_name(mount):
    assert mount.stat().st_nlink == (mount / "sub").stat().st_nlink == 1
    said = subprocess.run(
        ["find", mount, "-type", "d"], capture_output=True, text=True, check=True, timeout=30
    )
    assert said.stdout.splitlines() == [str(mount), str(mount / "sub")]


def test_the_hidden_folder_is_its_owners_and_not_listed(mount):
    assert mount / ".hbf" not in set(mount.iterdir())
    assert {path.name for path in (mount / ".hbf").iterdir()} == {
        "spec.json",
        "stats.json",
        "trace",
        "control",
    }
    assert (mount / ".hbf").stat().st_mode & 0o777 == 0o500
    assert (mount / ".hbf/control").stat().st_mode & 0o777 == 0o600
    assert (mount / ".hbf/spec.json").stat().st_size == 0, "made at the moment of opening, as in /proc"


def test_files_added_to_the_source_later_are_not_seen(mount, source):
    (source / "later").touch()
    try:
        assert not (mount / "later").exists()
    finally:
        (source / "later").unlink()


@pytest.mark.parametrize("engine", ["kernel", "fusepy"])
def test_an_open_file_stays_readable_when_its_source_is_deleted_or_replaced(tmp_path, noise, engine):
    source, point = noise(100_000), tmp_path / "mnt"
    point.mkdir()
    before = source.read_bytes()
    with child.mounted(MountConfig(source, point, TierSpec(), engine)):
        with (point / "model.gguf").open("rb", buffering=0) as file:
            source.unlink()
            source.write_bytes(b"another")
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == before
        assert wait_for(lambda: refused_to_open(point / "model.gguf"), "ESTALE")
        source.unlink()
        assert refused_to_open(point / "model.gguf") == "ENOENT"


def refused_to_open(path):
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""


def wait_for(action, value):
    """The server learns of a close only after the program does."""
    return any(action() == value for _ in range(1000))
