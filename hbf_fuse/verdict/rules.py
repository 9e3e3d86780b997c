"""Achieved against model: the error, the bound on the emulator's own influence, and the state.

`agrees`: error and bound together are within tolerance. `unsure`: the error is, but both together are not.
`off`: the error is beyond tolerance. Reasons are codes, the largest part first; words.py says what they mean.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from hbf_fuse.observe.status import StagingStatus, State
from hbf_fuse.tier import TierSpec
from hbf_fuse.verdict import words
from hbf_fuse.verdict.evidence import Evidence

TOLERANCE_PCT = 1.0
FAST_TOLERANCE_PCT = 3.0
FAST_MBPS = 1500.0
"""From this rate on, 3% counts as agreement."""

DECODE_TOLERANCE_PCT = 5.0
"""How far tokens/s may be from 1 / (compute + tier). Compute is measured separately, and varies."""

AGREES: Final = "agrees"
UNSURE: Final = "unsure"
OFF: Final = "off"

_SLOW_SOURCE_NS_PER_MIB = 1_500_000
_NONE_IDLE = 0.05
_WORTH_NAMING = 0.2
"""Share of the largest part of the bound. A smaller part explains nothing."""


@dataclass(frozen=True)
class Verdict:
    """Rates are decimal MB/s. model_mbps and error_pct are None if nothing throttles; bound_pct is None if it
    is unknown. shares: fractions of the time in which the tier was busy, reads waited for its latency,
    readers paused.
    """

    seconds: float
    achieved_mbps: float
    model_mbps: float | None
    error_pct: float | None
    bound_pct: float | None
    verdict: State
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

    def status(self) -> StagingStatus:
        """As stats.json holds it."""
        return {
            "seconds": self.seconds,
            "achieved_mbps": self.achieved_mbps,
            "model_mbps": self.model_mbps,
            "error_pct": self.error_pct,
            "bound_pct": self.bound_pct,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "shares": self.shares,
            "evidence": asdict(self.evidence),
            "valid": self.valid,
            "why": self.why,
        }


def tolerance_pct(spec: TierSpec) -> float:
    """Largest error in percent that counts as agreement."""
    fast = spec.bandwidth_mbps is None or spec.bandwidth_mbps >= FAST_MBPS
    return FAST_TOLERANCE_PCT if fast else TOLERANCE_PCT


def judge(specs: Sequence[TierSpec], evidence: Evidence) -> Verdict:
    """Compare a first pass with the time that the model gives the same reads.

    specs: the tiers that bytes may have come from. A single tier cannot be faster than its link.
    """
    seconds, model_seconds = evidence.seconds, evidence.model_seconds
    tolerance = min(tolerance_pct(spec) for spec in specs)
    achieved = evidence.nbytes / seconds / 1e6 if seconds > 0 else 0.0
    unknowable = tuple(_unknowable(evidence, tolerance))
    bound = None if unknowable else bound_seconds(evidence) / seconds * 100
    model = error = None
    state: State
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
    """Fractions of the time in which the tier was `busy`, had nothing to carry while reads waited for its
    latency (`window`), and no read was in flight (`pause`). They sum to 1; all are 0 if no time passed.
    """
    if evidence.seconds <= 0:
        return {"busy": 0.0, "window": 0.0, "pause": 0.0}
    pause = min(1.0, evidence.pause_seconds / evidence.seconds)
    window = min(1.0 - pause, evidence.window_seconds / evidence.seconds)
    return {"busy": 1.0 - window - pause, "window": window, "pause": pause}


def bound_seconds(evidence: Evidence) -> float:
    """The most time that the emulator itself can have added or removed."""
    doubtful = sum(_parts(evidence).values())
    return min(evidence.idle_seconds, doubtful) + evidence.unseen_seconds + evidence.owed_seconds


def _parts(evidence: Evidence) -> dict[str, float]:
    """What may have moved reads that ended idle times: seconds by code."""
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
    """Why the emulator's influence is unknown."""
    if evidence.exchanges:
        yield "tier-changed"
    if evidence.overfills:
        yield "over-budget"
    if evidence.stops:
        yield "server-stopped"
    if evidence.altered:
        yield "reader-altered"
    if evidence.unproven_bytes > evidence.nbytes * tolerance / 100:
        yield "reader-unproven"
    if evidence.seconds <= 0:
        yield "nothing-arrived"
    elif evidence.uncounted_bytes > evidence.nbytes * tolerance / 100:
        yield "parts-of-pages"
    elif evidence.timed and evidence.model_seconds <= 0:
        yield "late-replies"


def _largest(evidence: Evidence) -> tuple[str, ...]:
    """The largest parts of the bound."""
    idle = evidence.idle_seconds
    parts = {code: min(idle, seconds) for code, seconds in _parts(evidence).items()}
    parts |= {"unseen-reads": evidence.unseen_seconds, "first-read-owed": evidence.owed_seconds}
    order = sorted(parts, key=lambda code: -parts[code])
    return tuple(code for code in order if parts[code] > _WORTH_NAMING * parts[order[0]])


def _causes(evidence: Evidence) -> tuple[str, ...]:
    """The most probable reasons why the pass missed its model."""
    # Checked before the CPU: a thread that waits for memory holds its CPU, and other threads wait for that.
    if evidence.sending_ns_per_mib > _SLOW_SOURCE_NS_PER_MIB:
        return ("source-slow",)
    found = [code for code in _largest(evidence) if code != "short-reads"]
    return ("late-replies", *(code for code in found if code != "late-replies"))


def _remarks(evidence: Evidence, tolerance: float) -> Iterator[str]:
    """Why the tier's bandwidth was not reached although the result agrees with the model."""
    found = shares(evidence)
    for share, code in (("window", "window-bound"), ("pause", "reader-paused")):
        if evidence.timed and found[share] * 100 > tolerance:
            yield code
