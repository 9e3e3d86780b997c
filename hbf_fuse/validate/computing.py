"""The computations by name: each calls the code that users call, and gives bytes, seconds, or both.

Their parameters are the keys of `inputs` in the files of published values.
"""

import dataclasses
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import GgufFile, kv
from hbf_fuse.kv import endurance, sim
from hbf_fuse.kv.spill import Spill
from hbf_fuse.predict import arithmetic
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.tier.translation import Translation
from hbf_fuse.validate.values import UNITS, Value

VERDICTS = (WITHIN, MISSED, NOT_REPRODUCED) = "within", "missed", "not reproduced"

_FULL = 0.99
_ROUNDS = 200
_SETTLING, _COUNTED = 8, 12
"""How many times the medium is written over: first to settle, then to count."""


def compute(value: Value) -> float:
    """What this program says, in the value's unit. HbfError for an unknown computation or input."""
    if value.by not in COMPUTATIONS:
        raise HbfError(f"{value.name}: unknown computation {value.by!r}; known: {', '.join(COMPUTATIONS)}")
    computation = COMPUTATIONS[value.by]
    known = signature(computation).parameters
    if unknown := sorted(set(value.inputs) - set(known)):
        raise HbfError(f"{value.name}: unknown input {unknown[0]!r}; {value.by} takes {', '.join(known)}")
    return computation(**value.inputs) / UNITS[value.unit]


def read_rate(tier: dict[str, Any], size: int = 4096, in_flight: int = 0, devices: int = 1) -> float:
    """Bytes/s that so many reads of `size` in flight get of each of some devices, in virtual time. in_flight:
    0 for as many as are of use.
    """
    spec = TierSpec.from_dict(tier)
    return _rate(spec, size, in_flight or _of_use(spec)) * devices


def write_rate(tier: dict[str, Any], size: int = 4096, devices: int = 1) -> float:
    """The same of writes, as many in flight as are of use."""
    spec = TierSpec.from_dict(tier)
    return _rate(spec, size, _of_use(spec), writes=True) * devices


def reads_a_second(tier: dict[str, Any], size: int, in_flight: int) -> float:
    """Of `size` bytes, so many in flight."""
    return read_rate(tier, size, in_flight) / size


def bytes_in_flight(tier: dict[str, Any], size: int = 4096, copies: int = 1) -> float:
    """The least that must be in flight for the most that the tier carries, so many times."""
    spec = TierSpec.from_dict(tier)
    most = (spec.most_mbps or 0.0) * 1e6

    def fills(depth: float) -> bool:
        return _rate(spec, size, round(depth)) >= _FULL * most

    return round(expect.least(fills, 1, 1 << 14)) * size * copies


def streams(
    memory_gib: float = 0.0,
    memory_gb: float = 0.0,
    weights_gib: float = 0.0,
    weights_gb: float = 0.0,
    stream_bytes: float = 0.0,
    whole: bool = False,
    machines: int = 1,
) -> float:
    """Streams of so many bytes that fit beside the weights, of each of the machines."""
    memory = memory_gib * (1 << 30) + memory_gb * 1e9
    held = weights_gib * (1 << 30) + weights_gb * 1e9
    fit = arithmetic.streams(memory, held, stream_bytes)
    return (float(int(fit)) if whole else fit) / machines


def gain_of_moving(memory_gb: float, weights_gb: float, shared_bytes: float) -> float:
    """By how much more streams fit if weights and a shared cache leave the memory."""
    beside = arithmetic.streams(memory_gb * 1e9, weights_gb * 1e9 + shared_bytes, 1)
    return arithmetic.streams(memory_gb * 1e9, 0, 1) / beside


def step_seconds(
    tier: dict[str, Any],
    kv_bytes: int,
    layers: int,
    context: int,
    batch: int,
    weight_bytes: int = 0,
    compute_ms: float = 0.0,
    prefetch: int = 2,
) -> float:
    """A step of decode in virtual time: every stream's cache and the weights come from the tier."""
    spill = Spill(
        kv_bytes=kv_bytes,
        layers=layers,
        context=context,
        resident=0,
        compute_seconds=compute_ms / 1e3,
        chunk_bytes=16 << 20,
        depth=64,
        prefetch=prefetch,
        batch=batch,
        weight_bytes=weight_bytes,
        write_unit=0,
    )
    done = sim.simulate(spill, TierSpec.from_dict(tier), tokens=4)
    return sum(done.seconds) / len(done.seconds)


def lifetime(
    capacity_gb: float, cycles: float, write_gb_per_s: float, duty: float = 1.0, amplification: float = 1.0
) -> float:
    """Seconds until every cell has had its cycles."""
    written = write_gb_per_s * 86_400 * duty
    return endurance.years(capacity_gb, cycles, written, amplification) * UNITS["years"]


def cycles_needed(capacity_gb: float, years: float, write_gb_per_s: float) -> float:
    """Program and erase cycles that so many years of writing take."""
    return years / endurance.years(capacity_gb, 1, write_gb_per_s * 86_400)


