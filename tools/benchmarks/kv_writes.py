"""Decode that reads a spilled context from kv/ and writes each token to it, simulated against real mounts.

Every point is a mount with kv/ of its own: a bandwidth, a rate for writes, a size of chunks, layers of prefetch, and
a latency of 0.2 to 2 ms in turn. Each token reads 12 MiB and writes 384 KiB. Prints JSON: of each point tokens/s
measured and simulated with the error in percent, and of all errors the median and the worst.

    tools/bench kv-writes
"""

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from readers import make_source

from hbf_fuse.host import machine
from hbf_fuse.kv import replay as kv_replay
from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec

SPILL = Spill(
    kv_bytes=384 << 10,
    layers=8,
    context=32,
    resident=0,
    compute_seconds=0.02,
    depth=4,
    write_unit=kv_replay.PAGE,
)
MBPS = (250.0, 1000.0)
WRITE_MBPS = (None, 20.0, 6.0)
"""As the link; slower, but behind the token's back; and so slow that tokens wait for it."""

CHUNKS = (128 << 10, 512 << 10)
PREFETCH = (0, 2)
LAT_MS = (0.2, 0.5, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1, help="the median of so many runs counts")
    options = parser.parse_args()
    points = list(itertools.product(MBPS, WRITE_MBPS, CHUNKS, PREFETCH))
    runs: list[list[float]] = [[] for _ in points]
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        source, mountpoint = make_source(Path(name), 1 << 20), Path(name) / "mnt"
        mountpoint.mkdir()
        for number in random.sample(range(len(points)), len(points)) * options.rounds:
            spill, spec = _case(number, *points[number])
            config = MountConfig(source, mountpoint, spec, kv_bytes=2 * spill.cache_bytes)
            with child.mounted(config) as mount:
                measured = kv_replay.replay_writing(spill, mount / "kv", options.tokens)
            runs[number].append(measured.mean_seconds)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = [_row(number, point, options.tokens, runs[number]) for number, point in enumerate(points)]
    errors = [abs(row["error_pct"]) for row in rows]
    print(
        json.dumps(
            {
                "environment": {**machine.facts(), **machine.now()},
                "bytes_read_per_token": SPILL.token_bytes,
                "bytes_written_per_token": SPILL.written_bytes,
                "median_pct": round(statistics.median(errors), 2),
                "worst_pct": round(max(errors), 2),
                "rows": rows,
            },
            indent=1,
        )
    )


def _case(
    number: int, mbps: float, write_mbps: float | None, chunk: int, prefetch: int
) -> tuple[Spill, TierSpec]:
    # Turned by one after each round: else a latency would always meet the same chunk and prefetch.
    latency = LAT_MS[(number + number // len(LAT_MS)) % len(LAT_MS)]
    spill = dataclasses.replace(SPILL, chunk_bytes=chunk, prefetch=prefetch)
    return spill, TierSpec(mbps, latency, write_mbps=write_mbps)


def _row(
    number: int, point: tuple[float, float | None, int, int], tokens: int, runs: list[float]
) -> dict[str, Any]:
    spill, spec = _case(number, *point)
    simulated = simulate(spill, spec, tokens)
    mean = statistics.mean(simulated.seconds)
    measured = statistics.median(runs)
    return {
        "mbps": spec.bandwidth_mbps,
        "write_mbps": spec.write_mbps,
        "lat_ms": spec.latency_ms,
        "chunk": spill.chunk_bytes,
        "prefetch": spill.prefetch,
        "bound": simulated.bound,
        "measured_tps": round(1 / measured, 3),
        "simulated_tps": round(1 / mean, 3),
        "error_pct": round((mean / measured - 1) * 100, 2),
    }


if __name__ == "__main__":
    main()
