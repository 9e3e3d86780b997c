"""How long this thread was ready to run and had no CPU, as the scheduler counts it."""

import os


class CpuWait:
    """Reads /proc/thread-self/schedstat (Documentation/scheduler/sched-stats.rst). One per thread.

    Where the kernel does not count it (no CONFIG_SCHED_INFO), the answer is always 0.
    """

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._marked_ns = self._total_ns()

    def since_mark(self) -> int:
        """ns that the thread wanted a CPU since mark() was called last."""
        return self._total_ns() - self._marked_ns

    def mark(self) -> None:
        """Count from here on."""
        self._marked_ns = self._total_ns()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _total_ns(self) -> int:
        return int(os.pread(self._fd, 80, 0).split()[1]) if self._fd >= 0 else 0
