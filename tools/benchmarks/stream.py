"""Error of the bandwidth when a mapping is read in order with a cold page cache, under both engines.

Every round measures every combination once, in a new order, on a fresh mount. Prints JSON, per engine and
bandwidth: the median error against the link's rate in percent, for the reader's whole pass and for staging
(docs/definitions.md); the mount's error against its own model; and the server's CPU seconds per GB.

    tools/bench stream --mbps 250,500,1000 --rounds 5
    tools/bench stream --busy spin       with every core kept busy by another process
    tools/bench stream --busy llama      while llama-bench decodes
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil
from readers import WAYS, make_source, read_rate

from hbf_fuse.host import machine
from hbf_fuse.models.choice import DEFAULT_PRESET, preset_model
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import parse_size
from hbf_fuse.workload.program import BENCH

BUSY = ("idle", "spin", "llama")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mbps", default="250,500,1000", help="bandwidths with commas")
    parser.add_argument("--lat", default=0.0, type=float, help="latency in ms")
    parser.add_argument("--size", default="512M", type=parse_size)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--way", default=WAYS[0], choices=WAYS)
    parser.add_argument("--busy", choices=BUSY, default="idle", help="what the cores do besides")
    options = parser.parse_args()
    rates = [float(text) for text in options.mbps.split(",")]
    combinations = [(engine, mbps) for engine in ("kernel", "fusepy") for mbps in rates]
    runs: dict[tuple[str, float], list[dict[str, float]]] = {pair: [] for pair in combinations}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hbf-bench-")))
        source = make_source(folder, options.size)
        (folder / "mnt").mkdir()
        for command in _hogs(options.busy):
            hog = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(hog.wait)
            stack.callback(hog.kill)
        for _ in range(options.rounds):
            random.shuffle(combinations)
            for engine, mbps in combinations:
                spec = TierSpec(mbps, options.lat)
                with child.mounted(MountConfig(source, folder / "mnt", spec, engine)) as mount:
                    runs[engine, mbps].append(_measure(mount, options.way, mbps, options.size))
    print(
        json.dumps(
            {
                "way": options.way,
                "lat_ms": options.lat,
                "busy": options.busy,
                "rounds": options.rounds,
                "size": options.size,
                "streams": [_summary(engine, mbps, runs[engine, mbps]) for engine, mbps in sorted(runs)],
                "environment": {**machine.facts(), **machine.now()},
            },
            indent=1,
        )
    )


def _measure(mount: Path, way: str, mbps: float, size: int) -> dict[str, float]:
    server = psutil.Process(client.read_hidden(mount, "spec.json")["pid"])
    before = sum(server.cpu_times()[:2])
    rate = read_rate(mount / "model.gguf", way)
    cpu = sum(server.cpu_times()[:2]) - before
    staging = client.read_hidden(mount, "stats.json")["files"]["model.gguf"]["staging"]
    return {
        "error_pct": (rate / mbps - 1) * 100,
        "stage_error_pct": (staging["achieved_mbps"] / mbps - 1) * 100,
        "model_error_pct": staging["error_pct"],
        "valid": staging["valid"],
        "cpu_seconds_per_gb": cpu / (size / 1e9),
    }


def _summary(engine: str, mbps: float, runs: list[dict[str, float]]) -> dict[str, object]:
    medians = {
        key: round(statistics.median(run[key] for run in runs), 3)
        for key in ("error_pct", "stage_error_pct", "model_error_pct", "cpu_seconds_per_gb")
    }
    return {
        "engine": engine,
        "mbps": mbps,
        **medians,
        "error_pct_runs": [round(run["error_pct"], 2) for run in runs],
        "valid": f"{sum(run['valid'] for run in runs):.0f}/{len(runs)}",
    }


def _hogs(busy: str) -> list[list[str]]:
    """Commands that keep the cores busy: a loop on each, or llama-bench decoding a model of its own."""
    if busy == "spin":
        return [[sys.executable, "-I", "-c", "while True: pass"]] * (os.cpu_count() or 1)
    if busy == "llama":
        model = preset_model(DEFAULT_PRESET, lambda message: None)
        return [[str(BENCH.find()), "-m", str(model), "-p", "0", "-n", "1024", "-r", "10000"]]
    return []


if __name__ == "__main__":
    main()
