"""Achieved against model: the error, the bound on what the emulator itself can have done, and the state.

`agrees` where error and bound together are within tolerance, `unsure` where the error is and they together
are not, `off` where the error is beyond it. Reasons are codes, the largest part first; words.py says what
they mean.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from hbf_fuse.tier import TierSpec
from hbf_fuse.verdict import words
from hbf_fuse.verdict.evidence import Evidence

TOLERANCE_PCT = 1.0
FAST_TOLERANCE_PCT = 3.0
FAST_MBPS = 1500.0
"""From here on 3% counts as agreement."""

DECODE_TOLERANCE_PCT = 5.0
"""How far tokens/s may be from 1 / (compute + tier): compute is measured beside, and varies."""

AGREES: Final = "agrees"
UNSURE: Final = "unsure"
OFF: Final = "off"

_SLOW_SOURCE_NS_PER_MIB = 1_500_000
_NONE_IDLE = 0.05
_WORTH_NAMING = 0.2
"""Of the largest part: a part of the bound that is smaller explains nothing."""


@dataclass(frozen=True)
class Verdict:
    """Rates are decimal MB/s. model_mbps and error_pct are None where nothing throttles, bound_pct where
    nobody can tell. shares: of the time, in which the tier was busy, reads waited for its latency, readers
    paused.
    """

    seconds: float
    achieved_mbps: float
    model_mbps: float | None
    error_pct: float | None
    bound_pct: float | None
    verdict: str
    reasons: tuple[str, ...]
    shares: dict[str, float]
    evidence: Evidence

    @property
    def valid(self) -> bool:
        """Whether it agrees."""
        return self.verdict == AGREES

    @property
    def why(self) -> str:
        """The reasons in plain words."""
        return words.sentence(self.reasons)

    def to_dict(self) -> dict[str, Any]:
        """As stats.json holds it."""
        return {**asdict(self), "reasons": list(self.reasons), "valid": self.valid, "why": self.why}


def tolerance_pct(spec: TierSpec) -> float:
    """How far from the model still counts as agreement."""
    fast = spec.bandwidth_mbps is None or spec.bandwidth_mbps >= FAST_MBPS
    return FAST_TOLERANCE_PCT if fast else TOLERANCE_PCT


def judge(specs: Sequence[TierSpec], evidence: Evidence) -> Verdict:
    """Hold a first pass against the time that the model gives the very same reads.

    specs: of the tiers that bytes may have come from. No single one is faster than its link.
    """
    seconds, model_seconds = evidence.seconds, evidence.model_seconds
    tolerance = min(tolerance_pct(spec) for spec in specs)
    achieved = evidence.nbytes / seconds / 1e6 if seconds > 0 else 0.0
    unknowable = tuple(_unknowable(evidence, tolerance))
    bound = None if unknowable else bound_seconds(evidence) / seconds * 100
    model = error = None
    if evidence.timed and seconds > 0 and model_seconds > 0:
        model = evidence.nbytes / model_seconds / 1e6
        error = (achieved / model - 1) * 100
    link = specs[0].bandwidth_mbps if len(specs) == 1 else None
    if evidence.timed and link and achieved > link * (1 + tolerance / 100):
        error, state, reasons = (achieved / link - 1) * 100, OFF, ("too-fast", *unknowable)
    elif error is not None and abs(error) > tolerance:
        state, reasons = OFF, (*unknowable, *_causes(evidence))
    elif bound is None:
        state, reasons = UNSURE, unknowable
    elif evidence.timed and abs(error or 0.0) + bound > tolerance:
        state, reasons = UNSURE, _largest(evidence)
    else:
        state, reasons = AGREES, tuple(_remarks(evidence, tolerance))
    return Verdict(
        seconds,
        achieved,
        model,
        error,
        bound if evidence.timed or bound is None else 0.0,
        state,
        tuple(dict.fromkeys(reasons)),
        shares(evidence),
        evidence,
    )


def shares(evidence: Evidence) -> dict[str, float]:
    """Of the time, in which the tier was `busy`, had nothing to carry while reads waited for its latency
    (`window`), and nobody asked for anything (`pause`). They sum to 1, or are all 0 where no time passed.
    """
    if evidence.seconds <= 0:
        return {"busy": 0.0, "window": 0.0, "pause": 0.0}
    pause = min(1.0, evidence.pause_seconds / evidence.seconds)
    window = min(1.0 - pause, evidence.window_seconds / evidence.seconds)
    return {"busy": 1.0 - window - pause, "window": window, "pause": pause}


def bound_seconds(evidence: Evidence) -> float:
    """The most that the emulator itself can have added or taken on the way."""
    doubtful = sum(_parts(evidence).values())
    return min(evidence.idle_seconds, doubtful) + evidence.unseen_seconds + evidence.owed_seconds


def _parts(evidence: Evidence) -> dict[str, float]:
    """What may have moved reads that ended idle times, in seconds by code."""
    idle = evidence.idle_seconds
    parts = {
        "short-reads": evidence.floor_seconds if evidence.floor_known else 0.0,
        "floor-unknown": 0.0 if evidence.floor_known else idle,
        "replies-unseen": 0.0 if evidence.replies_seen else idle,
        "readers-unnamed": idle if evidence.nameless else 0.0,
        "late-replies": evidence.late_seconds,
        "memory-pressure": evidence.memory_seconds,
    }
    if evidence.contention_seconds is not None:
        return {**parts, "cpu-contention": evidence.contention_seconds}
    none_idle = evidence.idle_cores is None or evidence.idle_cores < _NONE_IDLE
    return {**parts, "cpu-contention": idle if none_idle else 0.0}


def _unknowable(evidence: Evidence, tolerance: float) -> Iterator[str]:
    """Why nobody can tell what the emulator has done."""
    if evidence.exchanges:
        yield "tier-changed"
    if evidence.overfills:
        yield "over-budget"
    if evidence.stops:
        yield "server-stopped"
    if evidence.seconds <= 0:
        yield "nothing-arrived"
    elif evidence.uncounted_bytes > evidence.nbytes * tolerance / 100:
        yield "parts-of-pages"
    elif evidence.timed and evidence.model_seconds <= 0:
        yield "late-replies"


def _largest(evidence: Evidence) -> tuple[str, ...]:
    """What most of the bound comes from."""
    idle = evidence.idle_seconds
    parts = {code: min(idle, seconds) for code, seconds in _parts(evidence).items()}
    parts |= {"unseen-reads": evidence.unseen_seconds, "first-read-owed": evidence.owed_seconds}
    order = sorted(parts, key=lambda code: -parts[code])
    return tuple(code for code in order if parts[code] > _WORTH_NAMING * parts[order[0]])


def _causes(evidence: Evidence) -> tuple[str, ...]:
    """What most probably made the pass miss its model."""
    # Before the CPU: whoever waits for memory holds one, and so lets others wait for it.
    if evidence.sending_ns_per_mib > _SLOW_SOURCE_NS_PER_MIB:
        return ("source-slow",)
    found = [code for code in _largest(evidence) if code != "short-reads"]
    return ("late-replies", *(code for code in found if code != "late-replies"))


def _remarks(evidence: Evidence, tolerance: float) -> Iterator[str]:
    """Why the tier's bandwidth was not reached, though all is as the model says."""
    found = shares(evidence)
    for share, code in (("window", "window-bound"), ("pause", "reader-paused")):
        if evidence.timed and found[share] * 100 > tolerance:
            yield code
