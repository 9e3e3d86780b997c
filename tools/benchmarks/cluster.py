"""A sweep on four workers of which two are killed, against the same sweep alone; one worker against none; and 2,000
simulated points on one core and on all. Prints JSON.

Each worker has a home, a cache and a scratch folder of its own. They wait for each other, as all do on one host.

tools/bench cluster [--model FILE] [--rounds 3] [--only sweep,one,grid]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machines import Machines, machines

from hbf_fuse.host import machine, mountinfo
from hbf_fuse.models import choice, published
from hbf_fuse.models.places import cache_dir
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.run import Finished, Run

HBF = [sys.executable, "-P", "-m", "hbf_fuse"]
WORKERS = ["one", "two", "three", "four"]
DEMO = ["--mbps", "250,500,1000", "--lat", "0,1", "--repeats", "2", "-p", "32", "-n", "8"]
"""The grid of tools/demo."""

POINTS = 2000
TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="default: SmolLM2 if it was fetched, else the preset tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="sweep,one,grid")
    options = parser.parse_args()
    parts = options.only.split(",")
    document: dict[str, Any] = {"machine": machine.facts()}
    model = options.model or _model()
    with tempfile.TemporaryDirectory(prefix="hbf-cluster-") as folder:
        if "sweep" in parts:
            document["sweep"] = _sweeps(model, Path(folder))
        if "one" in parts:
            document["one_worker"] = _one_worker(model, Path(folder), options.rounds)
        if "grid" in parts:
            document["grid"] = _grid(model, options.rounds)
    print(json.dumps(document, indent=2))


def _model() -> Path:
    known = [cache_dir() / f"{name}.gguf" for name in published.MODELS]
    return next((path for path in known if path.exists()), None) or choice.preset_model("tiny", print)


def _sweeps(model: Path, folder: Path) -> dict[str, Any]:
    mounts = _mounts()
    alone_seconds = _timed([*HBF, "sweep", str(model), *DEMO, "-o", str(folder / "alone")])
    with machines(folder / "machines", []) as known:
        for name in WORKERS:
            known.start_worker(name)
        killed: list[str] = []
        killer = threading.Thread(target=_kill_two, args=(known, folder / "together", killed))
        killer.start()
        line = [*HBF, "sweep", str(model), *DEMO, "-o", str(folder / "together"), "--on", known.address]
        together_seconds = _timed(line)
        killer.join()
        workers = Counter(run.conditions.machine for run in _runs(folder / "together"))
    give_up = time.monotonic() + 20
    while (left := _mounts() - mounts) and time.monotonic() < give_up:
        time.sleep(0.1)
    alone, together = ({run.cell.name: run for run in _runs(folder / name)} for name in ("alone", "together"))
    return {
        "model": model.name,
        "alone_seconds": alone_seconds,
        "together_seconds": together_seconds,
        "cells": len(alone),
        "same_cells": {name: run.cell for name, run in alone.items()}
        == {name: run.cell for name, run in together.items()},
        "failed": sum(not isinstance(run, Finished) for run in together.values()),
        "by_worker": dict(workers),
        "killed": killed,
        "mounts_left": sorted(map(str, left)),
        "verdicts": {
            name: dict(_verdicts(runs.values())) for name, runs in (("alone", alone), ("on", together))
        },
        "tier_error_pct_median": {
            name: statistics.median(_errors(runs)) for name, runs in (("alone", alone), ("on", together))
        },
    }


def _one_worker(model: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """The grid of the demo without and with Dask in between, interleaved."""
    names = ("without", "with")
    with machines(folder / "machine", ["one"]) as known:
        for number in range(rounds):
            for name, how in zip(names, ([], ["--on", known.address]), strict=True):
                _timed([*HBF, "sweep", str(model), *DEMO, "-o", str(folder / f"{name}-{number}"), *how])
    runs = {
        name: [run for number in range(rounds) for run in _runs(folder / f"{name}-{number}")]
        for name in names
    }
    return {
        name: {
            "verdicts": dict(_verdicts(known)),
            **{
                metric: statistics.median(
                    getattr(run.metrics, metric) for run in known if isinstance(run, Finished)
                )
                for metric in ("tier_error_pct", "tier_bound_pct", "pp", "tg", "other_cpu_seconds")
            },
        }
        for name, known in runs.items()
    }


def _kill_two(known: Machines, results: Path, killed: list[str]) -> None:
    """Each in the middle of a cell, while its llama-bench runs."""
    for finished in (2, 5):
        while len(list(results.glob("runs/*.json"))) < finished or not (names := known.measuring()):
            time.sleep(0.05)
        known.kill(names[0])
        killed.append(names[0])


def _runs(folder: Path) -> list[Run]:
    return Results(folder).all()


def _verdicts(runs: Any) -> Counter[str]:
    return Counter(run.metrics.state for run in runs if isinstance(run, Finished))


def _errors(runs: dict[str, Run]) -> Iterator[float]:
    for run in runs.values():
        if isinstance(run, Finished) and run.metrics.tier_error_pct is not None:
            yield run.metrics.tier_error_pct


def _mounts() -> set[Path]:
    return {mount.mountpoint for mount in mountinfo.mounts() if mount.fstype == "fuse.hbf"}


def _grid(model: Path, rounds: int) -> dict[str, Any]:
    """`hbf kv sim` of 2,000 tiers with jitter, interleaved."""
    links = ",".join(str(100 + 40 * number) for number in range(POINTS // 40))
    latencies = ",".join(f"{number / 50:g}" for number in range(1, 41))
    line = [*HBF, "kv", "sim", str(model), "--context", "8192", "--mbps", links, "--lat", latencies]
    line += ["--jitter", "uniform:0.005", "--compute-ms", "10", "--tokens", str(TOKENS), "--json"]
    cores = len(os.sched_getaffinity(0))
    seconds: dict[int, list[float]] = {1: [], cores: []}
    said: dict[int, bytes] = {}
    for _ in range(rounds):
        for jobs, times in seconds.items():
            begin = time.monotonic()
            said[jobs] = subprocess.run([*line, "--jobs", str(jobs)], check=True, capture_output=True).stdout
            times.append(time.monotonic() - begin)
    alone, all_ = (statistics.median(times) for times in seconds.values())
    return {
        "points": len(json.loads(said[1])),
        "tokens": TOKENS,
        "cores": cores,
        "seconds": {str(jobs): times for jobs, times in seconds.items()},
        "speedup": alone / all_,
        "same_output": len(set(said.values())) == 1,
    }


def _timed(line: list[str]) -> float:
    begin = time.monotonic()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
