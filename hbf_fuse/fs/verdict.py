"""Whether a measurement can be believed: achieved against model, and the reason where they differ."""

from dataclasses import asdict, dataclass
from typing import Any

from hbf_fuse.observe import Counters
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
    spec: TierSpec,
    nbytes: int,
    seconds: float,
    model_seconds: float,
    counters: Counters,
    copy_ns_per_mib: int,
    *,
    replies_seen: bool = True,
    forgiven_seconds: float = 0.0,
    idle_cores: float | None = None,
    one_link: bool = True,
    changed: bool = False,
    overfull: bool = False,
    floor_known: bool = True,
    stops: int = 0,
    uncounted_bytes: int = 0,
) -> Verdict:
    """Hold `nbytes` in `seconds` against the time that the model gives the very same reads.

    replies_seen: whether the engine knows when its replies were sent; if not, its own slowness looks like
    a slow reader and is not believed to be one.
    forgiven_seconds: the lateness that model_seconds has been reduced by: of all readers together, so it may
    be more than the time that the tier takes.
    one_link: whether all bytes came over the link of `spec`; else its rate says nothing about theirs.
    changed: whether the tier was exchanged meanwhile, which no single rate describes.
    floor_known: whether what a read takes beyond the tier is reckoned with.
    overfull: whether more was resident at some time than the budget allows.
    stops: how often the server stood still meanwhile.
    uncounted_bytes: what was read besides `nbytes`, in parts of pages.
    idle_cores: how many cores were idle meanwhile, None if unknown. With none idle, a reader's pauses may be
    the emulator's doing, and are not believed to be its own either.
    """
    achieved = nbytes / seconds / 1e6 if seconds > 0 else 0.0
    unknowable = _unknowable(counters, changed, overfull, stops)
    if not unknowable and not floor_known:
        unknowable = "what a read takes beyond the tier is not known: the machine was too busy at mount time"
    if not unknowable and seconds <= 0:
        unknowable = "no whole page has arrived"
    if not unknowable and uncounted_bytes > nbytes * tolerance_pct(spec) / 100:
        unknowable = "reads begin or end within pages, and parts of pages are not counted"
    if not unknowable and model_seconds <= 0 < forgiven_seconds:
        unknowable = f"readers were late by {forgiven_seconds:.1f} s in all, more than the tier's whole time"
    if not spec.throttled or seconds <= 0 or model_seconds <= 0:
        return Verdict(seconds, achieved, None, None, not unknowable, unknowable)
    model = nbytes / model_seconds / 1e6
    error = (achieved / model - 1) * 100
    if unknowable:
        return Verdict(seconds, achieved, model, error, False, unknowable)
    if one_link and spec.bandwidth_mbps and achieved > spec.bandwidth_mbps * (1 + tolerance_pct(spec) / 100):
        excess = (achieved / spec.bandwidth_mbps - 1) * 100
        above = f"faster than the link by {excess:.1f}%: too much lateness was given back"
        return Verdict(seconds, achieved, model, error, False, above)
    if abs(error) <= tolerance_pct(spec):
        link = spec.bandwidth_mbps if one_link else None
        if link and model >= link * (1 - tolerance_pct(spec) / 100):
            return Verdict(seconds, achieved, model, error, True, "")
        # No link vouches for the rate: what looks like the reader's pauses may be the emulator's doing.
        below = "below the link's rate" if link else "no one link says what the rate should be"
        if not replies_seen:
            doubt = f"{below}, and libfuse's own work cannot be told from the reader's pauses"
            return Verdict(seconds, achieved, model, error, False, doubt)
        starved = _starved(seconds, counters)
        if starved or (idle_cores is not None and idle_cores < _IDLE_CORES):
            doubt = f"{below}, on a busy machine: {starved or 'CPU starved (no core was idle)'}"
            return Verdict(seconds, achieved, model, error, False, doubt)
        return Verdict(seconds, achieved, model, error, True, _remark(link, model, counters))
    reason = _reason(seconds, counters, copy_ns_per_mib)
    return Verdict(seconds, achieved, model, error, False, f"off the model by {error:+.1f}%: {reason}")


def _unknowable(counters: Counters, changed: bool, overfull: bool, stops: int) -> str:
    """Why no model can be held against these reads, if so."""
    if changed:
        return "the tier was changed meanwhile"
    if overfull:
        return "more was resident than --resident allows: pages came faster than this machine could drop them"
    if stops:
        return "the server was stopped meanwhile (SIGSTOP): what waited for it then is in no figure"
    if counters.all_busy:
        return f"all threads were busy with {counters.in_flight_max} reads in flight: more may have waited"
    if counters.nameless:
        return "the readers' PID namespace is not the server's: whose lateness is whose cannot be known"
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


def _reason(seconds: float, counters: Counters, copy_ns_per_mib: int) -> str:
    if copy_ns_per_mib > _SLOW_SOURCE_NS_PER_MIB:
        # Before the CPU: whoever waits for memory holds one, and so lets others wait for it.
        return (
            f"source too slow, or memory short or slow to come (a reply of 1 MiB takes "
            f"{copy_ns_per_mib / 1e6:.1f} ms)"
        )
    if starved := _starved(seconds, counters):
        return starved
    lateness = counters.lateness.percentile(50)
    if lateness > 1_000_000:
        return f"ceiling (half of all replies were more than {lateness / 1e6:.1f} ms late)"
    return f"lateness (p99 {counters.lateness.percentile(99) / 1e6:.1f} ms)"


def _starved(seconds: float, counters: Counters) -> str:
    if counters.starved_ns <= _STARVED_SHARE * seconds * 1e9:
        return ""
    return f"CPU starved (the server's threads waited {counters.starved_ns / 1e9:.2f} s for a CPU)"
