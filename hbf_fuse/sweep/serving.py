"""A served cell's figures: what users waited for, and what a batch makes of bytes and compute."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hbf_fuse.observe.status import PhaseStatus
from hbf_fuse.runs.metrics import Percentiles, ServeLevel, Serving, Staging
from hbf_fuse.sweep.decode import Decode, bound_pct, verdict_of, worse
from hbf_fuse.sweep.modes.served import Measured
from hbf_fuse.sweep.recorded import Recorded
from hbf_fuse.traces import experts
from hbf_fuse.traces.experts import Routing
from hbf_fuse.verdict import UNSURE
from hbf_fuse.workload.load import Answer, Level, digest
from hbf_fuse.workload.serve import ServeRun, phase_of

BEYOND = 10
"""How many values must lie beyond a percentile for it to mean anything; as in kv/sim.py."""

_MOST_ERRORS = 5


def metrics(
    measured: Measured,
    run: ServeRun,
    memory: ServeRun,
    tier_seconds: float | None,
    staged_before: float,
    recorded: Recorded | None,
) -> Serving:
    """All figures of a served cell.

    memory: the same server with the model in memory. tier_seconds: of staging, in which the tier carried
    bytes or they waited for its latency, by the model; None if unknown. staged_before: of staging before the
    server began. recorded: where weights stay in the tier; only then a level is held against a prediction.
    """
    phases = measured.stats.get("phases", {}) if measured.stats else {}
    in_memory = {level.concurrency: level for level in memory.levels}
    levels, alone = list[ServeLevel](), None
    for level in run.levels:
        figures = _measured(level, phases)
        if recorded is not None:
            routing = _routing(level, recorded)
            alone = routing if level.concurrency == 1 else alone
            figures |= _predicted(level, in_memory[level.concurrency], recorded, run)
            figures |= _experts(level.concurrency, routing, alone)
        levels.append(ServeLevel.model_validate(figures))
    warm = [level.ttft.p50 for level in levels if level.ttft]
    return Serving(
        cold_ttft_seconds=staged_before + run.cold_ttft_seconds,
        mount_seconds=measured.mount_seconds,
        ready_seconds=run.load_seconds,
        first_prefill_seconds=run.prefill_seconds,
        memory_ttft_seconds=memory.cold_ttft_seconds,
        # The reader's pauses in staging (it parses, it computes) are in the start from memory, too.
        predicted_ttft_seconds=(
            memory.cold_ttft_seconds + tier_seconds if recorded is None and tier_seconds is not None else None
        ),
        warm_ttft_seconds=warm[0] if warm else None,
        same_output=run.cold.tokens == memory.cold.tokens,
        output_sha256=digest([run.cold]),
        break_even_batch=_break_even(levels),
        bytes_by_phase={name: phase["bytes_read"] for name, phase in phases.items()},
        levels=levels,
    )


def judged(staging: Staging, serving: Serving, overfills: int) -> Staging:
    """Of a cell whose weights stay in the tier: its first pass or a level, whichever is judged worse.

    overfills: as for decode.judged.
    """
    if overfills:
        staging = worse(staging, UNSURE, ["over-budget"])
    for level in serving.levels:
        if level.verdict:
            staging = worse(staging, level.verdict, level.reasons)
    return staging


def _measured(level: Level, phases: Mapping[str, PhaseStatus]) -> dict[str, Any]:
    gaps = [gap / 1e9 for answer in level.good for gap in _gaps(answer)]
    tokens = sum(len(answer.came_ns) for answer in level.answers)
    step = level.step_seconds(level.full_windows())
    phase = phases.get(phase_of(level.concurrency))
    errors = list(dict.fromkeys(answer.error for answer in level.answers if answer.error))
    return {
        "concurrency": level.concurrency,
        "requests": len(level.answers),
        "failed": len(level.answers) - len(level.good),
        "errors": errors[:_MOST_ERRORS],
        "seconds": level.seconds,
        "ttft": _percentiles([answer.ttft_seconds for answer in level.good]),
        "tpot": _percentiles([answer.tpot_seconds for answer in level.good]),
        "itl": _percentiles(gaps),
        "tokens_per_second": tokens / level.seconds,
        "tokens_per_second_per_user": tokens / level.seconds / level.concurrency,
        "decode_tokens_per_second": level.concurrency / step if step else None,
        "client_cpu_share": level.client_cpu_seconds / level.seconds,
        "tier_bytes_read": phase["bytes_read"] if phase else None,
        "output_sha256": digest(level.answers),
    }


def _gaps(answer: Answer) -> list[int]:
    return [later - earlier for earlier, later in pairwise(answer.came_ns)]


def _percentiles(values: Sequence[float | None]) -> Percentiles | None:
    known = [value for value in values if value is not None]
    if not known:
        return None

    def at(percent: float) -> float | None:
        return float(np.percentile(known, percent)) if len(known) * (100 - percent) / 100 >= BEYOND else None

    return Percentiles(p50=statistics.median(known), p95=at(95), p99=at(99))


def _predicted(level: Level, memory: Level, recorded: Recorded, run: ServeRun) -> dict[str, Any]:
    """A level against what compute (from memory, with the same batch) and its own reads come to."""
    windows = level.full_windows()
    step, compute = level.step_seconds(windows), memory.step_seconds(memory.full_windows())
    inside = recorded.inside(windows)
    if not step or not compute:
        return {"verdict": UNSURE, "reasons": ["evidence-missing"]}
    steps = sum(end - start for start, end in windows) / 1e9 / step
    users = level.concurrency
    decode = Decode(compute, inside, steps, recorded.specs)
    error = (1 / step / decode.predicted_tg - 1) * 100
    bound = bound_pct(inside, recorded, run, windows)
    state, reasons = verdict_of(error, bound, decode.bound)
    return {
        "compute_step_seconds": compute,
        "tier_step_seconds": decode.tier_seconds,
        "bytes_per_step": decode.bytes_per_token,
        "bytes_per_token": decode.bytes_per_token / users,
        "predicted_tokens_per_second": decode.predicted_tg * users,
        "error_pct": error,
        "bound_pct": bound,
        "bound": decode.bound,
        "verdict": state,
        "reasons": reasons,
    }


def _routing(level: Level, recorded: Recorded) -> Routing | None:
    """Which experts its steps read: a step is from one token to the next of the user who had most."""
    steps = list[tuple[int, int]]()
    for start, end in level.full_windows():
        moments = list[int]()
        for answer in level.good:
            inside = [moment for moment in answer.came_ns if start <= moment <= end]
            moments = max(moments, inside, key=len)
        steps += pairwise(moments)
    return experts.routing(recorded.reads, recorded.model.tensors, steps)


def _experts(users: int, routing: Routing | None, alone: Routing | None) -> dict[str, Any]:
    """How many experts its steps read, and how many the routing of one user alone foretells."""
    if routing is None:
        return {}
    return {
        "experts_per_step": routing.per_step,
        "predicted_experts_per_step": alone.per_step_of(users) if alone else None,
        "predicted_bytes_per_token": alone.bytes_of(users) / users if alone else None,
    }


def _break_even(levels: Sequence[ServeLevel]) -> float | None:
    """The batch with which compute takes as long as the tier: between two levels, or beyond the last by
    their slope. None if compute does not grow with the batch, or nothing was predicted.
    """
    known = sorted(
        (level.concurrency, level.compute_step_seconds - level.tier_step_seconds)
        for level in levels
        if level.compute_step_seconds is not None and level.tier_step_seconds is not None
    )
    if not known:
        return None
    if known[0][1] >= 0:
        return float(known[0][0])
    for (batch, short), (larger, over) in pairwise(known):
        if over >= 0:
            return batch + (larger - batch) * short / (short - over)
    if len(known) < 2 or known[-1][1] <= known[-2][1]:
        return None
    (batch, short), (larger, last) = known[-2:]
    return larger + -last * (larger - batch) / (last - short)
