"""The request parser: bytes as from /dev/fuse, given to a session with a real filesystem behind it."""

import functools
import itertools
import logging
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from fuzzing import anygguf
from fuzzing.edits import EDITS
from fuzzing.promise import Target, scratch
from hbf_fuse.engine.kernel import abi, mounting
from hbf_fuse.engine.kernel.abi import Opcode
from hbf_fuse.engine.kernel.session import Session
from hbf_fuse.fs import Filesystem
from hbf_fuse.tier import TierSpec

MAX_MESSAGES = 16

_FIXED_SIZES = {
    Opcode.LOOKUP: abi.ENTRY_OUT.size + abi.ATTR.size,
    Opcode.GETATTR: abi.ATTR_OUT.size + abi.ATTR.size,
    Opcode.SETATTR: abi.ATTR_OUT.size + abi.ATTR.size,
    Opcode.OPEN: abi.OPEN_OUT.size,
    Opcode.OPENDIR: abi.OPEN_OUT.size,
    Opcode.STATFS: abi.KSTATFS.size,
    Opcode.WRITE: abi.WRITE_OUT.size,
    Opcode.INIT: abi.INIT_OUT.size,
    Opcode.RELEASE: 0,
    Opcode.RELEASEDIR: 0,
    Opcode.FSYNC: 0,
    Opcode.FSYNCDIR: 0,
    Opcode.DESTROY: 0,
}
_SHORT = struct.Struct("<BBB")


def requests(data: bytes) -> None:
    """Messages as /dev/fuse gives them, to a session that serves a real tree and answers into a file."""
    fs = Filesystem(_served(), TierSpec())
    answers = os.memfd_create("answers")
    session = Session(answers, fs, mounting.MAX_REQUEST)
    try:
        for message in itertools.islice(messages(data), MAX_MESSAGES):
            session._dispatch(memoryview(message), time.monotonic_ns())
            length = os.lseek(answers, 0, os.SEEK_CUR)
            check_answer(message, os.pread(answers, length, 0))
            os.lseek(answers, 0, os.SEEK_SET)
            if fs.served.spec.throttled:
                # A message made the tier slow, which is allowed. Waiting for it would test nothing.
                fs.served.pacer.exchange(TierSpec())
                fs.served.spec = TierSpec()
    finally:
        os.close(answers)
    assert not _tracebacks(), "a request ended in a traceback"


def messages(data: bytes) -> Iterator[bytes]:
    """Messages back to back, each as long as its header says. After EDITS in a short form: opcode, node,
    length, body; the rest of the header is filled in.
    """
    if data[:1] != bytes([EDITS]):
        while data:
            (length,) = struct.unpack("=I", data[:4].ljust(4, b"\0"))
            length = min(max(length, abi.IN_HEADER.size), abi.MIN_READ_BUFFER)
            yield data[:length]
            data = data[length:]
        return
    data = data[1:]
    for unique in itertools.count(1):
        if len(data) < _SHORT.size:
            return
        opcode, node, length = _SHORT.unpack_from(data)
        yield message(opcode, node, data[_SHORT.size : _SHORT.size + length], unique)
        data = data[_SHORT.size + length :]


def message(opcode: int, node: int, body: bytes = b"", unique: int = 1) -> bytes:
    """A request as the kernel writes it."""
    return abi.IN_HEADER.pack(abi.IN_HEADER.size + len(body), opcode, unique, node, 0, 0, 7, 0, 0) + body


def check_answer(request: bytes, answer: bytes) -> None:
    """Check for one well-formed reply, or none if FUSE expects none."""
    if len(request) < abi.IN_HEADER.size:
        assert not answer
        return
    _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(request)
    if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
        assert not answer, f"an answer to opcode {opcode}"
        return
    length, error, answered = abi.OUT_HEADER.unpack_from(answer)
    body = answer[abi.OUT_HEADER.size :]
    assert (length, answered) == (len(answer), unique)
    assert -4096 < error <= 0 and not (error and body)
    if error:
        return
    if opcode in _FIXED_SIZES:
        assert len(body) == _FIXED_SIZES[Opcode(opcode)], Opcode(opcode)
    elif opcode in (Opcode.READ, Opcode.READDIR):
        _, _, size, *_ = abi.READ_IN.unpack_from(request, abi.IN_HEADER.size)
        assert len(body) <= size
    else:
        assert opcode == Opcode.READLINK and 0 < len(body) < 4096, opcode


@functools.cache
def _tracebacks() -> list[logging.LogRecord]:
    """The session's log since this was first called."""
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append  # type: ignore[assignment, method-assign]
    logger = logging.getLogger("hbf_fuse.engine.kernel.session")
    logger.addHandler(handler)
    logger.propagate = False
    return kept


@functools.cache
def _served() -> Path:
    """A folder with every kind of entry: files, an empty file, a folder, links."""
    folder = scratch() / "served"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.gguf").write_bytes(anygguf.packed(anygguf.MODEL))
    (folder / "inner" / "empty").touch()
    (folder / "link").symlink_to("inner/empty")
    _tracebacks()
    return folder


def _request_seeds() -> list[bytes]:
    read = abi.READ_IN.pack(1, 0, 4096, 0, 0, 0, 0)
    write = b'{"mbps": 250, "lat": 1}'
    written = abi.WRITE_IN.pack(1, 0, len(write), 0, 0, 0, 0) + write
    tree = Filesystem(_served(), TierSpec()).tree
    inos = {node.name: node.ino for node in tree.nodes.values()}
    session = [
        message(Opcode.INIT, 0, abi.INIT_IN.pack(7, 38, 1 << 17, 0xFFFFFFFF)),
        message(Opcode.LOOKUP, 1, b"a.gguf\0"),
        message(Opcode.GETATTR, inos[b"a.gguf"], bytes(16)),
        message(Opcode.OPEN, inos[b"a.gguf"], abi.OPEN_IN.pack(os.O_RDONLY, 0)),
        message(Opcode.READ, inos[b"a.gguf"], read),
        message(Opcode.INTERRUPT, 0, abi.INTERRUPT_IN.pack(1)),
        message(Opcode.RELEASE, inos[b"a.gguf"], abi.RELEASE_IN.pack(1, 0, 0, 0)),
        message(Opcode.FORGET, inos[b"a.gguf"], bytes(8)),
    ]
    control_file = [
        message(Opcode.LOOKUP, inos[b".hbf"], b"control\0"),
        message(Opcode.OPEN, inos[b"control"], abi.OPEN_IN.pack(os.O_WRONLY, 0)),
        message(Opcode.WRITE, inos[b"control"], written),
        message(Opcode.SETATTR, inos[b"control"], bytes(88)),
        message(Opcode.STATFS, 1),
        message(Opcode.READLINK, inos[b"link"]),
        message(Opcode.READDIR, 1, read),
        message(Opcode.BATCH_FORGET, 0, bytes(24)),
    ]
    short = bytes([EDITS]) + b"".join(
        _SHORT.pack(one[4], one[16], len(one) - abi.IN_HEADER.size) + one[abi.IN_HEADER.size :]
        for one in (*session, *control_file)
        if len(one) < 256
    )
    return [b"".join(session), b"".join(control_file), short]


TARGETS = (Target("requests", requests, _request_seeds),)