def decode_tps(
    gb_per_token: float,
    gb_per_s: float,
    compute_ms: float = 0.0,
    hit_rate: float = 0.0,
    tokens_together: float = 1.0,
) -> float:
    """Tokens/s that wait for what misses a cache. tokens_together: that one pass decodes."""
    missing = gb_per_token * 1e9 * (1 - hit_rate)
    speed = arithmetic.decode_tps(missing, gb_per_s * 1e3, compute_ms / 1e3)
    return (speed or 0.0) * tokens_together


def read_seconds(gb: float, gb_per_s: float, hit_rate: float = 0.0) -> float:
    """To read what misses a cache."""
    return arithmetic.read_seconds(gb * 1e9 * (1 - hit_rate), gb_per_s * 1e3)


def write_amplification(spare_pct: float, block_pages: int = 64, logical_pages: int = 16_384) -> float:
    """Pages programmed for each that is written, by the device's translation layer: uniform random writes,
    after the medium was written over several times.
    """
    blocks = round(logical_pages * (1 + spare_pct / 100) / block_pages)
    translation = Translation(logical_pages, blocks, block_pages)
    anywhere = random.Random(1)  # noqa: S311 - places, no secret
    for page in range(logical_pages):
        translation.write(page)
    for _ in range(_SETTLING * logical_pages):
        translation.write(anywhere.randrange(logical_pages))
    host, medium = translation.host_pages, translation.medium_pages
    for _ in range(_COUNTED * logical_pages):
        translation.write(anywhere.randrange(logical_pages))
    return (translation.medium_pages - medium) / (translation.host_pages - host)


def kv_bytes(architecture: str, metadata: dict[str, Any], context: int = 0, cache_type: str = "f16") -> float:
    """Bytes of a sequence's cache, as `hbf kv info` has it; without a context those of a token."""
    keyed = {f"{architecture}.{key}": value for key, value in metadata.items()}
    known = {"general.architecture": architecture, **keyed}
    model = GgufFile(Path("published.gguf"), 0, 3, known, [], 0)
    if not context:
        return float(kv.bytes_per_token(model))
    return float(sum(part.nbytes for part in kv.parts(model, context, 1, cache_type, cache_type)))


def _of_use(spec: TierSpec) -> int:
    """Reads in flight that keep every plane busy."""
    return max(64, 2 * spec.planes)


def _rate(spec: TierSpec, size: int, in_flight: int, writes: bool = False) -> float:
    """Bytes/s of a closed loop that is long enough for its beginning not to show."""
    rate = expect.closed_loop(spec, size, in_flight, max(expect.READS, _ROUNDS * in_flight), writes)
    if rate is None:
        raise HbfError("nothing limits this tier")
    return rate * 1e6


COMPUTATIONS: dict[str, Callable[..., float]] = {
    each.__name__: each
    for each in (
        read_rate,
        write_rate,
        reads_a_second,
        bytes_in_flight,
        streams,
        gain_of_moving,
        step_seconds,
        lifetime,
        cycles_needed,
        decode_tps,
        read_seconds,
        write_amplification,
        kv_bytes,
    )
}


@dataclasses.dataclass(frozen=True)
class Result:
    """A published value and ours, in its unit; None where it cannot be computed."""

    value: Value
    ours: float | None

    @property
    def error_pct(self) -> float | None:
        return None if self.ours is None else (self.ours / self.value.published - 1) * 100

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.error_pct is None:
            return NOT_REPRODUCED
        if self.value.bound:
            is_kept = (self.error_pct <= 0) == (self.value.bound == "at most")
            return WITHIN if is_kept else MISSED
        return WITHIN if abs(self.error_pct) <= self.value.tolerance_pct else MISSED


def result(value: Value) -> Result:
    """Compute it, where it can be."""
    return Result(value, None if value.not_reproduced else compute(value))


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many there are, and of each verdict; forecasts apart."""
    found = {"count": len(results), "sources": len({result.value.source for result in results})}
    for verdict in VERDICTS:
        found[verdict.replace(" ", "_")] = sum(result.verdict == verdict for result in results)
    forecasts = [result for result in results if result.value.forecast and result.error_pct is not None]
    found["forecasts"] = len(forecasts)
    found["forecasts_within"] = sum(result.verdict == WITHIN for result in forecasts)
    return found


def summary(results: Sequence[Result]) -> Iterator[str]:
    """The shares within tolerance, in sentences."""
    found = counts(results)
    computed = found["count"] - found["not_reproduced"]
    if computed:
        share = found["within"] / computed
        yield (
            f"{found['within']} of {computed} computed values, from {found['sources']} sources, are within "
            f"their tolerance ({share:.0%}); {found['not_reproduced']} cannot be reproduced"
        )
    if found["forecasts"]:
        errors = [
            abs(result.error_pct)
            for result in results
            if result.value.forecast and result.error_pct is not None
        ]
        yield (
            f"of the {found['forecasts']} forecasts, which have an input from another measurement, "
            f"{found['forecasts_within']} are; their median error is {statistics.median(errors):.1f}%"
        )
