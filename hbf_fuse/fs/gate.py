"""Keeps readers waiting while a mount is being prepared: until then it serves from no tier of theirs."""

import threading


class Gate:
    """Open at first. While it is closed only guests come through; safe for concurrent callers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._closed = False
        self._guests: set[int] = set()
        self.waiting = 0
        """How many readers are being held, each by a thread that can do nothing else."""

    def close(self) -> None:
        """Let nobody through from now on but guests."""
        with self._condition:
            self._closed = True

    def invite(self, reader: int) -> None:
        """Let this thread through."""
        with self._condition:
            self._guests.add(reader)
            self._condition.notify_all()

    def open(self) -> None:
        """Let everybody through, also those who wait."""
        with self._condition:
            self._closed = False
            self._guests.clear()
            self._condition.notify_all()

    def passed(self, reader: int) -> bool:
        """Come through, when it may be; False for a reader that had to wait for it."""
        if not self._closed:
            return True
        with self._condition:
            begun = not self._closed or reader in self._guests
            self.waiting += 1
            self._condition.wait_for(lambda: not self._closed or reader in self._guests)
            self.waiting -= 1
            return begun
