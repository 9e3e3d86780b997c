"""A disk measured by its jobs, in rounds, and held against a mount of what was fitted."""

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hbf_fuse.disks import jobs
from hbf_fuse.disks.jobs import CPU_BOUND, Job, Sample
from hbf_fuse.disks.target import Target
from hbf_fuse.errors import HbfError

ATTEMPTS = 3
OTHERS = 0.05
"""A run is disturbed if others moved more than this share of its bytes on the same disk."""

_OTHERS_BYTES = 1 << 20
_LEAST_MOVED = 0.5
"""Of a run's bytes. If the disk moved less, they were not read from it."""

Advance = Callable[[], None]


@dataclass(frozen=True)
class Disturbed:
    """How often a run was made again because others used the disk, and how many were taken all the same."""

    again: int = 0
    left: int = 0

    def __add__(self, other: "Disturbed") -> "Disturbed":
        return Disturbed(self.again + other.again, self.left + other.left)


@dataclass(frozen=True)
class Measured:
    """samples: the runs of each job."""

    samples: Mapping[Job, Sequence[Sample]]
    disturbed: Disturbed

    @property
    def repeats_within_pct(self) -> float:
        """How far apart the runs of the middle job are, in percent of their median."""
        return statistics.median(spread_pct(runs) for runs in self.samples.values())


def spread_pct(runs: Sequence[Sample]) -> float:
    """How far apart the rates of some runs are, in percent of their median."""
    rates = [run.mbps for run in runs]
    return (max(rates) - min(rates)) / statistics.median(rates) * 100


def measure(target: Target, rounds: int, advance: Advance) -> Measured:
    """Every job `rounds` times, each round in a new order. advance: called after each run. HbfError if reads
    fail, or do not reach the disk.
    """
    disturbed, every = Disturbed(), jobs.jobs(target.size)
    samples = {job: list[Sample]() for job in every}
    for job, seed in _runs(every, rounds):
        sample, one = undisturbed(target, job, seed)
        disturbed += one
        samples[job].append(sample)
        advance()
    target.require_uncached()
    return Measured(samples, disturbed)


def _runs(every: Sequence[Job], rounds: int) -> Iterator[tuple[Job, int]]:
    """The jobs of all rounds, each with a seed of its own."""
    order = random.Random(1)  # noqa: S311 - an order, no secret
    for number in range(rounds):
        for place, job in enumerate(order.sample(every, len(every))):
            yield job, (number * len(every) + place) * ATTEMPTS


def undisturbed(target: Target, job: Job, seed: int) -> tuple[Sample, Disturbed]:
    """A run of a job, again if others used the disk meanwhile. HbfError if the disk moved less than was
    read.
    """
    for attempt in range(ATTEMPTS):
        before = target.transferred()
        sample = jobs.run(target.fd, job, seed + attempt)
        after = target.transferred()
        moved = sample.nbytes if before is None or after is None else after - before
        if moved < _LEAST_MOVED * sample.nbytes:
            raise HbfError(
                f"the disk moved {moved} bytes while {sample.nbytes} were read: the reads do not reach it",
                "name a file without holes, on a file system that does not compress",
            )
        if moved - sample.nbytes <= OTHERS * sample.nbytes + _OTHERS_BYTES:
            return sample, Disturbed(attempt)
    return sample, Disturbed(ATTEMPTS - 1, 1)


@dataclass(frozen=True)
class Compared:
    """A job on the real disk and on a mount of its profile, medians in decimal MB/s. repeats_pct: how far
    apart the real disk's own runs are. cpu_bound: the machine's CPUs were busy with the mount's.
    """

    job: Job
    real_mbps: float
    emulated_mbps: float
    repeats_pct: float
    cpu_bound: bool

    @property
    def error_pct(self) -> float:
        return (self.emulated_mbps / self.real_mbps - 1) * 100


def compare(
    target: Target, mounted_fd: int, rounds: int, advance: Advance
) -> tuple[list[Compared], Disturbed]:
    """Every job on both, one after the other, each round in a new order."""
    disturbed, every = Disturbed(), jobs.jobs(target.size)
    real = {job: list[Sample]() for job in every}
    emulated = {job: list[Sample]() for job in every}
    for job, seed in _runs(every, rounds):
        sample, one = undisturbed(target, job, seed)
        disturbed += one
        real[job].append(sample)
        emulated[job].append(jobs.run(mounted_fd, job, seed))
        advance()
    return [
        Compared(
            job,
            statistics.median(run.mbps for run in real[job]),
            statistics.median(run.mbps for run in emulated[job]),
            spread_pct(real[job]),
            statistics.median(run.busy for run in emulated[job]) > CPU_BOUND,
        )
        for job in every
    ], disturbed
