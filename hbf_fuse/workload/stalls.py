"""How long llama-bench waited, as the kernel counts it, and which other resources it used.

Independent of the server's own count (`stall_seconds`). docs/definitions.md says what each figure includes.
"""

import contextlib
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hbf_fuse.host import pressure, taskstats
from hbf_fuse.host.starved import Starved
from hbf_fuse.host.taskstats import Wait

REPORTED = {"blkio": "blkio", "swapin": "swapin", "freepages": "reclaim", "thrashing": "thrashing"}
"""The kernel's name of a wait, and the name in results."""
PSI = ("io_some", "io_full", "memory_some")

_CLOCKS_DIFFER = 1.01
"""Tolerance: the kernel's clock for waits is not the one of wall time."""
_STATUS = re.compile(r"^(VmHWM|Threads):\s+(\d+)", re.MULTILINE)


class Delays:
    """Observes one child process: look() while it runs, ended() before it is reaped, then metrics()."""

    def __init__(self, why_not_counted: str) -> None:
        self._waits: dict[str, Wait] | None = None
        self._why = why_not_counted
        self._threads = 1
        self._peak_kib: int | None = None
        self._starved = Starved()
        self.starved: list[tuple[int, int | None]] = []
        """Run-queue delay of its threads so far, in ns, with the time of the look-up (CLOCK_MONOTONIC)."""
        self._pressure, self._no_pressure = pressure.totals()
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def look(self, pid: int) -> None:
        """Record its threads and its peak size. The kernel forgets the peak when the process ends."""
        with contextlib.suppress(OSError):
            found = dict(_STATUS.findall(Path(f"/proc/{pid}/status").read_text()))
            self._threads = max(self._threads, int(found.get("Threads", 1)))
            self._peak_kib = int(found["VmHWM"]) if "VmHWM" in found else self._peak_kib
            threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
            self.starved.append((time.monotonic_ns(), self._starved.ns(threads)))

    def ended(self, pid: int) -> None:
        """Read the kernel's counters, which exist until the process is reaped."""
        if not self._why:
            self._waits, self._why = taskstats.of_process(pid)

    def metrics(self, wall_seconds: float) -> dict[str, Any]:
        """All figures, under the names of docs/definitions.md. The process must have been reaped."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime - self._before.ru_utime - self._before.ru_stime
        return {
            **judged(self._waits, self._why, self._threads, wall_seconds),
            **self._pressed(),
            "peak_rss_bytes": self._peak_kib and self._peak_kib * 1024,
            "bench_cpu_seconds": cpu,
            "major_faults": used.ru_majflt - self._before.ru_majflt,
        }

    def _pressed(self) -> dict[str, Any]:
        now, why = pressure.totals()
        added = pressure.since(self._pressure, now) if self._pressure and now else {}
        figures = {f"psi_{key}_seconds": added.get(key) for key in PSI}
        return {**figures, "psi": "ok" if added else f"not available: {self._no_pressure or why}"}


@contextmanager
def counted() -> Iterator[Delays]:
    """A watch for one process that is started and judged within this block."""
    with taskstats.accounting() as why_not:
        yield Delays(why_not)


def judged(waits: dict[str, Wait] | None, why: str, threads: int, wall_seconds: float) -> dict[str, Any]:
    """The waits in seconds, and in `delays` whether they are plausible. If one is not, all are None.

    threads: the largest number of threads of the process.
    """
    if waits is not None:
        why = _doubt(waits, threads, wall_seconds)
    verdict = ("implausible: " if waits else "not available: ") + why if why else "ok"
    seconds = {
        f"delay_{name}_seconds": waits[kind].ns / 1e9 if waits and not why else None
        for kind, name in REPORTED.items()
    }
    return {**seconds, "delays": verdict}


def _doubt(waits: dict[str, Wait], threads: int, wall_seconds: float) -> str:
    """Why these waits are impossible: no thread waits longer than it exists."""
    most = wall_seconds * 1e9 * _CLOCKS_DIFFER
    for kind, name in REPORTED.items():
        wait = waits[kind]
        if wait.longest_ns > most:
            return f"one {name} wait of {wait.longest_ns / 1e9:.1f} s in {wall_seconds:.1f} s"
        if wait.ns > most * threads:
            return f"{name} waits of {wait.ns / 1e9:.1f} s in {wall_seconds:.1f} s of {threads} threads"
    return ""
