"""One mount for each engine and module, of a folder with every kind of file."""

import os
import random

import pytest
from served_folder import EVERY_BYTE, LONGEST, MANY, SIZE

from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with every kind of file."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "file").write_bytes(random.Random(1).randbytes(SIZE))
    (folder / "empty").write_bytes(b"")
    (folder / "private").write_bytes(b"secret")
    (folder / "private").chmod(0o640)
    (folder / "runs").write_bytes(b"#!/bin/sh\necho it runs\n")
    (folder / "runs").chmod(0o755)
    (folder / "link").symlink_to("file")
    (folder / "up").symlink_to("many/../file")
    (folder / "many").mkdir()
    for number in range(MANY):
        (folder / "many" / f"an-entry-of-many-{number:05}").write_bytes(b"")
    (folder / "names").mkdir(mode=0o750)
    for name in [*EVERY_BYTE, LONGEST]:
        os.close(os.open(os.fsencode(folder / "names") + b"/" + name, os.O_CREAT | os.O_WRONLY))
    os.utime(folder / "file", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    return folder


@pytest.fixture(scope="module", params=["kernel", "fusepy"])
def point(request, source, tmp_path_factory):
    """Its mountpoint, mounted once for all tests of an engine."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    path = tmp_path_factory.mktemp("mnt")
    with child.mounted(MountConfig(source, path, TierSpec(), request.param)) as mount:
        yield mount


@pytest.fixture
def fd(point):
    """The open file, with a cold page cache."""
    number = os.open(point / "file", os.O_RDONLY)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    yield number
    os.close(number)


@pytest.fixture(scope="module")
def whole(source):
    return (source / "file").read_bytes()
