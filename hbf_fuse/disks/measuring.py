"""A disk measured by its jobs, in rounds, and held against a mount of what was fitted."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hbf_fuse.disks import jobs
from hbf_fuse.disks.jobs import Job, Sample
from hbf_fuse.disks.target import Target

ROUNDS = 2
ATTEMPTS = 3
OTHERS = 0.05
"""A job counts as disturbed if others moved more than this share of its bytes on the same disk."""

_OTHERS_BYTES = 1 << 20
CPU_BOUND = 0.9
"""Share of the machine's CPU time. With more, a job measured its readers."""

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """samples: the runs of each job. disturbed: how often a job was repeated, or was taken all the same,
    because others used the disk.
    """

    samples: Mapping[Job, Sequence[Sample]]
    disturbed: int

    @property
    def repeats_within_pct(self) -> float:
        """How far apart the runs of the middle job are, in percent of their median."""
        return statistics.median(spread_pct(runs) for runs in self.samples.values())


def spread_pct(runs: Sequence[Sample]) -> float:
    """How far apart the rates of some runs are, in percent of their median."""
    rates = [run.mbps for run in runs]
    return (max(rates) - min(rates)) / statistics.median(rates) * 100


def measure(target: Target, rounds: int, advance: Advance) -> Measured:
    """Every job `rounds` times, each round in a new order. advance: told of each run. HbfError if reads fail,
    or do not reach the disk.
    """
    order, disturbed = random.Random(1), 0  # noqa: S311 - an order, no secret
    every = jobs.jobs(target.size)
    samples = {job: list[Sample]() for job in every}
    for number in range(rounds):
        for job in order.sample(every, len(every)):
            sample, attempts = undisturbed(target, job, number)
            disturbed += attempts - 1
            samples[job].append(sample)
            advance(str(job))
    target.require_uncached()
    return Measured(samples, disturbed)


def undisturbed(target: Target, job: Job, seed: int) -> tuple[Sample, int]:
    """A run of a job, again if others used the disk meanwhile; and which attempt it was."""
    attempt = 0
    while True:
        attempt += 1
        before = target.transferred()
        sample = jobs.run(target.fd, job, seed)
        after = target.transferred()
        of_others = 0 if before is None or after is None else after - before - sample.nbytes
        if of_others <= OTHERS * sample.nbytes + _OTHERS_BYTES or attempt == ATTEMPTS:
            return sample, attempt


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


def compare(target: Target, mounted_fd: int, rounds: int, advance: Advance) -> list[Compared]:
    """Every job on both, one after the other, each round in a new order."""
    order = random.Random(1)  # noqa: S311 - an order, no secret
    every = jobs.jobs(target.size)
    real = {job: list[Sample]() for job in every}
    emulated = {job: list[Sample]() for job in every}
    for number in range(rounds):
        for job in order.sample(every, len(every)):
            real[job].append(undisturbed(target, job, number)[0])
            emulated[job].append(jobs.run(mounted_fd, job, number))
            advance(str(job))
    return [
        Compared(
            job,
            statistics.median(run.mbps for run in real[job]),
            statistics.median(run.mbps for run in emulated[job]),
            spread_pct(real[job]),
            statistics.median(run.busy for run in emulated[job]) > CPU_BOUND,
        )
        for job in every
    ]
