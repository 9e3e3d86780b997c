"""Kernel engine, fusepy engine and the source itself, side by side: unthrottled MB/s of three ways to read.

Every round measures every combination once, in a new order, on a fresh mount, so that a machine that
drifts favours nobody. Prints JSON: medians, ratios, and server CPU seconds per GB.

    tools/bench_engines --size 1G --rounds 5
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

import psutil
from readers import WAYS, make_source, read_rate

from hbf_fuse.mount import live, tied
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe import machine
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import parse_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="1G", type=parse_size)
    parser.add_argument("--rounds", default=5, type=int)
    options = parser.parse_args()
    combinations = [(engine, way) for engine in ("kernel", "fusepy", "native") for way in WAYS]
    rates: dict[str, list[float]] = {f"{engine} {way}": [] for engine, way in combinations}
    cpu: dict[str, list[float]] = {"kernel": [], "fusepy": []}
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as folder:
        source = make_source(Path(folder), options.size)
        point = Path(folder) / "mnt"
        point.mkdir()
        for _ in range(options.rounds):
            random.shuffle(combinations)
            for engine, way in combinations:
                if engine == "native":
                    rates[f"native {way}"].append(read_rate(source, way))
                    continue
                with tied.mounted(MountConfig(source, point, TierSpec(), engine)) as mount:
                    server = psutil.Process(live.read_hidden(mount, "spec.json")["pid"])
                    before = sum(server.cpu_times()[:2])
                    rates[f"{engine} {way}"].append(read_rate(mount / "model.gguf", way))
                    cpu[engine].append((sum(server.cpu_times()[:2]) - before) / (options.size / 1e9))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        json.dumps(
            {
                "mbps_median": {name: round(value) for name, value in medians.items()},
                "mbps_min_max": {name: [round(min(v)), round(max(v))] for name, v in rates.items()},
                "kernel_over_fusepy": {
                    way: round(medians[f"kernel {way}"] / medians[f"fusepy {way}"], 2) for way in WAYS
                },
                "server_cpu_seconds_per_gb": {
                    name: round(statistics.median(v), 3) for name, v in cpu.items()
                },
                "rounds": options.rounds,
                "size": options.size,
                "environment": {**machine.facts(), **machine.now()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
