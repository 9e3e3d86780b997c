"""Decode from the tier: what llama-bench gave, against what bytes and compute alone would give."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hbf_fuse.pacing.floor import MAPPED_UNSURE_NS, unsure_ns
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.runs.metrics import Attribution, Decoding, Heat, Staging, Streamed
from hbf_fuse.sweep.recorded import Recorded
from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.tier.spec import MAX_MBPS
from hbf_fuse.tier.virtual import Replay
from hbf_fuse.traces import attribution, chains
from hbf_fuse.traces.trace import Read
from hbf_fuse.verdict import AGREES, DECODE_TOLERANCE_PCT, OFF, UNSURE, words
from hbf_fuse.workload.llama import BenchRun

MOST_READS = 40_000
"""That a prediction is made from: about a second of work, where modules are compiled."""

HEAT_BINS = 60

_WORSE = (AGREES, UNSURE, OFF)


@dataclass(frozen=True)
class Decode:
    """What one decoded token takes: seconds of compute with all weights in memory, and its reads.

    reads: of the whole decode, in which so many tokens came. specs: of the tiers by name, in the order of
    their places.
    """

    compute_seconds: float
    reads: Sequence[Read]
    tokens: float
    specs: Mapping[str, TierSpec]

    @cached_property
    def bytes_by_tier(self) -> dict[str, float]:
        """What a token reads of each tier, by name."""
        read = [0] * len(self.specs)
        for each in self.reads:
            read[each.tier] += each.nbytes
        return {name: nbytes / self.tokens for name, nbytes in zip(self.specs, read, strict=True)}

    @property
    def bytes_per_token(self) -> float:
        """What a token reads of all tiers."""
        return sum(self.bytes_by_tier.values())

    @cached_property
    def tier_seconds(self) -> float:
        """What the tiers take for a token: its reads in virtual time, of their sizes, each on its tier and
        sent as soon as those that it waited for have come (`traces/chains.py`). So as many are in flight as
        were, readahead among them, and nobody computes. With jitter, one draw of it.

        Of more than MOST_READS the last tokens are taken, at least one, and the rest counts by its bytes.
        """
        return self._seconds(self.specs)

    @property
    def predicted_tg(self) -> float:
        """Tokens/s: 1 / (compute + tier). Compute waits for the tiers: llama.cpp touches the next page when
        it needs it, and the kernel's readahead in a budget's window hides next to nothing.
        """
        return 1 / (self.compute_seconds + self.tier_seconds)

    @property
    def overlapped_tg(self) -> float:
        """Tokens/s if reading went on under computing: 1 / max(compute, tier), as accelerators that prefetch
        weights have it.
        """
        return 1 / max(self.compute_seconds, self.tier_seconds)

    @property
    def hiding_bytes(self) -> float | None:
        """What must be in flight for the latency to hide behind the transfer: bandwidth x latency, the most
        of all tiers. None where a tier has no bandwidth.
        """
        used = [self.specs[tier] for tier, nbytes in self.bytes_by_tier.items() if nbytes]
        rates = [spec.bandwidth_mbps for spec in used]
        if not used or None in rates:
            return None
        return max((spec.bandwidth_mbps or 0.0) * 1e3 * spec.latency_ms for spec in used)

    @property
    def bound(self) -> str:
        """Which of the two takes longer."""
        return "tier" if self.tier_seconds > self.compute_seconds else "compute"

    @property
    def break_even_mbps(self) -> float | None:
        """The bandwidth with which the tiers take as long as compute does, and half of the speed is left, by
        the same replay. It is that of every tier that reads wait for; DRAM stays what it is.

        None where they never do: where latency alone takes longer, or where nothing is read. It is at least
        what carries the bytes in compute's time, and at most what carries them in what latency leaves of
        that, for a read that waits for the link waits while that carries. Some ten replays lie between.
        """
        slow = [name for name, spec in self.specs.items() if spec.throttled] or list(self.specs)
        mb = sum(self.bytes_by_tier[name] for name in slow) / 1e6
        left = self.compute_seconds - self._seconds(self._with(slow, None))
        if not mb or left <= 0:
            return None
        return expect.least(
            lambda mbps: self._seconds(self._with(slow, mbps)) <= self.compute_seconds,
            mb / self.compute_seconds,
            min(mb / left, MAX_MBPS),
        )

    def _with(self, names: Sequence[str], mbps: float | None) -> dict[str, TierSpec]:
        """The tiers, some with another bandwidth."""
        changed = {name: dataclasses.replace(self.specs[name], bandwidth_mbps=mbps) for name in names}
        return {**self.specs, **changed}

    def _seconds(self, specs: Mapping[str, TierSpec]) -> float:
        """What such tiers would take for a token."""
        replayed, tokens = self._replayed
        return max(replayed.on(*map(Tier, specs.values())), default=0) / 1e9 / tokens

    @cached_property
    def _replayed(self) -> tuple[Replay, float]:
        """The reads that the prediction is made from, and how many tokens' they are, by bytes."""
        tokens = max(1.0, MOST_READS * self.tokens // max(1, len(self.reads)))
        if tokens >= self.tokens:
            return chains.alone(self.reads), self.tokens
        arrivals = [read.arrival_ns for read in self.reads]
        last_ns = max(arrivals)
        since_ns = last_ns - int((last_ns - min(arrivals)) * tokens / self.tokens)
        some = [read for read in self.reads if read.arrival_ns >= since_ns]
        return chains.alone(some), sum(read.nbytes for read in some) / self.bytes_per_token


def metrics(run: BenchRun, compute: BenchRun, recorded: Recorded) -> Streamed:
    """A stream cell's own figures. compute: the same llama-bench with the model in memory.

    Empty where llama-bench does not say when it decoded.
    """
    decode = [phase for phase in run.phases if phase.name == "decode"]
    if not decode or not compute.tg or not run.tg:
        return Streamed()
    windows = [(decode[0].start_ns, decode[0].end_ns)]
    inside = recorded.inside(windows)
    found = Decode(1 / compute.tg, inside, decode[0].tokens, recorded.specs)
    return Streamed(
        compute_tg=compute.tg,
        bytes_per_token=found.bytes_per_token,
        bytes_per_token_by_tier=found.bytes_by_tier,
        tier_seconds_per_token=found.tier_seconds,
        predicted_tg=found.predicted_tg,
        overlapped_tg=found.overlapped_tg,
        hiding_bytes=found.hiding_bytes,
        tg_error_pct=(run.tg / found.predicted_tg - 1) * 100,
        bound=found.bound,
        break_even_mbps=found.break_even_mbps,
        tg_bound_pct=bound_pct(inside, recorded, run, windows),
        attribution=attribution_of(recorded, run),
    )


def judged(staging: Staging, decoding: Decoding, overfills: int) -> Staging:
    """Of a cell: its first pass or its tokens/s, whichever is judged worse."""
    state, reasons = verdict_of(decoding.tg_error_pct, decoding.tg_bound_pct, decoding.bound)
    if overfills:
        # More was resident at some time than the budget allows: what decode read again was too little.
        state, reasons = (UNSURE if state == AGREES else state), ["over-budget", *reasons]
    return worse(staging, state, reasons)


def worse(staging: Staging, state: str, reasons: Sequence[str]) -> Staging:
    """A first pass and another verdict of the same run: the worse one, and the reasons of both."""
    state = max(state, staging.state, key=_WORSE.index)
    codes = list(dict.fromkeys([*reasons, *staging.reasons]))
    judged = {"verdict": state, "reasons": codes, "valid": state == AGREES, "why": words.sentence(codes)}
    return staging.model_copy(update=judged)


def verdict_of(error: float | None, bound: float | None, bound_by: str | None) -> tuple[str, list[str]]:
    """On tokens/s that are so many percent off their prediction, by at most `bound` because of the emulator.
    bound_by: "tier" or "compute".
    """
    if error is None:
        return UNSURE, ["evidence-missing"]
    if bound_by == "compute" and error > 0:
        return AGREES, ["compute-bound"]
    if abs(error) > DECODE_TOLERANCE_PCT:
        return OFF, ["decode-faster" if error > 0 else "decode-slower"] + ["cpu-contention"] * (
            bound is None or bound > DECODE_TOLERANCE_PCT
        )
    if bound is None or abs(error) + bound > DECODE_TOLERANCE_PCT:
        return UNSURE, ["cpu-contention"]
    return AGREES, []


def bound_pct(
    reads: Sequence[Read], recorded: Recorded, run: BenchRun, windows: Sequence[tuple[int, int]]
) -> float | None:
    """The most that the emulator can have added to the time of these windows (begin and end in ns), in
    percent of it; None if nobody can tell.
    """
    added = 0
    for start_ns, end_ns in windows:
        inside = [read for read in reads if start_ns <= read.arrival_ns < end_ns]
        one = _added_ns(inside, recorded, run.starved_between(start_ns, end_ns))
        if one is None:
            return None
        added += one
    total = sum(end_ns - start_ns for start_ns, end_ns in windows)
    return added / total * 100 if total else None


def _added_ns(reads: Sequence[Read], recorded: Recorded, starved_ns: int | None) -> int | None:
    """Of the idle times between the reads, what lateness, the machine's floor and waits for a CPU can account
    for.
    """
    if starved_ns is None:
        return None
    idle, owed_ns, tiers = Idle(), dict[int, int](), list(recorded.specs.values())
    moments = [(read.done_ns, 0, read) for read in reads] + [(read.arrival_ns, 1, read) for read in reads]
    for _, begins, read in sorted(moments):
        if begins:
            latency_ns = tiers[read.tier].latency_ns
            doubt_ns = MAPPED_UNSURE_NS if recorded.mapped else unsure_ns(read.nbytes)
            idle.ended(read.arrival_ns, owed_ns.get(read.reader, 0), doubt_ns)
            idle.taken(read.deadline_ns - latency_ns, read.deadline_ns)
        else:
            owed_ns[read.reader] = read.done_ns - read.deadline_ns
            idle.replied(read.done_ns, read.done_ns - read.deadline_ns)
    doubtful = idle.floor_ns + idle.late_ns + starved_ns
    return min(idle.window_ns + idle.pause_ns, doubtful)


def attribution_of(recorded: Recorded, run: BenchRun) -> Attribution:
    """What was read of what, for the report."""
    reads, names, model = recorded.reads, list(recorded.specs), recorded.model
    shares = attribution.attribute(reads, names, model.tensors, run.phases)
    layers, ends, rows = attribution.heat(reads, model.tensors, HEAT_BINS)
    return Attribution(
        phases={name: share.to_dict() for name, share in shares.phases.items()},
        layers={name: share.to_dict() for name, share in shares.layers.items()},
        tiers=[
            {"tier": tier, "tensor": name, **share.to_dict()} for (tier, name), share in shares.tiers.items()
        ],
        read_sizes=attribution.sizes(reads),
        queue_depths=attribution.depths(reads),
        heat=Heat(layers=layers, seconds=ends, bytes=rows),
    )
