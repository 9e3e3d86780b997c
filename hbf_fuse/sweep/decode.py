"""Decode from the tier: what llama-bench gave, against what bytes and compute alone would give."""

import dataclasses
from dataclasses import dataclass

from hbf_fuse import gguf
from hbf_fuse.pacing.floor import unsure_ns
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.runs.run import Attribution, Decoding, Heat, Staging, Streamed
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.traces import attribution
from hbf_fuse.traces.trace import Read, Trace
from hbf_fuse.verdict import AGREES, DECODE_TOLERANCE_PCT, OFF, UNSURE, words
from hbf_fuse.workload.llama import BenchRun

WINDOW_BYTES = 2 << 20
"""What decode has in flight: one readahead window of a mount with a budget, which FADV_SEQUENTIAL doubles
(server.BUDGET_READAHEAD_KIB).
"""

HEAT_BINS = 60

_WORSE = (AGREES, UNSURE, OFF)


@dataclass(frozen=True)
class Decode:
    """What one decoded token takes: seconds of compute with all weights in memory, and bytes by tier."""

    compute_seconds: float
    bytes_by_tier: dict[str, float]
    specs: dict[str, TierSpec]

    @property
    def tier_seconds(self) -> float:
        """What the tiers take for a token's bytes. Compute waits for them: llama.cpp touches the next page
        when it needs it, and the kernel's readahead in a budget's window hides next to nothing.
        """
        return sum(_seconds(self.specs[tier], nbytes) for tier, nbytes in self.bytes_by_tier.items())

    @property
    def predicted_tg(self) -> float:
        """Tokens/s: 1 / (compute + exposed tier time)."""
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
        """Where the tiers take as long as compute does, and half of the speed is left.

        None where they never do: where latency alone takes longer.
        """
        waiting = sum(
            _seconds(dataclasses.replace(self.specs[tier], bandwidth_mbps=None), nbytes)
            for tier, nbytes in self.bytes_by_tier.items()
        )
        left = self.compute_seconds - waiting
        return sum(self.bytes_by_tier.values()) / left / 1e6 if left > 0 else None


def _seconds(spec: TierSpec, nbytes: float) -> float:
    """What a tier takes for this much, window by window."""
    rate = spec.chunked_mbps(WINDOW_BYTES) if spec.plain else expect.closed_loop(spec, WINDOW_BYTES, depth=1)
    return nbytes / (rate * 1e6) if rate else 0.0


def metrics(run: BenchRun, compute: BenchRun, trace: Trace, model: gguf.GgufFile, path: str) -> Streamed:
    """A stream cell's own figures. compute: the same llama-bench with the model in memory.

    Empty where llama-bench does not say when it decoded.
    """
    decode = [phase for phase in run.phases if phase.name == "decode"]
    if not decode or not compute.tg or not run.tg:
        return Streamed()
    reads = attribution.of_file(trace, path)
    names = list(trace.header["tiers"])
    specs = {name: TierSpec.from_dict(fields) for name, fields in trace.header["tiers"].items()}
    inside = [read for read in reads if decode[0].start_ns <= read.arrival_ns < decode[0].end_ns]
    bytes_by_tier = {
        name: sum(read.nbytes for read in inside if read.tier == place) / decode[0].tokens
        for place, name in enumerate(names)
    }
    found = Decode(1 / compute.tg, bytes_by_tier, specs)
    return Streamed(
        compute_tg=compute.tg,
        bytes_per_token=sum(bytes_by_tier.values()),
        bytes_per_token_by_tier=bytes_by_tier,
        tier_seconds_per_token=found.tier_seconds,
        predicted_tg=found.predicted_tg,
        overlapped_tg=found.overlapped_tg,
        hiding_bytes=found.hiding_bytes,
        tg_error_pct=(run.tg / found.predicted_tg - 1) * 100,
        bound=found.bound,
        break_even_mbps=found.break_even_mbps,
        tg_bound_pct=_bound_pct(inside, specs, names, run),
        attribution=_shares(reads, names, model, run),
    )


def judged(staging: Staging, decoding: Decoding, overfills: int) -> Staging:
    """Of a cell: its first pass or its tokens/s, whichever is judged worse."""
    state, reasons = _of_decode(decoding)
    if overfills:
        # More was resident at some time than the budget allows: what decode read again was too little.
        state, reasons = (UNSURE if state == AGREES else state), ["over-budget", *reasons]
    state = max(state, staging.state, key=_WORSE.index)
    codes = list(dict.fromkeys([*reasons, *staging.reasons]))
    judged = {"verdict": state, "reasons": codes, "valid": state == AGREES, "why": words.sentence(codes)}
    return staging.model_copy(update=judged)


def _of_decode(decoding: Decoding) -> tuple[str, list[str]]:
    error, bound = decoding.tg_error_pct, decoding.tg_bound_pct
    if error is None:
        return UNSURE, ["evidence-missing"]
    if decoding.bound == "compute" and error > 0:
        return AGREES, ["compute-bound"]
    if abs(error) > DECODE_TOLERANCE_PCT:
        return OFF, ["decode-faster" if error > 0 else "decode-slower"] + ["cpu-contention"] * (
            bound is None or bound > DECODE_TOLERANCE_PCT
        )
    if bound is None or abs(error) + bound > DECODE_TOLERANCE_PCT:
        return UNSURE, ["cpu-contention"]
    return AGREES, []


def _bound_pct(
    reads: list[Read], specs: dict[str, TierSpec], names: list[str], run: BenchRun
) -> float | None:
    """The most that the emulator can have added to decode's time, as a share of it; None if nobody can tell.

    Of the idle times between the reads, what lateness, the machine's floor and waits for a CPU can account
    for.
    """
    (decode,) = (phase for phase in run.phases if phase.name == "decode")
    starved_ns = run.starved_between(decode.start_ns, decode.end_ns)
    if starved_ns is None:
        return None
    idle, owed_ns = Idle(), dict[int, int]()
    moments = [(read.done_ns, 0, read) for read in reads] + [(read.arrival_ns, 1, read) for read in reads]
    for _, begins, read in sorted(moments):
        if begins:
            latency_ns = specs[names[read.tier]].latency_ns
            idle.ended(read.arrival_ns, owed_ns.get(read.reader, 0), unsure_ns(read.nbytes))
            idle.taken(read.deadline_ns - latency_ns, read.deadline_ns)
        else:
            owed_ns[read.reader] = read.done_ns - read.deadline_ns
            idle.replied(read.done_ns, read.done_ns - read.deadline_ns)
    doubtful = idle.floor_ns + idle.late_ns + starved_ns
    return min(idle.window_ns + idle.pause_ns, doubtful) / (decode.end_ns - decode.start_ns) * 100


def _shares(reads: list[Read], names: list[str], model: gguf.GgufFile, run: BenchRun) -> Attribution:
    """What was read of what, for the report."""
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
