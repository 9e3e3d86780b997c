"""Ends the reads of readers that are being killed.

FUSE_INTERRUPT comes for any signal. If the reader handles the signal, it would repeat a read that ended
early: for ever if the signal is a timer's. So only reads of dying readers end, as /proc shows them.
"""

import contextlib
import threading
import time
from collections.abc import Callable

from hbf_fuse.host import linux

_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 1.0
"""How long a read may be unknown: another thread may have taken it from the kernel but not registered it yet.
"""


class Interrupts:
    """Checks the readers of waiting reads, from their first signal on. Safe for concurrent callers.

    reader_of: the thread that waits for a request, 0 if the request does not wait. cancel: ends a waiting
    read.
    """

    def __init__(self, reader_of: Callable[[int], int], cancel: Callable[[int], object]) -> None:
        self._reader_of = reader_of
        self._cancel = cancel
        self._lock = threading.Lock()
        self._watched = False
        self._signalled: dict[int, float] = {}
        """Requests whose readers got a signal, and until when each may be unknown."""

    def came(self, unique: int) -> None:
        """A signal has reached the reader of a request."""
        with self._lock:
            self._signalled[unique] = time.monotonic() + _PATIENCE_SECONDS
            if not self._watched:
                # If no thread can be started now, the next signal tries again.
                with contextlib.suppress(RuntimeError):
                    threading.Thread(target=self._watch, daemon=True, name="interrupts").start()
                    self._watched = True

    def _watch(self) -> None:
        """Check until no such request waits any more."""
        while True:
            with self._lock:
                self._signalled = {
                    unique: end for unique, end in self._signalled.items() if self._waits(unique, end)
                }
                if not self._signalled:
                    self._watched = False
                    return
            time.sleep(_LOOK_SECONDS)

    def _waits(self, unique: int, patience_end: float) -> bool:
        reader = self._reader_of(unique)
        if not reader:
            return time.monotonic() < patience_end
        if not linux.is_dying(reader):
            return True
        self._cancel(unique)
        return False
