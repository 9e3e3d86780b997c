"""Which tier explains what was measured of a disk: bandwidth, latency, queue depth, or planes, and jitter.

The device itself, in virtual time, says what each job gets of a tier. The latency is that of small single
reads. The rest makes the mean of |log(model / measured)| over the jobs least. A form with more parameters is
taken only where it explains clearly more.
"""

import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from hbf_fuse.disks.jobs import CPU_BOUND, SPREAD, Job, Sample
from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.tier.window import Window

CLEARLY = 0.8
"""A form with more parameters must bring the mean error below this share of the simpler one's."""

LEAST_GAIN = 0.005
"""And by so much, as a share of the rates."""

BADLY_PCT = 10.0
"""A tier that misses the middle job by more explains nothing."""

WELL_PCT = 5.0

SMALL = 64 << 10
"""Up to this size the time of a read is mostly latency."""

_PAGES = (4 << 10, 16 << 10, 64 << 10)
_SHARES = (0.5, 0.95)
_READS, _READ_BYTES, _PIECES = 300, 32 << 20, 1 << 20
_DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_LEAST_MS, _STEPS = 1e-4, 40
_GOLDEN = (math.sqrt(5) - 1) / 2
_SWEEPS = 4
_QUARTILES = 1.349
"""How many deviations a bell curve's quartiles are apart."""

_JITTER_SHARE, _JITTER_NS = 0.1, 10_000
"""Times whose middle half is narrower than this share of their median, or than so many ns, have no jitter."""


@dataclass(frozen=True)
class Fit:
    """form: which parameters were needed. errors_pct: of each job that was fitted, model against measured.
    cpu_bound: how many jobs were left out because they kept the CPUs busy.
    """

    spec: TierSpec
    form: str
    errors_pct: Mapping[Job, float]
    cpu_bound: int = 0

    @property
    def middle_pct(self) -> float:
        """The middle job's error, without its sign."""
        return statistics.median(map(abs, self.errors_pct.values()))

    @property
    def well_share(self) -> float:
        """Share of the jobs that it misses by at most WELL_PCT."""
        return sum(abs(error) <= WELL_PCT for error in self.errors_pct.values()) / len(self.errors_pct)

    @property
    def is_bad(self) -> bool:
        """Whether it explains too little to be used."""
        return self.middle_pct > BADLY_PCT


def medians(samples: Mapping[Job, Sequence[Sample]]) -> dict[Job, float]:
    """Of each job, the median of its rates in decimal MB/s."""
    return {job: statistics.median(sample.mbps for sample in runs) for job, runs in samples.items()}


def fit(samples: Mapping[Job, Sequence[Sample]]) -> Fit:
    """The tier that explains these runs best. Each job needs a run at least. Jobs that kept the machine's
    CPUs busy measured that, and are left out, unless single small reads did.
    """
    driven = {job: runs for job, runs in samples.items() if not _is_cpu_bound(runs)}
    if not any(job.depth == 1 and job.size <= SMALL for job in driven):
        driven = dict(samples)
    rates = medians(driven)
    varying = _varying(driven)
    plain = _plain(rates, driven)
    form, spec = "bandwidth and latency", plain
    others = {
        "bandwidth, latency and queue depth": _with_depth(rates, plain),
        "bandwidth, latency and planes": _with_planes(rates, plain, varying.mean_ms),
    }
    for other, candidate in others.items():
        error, least = _error(candidate, rates), _error(spec, rates)
        if error < CLEARLY * least and least - error > LEAST_GAIN:
            form, spec = other, candidate
    if varying.form and varying.mean_ms < spec.latency_ms:
        # The mean latency stays what it is.
        spec = dataclasses.replace(spec, latency_ms=spec.latency_ms - varying.mean_ms, jitter=varying.form)
    errors_pct = {job: (rate_of(spec, job) / rate - 1) * 100 for job, rate in rates.items()}
    return Fit(spec, form, errors_pct, len(samples) - len(driven))


def _is_cpu_bound(runs: Sequence[Sample]) -> bool:
    return statistics.median(run.busy for run in runs) > CPU_BOUND


