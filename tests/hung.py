"""A FUSE mount whose server is stuck: it answers how it is mounted, and then nothing, or names alone."""

import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hbf_fuse.host import linux

FILE = "model.gguf"
"""What a mount holds whose names are answered: a file of 1 MiB, and the folder `below`."""

_HEADER = struct.Struct("<IIQQIIII")
_LOOKUP, _GETATTR, _OPEN, _STATFS, _INIT, _OPENDIR, _ACCESS = 1, 3, 14, 17, 26, 27, 34
_NODES = {FILE.encode(): (2, stat.S_IFREG | 0o644, 1 << 20), b"below": (3, stat.S_IFDIR | 0o755, 0)}


@contextmanager
def hung(point: Path, how: str = "silent") -> Iterator[Path]:
    """Such a mount until the end of the block; then whoever still asks gets an error. how: `silent` takes no
    request, so that who waits can be killed; `taking` takes them, and who waits cannot be killed; `names`
    answers look-ups and opening, not reading.
    """
    if os.geteuid() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("only root can mount without fusermount3, on /dev/fuse")
    point.mkdir(exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    over = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        linux.mount("stuck", over, "fuse.stuck", 0, f"fd={device},rootmode=40000,user_id=0,group_id=0")
        threading.Thread(target=_serve, args=(device, how), daemon=True).start()
        yield point
    finally:
        os.close(over)
        # The first ends all requests; whoever waited may be gone only a moment later.
        for flags in (linux.MNT_FORCE, linux.MNT_DETACH):
            with suppress(OSError):
                linux.umount(str(point), flags)
        os.close(device)


def _serve(device: int, how: str) -> None:
    with suppress(OSError):
        while True:
            request = os.read(device, 1 << 17)
            _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
            body = _answer(opcode, node, request[_HEADER.size :], how == "names")
            if body is not None:
                error = -errno.ENOENT if body == b"" else 0
                os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
            if how == "silent":
                return


def _answer(opcode: int, node: int, said: bytes, names: bool) -> bytes | None:
    """The body of an answer; None for none at all, empty for ENOENT."""
    if opcode == _INIT:
        return struct.pack("<IIIIHHI", 7, 31, 1 << 17, 0, 12, 9, 4096) + bytes(40)
    if not names:
        return None
    if opcode == _LOOKUP:
        known = _NODES.get(said.rstrip(b"\0"))
        return (known and struct.pack("<QQQQII", known[0], 0, 0, 0, 0, 0) + _attributes(*known)) or b""
    if opcode == _GETATTR:
        known = next((each for each in _NODES.values() if each[0] == node), (1, stat.S_IFDIR | 0o755, 0))
        return struct.pack("<QII", 0, 0, 0) + _attributes(*known)
    if opcode in (_OPEN, _OPENDIR):
        return struct.pack("<QII", 1, 0, 0)
    return bytes(80) if opcode == _STATFS else None


def _attributes(node: int, mode: int, size: int) -> bytes:
    return struct.pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
