"""A lock that the compiled code takes without the interpreter (mutex.pyx); uncompiled, Python's own."""

import threading


class Mutex:
    """Not re-entrant. Held for some microseconds at most, and never while anybody waits for the
    interpreter.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """Wait for it and take it."""
        self._lock.acquire()

    def release(self) -> None:
        """Give it back."""
        self._lock.release()
