"""Accuracy of verdicts if the machine's overhead for a read is nearly as long as the tier's time.

One reader outside the server reads a fresh mount past the page cache, with one read in flight. Latencies are so
short that time outside the server (entering the kernel, waking up) is a large part of each read's time. The
mount cannot see this time; it subtracts a measured floor. Every round measures every combination once, in a new
order. Prints JSON, per latency, size and load: by how much the mean read of each run was too long for its reader, in
us (negative: too short); the floor that the mount measured and subtracted; and whether it said "valid". `within`: the
number of runs with an idle core, from 0.5 ms on, that were within the floor's uncertainty that a verdict assumes.

    tools/bench small-reads --lat 0.1,0.2,0.5,1,2 --rounds 5
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from readers import make_source

from hbf_fuse.host import machine
from hbf_fuse.mount import child, client, floor, probe
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.pacing.floor import unsure_ns
from hbf_fuse.tier import TierSpec

SIZES = {4096: 1024, 1 << 17: 256, 1 << 20: 64}
"""Bytes of a read, and the number of reads in a run."""

LEAST_MS = 0.5
"""A machine may be unable to copy 1 MiB in less time."""

Combination = tuple[float, int, int]
"""Latency in ms, bytes of a read, cores kept busy."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lat", default="0.1,0.2,0.5,1,2", help="latencies in ms with commas")
    parser.add_argument("--rounds", default=5, type=int)
    options = parser.parse_args()
    latencies = [float(text) for text in options.lat.split(",")]
    cores = os.cpu_count() or 1
    runs: dict[Combination, list[dict[str, float]]] = {
        (latency, size, busy): [] for busy in range(cores + 1) for size in SIZES for latency in latencies
    }
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        folder = Path(name)
        (folder / "mnt").mkdir()
        for _ in range(options.rounds):
            for combination in random.sample(list(runs), len(runs)):
                runs[combination].append(_measure(folder, *combination))
    print(
        json.dumps(
            {
                "rounds": options.rounds,
                "within": _within(runs),
                "cells": [_summary(combination, runs[combination]) for combination in sorted(runs)],
                "environment": {**machine.facts(), **machine.now()},
            },
            indent=1,
        )
    )


def _measure(folder: Path, latency: float, size: int, busy: int) -> dict[str, float]:
    spec, reads = TierSpec(None, latency), SIZES[size]
    source = make_source(folder, reads * size)
    with _hogs(busy), child.mounted(MountConfig(source, folder / "mnt", spec)) as mount:
        fd = os.open(mount / "model.gguf", os.O_RDONLY | os.O_DIRECT)
        command = probe.command(floor.lean_library(), fd)
        order = probe.order(size, reads).encode()
        said = subprocess.run(command, input=order, stdout=subprocess.PIPE, check=True, pass_fds=[fd]).stdout
        os.close(fd)
        stats = client.read_hidden(mount, "stats.json")
    measured, staging = stats["floor"], stats["files"]["model.gguf"]["staging"]
    _, fixed_ns = min(measured["fixed_ns"].items(), key=lambda known: abs(int(known[0]) - latency * 1e6))
    floor_ns = fixed_ns + measured["ns_per_mib"] * size / (1 << 20)
    return {
        "late_us": sum(json.loads(said.splitlines()[1])["times"]) / reads / 1000 - latency * 1000,
        "floor_us": floor_ns / 1000,
        "valid": staging["valid"],
    }


def _within(runs: dict[Combination, list[dict[str, float]]]) -> str:
    cores = os.cpu_count() or 1
    held = [
        abs(run["late_us"]) <= unsure_ns(size) / 1000
        for (latency, size, busy), measured in runs.items()
        if latency >= LEAST_MS and busy < cores
        for run in measured
    ]
    return f"{sum(held)} of {len(held)}"


@contextmanager
def _hogs(count: int) -> Iterator[None]:
    hogs = [subprocess.Popen([sys.executable, "-I", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def _summary(combination: Combination, runs: list[dict[str, float]]) -> dict[str, object]:
    latency, size, busy = combination
    columns = {f"{key}_runs": [round(run[key], 1) for run in runs] for key in ("late_us", "floor_us")}
    return {
        "lat_ms": latency,
        "size": size,
        "busy_cores": busy,
        **columns,
        "valid_runs": [bool(run["valid"]) for run in runs],
    }


if __name__ == "__main__":
    main()
