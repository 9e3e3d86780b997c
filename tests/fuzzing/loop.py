"""The compiled loop: bytes as from /dev/fuse, through a socket in its place, with open files behind it."""

import errno
import functools
import itertools
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fuzzing.edits import EDITS
from fuzzing.kernel import check_answer, message, messages
from fuzzing.promise import Target, file_of
from hbf_fuse import compiled
from hbf_fuse.engine.kernel import abi
from hbf_fuse.engine.kernel.abi import Opcode
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.pacing.resident import MIN_BYTES, Resident
from hbf_fuse.tier import TierSpec

MAX_MESSAGES = 24
MAX_REQUEST = 32_768
"""Also for reads that request more. Replies of a MiB do not fit into a socket."""

SIZE = 100_001
SHRUNK = 50_001
END_SECONDS = 20.0
"""Wall time in seconds, for steps that take milliseconds."""

THROTTLED, ABRUPT, BUDGET = 1, 2, 4
"""Flags in the first byte. With ABRUPT the mount ends when all was sent, without waiting for replies."""

_UNANSWERED = (Opcode.FORGET, Opcode.BATCH_FORGET)
_CALM = TierSpec(5000, 0.3)
_ENDLESS = TierSpec(5000, 60_000)


@dataclass(frozen=True)
class _File:
    content: bytes
    there: int
    """Bytes that the source still has."""

    memory: memoryview | None
    fd: int


@functools.cache
def _files() -> dict[int, _File]:
    """Files by handle: a mapped one, one that is read from its disk each time, one that shrank, an empty one,
    and one whose handle has the same hash slot as the first one's.
    """
    content = bytes(place * 7 % 251 for place in range(SIZE))
    fds = [os.open(file_of(name, content), os.O_RDWR) for name in ("whole", "shrunk")]
    mapped = [memoryview(mmap.mmap(fd, SIZE, access=mmap.ACCESS_READ)) for fd in fds]
    os.truncate(fds[1], SHRUNK)
    empty = os.open(file_of("empty", b""), os.O_RDONLY)
    return {
        1: _File(content, SIZE, mapped[0], fds[0]),
        2: _File(content, SIZE, None, fds[0]),
        3: _File(content, SHRUNK, mapped[1], fds[1]),
        4: _File(b"", 0, memoryview(b""), empty),
        1 + (1 << 16): _File(content, SIZE, mapped[0], fds[0]),
    }


def loop(data: bytes) -> None:
    """Messages as /dev/fuse gives them, through a socket to the compiled loop, with and without a tier that
    takes time, and the end of the mount.
    """
    flags = data[0] if data else 0
    mount = _Mount(flags)
    try:
        sent = list(itertools.islice(messages(data[1:]), MAX_MESSAGES))
        mount.exchange(sent, wait=not flags & ABRUPT)
    finally:
        mount.end()
    _check(sent, mount.answers, mount.passed, whole=not flags & ABRUPT)
    if not flags & ABRUPT:
        stats = mount.pacer.status()
        assert stats["in_flight"] == 0, "a read did not end in the books"
        answered = sum(_opcode(one) == Opcode.READ for one in sent) - sum(
            _opcode(one) == Opcode.READ for one in mount.passed
        )
        assert stats["reads"] == answered == len(mount.answers)


