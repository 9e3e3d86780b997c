"""The spill pattern as real reads of a file on a mount, so that simulated and measured stand side by side.

Computing is time that passes on the clock. Whoever brings the last chunk of a layer says when the next is
due, and readers sleep until then themselves: handing work from thread to thread would be measured as the
tier's.
"""

import errno
import mmap
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux
from hbf_fuse.kv.spill import Spill

WAYS = ("read", "mmap")
"""Past the page cache, or through a mapping whose pages are dropped after use."""

_PAGE = 4096
_LEARNING = 0.2
"""How much of the newest oversleeping goes into the estimate that wake-ups are set early by."""


@dataclass(frozen=True)
class Replayed:
    """seconds: of each token, the first ones left out as in the simulation."""

    seconds: tuple[float, ...]

    @property
    def mean_seconds(self) -> float:
        return sum(self.seconds) / len(self.seconds)


class _Decode:
    """What is to be read when, and when computing would end. Safe for concurrent callers.

    The same schedule as in the simulation (kv.sim): with prefetch a layer is asked for when computing begins
    that many layers before it, without when the layer before it is computed.
    """

    def __init__(self, spill: Spill, tokens: int) -> None:
        self._spill = spill
        self._chunks = spill.chunks()
        self._compute_ns = round(spill.compute_seconds / spill.layers * 1e9)
        self._layers = tokens * spill.layers
        self._left = [len(self._chunks)] * self._layers
        self._ready_ns = [0] * self._layers
        self._computed = 0
        self._asked = 0
        self._jobs: deque[tuple[int, int, int, int]] = deque()
        self._changed = threading.Condition()
        self.ends_ns: list[int] = []
        """When each token was computed (CLOCK_MONOTONIC)."""
        self._end_ns = time.monotonic_ns()
        with self._changed:
            self._ask(max(1, spill.prefetch), self._end_ns)
            self._compute_what_is_there()

    def next(self) -> tuple[int, int, int, int] | None:
        """A chunk to read as (layer, due ns, offset, bytes), when there is one; None at the end."""
        with self._changed:
            while not self._jobs:
                if self._computed == self._layers:
                    return None
                self._changed.wait()
            return self._jobs.popleft()

    def came(self, layer: int, now_ns: int) -> None:
        """A chunk of a layer was there at now_ns."""
        with self._changed:
            self._left[layer] -= 1
            self._ready_ns[layer] = max(self._ready_ns[layer], now_ns)
            self._compute_what_is_there()

    def give_up(self) -> None:
        """Let every reader end."""
        with self._changed:
            self._computed = self._layers
            self._jobs.clear()
            self._changed.notify_all()

    def _compute_what_is_there(self) -> None:
        while self._computed < self._layers and not self._left[self._computed]:
            self._compute()

    def _compute(self) -> None:
        """The next layer is there: when its computing begins and ends, and what may be asked for then."""
        start_ns = max(self._end_ns, self._ready_ns[self._computed])
        self._end_ns = start_ns + self._compute_ns
        self._computed += 1
        if self._computed % self._spill.layers == 0:
            self.ends_ns.append(self._end_ns)
        prefetch = self._spill.prefetch
        self._ask(self._computed + max(1, prefetch), start_ns if prefetch else self._end_ns)

    def _ask(self, until: int, due_ns: int) -> None:
        """Ask for the layers before `until` that were not asked for; the file is gone through round and
        round.
        """
        while self._asked < min(until, self._layers):
            base = self._asked * self._spill.layer_bytes
            self._jobs.extend((self._asked, due_ns, base + at, nbytes) for at, nbytes in self._chunks)
            self._asked += 1
        self._changed.notify_all()


class _Readers:
    """As many threads as reads may be in flight, until all is decoded."""

    def __init__(self, file: Path, spill: Spill, way: str) -> None:
        self._chunk = spill.chunk_bytes
        self._fd = os.open(file, os.O_RDONLY | (os.O_DIRECT if way == "read" else 0))
        size = os.fstat(self._fd).st_size
        # Where reads begin goes round and round in so much: no read reaches beyond the end.
        self._round = (size - self._chunk) // _PAGE * _PAGE + _PAGE
        if size < self._chunk:
            os.close(self._fd)
            raise HbfError(f"{file} is smaller than one chunk of {self._chunk} bytes", "serve a larger model")
        self._mapped = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) if way == "mmap" else None
        self._depth = spill.depth
        self._failure: OSError | None = None

    def read_all(self, decode: _Decode) -> None:
        """Read what a decode asks for. HbfError if reading fails."""
        threads = [
            threading.Thread(target=self._run, args=(decode,), daemon=True) for _ in range(self._depth)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise HbfError(f"reading from the mount failed: {self._failure.strerror}")

    def close(self) -> None:
        if self._mapped is not None:
            self._mapped.close()
        os.close(self._fd)

    def _run(self, decode: _Decode) -> None:
        linux.sharpen_timers()
        buffer = mmap.mmap(-1, -(-self._chunk // _PAGE) * _PAGE)
        overslept_ns = 0.0
        while (job := decode.next()) is not None:
            layer, due_ns, offset, nbytes = job
            early_ns = due_ns - time.monotonic_ns() - overslept_ns
            if early_ns > 0:
                time.sleep(early_ns / 1e9)
                overslept_ns += (time.monotonic_ns() - due_ns) * _LEARNING
            try:
                self._read(offset // _PAGE * _PAGE % self._round, nbytes, buffer)
            except OSError as error:
                self._failure = error
                decode.give_up()
            decode.came(layer, time.monotonic_ns())

    def _read(self, offset: int, nbytes: int, buffer: mmap.mmap) -> None:
        if self._mapped is None:
            if os.preadv(self._fd, [memoryview(buffer)[:nbytes]], offset) < nbytes:
                raise OSError(errno.EIO, "a read was cut short")
            return
        first, length = offset, -(-nbytes // _PAGE) * _PAGE
        self._mapped.madvise(mmap.MADV_WILLNEED, first, min(length, len(self._mapped) - first))
        for at in range(offset, min(offset + nbytes, len(self._mapped)), _PAGE):
            self._mapped[at]
        self._mapped.madvise(mmap.MADV_DONTNEED, first, min(length, len(self._mapped) - first))
        os.posix_fadvise(self._fd, first, length, os.POSIX_FADV_DONTNEED)


def replay(spill: Spill, file: Path, tokens: int, way: str = "read", warm_up: int = 2) -> Replayed:
    """Decode `tokens` tokens whose spilled context is in `file`. HbfError if reading fails or the file is too
    small.
    """
    if way not in WAYS:
        raise HbfError(f"unknown way {way!r} (--way)", f"there are: {', '.join(WAYS)}")
    readers = _Readers(file, spill, way)
    try:
        decode = _Decode(spill, tokens + warm_up)
        readers.read_all(decode)
    finally:
        readers.close()
    counted = pairwise(decode.ends_ns[warm_up - 1 :])
    return Replayed(tuple((after - before) / 1e9 for before, after in counted))
