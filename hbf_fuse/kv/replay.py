"""The spill pattern as real reads of a file on a mount, so that simulated and measured stand side by side."""

import mmap
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.kv.spill import Spill

WAYS = ("read", "mmap")
"""Past the page cache, or through a mapping whose pages are dropped after use."""

_PAGE = 4096


@dataclass(frozen=True)
class Replayed:
    """seconds: of each token, the first ones left out as in the simulation."""

    seconds: tuple[float, ...]

    @property
    def mean_seconds(self) -> float:
        return sum(self.seconds) / len(self.seconds)


class _Layer:
    """The reads of one layer, counted down."""

    def __init__(self, reads: int) -> None:
        self._left = reads
        self._lock = threading.Lock()
        self._done = threading.Event()

    def came(self) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                self._done.set()

    def wait(self) -> None:
        self._done.wait()


class _Readers:
    """As many threads as reads may be in flight."""

    def __init__(self, file: Path, spill: Spill, way: str) -> None:
        self._chunk = spill.chunk_bytes
        self._way = way
        flags = os.O_RDONLY | (os.O_DIRECT if way == "read" else 0)
        self._fd = os.open(file, flags)
        self._size = os.fstat(self._fd).st_size // self._chunk * self._chunk
        if not self._size:
            raise HbfError(f"{file} is smaller than one chunk of {self._chunk} bytes; serve a larger model")
        self._mapped = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) if way == "mmap" else None
        self._failure: OSError | None = None
        self._jobs: queue.SimpleQueue[tuple[int, int, _Layer] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(spill.depth)]
        for thread in self._threads:
            thread.start()

    def ask(self, base: int, chunks: list[tuple[int, int]]) -> _Layer:
        """Begin to read a layer; the file is gone through round and round."""
        layer = _Layer(len(chunks))
        for offset, nbytes in chunks:
            self._jobs.put(((base + offset) // _PAGE * _PAGE % self._size, nbytes, layer))
        return layer

    def close(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        if self._mapped is not None:
            self._mapped.close()
        os.close(self._fd)
        if self._failure is not None:
            raise HbfError(f"reading from the mount failed: {self._failure.strerror}")

    def _run(self) -> None:
        buffer = mmap.mmap(-1, -(-self._chunk // _PAGE) * _PAGE)
        while (job := self._jobs.get()) is not None:
            offset, nbytes, layer = job
            try:
                self._read(offset, nbytes, buffer)
            except OSError as error:
                self._failure = error
            layer.came()

    def _read(self, offset: int, nbytes: int, buffer: mmap.mmap) -> None:
        if self._mapped is None:
            os.preadv(self._fd, [memoryview(buffer)[:nbytes]], offset)
            return
        first, length = offset, -(-nbytes // _PAGE) * _PAGE
        self._mapped.madvise(mmap.MADV_WILLNEED, first, min(length, len(self._mapped) - first))
        for at in range(offset, min(offset + nbytes, len(self._mapped)), _PAGE):
            self._mapped[at]
        self._mapped.madvise(mmap.MADV_DONTNEED, first, min(length, len(self._mapped) - first))
        os.posix_fadvise(self._fd, first, length, os.POSIX_FADV_DONTNEED)


def replay(spill: Spill, file: Path, tokens: int, way: str = "read", warm_up: int = 2) -> Replayed:
    """Decode `tokens` tokens whose spilled context is in `file`; computing is sleeping. HbfError if reading
    fails or the file is too small.
    """
    if way not in WAYS:
        raise HbfError(f"unknown way {way!r} (--way); there are: {', '.join(WAYS)}")
    readers = _Readers(file, spill, way)
    chunks, compute = spill.chunks(), spill.compute_seconds / spill.layers
    jobs = [layer * spill.layer_bytes for _ in range(tokens + warm_up) for layer in range(spill.layers)]
    asked: list[_Layer] = []
    ends = []
    try:
        for place in range(len(jobs)):
            if chunks:
                if place == len(asked):
                    asked.append(readers.ask(jobs[place], chunks))
                asked[place].wait()
                # Computing begins: with prefetch, what comes `prefetch` layers later may be asked for.
                while len(asked) <= min(place + spill.prefetch, len(jobs) - 1):
                    asked.append(readers.ask(jobs[len(asked)], chunks))
            if compute:
                time.sleep(compute)
            if (place + 1) % spill.layers == 0:
                ends.append(time.monotonic())
    finally:
        readers.close()
    counted = zip(ends[warm_up - 1 :], ends[warm_up:], strict=False)
    return Replayed(tuple(after - before for before, after in counted))
