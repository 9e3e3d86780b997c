"""What was read while the reader did what: it says itself when another phase begins."""

from hbf_fuse.observe.status import PhaseStatus

MOST_PHASES, MOST_LETTERS = 64, 40


class Phases:
    """Reads, bytes and time by phase, as differences between counters. One that comes again goes on counting.
    The caller holds a lock.
    """

    def __init__(self) -> None:
        self.current = ""
        self._over: dict[str, PhaseStatus] = {}
        self._since: tuple[int, int, int] = 0, 0, 0

    def begin(self, name: str, now_ns: int, reads: int, nbytes: int) -> None:
        """Another phase begins at these counters. ValueError for a name that cannot be, or for too many."""
        if not 0 < len(name) <= MOST_LETTERS or not name.isprintable():
            raise ValueError(f"a phase has a name of 1 to {MOST_LETTERS} letters")
        if name not in self._over and len(self._over) >= MOST_PHASES:
            raise ValueError(f"there are {MOST_PHASES} phases already")
        self._over = self.status(now_ns, reads, nbytes)
        self._over.setdefault(name, {"seconds": 0.0, "reads": 0, "bytes_read": 0})
        self.current, self._since = name, (now_ns, reads, nbytes)

    def status(self, now_ns: int, reads: int, nbytes: int) -> dict[str, PhaseStatus]:
        """All phases, the current one up to these counters."""
        if not self.current:
            return {}
        found, (since_ns, reads_then, bytes_then) = dict(self._over), self._since
        so_far = found[self.current]
        found[self.current] = {
            "seconds": so_far["seconds"] + (now_ns - since_ns) / 1e9,
            "reads": so_far["reads"] + reads - reads_then,
            "bytes_read": so_far["bytes_read"] + nbytes - bytes_then,
        }
        return found
