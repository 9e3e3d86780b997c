"""Sources that are lost, cut or failing while they are served."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from failing_disk import BAD
from refusals import error_of
from served import ENGINES, MIB, SOON, hbf, seconds_until

PLAIN_ROOT = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Root without the capabilities that bypass permissions."""


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
    """A reader that has the file open keeps reading the mounted source. Nobody else can open it, even
    meanwhile.
    """
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
