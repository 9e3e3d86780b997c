"""Run-queue delay of other threads: how long they were ready to run and had no CPU.

From /proc/TID/schedstat, which everybody may read (Documentation/scheduler/sched-stats.rst).
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

MOST_THREADS = 256
"""Asking for more would take too long."""


class Starved:
    """Sums the run-queue delay of a changing set of threads."""

    def __init__(self) -> None:
        self._total_ns = 0
        self._known: dict[int, int] = {}
        self._from_birth = False

    def meet(self, threads: Collection[int]) -> None:
        """All that a process has by now: threads that `ns` first hears of later count from birth."""
        self._from_birth = True
        for thread in threads:
            with contextlib.suppress(OSError, ValueError, IndexError):
                self._known.setdefault(thread, _waited_ns(thread))

    def ns(self, threads: Collection[int]) -> int | None:
        """Delay of these threads in ns since each was first named, plus that of threads named before.

        None if it cannot be known: there are more than MOST_THREADS, or /proc hides one. 0 where the kernel
        does not count it (no CONFIG_SCHED_INFO).
        """
        if len(threads) > MOST_THREADS:
            return None
        known: dict[int, int] = {}
        for thread in threads:
            try:
                known[thread] = _waited_ns(thread)
            except (FileNotFoundError, ProcessLookupError):
                if _lives(thread):
                    return None
            except (OSError, ValueError, IndexError):
                return None
        self._total_ns += sum(
            waited - self._known.get(thread, 0 if self._from_birth else waited)
            for thread, waited in known.items()
        )
        self._known = self._known | known if self._from_birth else known
        return self._total_ns


def _waited_ns(thread: int) -> int:
    return int(Path(f"/proc/{thread}/schedstat").read_text().split()[1])


def _lives(thread: int) -> bool:
    try:
        os.kill(thread, 0)
    except (ProcessLookupError, OverflowError):
        # OverflowError: no thread id is that large.
        return False
    except OSError:
        pass
    return True
