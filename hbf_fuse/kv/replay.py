"""The spill pattern as real reads and writes on a mount, so that simulated and measured stand side by side.

Computing is time that passes on the clock. Whoever brings the last chunk of a layer says when the next is
due, and readers sleep until then themselves: handing work from thread to thread would be measured as the
tier's.
"""

import dataclasses
import errno
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hbf_fuse import signals
from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.kv.schedule import Round, Schedule
from hbf_fuse.kv.spill import MOST_WRITTEN, Spill

WAYS = ("read", "mmap")
"""Past the page cache, or through a mapping whose pages are dropped after use."""

PAGE = 4096
"""Bytes; reads and writes past the page cache begin at whole ones."""

_LEARNING = 0.2
"""How much of the newest oversleeping goes into the estimate that wake-ups are set early by."""

_END_SECONDS = 10.0


@dataclass(frozen=True)
class Replayed:
    """seconds: of each token, the first ones left out as in the simulation."""

    seconds: tuple[float, ...]

    @property
    def mean_seconds(self) -> float:
        return sum(self.seconds) / len(self.seconds)


@dataclass(frozen=True)
class _Job:
    """A read or a write, not before due_ns. layer: of a read, through all tokens."""

    due_ns: int
    offset: int
    nbytes: int
    layer: int = -1


class _Decode:
    """A schedule on the clock. Safe for concurrent callers."""

    def __init__(self, spill: Spill, tokens: int, is_round: bool) -> None:
        """is_round: whether every token reads the same bytes; else layers follow each other."""
        self._spill = spill
        self._is_round = is_round
        self._chunks = spill.chunks()
        self._round = Round(file_bytes(spill), spill.write_chunk_bytes)
        self._left: dict[int, int] = {}
        self._reads: deque[_Job] = deque()
        self._writes: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._failure: OSError | None = None
        self._schedule = Schedule(spill, tokens, time.monotonic_ns())
        with self._changed:
            self._share_out()

    def next_read(self) -> _Job | None:
        """A chunk to read, when there is one; None at the end."""
        return self._next(self._reads)

    def next_write(self) -> _Job | None:
        """A piece of a token to write, when there is one; None at the end."""
        return self._next(self._writes)

    def came(self, layer: int, now_ns: int) -> None:
        """A chunk of a layer was there at now_ns."""
        with self._changed:
            self._left[layer] -= 1
            if not self._left[layer]:
                del self._left[layer]
                self._schedule.came(layer, now_ns)
                self._share_out()

    def wrote(self, now_ns: int) -> None:
        """The piece that was being written is written."""
        with self._changed:
            if not self._writes:
                self._schedule.wrote(now_ns)
                self._share_out()

    def give_up(self, failure: OSError | None = None) -> None:
        """Let every thread end."""
        with self._changed:
            self._failure = self._failure or failure or InterruptedError()
            self._changed.notify_all()

    def ends_ns(self) -> list[int]:
        """When each token was computed (CLOCK_MONOTONIC). OSError if something could not be read or
        written.
        """
        if self._failure is not None:
            raise self._failure
        return self._schedule.ends_ns

    def _next(self, jobs: deque[_Job]) -> _Job | None:
        with self._changed:
            while not (self._schedule.is_over or self._failure):
                if jobs:
                    return jobs.popleft()
                self._changed.wait()
            return None

    def _share_out(self) -> None:
        """Make chunks of what the schedule asks for."""
        schedule, spill = self._schedule, self._spill
        while schedule.asked:
            layer, due_ns = schedule.asked.popleft()
            base = (layer % spill.layers if self._is_round else layer) * spill.layer_bytes
            self._left[layer] = len(self._chunks)
            self._reads.extend(_Job(due_ns, base + at, nbytes, layer) for at, nbytes in self._chunks)
        while schedule.written_back:
            _, due_ns = schedule.written_back.popleft()
            self._writes.extend(_Job(due_ns, *piece) for piece in self._round.next(spill.written_bytes))
        self._changed.notify_all()


class _Alarm:
    """Sleeps until a moment: earlier by what this thread usually oversleeps."""

    def __init__(self) -> None:
        linux.sharpen_timers()
        self._overslept_ns = 0.0

    def wait_until(self, due_ns: int) -> None:
        """Sleep until due_ns (CLOCK_MONOTONIC)."""
        early_ns = due_ns - time.monotonic_ns() - self._overslept_ns
        if early_ns > 0:
            time.sleep(early_ns / 1e9)
            self._overslept_ns += (time.monotonic_ns() - due_ns) * _LEARNING


