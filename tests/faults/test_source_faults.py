"""Sources that are lost, cut or failing while they are served."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from failing_disk import BAD
from refusals import error_of
from served import ENGINES, MIB, SOON, hbf, run, seconds_until

PLAIN_ROOT = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Root, but as any owner is: permissions hold for it."""


MAPPED_READ = """
import mmap, sys
with mmap.mmap(int(sys.argv[1]), 0, access=mmap.ACCESS_READ) as view:
    view[3 << 20]
"""


@ENGINES
def test_a_source_truncated(serve, noise, engine):
    source = noise(4 * MIB)
    whole = source.read_bytes()
    served = serve(source, engine=engine)
    with served.file.open("rb", buffering=0) as file:
        os.truncate(source, MIB)
        assert os.pread(file.fileno(), 4096, 0) == whole[:4096]
        for _ in range(2):
            assert error_of(lambda: os.pread(file.fileno(), 4096, 3 * MIB)) == errno.EIO
        mapped = [sys.executable, "-c", MAPPED_READ, str(file.fileno())]
        said = subprocess.run(mapped, pass_fds=(file.fileno(),), timeout=SOON, check=False)
        assert said.returncode == -signal.SIGBUS
        assert os.pread(file.fileno(), 4096, MIB // 2) == whole[MIB // 2 : MIB // 2 + 4096]
    assert error_of(served.file.read_bytes) == errno.ESTALE
    assert served.process.poll() is None


def _replaced(source):
    other = source.with_name("other")
    other.write_bytes(bytes(source.stat().st_size))
    other.replace(source)


def _rewritten(source):
    source.unlink()
    source.write_bytes(bytes(100))


SOURCE_LOST = {
    "replaced": (_replaced, errno.ESTALE),
    "deleted": (Path.unlink, errno.ENOENT),
    "deleted and written anew": (_rewritten, errno.ESTALE),
    "unreadable": (lambda source: source.chmod(0), errno.EACCES),
}


@ENGINES
@pytest.mark.parametrize("loss", SOURCE_LOST)
def test_a_source_lost(serve, noise, engine, loss):
    """Who has the file open goes on reading what was mounted; nobody else can open it, not even meanwhile."""
    lose, code = SOURCE_LOST[loss]
    source = noise(2 * MIB)
    whole = source.read_bytes()
    served = serve(source, engine=engine, prefix=PLAIN_ROOT if os.geteuid() == 0 else ())
    with served.file.open("rb", buffering=0) as file:
        lose(source)
        assert file.read(4 * MIB) == whole
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 4 * MIB, 0) == whole
        assert error_of(served.file.read_bytes) == code
    seconds_until(served.is_idle, SOON, "no read is in flight")


@pytest.fixture
def failing_disk(tmp_path):
    """failing_disk(kind, content) -> a folder with content as model.gguf; reading BAD in it gives EIO."""
    if os.geteuid() != 0:
        pytest.skip("a disk that fails is mounted by root")
    held, disk, device = tmp_path / "held", tmp_path / "disk", tmp_path / "device"
    for folder in (held, disk, device):
        folder.mkdir()
    with contextlib.ExitStack() as stack:

        def make(kind, content):
            files = held
            if kind == "block device":
                files = tmp_path / "files"
                files.mkdir()
            (files / "model.gguf").write_bytes(content)
            if kind == "block device":
                size = f"{len(content) // MIB + 8}M"
                run("mkfs.ext2", "-q", "-d", files, held / "image", size)
            stack.callback(_serve_failing_disk(held, disk))
            if kind == "fuse":
                return disk
            try:
                run("mount", "-o", "loop,ro", disk / "image", device)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no loop devices here: {error.stderr}")
            stack.callback(run, "umount", device)
            return device

        yield make


def _serve_failing_disk(folder, point):
    command = [sys.executable, str(Path(__file__).with_name("failing_disk.py")), str(folder), str(point)]
    process = subprocess.Popen(command)
    seconds_until(lambda: point.is_mount() or process.poll() is not None, SOON, "the disk is mounted")

    def end():
        run("umount", "-l", point)
        process.wait(SOON)

    return end


@ENGINES
@pytest.mark.parametrize("kind", ["fuse", "block device"])
def test_a_source_on_a_disk_with_a_bad_sector(failing_disk, serve, noise, engine, kind):
    bad = 3 * MIB
    whole = bytearray(noise(4 * MIB).read_bytes())
    whole[bad : bad + len(BAD)] = BAD
    source = failing_disk(kind, whole) / "model.gguf"
    served = serve(source, "--no-preload", engine=engine)
    with served.file.open("rb", buffering=0) as file:
        assert file.read(2 * MIB) == whole[: 2 * MIB]
        for _ in range(2):
            assert error_of(lambda: os.pread(file.fileno(), 4096, bad)) == errno.EIO
        assert os.pread(file.fileno(), MIB // 2, 0) == whole[: MIB // 2]
        assert os.pread(file.fileno(), 4096, 4 * MIB - 4096) == whole[-4096:]
    assert served.process.poll() is None
    served.close()
    said = hbf("mount", "--engine", engine, source, served.point)
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert str(source) in said.stderr and "Input/output error" in said.stderr
