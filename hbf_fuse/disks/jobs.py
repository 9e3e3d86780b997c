"""What is measured of a disk: reads past the page cache, of several sizes, so many in flight."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean
from time import monotonic_ns

from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.mount import lean

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
DEPTHS = (1, 2, 4, 8, 16, 32)
JOB_SECONDS = 0.4
"""Each reader makes at least three reads, unless that would take 3 s longer."""

SETTLING = 0.25
"""Share of a job that is not counted: limits of the kernel and of virtual disks let something through at once
(blk-throttle of Linux: what comes in 0.1 s).
"""

LEAST_FILE_BYTES = 64 << 20
"""Less fits into the memory of any disk."""

CPU_BOUND = 0.9
"""Share of the machine's CPU time. With more, a job measured its readers."""

_MOST_READS = 1 << 17
_GOLDEN = 0x9E3779B97F4A7C15
_STRIDE = 104_729
"""Runs begin far from each other: what was read just now may be in a memory of the disk."""

SPREAD = (1, 5, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True, order=True)
class Job:
    """depth readers, each with one read of `size` bytes in flight: the next of the file, or anywhere."""

    size: int
    depth: int
    random: bool

    @property
    def label(self) -> str:
        """The size, as fio writes it."""
        return f"{self.size >> 20}M" if self.size >= 1 << 20 else f"{self.size >> 10}K"

    @property
    def order(self) -> str:
        return "random" if self.random else "sequential"

    def __str__(self) -> str:
        return f"{self.label} x {self.depth} {self.order}"


@dataclass(frozen=True)
class Sample:
    """One run of a job. mbps: decimal MB/s. mean_ns, spread_ns: of the times of its reads, by SPREAD. busy:
    share of the machine's CPU time that was used meanwhile, by anybody.
    """

    mbps: float
    mean_ns: float
    spread_ns: tuple[int, ...]
    nbytes: int
    busy: float = 0.0


def jobs(file_bytes: int) -> list[Job]:
    """Every size, depth and order. HbfError if the file is too small to say anything."""
    if file_bytes < LEAST_FILE_BYTES:
        raise HbfError(
            f"a file of {file_bytes} bytes is too small to measure a disk with",
            f"name one of at least {LEAST_FILE_BYTES >> 20} MiB, such as a GGUF",
        )
    return [Job(size, depth, random) for size in SIZES for depth in DEPTHS for random in (False, True)]


def run(fd: int, job: Job, seed: int) -> Sample:
    """Run a job on an open file (O_DIRECT). seed: other reads than those of other seeds. HbfError if one
    fails.
    """
    begun_ns, busy_seconds = monotonic_ns(), machine.busy_core_seconds()
    until_ns = begun_ns + round(JOB_SECONDS * 1e9)
    with ThreadPoolExecutor(job.depth) as readers:
        begun = [readers.submit(_read, fd, job, number, seed, until_ns) for number in range(job.depth)]
        done = [each.result() for each in begun]
    whole_seconds = (monotonic_ns() - begun_ns) / 1e9 * (os.cpu_count() or 1)
    times = sorted(time for _, own in done for time in own)
    spread = tuple(times[min(len(times) - 1, len(times) * share // 100)] for share in SPREAD)
    return Sample(
        rate(
            job.size,
            [list(accumulate(own, initial=begin)) for begin, own in done],
            begun_ns + round(SETTLING * JOB_SECONDS * 1e9),
        ),
        fmean(times),
        spread,
        len(times) * job.size,
        (machine.busy_core_seconds() - busy_seconds) / whole_seconds,
    )


def rate(size: int, ends_ns: Sequence[Sequence[int]], since_ns: int = 0) -> float:
    """Decimal MB/s of readers of `size` bytes, from when each began and when each of its reads ended.

    Counts the time from when each had its first read, and not before since_ns, until the first has its last:
    all are reading then. A read's bytes are spread evenly over its time, for reads may end one after the
    other, or all at once.
    """
    begin_ns, end_ns = max(since_ns, *(own[1] for own in ends_ns)), min(own[-1] for own in ends_ns)
    if end_ns <= begin_ns:
        begin_ns, end_ns = min(own[0] for own in ends_ns), max(own[-1] for own in ends_ns)
    share = sum(
        max(0, min(after, end_ns) - max(before, begin_ns)) / max(1, after - before)
        for own in ends_ns
        for before, after in pairwise(own)
    )
    return share * size * 1e3 / max(1, end_ns - begin_ns)


def _read(fd: int, job: Job, number: int, seed: int, until_ns: int) -> tuple[int, Sequence[int]]:
    """When a reader began, and how long each of its reads took."""
    own_seed = ((seed * 64 + number + 1) * _GOLDEN & (1 << 64) - 1) | 1 if job.random else 0
    start = number + seed * _STRIDE * job.depth
    try:
        begin_ns, _, times = lean.measure(
            fd, job.size, _MOST_READS, start, job.depth, until_ns=until_ns, seed=own_seed
        )
    except OSError as error:
        raise HbfError(f"reading past the page cache failed: {error.strerror or error}") from error
    return begin_ns, times