class _Mount:
    """A running loop, and Python's side of it."""

    def __init__(self, flags: int) -> None:
        from hbf_fuse.engine.kernel.loop import Loop

        files = list(_files().values())
        spec = TierSpec()
        if flags & THROTTLED:
            spec = _ENDLESS if flags & ABRUPT else _CALM
        sizes = [len(file.content) for file in files]
        self.pacer = Pacer(
            {"hbf": spec, "dram": TierSpec()},
            list(enumerate(sizes, start=10)),
            {0: [(0, 0), (40_000, 1), (60_001, 0)]},
            Resident(MIN_BYTES, "pin", sizes) if flags & BUDGET else None,
        )
        self.kernel, self._own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self._loop = Loop(self._own.fileno(), self.pacer, MAX_REQUEST)
        self.answers: list[bytes] = []
        self.passed: list[bytes] = []
        self._news = os.eventfd(0, os.EFD_NONBLOCK)
        for handle in _files():
            self._open(handle)
        work = [*self._loop.work(), self._serve]
        self._threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def _open(self, handle: int) -> None:
        file, place = _files()[handle], list(_files()).index(handle)
        self._loop.opened(handle, file, file.memory, file.fd, place, len(file.content))

    def _serve(self) -> None:
        """The work of Python's threads: handle requests that are not for the loop but concern it."""
        while (taken := self._loop.next_message()) is not None:
            request = bytes(taken[0])
            if not request:
                self.pacer.coverage.look()
                continue
            body = request[abi.IN_HEADER.size :]
            if _opcode(request) == Opcode.INTERRUPT and len(body) >= abi.INTERRUPT_IN.size:
                (unique,) = abi.INTERRUPT_IN.unpack_from(body)
                self._loop.reader_of(unique)
                self._loop.cancel(unique)
            elif _opcode(request) == Opcode.RELEASE and len(body) >= abi.RELEASE_IN.size:
                self._loop.released(abi.RELEASE_IN.unpack_from(body)[0])
            elif _opcode(request) == Opcode.OPEN and (handle := _nodeid(request)) in _files():
                self._open(handle)
            self.passed.append(request)
            os.eventfd_write(self._news, 1)

    def exchange(self, sent: list[bytes], wait: bool) -> None:
        """Send all, and wait until each was answered or passed on."""
        expected = sum(_counts(each) for each in sent)
        left, give_up = list(reversed(sent)), time.monotonic() + END_SECONDS
        poll = select.poll()
        poll.register(self._news, select.POLLIN)
        while left or (wait and len(self.answers) + len(self.passed) < expected):
            assert time.monotonic() < give_up, "a request was neither answered nor passed on"
            poll.register(self.kernel, select.POLLIN | (select.POLLOUT if left else 0))
            for fd, events in poll.poll(100):
                if fd == self._news:
                    os.eventfd_read(self._news)
                elif events & select.POLLIN:
                    self.answers.append(self.kernel.recv(2 * MAX_REQUEST))
                elif events & select.POLLOUT:
                    self.kernel.send(left.pop())

    def end(self) -> None:
        """Close the kernel's end: every thread must end."""
        self.kernel.shutdown(socket.SHUT_WR)
        give_up = time.monotonic() + END_SECONDS
        while any(thread.is_alive() for thread in self._threads):
            assert time.monotonic() < give_up, "a thread goes on after the end of the mount"
            # A sender must not wait for a reader.
            self._take_the_rest()
            for thread in self._threads:
                thread.join(0.001)
                if thread.is_alive():
                    break
        self._take_the_rest()
        for each in (self.kernel, self._own):
            each.close()
        os.close(self._news)

    def _take_the_rest(self) -> None:
        try:
            while True:
                self.answers.append(self.kernel.recv(2 * MAX_REQUEST))
        except BlockingIOError:
            pass


def _opcode(request: bytes) -> int:
    return int(abi.IN_HEADER.unpack_from(request)[1]) if len(request) >= abi.IN_HEADER.size else 0


def _nodeid(request: bytes) -> int:
    return int(abi.IN_HEADER.unpack_from(request)[3])


def _unique(request: bytes) -> int:
    return int(abi.IN_HEADER.unpack_from(request)[2])


def _counts(request: bytes) -> bool:
    """Whether a message has an effect."""
    return len(request) >= abi.IN_HEADER.size and _opcode(request) not in _UNANSWERED


def _is_for_the_loop(request: bytes) -> bool:
    """Whether it is a read of a handle that the loop knows, if nothing was released."""
    if _opcode(request) != Opcode.READ or len(request) < abi.IN_HEADER.size + abi.READ_IN.size:
        return False
    handle, offset, *_ = abi.READ_IN.unpack_from(request, abi.IN_HEADER.size)
    return handle in (1, 2, 3, 4) and offset <= len(_files()[handle].content)


