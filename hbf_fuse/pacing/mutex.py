"""A lock that the compiled code takes without the interpreter (mutex.pyx); uncompiled, Python's own."""

import threading


class Mutex:
    """Not re-entrant. Held for some microseconds at most; its holder never waits for the interpreter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """Wait for the lock and take it."""
        self._lock.acquire()

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()
