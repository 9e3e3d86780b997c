"""How many reads a second the simulators get through, on one core. Prints JSON.

tools/bench_simulator
"""

import json
import statistics
import time
from collections.abc import Callable

from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill
from hbf_fuse.observe import machine
from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.tier.virtual import START, Request, replay

READS = 300_000
ROUNDS = 5
MIB = 1 << 20
SPEC = TierSpec(500, 1)
SPILL = Spill(kv_bytes=36_864, layers=36, context=131_072, resident=8192, compute_seconds=0.1)


def main() -> None:
    chained = [
        Request(((place - 8 if place >= 8 else START, 1000),), place * MIB, MIB) for place in range(READS)
    ]
    cases: dict[str, Callable[[], int]] = {
        "closed loop": lambda: _counted(expect.closed_loop(SPEC, MIB, 8, READS), READS),
        "trace replay": lambda: _counted(replay(chained, Tier(SPEC)), READS),
        "kv spill": lambda: simulate(SPILL, SPEC, tokens=64).reads,
        "kv spill, jitter": lambda: simulate(SPILL, TierSpec(500, 1, jitter="normal:0.1"), tokens=64).reads,
    }
    result = {
        name: round(statistics.median(_rate(case) for _ in range(ROUNDS))) for name, case in cases.items()
    }
    print(json.dumps({"machine": machine.facts(), "reads_per_second": result}, indent=2))


def _counted(_: object, reads: int) -> int:
    return reads


def _rate(case: Callable[[], int]) -> float:
    begin = time.perf_counter()
    reads = case()
    return reads / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
