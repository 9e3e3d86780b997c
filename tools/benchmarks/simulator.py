"""Speed of the simulators in reads a second, on one core. Prints JSON.

HBF_UNCOMPILED=1 measures them uncompiled, for comparison.

tools/bench simulator
"""

import json
import statistics
import time
from collections.abc import Callable

from hbf_fuse import compiled
from hbf_fuse.host import machine
from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill
from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.tier.virtual import START, Replay, Request, replay

READS = 300_000
ROUNDS = 5
MIB = 1 << 20
SPEC = TierSpec(500, 1)
JITTER = TierSpec(500, 1, jitter="normal:0.1")
MUCH_JITTER = TierSpec(500, 1, jitter="normal:0.1+lognormal:0.05,0.5+tail:1e-4,2")
FLASH = TierSpec(2000, 0.05, planes=64, page_bytes=16_384, t_read_us=40)
ALL_DETAIL = TierSpec(2000, 0.5, jitter="normal:0.1", planes=64, page_bytes=16_384, t_read_us=40, depth=32)
SPILL = Spill(kv_bytes=36_864, layers=36, context=131_072, resident=8192, compute_seconds=0.1)


def main() -> None:
    chained = [
        Request(((place - 8 if place >= 8 else START, 1000),), place * MIB, MIB) for place in range(READS)
    ]
    flat = Replay(chained)
    cases: dict[str, Callable[[], int]] = {
        "closed loop": lambda: _closed_loop(SPEC, MIB),
        "closed loop, jitter": lambda: _closed_loop(JITTER, MIB),
        "closed loop, three jitters": lambda: _closed_loop(MUCH_JITTER, MIB),
        "closed loop, flash, 64 KiB": lambda: _closed_loop(FLASH, 65_536),
        "closed loop, flash, 1 MiB": lambda: _closed_loop(FLASH, MIB),
        "closed loop, flash, jitter and depth, 64 KiB": lambda: _closed_loop(ALL_DETAIL, 65_536),
        "trace replay": lambda: _counted(replay(chained, Tier(SPEC)), READS),
        "trace replay, once in arrays": lambda: _counted(flat.on(Tier(SPEC)), READS),
        "trace replay, once in arrays, flash": lambda: _counted(flat.on(Tier(FLASH)), READS),
        "kv spill": lambda: simulate(SPILL, SPEC, tokens=64).reads,
        "kv spill, jitter": lambda: simulate(SPILL, JITTER, tokens=64).reads,
    }
    result = {
        name: round(statistics.median(_rate(case) for _ in range(ROUNDS))) for name, case in cases.items()
    }
    document = {"machine": machine.facts(), "compiled": not compiled.why_not(), "reads_per_second": result}
    print(json.dumps(document, indent=2))


def _closed_loop(spec: TierSpec, nbytes: int) -> int:
    return _counted(expect.closed_loop(spec, nbytes, 8, READS), READS)


def _counted(_: object, reads: int) -> int:
    return reads


def _rate(case: Callable[[], int]) -> float:
    begin = time.perf_counter()
    reads = case()
    return reads / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
