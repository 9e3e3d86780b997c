"""Room for files that can be written: a size in all, and how much of it they take."""

from hbf_fuse.pacing.mutex import Mutex


class Room:
    """Counts files by their size, in whole units: holes take room, too. Safe for concurrent callers.

    size, unit: in bytes. used: by files, in bytes.
    """

    def __init__(self, size: int, unit: int) -> None:
        self.size, self.unit = size, unit
        self.used = 0
        self._mutex = Mutex()

    def grow(self, before: int, after: int) -> bool:
        """A file of `before` bytes is to have `after`. False, and no change, if there is no room."""
        more = self._units(after) - self._units(before)
        self._mutex.acquire()
        fits = more <= 0 or self.used + more <= self.size
        if fits:
            self.used += more
        self._mutex.release()
        return fits

    def _units(self, nbytes: int) -> int:
        return (nbytes + self.unit - 1) // self.unit * self.unit
