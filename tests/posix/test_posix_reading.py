"""Every way of reading, as in the tests of libfuse and sshfs, under both engines."""

import errno
import mmap
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from refusals import error_of
from served_folder import SIZE


def test_seek_goes_everywhere(fd, whole):
    assert os.lseek(fd, 100, os.SEEK_SET) == 100
    assert os.read(fd, 10) == whole[100:110]
    assert os.lseek(fd, -20, os.SEEK_CUR) == 90
    assert os.lseek(fd, -5, os.SEEK_END) == SIZE - 5
    assert os.read(fd, 100) == whole[-5:]
    assert os.read(fd, 100) == b""
    assert os.lseek(fd, SIZE + 1000, os.SEEK_SET) == SIZE + 1000
    assert os.read(fd, 100) == b""
    assert error_of(lambda: os.lseek(fd, -1, os.SEEK_SET)) == errno.EINVAL


def test_the_whole_file_is_data_and_its_hole_is_the_end(fd):
    assert os.lseek(fd, 1000, os.SEEK_DATA) == 1000
    assert os.lseek(fd, 1000, os.SEEK_HOLE) == SIZE
    assert error_of(lambda: os.lseek(fd, SIZE, os.SEEK_DATA)) == errno.ENXIO
    assert error_of(lambda: os.lseek(fd, SIZE + 1, os.SEEK_HOLE)) == errno.ENXIO


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 131_071, 1_048_577, SIZE - 1, SIZE, SIZE + 5])
@pytest.mark.parametrize("nbytes", [0, 1, 4097, 2_000_000])
def test_pread_takes_any_offset_and_length(fd, whole, offset, nbytes):
    assert os.pread(fd, nbytes, offset) == whole[offset : offset + nbytes]


def test_vectors_are_filled_in_order(fd, whole):
    parts = [bytearray(size) for size in (1, 4096, 10, 70_000)]
    assert os.preadv(fd, parts, 999) == 74_107
    assert b"".join(parts) == whole[999 : 999 + 74_107]
    assert os.readv(fd, parts) == 74_107
    assert b"".join(parts) == whole[:74_107]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 74_107


def test_a_nonblocking_read_brings_the_bytes_or_eagain(fd, whole):
    buffer = bytearray(8192)
    try:
        count = os.preadv(fd, [buffer], 4096, os.RWF_NOWAIT)
        assert buffer[:count] == whole[4096 : 4096 + count]
    except OSError as error:
        assert error.errno in (errno.EAGAIN, errno.EOPNOTSUPP)
    assert os.preadv(fd, [buffer], 4096, os.RWF_HIPRI) == 8192
    assert buffer == whole[4096 : 4096 + 8192]


def test_a_duplicate_shares_the_place_and_outlives_its_original(point, whole):
    fd = os.open(point / "file", os.O_RDONLY)
    other = os.dup(fd)
    os.lseek(fd, 77, os.SEEK_SET)
    os.close(fd)
    assert os.read(other, 10) == whole[77:87]
    os.close(other)


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_a_mapping_shows_the_bytes(fd, whole, flags):
    with mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ) as view:
        assert view[SIZE - 1] == whole[-1]
        assert view[:] == whole


def test_a_private_mapping_can_be_written_without_changing_the_file(fd, whole):
    with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
        view[5000:5004] = b"mine"
        assert view[4996:5008] == whole[4996:5000] + b"mine" + whole[5004:5008]
    assert os.pread(fd, 12, 4996) == whole[4996:5008]


def test_a_shared_mapping_cannot_be_written(fd):
    flags = {"flags": mmap.MAP_SHARED, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    assert error_of(lambda: mmap.mmap(fd, 0, **flags)) == errno.EACCES


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 4096), (4096, 1 << 20), (100, 3000), (2_998_272, 8192)])
def test_o_direct_reads_aligned_and_unaligned(point, whole, offset, nbytes):
    fd = os.open(point / "file", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 1 << 20) as buffer:
            count = os.preadv(fd, [memoryview(buffer)[:nbytes]], offset)
            assert buffer[:count] == whole[offset : offset + nbytes]
    finally:
        os.close(fd)


def test_sendfile_takes_from_the_mount(fd, whole, tmp_path):
    with (tmp_path / "copy").open("wb") as out:
        done = 0
        while count := os.sendfile(out.fileno(), fd, done, SIZE):
            done += count
    assert (tmp_path / "copy").read_bytes() == whole


def test_splice_takes_from_the_mount(fd, whole):
    reading, writing = os.pipe()
    try:
        got, at = bytearray(), 0
        while count := os.splice(fd, writing, 65_536, offset_src=at):
            at += count
            got += os.read(reading, count)
    finally:
        os.close(reading)
        os.close(writing)
    assert got == whole


def test_copy_file_range_takes_from_the_mount(fd, whole, tmp_path):
    with (tmp_path / "copy").open("wb") as out:
        done = 0
        try:
            while count := os.copy_file_range(fd, out.fileno(), SIZE, done):
                done += count
        except OSError as error:
            # Since Linux 5.19 the kernel does this only within one type of file system; cp then copies by
            # reading.
            assert error.errno == errno.EXDEV and not done
            subprocess.run(["cp", f"/proc/self/fd/{fd}", tmp_path / "copy"], check=True, pass_fds=[fd])
    assert (tmp_path / "copy").read_bytes() == whole


def test_32_threads_read_the_same_file(point, whole):
    def read(seed):
        dice = random.Random(seed)
        fd = os.open(point / "file", os.O_RDONLY | (os.O_DIRECT if seed % 2 else 0))
        try:
            with mmap.mmap(-1, 1 << 18) as buffer:
                for _ in range(20):
                    at = dice.randrange(0, SIZE, 4096)
                    count = os.preadv(fd, [buffer], at)
                    if not seed % 5:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    if buffer[:count] != whole[at : at + (1 << 18)]:
                        return f"thread {seed}: {count} bytes at {at}"
        finally:
            os.close(fd)
        return ""

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(read, range(32))) == {""}