def _check(sent: list[bytes], answers: list[bytes], passed: list[bytes], whole: bool) -> None:
    """Each message was answered once or passed on once, as it was; every answer is right."""
    sent = [each for each in sent if _counts(each)]
    assert not Counter(passed) - Counter(sent), "a message was passed on twice, or changed"
    reads = [each for each in sent if _opcode(each) == Opcode.READ]
    interrupted = {
        abi.INTERRUPT_IN.unpack_from(each, abi.IN_HEADER.size)[0]
        for each in sent
        if _opcode(each) == Opcode.INTERRUPT and len(each) >= abi.IN_HEADER.size + abi.INTERRUPT_IN.size
    }
    for answer in answers:
        unique = abi.OUT_HEADER.unpack_from(answer)[2]
        assert any(_is_right(each, answer, interrupted) for each in reads if _unique(each) == unique), (
            f"a wrong answer to {unique}: {answer[:40]!r}"
        )
    by_unique = Counter(_unique(each) for each in sent)
    told = Counter(abi.OUT_HEADER.unpack_from(each)[2] for each in answers)
    told.update(_unique(each) for each in passed)
    assert told == by_unique if whole else not told - by_unique
    if whole and not any(_opcode(each) in (Opcode.RELEASE, Opcode.OPEN) for each in sent):
        assert Counter(passed) == Counter(each for each in sent if not _is_for_the_loop(each))


def _is_right(request: bytes, answer: bytes, interrupted: set[int]) -> bool:
    """Whether it is the answer to this read."""
    if len(request) < abi.IN_HEADER.size + abi.READ_IN.size:
        return False
    try:
        check_answer(request, answer)
    except AssertionError:
        # It may be the answer to another read with the same number.
        return False
    handle, offset, size, *_ = abi.READ_IN.unpack_from(request, abi.IN_HEADER.size)
    _, error, unique = abi.OUT_HEADER.unpack_from(answer)
    if handle not in _files() or offset > len(_files()[handle].content):
        return False
    file = _files()[handle]
    expected = file.content[offset : offset + min(size, MAX_REQUEST)]
    if error == -errno.EINTR:
        return unique in interrupted
    if offset + len(expected) > file.there:
        return bool(error == -errno.EIO)
    return not error and answer[abi.OUT_HEADER.size :] == expected


def _read(handle: int, offset: int, size: int, unique: int, flags: int = 0) -> bytes:
    return message(Opcode.READ, 0, abi.READ_IN.pack(handle, offset, size, flags, 0, 0, 0), unique)


def _seeds() -> list[bytes]:
    reads = [
        _read(handle, offset, size, 1 + 10 * number + place, place % 2 * abi.READ_LOCKOWNER)
        for number, handle in enumerate([1, 2, 3, 4, 1 + (1 << 16), 9])
        for place, (offset, size) in enumerate([(0, 4096), (39_999, 30_000), (SIZE - 1, (1 << 32) - 1)])
    ]
    odd = [
        _read(1, SIZE, 4096, 1),
        _read(1, SIZE + 1, 4096, 2),
        _read(1, 1 << 63, (1 << 32) - 1, 3),
        _read(2, (1 << 64) - 1, 1, 4),
        _read(0, 0, 0, 5),
        message(Opcode.READ, 0, bytes(20), 6),
        message(9999, 0, b"?", 7),
        message(Opcode.FORGET, 1, bytes(8), 8),
        message(Opcode.BATCH_FORGET, 1, bytes(24), 9),
    ]
    ended = [
        _read(1, 0, 4096, 1),
        message(Opcode.INTERRUPT, 0, abi.INTERRUPT_IN.pack(1), 2),
        _read(2, 0, 4096, 3),
        message(Opcode.RELEASE, 0, abi.RELEASE_IN.pack(2, 0, 0, 0), 4),
        _read(2, 0, 4096, 5),
        message(Opcode.OPEN, 2, abi.OPEN_IN.pack(0, 0), 6),
        _read(2, 0, 4096, 7),
    ]
    short = bytes([EDITS]) + b"".join(
        struct.pack("<BBB", one[4], one[16], len(one) - 40) + one[40:] for one in (*reads[:6], *ended)
    )
    parts = [b"".join(reads), b"".join(odd) + bytes(17), b"".join(ended), short]
    return [bytes([flags]) + part for part in parts for flags in range(8)]


TARGETS: tuple[Any, ...] = () if compiled.why_not() else (Target("loop", loop, _seeds),)
