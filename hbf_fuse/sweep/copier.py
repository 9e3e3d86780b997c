"""Copies a file in chunks, one chunk in flight. Run as a script: copier.py SOURCE TARGET CHUNK PIECE.

Each chunk of CHUNK bytes is asked for in pieces of PIECE bytes at the same time, past the page cache and
straight into the mapped TARGET, and the next chunk when all of them have come: what one read of CHUNK bytes
would be, if the kernel passed it on whole. TARGET's memory is there before the first read; a TARGET that is
there already is written over. Stands alone.

Prints a JSON object: seconds of the copy and of preparing TARGET's memory. If that fails, prints
{"error": why} and exits with 1.
"""

import json
import mmap
import os
import sys
import threading
import time

_MADV_POPULATE_WRITE = 23


class Copier:
    """Threads that start each chunk together."""

    def __init__(self, source: int, target: memoryview, chunk: int, piece: int) -> None:
        self._source = source
        self._target = target
        self._chunk = chunk
        self._piece = piece
        self._offset = 0
        self._readers = chunk // piece
        self._left = self._readers
        self._lock = threading.Lock()
        self._begin = [threading.Semaphore(1) for _ in range(self._readers)]
        self._failure: OSError | None = None

    def run(self) -> None:
        """Copy everything. Raises the OSError that stopped it."""
        threads = [threading.Thread(target=self._read, args=(part,)) for part in range(self._readers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure:
            raise self._failure

    def _read(self, part: int) -> None:
        while self._begin[part].acquire() and self._offset < len(self._target) and not self._failure:
            begin = self._offset + part * self._piece
            try:
                _read_whole(self._source, self._target[begin : begin + self._piece], begin)
            except OSError as error:
                self._failure = error
            with self._lock:
                self._left -= 1
                if self._left:
                    continue
                self._left = self._readers
                self._offset += self._chunk
            # The last to come starts the next chunk, and its own read is on its way before the others wake.
            for other in self._begin:
                other.release()


def _read_whole(source: int, into: memoryview, offset: int) -> None:
    while into:
        count = os.preadv(source, [into], offset)
        if not count:
            raise OSError(5, "the source ended early")
        into, offset = into[count:], offset + count


def _prepared(target: str, size: int) -> mmap.mmap:
    """The target, mapped, with all its memory in place."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, size)
    mapped = mmap.mmap(fd, size)
    try:
        mapped.madvise(_MADV_POPULATE_WRITE)
    except OSError:
        # Linux before 5.14
        for page in range(0, size, mmap.PAGESIZE):
            mapped[page] = 0
    return mapped


def main(source: str, target: str, chunk: int, piece: int) -> None:
    """See the module."""
    sys.setswitchinterval(0.0005)
    try:
        reading = os.open(source, os.O_RDONLY | os.O_DIRECT)
        start = time.monotonic_ns()
        mapped = _prepared(target, os.fstat(reading).st_size)
        begin = time.monotonic_ns()
        Copier(reading, memoryview(mapped), chunk, piece).run()
    except OSError as error:
        print(json.dumps({"error": error.strerror}))
        sys.exit(1)
    end = time.monotonic_ns()
    print(json.dumps({"seconds": (end - begin) / 1e9, "prepare_seconds": (begin - start) / 1e9}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
