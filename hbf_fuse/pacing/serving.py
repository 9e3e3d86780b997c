"""One read or write from beginning to end, for engines that serve each in a thread."""

import errno
import os
import threading
import time
from collections.abc import Callable

from hbf_fuse.pacing.pacer import Pacer

_INTERRUPTIBLE_NS = 50_000_000
"""The reader of a killed read may have to wait this long for the tier."""


class Read:
    """A read, or a write whose data is stored: nbytes from offset on, of the file in this place. reader: id
    of the thread that waits. way: DIRECT for past the page cache, WRITES for a write. arrival_ns: when it was
    seen (CLOCK_MONOTONIC). base: the address of a file's first byte, in kv/.
    """

    __slots__ = ("_killed", "arrival_ns", "base", "file", "nbytes", "offset", "reader", "way")

    def __init__(
        self,
        file: int,
        offset: int,
        nbytes: int,
        reader: int,
        way: int,
        arrival_ns: int,
        base: int = 0,
    ) -> None:
        self.file = file
        self.offset = offset
        self.nbytes = nbytes
        self.reader = reader
        self.way = way
        self.base = base
        self.arrival_ns = arrival_ns
        self._killed = threading.Event()

    def kill(self) -> None:
        """The reader is dying: stop waiting."""
        self._killed.set()

    def serve(
        self, pacer: Pacer, send: Callable[[], object], booked: Callable[[], object] = lambda: None
    ) -> None:
        """Admit the read, wait until it is due, send its data, and complete it. Whatever happens, it is
        completed or abandoned. booked: called after it is admitted, and after it has ended.

        Raises OSError EINTR if it was killed meanwhile, and what `send` raises.
        """
        coverage, moments = pacer.coverage, pacer.coverage.moments
        fresh = pacer.readers.fresh
        address = self.base + self.offset
        due_ns = pacer.admit(self.file, address, self.nbytes, self.reader, self.way, self.arrival_ns)
        sent = False
        try:
            booked()
            if pacer.readers.fresh != fresh:
                pacer.name_readers()
            if coverage.moments != moments:
                coverage.look()
            if pacer.throttled:
                self._wait(pacer, due_ns)
            pacer.sending(self.reader, self.arrival_ns, due_ns)
            started_ns = time.monotonic_ns()
            send()
            done_ns = time.monotonic_ns()
            sent = True
        finally:
            if not sent:
                pacer.abandon(self.file, self.nbytes, self.reader, self.way, self._killed.is_set())
                booked()
        pacer.complete(
            self.file,
            address,
            self.nbytes,
            self.reader,
            self.way,
            self.arrival_ns,
            due_ns,
            started_ns,
            done_ns,
        )
        booked()
        if coverage.moments != moments:
            coverage.look()

    def _wait(self, pacer: Pacer, until_ns: int) -> None:
        left_ns = until_ns - time.monotonic_ns()
        if left_ns > _INTERRUPTIBLE_NS:
            if self._killed.wait((left_ns - _INTERRUPTIBLE_NS) / 1e9):
                raise OSError(errno.EINTR, os.strerror(errno.EINTR))
            left_ns = until_ns - time.monotonic_ns()
        if left_ns > 0:
            time.sleep(left_ns / 1e9)
            pacer.counters.woken_late_ns += max(0, time.monotonic_ns() - until_ns)