@lru_cache(maxsize=1 << 16)
def rate_of(spec: TierSpec, job: Job) -> float:
    """Decimal MB/s that a job gets of a tier."""
    if spec.plain:
        return spec.chunked_mbps(job.size, job.depth) or math.inf
    reads = max(8 * job.depth, min(_READS, _READ_BYTES // job.size))
    if not (job.random and spec.planes):
        return expect.closed_loop(spec, job.size, job.depth, reads) or math.inf
    # Where reads lie matters only to planes.
    window, anywhere = Window(Tier(spec), job.depth), random.Random(1)  # noqa: S311 - places, no secret
    last_ns = max(
        window.read(0, anywhere.randrange(_PIECES) * job.size, job.size, job.size) for _ in range(reads)
    )
    return reads * job.size * 1e3 / last_ns if last_ns else math.inf


def _error(spec: TierSpec, rates: Mapping[Job, float]) -> float:
    """Mean of |log(model / measured)|."""
    return statistics.fmean(abs(math.log(rate_of(spec, job) / rate)) for job, rate in rates.items())


def _plain(rates: Mapping[Job, float], samples: Mapping[Job, Sequence[Sample]]) -> TierSpec:
    """Latency is what a small read alone takes beyond its transfer, on average; the bandwidth is what
    explains most.
    """
    single_ns = {
        job: statistics.median(sample.mean_ns for sample in runs)
        for job, runs in samples.items()
        if job.depth == 1 and job.size <= SMALL
    }
    spec = TierSpec(max(rates.values()))
    for _ in range(3):
        per_byte_ns = 1e3 / (spec.bandwidth_mbps or math.inf)
        beyond_ns = [time - job.size * per_byte_ns for job, time in single_ns.items()]
        spec = dataclasses.replace(spec, latency_ms=max(0.0, statistics.median(beyond_ns)) / 1e6)
        spec = _refined(spec, rates, ("bandwidth_mbps",))
    return spec


def _with_depth(rates: Mapping[Job, float], plain: TierSpec) -> TierSpec:
    candidates = [
        _refined(dataclasses.replace(plain, depth=depth), rates, ("bandwidth_mbps",), sweeps=2)
        for depth in _DEPTHS
    ]
    return min(candidates, key=lambda spec: _error(spec, rates))


def _with_planes(rates: Mapping[Job, float], plain: TierSpec, varying_ms: float) -> TierSpec:
    """Planes: as many as carry the small reads that were in flight at most. What varies is not their time."""
    candidates = []
    smallest = min(job.size for job in rates)
    small = max(rate for job, rate in rates.items() if job.size == smallest) * 1e6 / smallest
    for page in _PAGES:
        for share in _SHARES:
            t_read_us = max(0.0, plain.latency_ms - varying_ms) * 1e3 * share
            planes = max(1, round(small * t_read_us / 1e6))
            begin = dataclasses.replace(
                plain,
                latency_ms=plain.latency_ms - t_read_us / 1e3,
                planes=planes,
                page_bytes=page,
                t_read_us=t_read_us,
            )
            names = ("planes", "bandwidth_mbps")
            candidates.append(_refined(begin, rates, names, sweeps=2))
    return min(candidates, key=lambda spec: _error(spec, rates))


def _refined(
    spec: TierSpec, rates: Mapping[Job, float], names: Sequence[str], sweeps: int = _SWEEPS
) -> TierSpec:
    """One parameter after the other, each where the error is least near where it is."""
    for sweep in range(sweeps):
        for name in names:
            spec = _least(spec, name, 4.0 / (1 + sweep), lambda each: _error(each, rates))
    return spec


def _least(spec: TierSpec, name: str, within: float, error: Callable[[TierSpec], float]) -> TierSpec:
    """The spec with the best value of one parameter within a factor of where it is; golden section."""
    here = max(getattr(spec, name), _LEAST_MS)
    whole = isinstance(getattr(spec, name), int)

    def at(logarithm: float) -> TierSpec:
        value = math.exp(logarithm)
        changed: dict[str, Any] = {name: max(1, round(value)) if whole else value}
        return dataclasses.replace(spec, **changed)

    low, high = math.log(here / (1 + within)), math.log(here * (1 + within))
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    for _ in range(_STEPS):
        if high - low < 1e-4:
            break
        if error(at(left)) <= error(at(right)):
            high, right = right, left
            left = high - _GOLDEN * (high - low)
        else:
            low, left = left, right
            right = low + _GOLDEN * (high - low)
    best = at((low + high) / 2)
    return min(spec, best, key=error)


class _Varying(NamedTuple):
    """How the times of the smallest single reads vary: as jitter, and its mean in ms."""

    form: str = ""
    mean_ms: float = 0.0


def _varying(samples: Mapping[Job, Sequence[Sample]]) -> _Varying:
    """Lognormal, by the quartiles of what is beyond the fastest reads. Nothing where they hardly vary."""
    single = min((job for job in samples if job.depth == 1), key=lambda job: (job.size, not job.random))
    spreads = [sample.spread_ns for sample in samples[single]]
    low, quarter, middle, three = (
        statistics.median(spread[SPREAD.index(share)] for spread in spreads) for share in (1, 25, 50, 75)
    )
    if three - quarter < max(_JITTER_NS, _JITTER_SHARE * middle) or quarter <= low:
        return _Varying()
    deviation = min(4.0, math.log((three - low) / (quarter - low)) / _QUARTILES)
    mean_ms = (middle - low) / 1e6 * math.exp(deviation**2 / 2)
    return _Varying(f"lognormal:{mean_ms:.4g},{deviation:.3g}", float(f"{mean_ms:.4g}"))
