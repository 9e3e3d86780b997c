"""Whether a measurement can be believed: achieved against model, and the reason where they differ."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hbf_fuse.observe import Counters
from hbf_fuse.pacing.coverage import FirstPass
from hbf_fuse.tier import TierSpec

TOLERANCE_PCT = 1.0
FAST_TOLERANCE_PCT = 3.0
FAST_MBPS = 1500.0
"""From here on 3% counts as agreement."""

_STARVED_SHARE = 0.02
_SLOW_SOURCE_NS_PER_MIB = 1_500_000
_IDLE_CORES = 0.05


@dataclass(frozen=True)
class Verdict:
    """Rates are decimal MB/s. model_mbps and error_pct are None where nothing throttles.

    why: the reason for invalid; for valid, a remark if the tier's bandwidth was not reached for a reason
    that the model knows.
    """

    seconds: float
    achieved_mbps: float
    model_mbps: float | None
    error_pct: float | None
    valid: bool
    why: str

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it."""
        return asdict(self)


def judge(  # noqa: PLR0911 - a verdict per case
    specs: Sequence[TierSpec],
    reads: FirstPass,
    counters: Counters,
    *,
    replies_seen: bool = True,
    changed: bool = False,
    overfull: bool = False,
    floor_known: bool = True,
) -> Verdict:
    """Hold a file's first pass against the time that the model gives the very same reads.

    specs: of the tiers that bytes may have come from. The link of a single one vouches for a rate.
    replies_seen: whether the engine knows when its replies were sent; if not, its own slowness looks like
    a slow reader and is not believed to be one.
    changed: whether the tier was exchanged meanwhile, which no single rate describes.
    floor_known: whether what a read takes beyond the tier is reckoned with.
    overfull: whether more was resident at some time than the budget allows.
    """
    nbytes, seconds, model_seconds = reads.nbytes, reads.seconds, reads.model_seconds
    tolerance = min(tolerance_pct(spec) for spec in specs) / 100
    link = specs[0].bandwidth_mbps if len(specs) == 1 else None
    achieved = nbytes / seconds / 1e6 if seconds > 0 else 0.0
    unknowable = _unknowable(reads, counters, tolerance, changed, overfull, floor_known)
    if not reads.timed or seconds <= 0 or model_seconds <= 0:
        return Verdict(seconds, achieved, None, None, not unknowable, unknowable)
    model = nbytes / model_seconds / 1e6
    error = (achieved / model - 1) * 100
    if unknowable:
        return Verdict(seconds, achieved, model, error, False, unknowable)
    if link and achieved > link * (1 + tolerance):
        excess = (achieved / link - 1) * 100
        above = f"faster than the link by {excess:.1f}%: too much lateness was given back"
        return Verdict(seconds, achieved, model, error, False, above)
    if abs(error) > tolerance * 100:
        reason = _reason(reads, counters)
        return Verdict(seconds, achieved, model, error, False, f"off the model by {error:+.1f}%: {reason}")
    if link and model >= link * (1 - tolerance):
        return Verdict(seconds, achieved, model, error, True, "")
    if doubt := _doubt(reads, tolerance - abs(error) / 100, replies_seen):
        below = "below the link's rate" if link else "no one link says what the rate should be"
        return Verdict(seconds, achieved, model, error, False, f"{below}, {doubt}")
    return Verdict(seconds, achieved, model, error, True, _remark(link, model, counters))


def _unknowable(  # noqa: PLR0911 - a reason per case
    reads: FirstPass, counters: Counters, tolerance: float, changed: bool, overfull: bool, floor_known: bool
) -> str:
    """Why no model can be held against these reads, if so."""
    if changed:
        return "the tier was changed meanwhile"
    if overfull:
        return "more was resident than --resident allows: pages came faster than this machine could drop them"
    if reads.disturbances.stops:
        return "the server was stopped meanwhile (SIGSTOP): what waited for it then is in no figure"
    if reads.timed and reads.disturbances.unseen_ns > tolerance * reads.seconds * 1e9:
        unseen = reads.disturbances.unseen_ns / 1e9
        return (
            f"all threads were busy for {unseen:.2g} s, with up to {counters.in_flight_max} reads in flight: "
            "more may have waited unseen"
        )
    if counters.nameless:
        return "the readers' PID namespace is not the server's: whose lateness is whose cannot be known"
    if reads.seconds <= 0:
        return "no whole page has arrived"
    if reads.uncounted_bytes > reads.nbytes * tolerance:
        return "reads begin or end within pages, and parts of pages are not counted"
    if reads.timed and not floor_known:
        return "what a read takes beyond the tier is not known: it could not be measured at mount time"
    if reads.timed and reads.owed_seconds > tolerance * reads.seconds:
        return (
            f"the first reader was owed {reads.owed_seconds * 1e3:.2g} ms for what it had read before: "
            "with the tier's own it would have come sooner"
        )
    if reads.timed and reads.model_seconds <= 0:
        late = reads.disturbances.forgiven_ns / 1e9
        return f"readers were late by {late:.1f} s in all, more than the tier's whole time"
    return ""


def _doubt(reads: FirstPass, left: float, replies_seen: bool) -> str:
    """Why the readers' pauses may be the emulator's doing, where no link vouches for the rate.

    left: of the tolerance, as a share of the reads' time, what the error leaves.
    """
    if not replies_seen:
        return "and libfuse's own work cannot be told from the reader's pauses"
    if starved := _starved(reads):
        return f"on a busy machine: {starved}"
    # With none idle, a reader may not have run when it wanted to.
    if reads.idle_cores is not None and reads.idle_cores < _IDLE_CORES:
        return "on a busy machine: CPU starved (no core was idle)"
    if reads.unsure_share > left:
        known = f"{reads.unsure_share:.1%} of their time"
        return f"and what the machine adds to reads so short is known to {known} only"
    return ""


def tolerance_pct(spec: TierSpec) -> float:
    """How far from the model still counts as agreement."""
    fast = spec.bandwidth_mbps is None or spec.bandwidth_mbps >= FAST_MBPS
    return FAST_TOLERANCE_PCT if fast else TOLERANCE_PCT


def _remark(link: float | None, model: float, counters: Counters) -> str:
    if link is None:
        return ""
    window = counters.in_flight_max * counters.largest_read / (1 << 20)
    return (
        f"{model:.0f} of {link:g} MB/s is what the model gives these reads: the reader paused, or had too "
        f"little in flight for the latency (at most {window:.3g} MiB: the readahead window or its own)"
    )


def _reason(reads: FirstPass, counters: Counters) -> str:
    if counters.sending_ns_per_mib > _SLOW_SOURCE_NS_PER_MIB:
        # Before the CPU: whoever waits for memory holds one, and so lets others wait for it.
        return (
            f"source too slow, or memory short or slow to come (a reply of 1 MiB takes "
            f"{counters.sending_ns_per_mib / 1e6:.1f} ms)"
        )
    if starved := _starved(reads):
        return starved
    lateness = counters.lateness.percentile(50)
    if lateness > 1_000_000:
        return f"ceiling (half of all replies were more than {lateness / 1e6:.1f} ms late)"
    return f"lateness (p99 {counters.lateness.percentile(99) / 1e6:.1f} ms)"


def _starved(reads: FirstPass) -> str:
    starved = reads.disturbances.starved_ns / 1e9
    if starved <= _STARVED_SHARE * reads.seconds:
        return ""
    return f"CPU starved (the server's threads waited {starved:.2f} s for a CPU)"