class _File:
    """The file that holds the spilled context. fd: open; it is not closed here."""

    def __init__(self, fd: int, spill: Spill, round_bytes: int, way: str = "read") -> None:
        """round_bytes: where reads begin goes round and round in so much."""
        self._fd, self._chunk, self._round = fd, spill.chunk_bytes, round_bytes
        self._mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ) if way == "mmap" else None

    def close(self) -> None:
        if self._mapped is not None:
            self._mapped.close()

    def read_all(self, decode: _Decode) -> None:
        """Read what a decode asks for, until it is over."""
        alarm, buffer = _Alarm(), _pages(self._chunk)
        while (job := decode.next_read()) is not None:
            alarm.wait_until(job.due_ns)
            try:
                self._read(job.offset // PAGE * PAGE % self._round, job.nbytes, buffer)
            except OSError as error:
                decode.give_up(error)
            decode.came(job.layer, time.monotonic_ns())

    def write_all(self, decode: _Decode) -> None:
        """Write what a decode has to write, until it is over."""
        alarm, buffer = _Alarm(), _pages(MOST_WRITTEN)
        while (job := decode.next_write()) is not None:
            alarm.wait_until(job.due_ns)
            try:
                _write(self._fd, memoryview(buffer)[: job.nbytes], job.offset)
            except OSError as error:
                decode.give_up(error)
            decode.wrote(time.monotonic_ns())

    def _read(self, offset: int, nbytes: int, buffer: mmap.mmap) -> None:
        if self._mapped is None:
            if os.preadv(self._fd, [memoryview(buffer)[:nbytes]], offset) < nbytes:
                raise OSError(errno.EIO, "a read was cut short")
            return
        first, length = offset, -(-nbytes // PAGE) * PAGE
        self._mapped.madvise(mmap.MADV_WILLNEED, first, min(length, len(self._mapped) - first))
        for at in range(offset, min(offset + nbytes, len(self._mapped)), PAGE):
            self._mapped[at]
        self._mapped.madvise(mmap.MADV_DONTNEED, first, min(length, len(self._mapped) - first))
        os.posix_fadvise(self._fd, first, length, os.POSIX_FADV_DONTNEED)


def file_bytes(spill: Spill) -> int:
    """Size of a file that holds a spilled context, in whole pages."""
    return -(-spill.cache_bytes // PAGE) * PAGE


def replay(spill: Spill, file: Path, tokens: int, way: str = "read", warm_up: int = 2) -> Replayed:
    """Decode `tokens` tokens whose spilled context is in `file`. Nothing is written: simulate it with a
    write_unit of 0. HbfError if reading fails or the file is too small.
    """
    if way not in WAYS:
        raise HbfError(f"unknown way {way!r} (--way)", f"there are: {', '.join(WAYS)}")
    reading, chunk = dataclasses.replace(spill, write_unit=0), spill.chunk_bytes
    fd = os.open(file, os.O_RDONLY | (os.O_DIRECT if way == "read" else 0))
    try:
        size = os.fstat(fd).st_size
        if size < chunk:
            raise HbfError(f"{file} is smaller than one chunk of {chunk} bytes", "serve a larger model")
        # No read reaches beyond the end.
        round_bytes = (size - chunk) // PAGE * PAGE + PAGE
        return _decoded(reading, _File(fd, reading, round_bytes, way), tokens, warm_up)
    finally:
        os.close(fd)


def replay_writing(
    spill: Spill,
    folder: Path,
    tokens: int,
    progress: Callable[[int, int], None] | None = None,
    warm_up: int = 2,
) -> Replayed:
    """Decode `tokens` tokens whose spilled context is in a file in `folder`, the kv/ of a mount, and write
    each token's keys and values to it, in whole pages: simulate it with a write_unit of PAGE. The file is
    made first and removed at the end; progress is told how many bytes of how many it has. HbfError if there
    is no room, or if reading or writing fails.
    """
    writing, size = dataclasses.replace(spill, write_unit=PAGE), file_bytes(spill)
    with _made(folder / f"replay-{os.getpid()}.kv", size, progress or (lambda _done, _all: None)) as fd:
        return _decoded(writing, _File(fd, writing, size), tokens, warm_up)


def _decoded(spill: Spill, file: _File, tokens: int, warm_up: int) -> Replayed:
    """Decode from an open file, in as many threads as requests may be in flight."""
    decode = _Decode(spill, tokens + warm_up, is_round=spill.write_unit > 0)
    actions = [file.read_all] * spill.depth + ([file.write_all] if spill.written_bytes else [])
    threads = [threading.Thread(target=action, args=(decode,), daemon=True) for action in actions]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ends_ns = decode.ends_ns()
    except OSError as error:
        raise HbfError(
            f"reading or writing on the mount failed: {error.strerror}", "is it still mounted (`hbf status`)?"
        ) from error
    finally:
        decode.give_up()
        _end(threads)
        file.close()
    counted = pairwise(ends_ns[warm_up - 1 :])
    return Replayed(tuple((after - before) / 1e9 for before, after in counted))


def _end(threads: list[threading.Thread]) -> None:
    """Wait for what is in flight: a file is not closed under it. A stuck mount is not waited for."""
    until = time.monotonic() + _END_SECONDS
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, until - time.monotonic()))


@contextmanager
def _made(name: Path, size: int, progress: Callable[[int, int], None]) -> Iterator[int]:
    """A file of so many bytes, written once, for a `with` block. HbfError if it cannot be."""
    with _explained(name, size), signals.deferred():
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    try:
        with _explained(name, size):
            _fill(fd, size, progress)
        yield fd
    finally:
        with signals.deferred():
            os.close(fd)
            with suppress(FileNotFoundError):
                name.unlink()


@contextmanager
def _explained(name: Path, size: int) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise HbfError(f"{name} exists already", f"remove it with `rm {name}`") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG):
            raise HbfError(
                f"{name.parent} has no room for a spilled context of {size} bytes",
                "mount with a larger --kv SIZE, remove files there, or take a smaller --context",
            ) from error
        raise HbfError(
            f"cannot write {name}: {error.strerror}", "is it still mounted (`hbf status`)?"
        ) from error


def _fill(fd: int, size: int, progress: Callable[[int, int], None]) -> None:
    # Whether there is room is known at once, not at the end.
    os.ftruncate(fd, size)
    buffer = _pages(MOST_WRITTEN)
    for at in range(0, size, MOST_WRITTEN):
        _write(fd, memoryview(buffer)[: min(MOST_WRITTEN, size - at)], at)
        progress(min(at + MOST_WRITTEN, size), size)


def _write(fd: int, data: memoryview, offset: int) -> None:
    if os.pwritev(fd, [data], offset) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _pages(nbytes: int) -> mmap.mmap:
    """A buffer in whole pages, in memory that is there."""
    buffer = mmap.mmap(-1, -(-nbytes // PAGE) * PAGE)
    for at in range(0, len(buffer), PAGE):
        buffer[at] = 1
    return buffer
