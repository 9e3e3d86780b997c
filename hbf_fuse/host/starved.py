"""How long other threads were ready to run and had no CPU.

From /proc/TID/schedstat, which everybody may read (Documentation/scheduler/sched-stats.rst).
"""

import os
from collections.abc import Collection
from pathlib import Path

MOST_THREADS = 256
"""More would take longer to ask for than they have time."""


class Starved:
    """Sums it over threads that come and go."""

    def __init__(self) -> None:
        self._total_ns = 0
        self._known: dict[int, int] = {}

    def ns(self, threads: Collection[int]) -> int | None:
        """How long these have wanted a CPU since they were first named, with those that were named before;
        None if that cannot be known: of too many, or where /proc hides them. 0 where the kernel does not
        count it (no CONFIG_SCHED_INFO).
        """
        if len(threads) > MOST_THREADS:
            return None
        known: dict[int, int] = {}
        for thread in threads:
            try:
                known[thread] = int(Path(f"/proc/{thread}/schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                if _lives(thread):
                    return None
            except (OSError, ValueError, IndexError):
                return None
        self._total_ns += sum(waited - self._known.get(thread, waited) for thread, waited in known.items())
        self._known = known
        return self._total_ns


def _lives(thread: int) -> bool:
    try:
        os.kill(thread, 0)
    except (ProcessLookupError, OverflowError):
        # No thread has a number so large.
        return False
    except OSError:
        pass
    return True
