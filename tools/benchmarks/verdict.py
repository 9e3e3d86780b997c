"""Whether a mount's verdict is right, on a quiet machine and on one that is disturbed on purpose.

The truth comes from outside. A reader past the page cache measures with its own clock the time of its reads and
of its pauses. In virtual time the same reads and pauses take the tier's time. A run is `right` if the two agree within the
sum of the mount's tolerance, SPREAD_PCT (the outer clock's own variation), and the lateness of a process that only sleeps.

A round measures every disturbance at every strength once, on a fresh mount, in a new order. Prints JSON: the confusion
matrix of the quiet runs and of the disturbed ones, and every run. `believed_and_wrong` matters most: runs
that were called `agrees` and were not right.

    tools/bench verdict --rounds 10 -o verdict.json
    tools/bench verdict --only freeze,stop --rounds 2
    tools/bench verdict --rounds 0 --models 3       real models alone: llama-bench's loads, and decode of SmolLM2
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disturbances import DISTURBANCES, QUIET
from readers import make_source

from hbf_fuse.host import linux, machine
from hbf_fuse.models import published
from hbf_fuse.models.places import cache_dir
from hbf_fuse.mount import child, client, lean
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.run import Finished
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.expect import ends_ns, readers_error_pct
from hbf_fuse.verdict import AGREES, tolerance_pct

SPREAD_PCT = 0.3
"""Variation of the reader's own clock, in addition to the lateness of a sleeping process."""

TIERS = (
    TierSpec(200),
    TierSpec(200, 1),
    TierSpec(500, 1),
    TierSpec(500, 5),
    TierSpec(1000),
    TierSpec(None, 2),
)
SIZE = 64 << 20
READS = {1: 1 << 20, 2: 1 << 20, 4: 1 << 20, 16: 1 << 17, 64: 1 << 17}
"""Bytes of a read, by readers."""

PAUSE_NS = (0, 2_000_000)
"""Pauses between reads: none, and about the time that llama.cpp needs to parse."""


@dataclass(frozen=True)
class Run:
    """The reader's measurement and the mount's verdict."""

    name: str
    strength: str
    tier: str
    pause: float
    readers: int
    truth_pct: float
    asleep_pct: float
    tolerance_pct: float
    verdict: str
    error_pct: float | None
    bound_pct: float | None
    reasons: list[str]
    evidence: dict[str, Any]

    @property
    def right(self) -> bool:
        return abs(self.truth_pct) <= self.tolerance_pct + SPREAD_PCT + self.asleep_pct


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--only", default="", help="disturbances, with commas")
    parser.add_argument(
        "--models", default=0, type=int, metavar="N", help="also sweep real models, N repeats"
    )
    parser.add_argument("-o", "--output", type=Path, help="JSON; else on stdout")
    options = parser.parse_args()
    wanted = [name for name in options.only.split(",") if name]
    turns = [
        (name, strength)
        for name, strengths in DISTURBANCES.items()
        for strength in strengths
        if not wanted or name in wanted
    ]
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        source = make_source(Path(name), SIZE)
        try:
            for number in range(options.rounds):
                for place, (what, strength) in enumerate(random.sample(turns, len(turns))):
                    spec = TIERS[(number + place) % len(TIERS)]
                    runs.append(_measure(Path(name), source, what, strength, spec, PAUSE_NS[place % 2]))
                    print(f"round {number + 1}/{options.rounds}: {_line(runs[-1])}", file=sys.stderr)
        finally:
            models = _swept(Path(name), options.models) if options.models else {}
            document = json.dumps({"models": models, **_document(runs)}, indent=1)
            if options.output:
                options.output.write_text(document + "\n")
            else:
                print(document)


def _line(run: Run) -> str:
    bound = "-" if run.bound_pct is None else f"{run.bound_pct:.2f}"
    return (
        f"{run.name} {run.strength} at {run.tier}: {run.truth_pct:+.2f}% by the reader's clock "
        f"({run.asleep_pct:.2f}% asleep); "
        f"{run.verdict}, error {run.error_pct or 0:+.2f}, bound {bound}, {' '.join(run.reasons)}"
    )


def _document(runs: list[Run]) -> dict[str, Any]:
    quiet = [run for run in runs if run.name == QUIET]
    disturbed = [run for run in runs if run.name != QUIET]
    return {
        "quiet": _matrix(quiet),
        "disturbed": _matrix(disturbed),
        "by_disturbance": {name: _matrix([run for run in runs if run.name == name]) for name in DISTURBANCES},
        "believed_and_wrong": [_line(run) for run in runs if run.verdict == AGREES and not run.right],
        "spread_pct": SPREAD_PCT,
        "runs": [vars(run) for run in runs],
        "environment": {**machine.facts(), **machine.now()},
    }


def _matrix(runs: list[Run]) -> dict[str, int]:
    """Number of runs by right or wrong, and verdict."""
    return dict(Counter(f"{'right' if run.right else 'wrong'}, {run.verdict}" for run in runs))


def _measure(folder: Path, source: Path, name: str, strength: str, spec: TierSpec, pause_ns: int) -> Run:
    readers = int(strength) if name == "readers" else 1
    if readers > 1:
        # Readers start one after the other. That does not matter for a link: the first reader keeps it busy.
        spec, pause_ns = dataclasses.replace(spec, bandwidth_mbps=spec.bandwidth_mbps or 1000), 0
    nbytes = READS[readers]
    (folder / "mnt").mkdir(exist_ok=True)
    with ExitStack() as stack:
        served = source
        if name == "slow-source":
            # Another hbf mount acts as a disk that is slower than the tier.
            (folder / "disk").mkdir(exist_ok=True)
            rate = (spec.bandwidth_mbps or 1000) * float(strength)
            disk = stack.enter_context(child.mounted(MountConfig(source, folder / "disk", TierSpec(rate))))
            served = disk / "model.gguf"
        config = MountConfig(served, folder / "mnt", spec, preload=name != "slow-source")
        mount = stack.enter_context(child.mounted(config))
        server = int(client.read_hidden(mount, "spec.json")["pid"])
        asleep_pct = _asleep(spec, nbytes, readers)
        stack.enter_context(DISTURBANCES[name][strength](server, mount))
        truth_pct = _read(mount / "model.gguf", spec, nbytes, readers, pause_ns)
        (file,) = client.read_stats(mount)["files"].values()
    staging = file["staging"]
    return Run(
        name,
        strength,
        str(spec),
        pause_ns / 1e9,
        readers,
        truth_pct,
        asleep_pct,
        tolerance_pct(spec),
        staging["verdict"],
        staging["error_pct"],
        staging["bound_pct"],
        staging["reasons"],
        staging["evidence"],
    )


def _asleep(spec: TierSpec, nbytes: int, readers: int) -> float:
    """Lateness in percent of a thread that only sleeps, as long and as often as one reader waits."""
    each = SIZE // nbytes // readers
    (end_ns, *_) = ends_ns(spec, nbytes, [0] * readers, each)
    with ThreadPoolExecutor(1, initializer=linux.sharpen_timers) as pool:
        took = pool.submit(_sleep, each, end_ns // each).result()
    return (took / end_ns - 1) * 100


def _sleep(times: int, each_ns: int) -> int:
    begin = time.monotonic_ns()
    for _ in range(times):
        time.sleep(each_ns / 1e9)
    return time.monotonic_ns() - begin


def _read(path: Path, spec: TierSpec, nbytes: int, readers: int, pause_ns: int) -> float:
    """Error of readers against the tier in percent, by their own clock."""
    files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for _ in range(readers)]
    each = SIZE // nbytes // readers
    try:
        with ThreadPoolExecutor(readers) as pool:
            parts = [
                pool.submit(lean.measure, fd, nbytes, each, number, readers, pause_ns)
                for number, fd in enumerate(files)
            ]
            told = [part.result() for part in parts]
    finally:
        for fd in files:
            os.close(fd)
    return readers_error_pct(spec, nbytes, each, told)


def _swept(folder: Path, repeats: int) -> dict[str, Any]:
    """Sweep real models on this machine: counts of verdicts, and the runs that do not agree."""
    loads = ["--mbps", "250,500,1000", "--lat", "0,1,5", "-p", "8", "-n", "4"]
    decode = [
        "--mode",
        "stream",
        "--mbps",
        "100,250,500,1000",
        "--lat",
        "0",
        "--resident",
        "50%",
        "-p",
        "0",
        "-n",
        "16",
    ]
    found = {}
    for name, model, axes in (
        ("smollm2-135m", "smollm2-135m", loads),
        ("gemma3-270m", "gemma3-270m", loads),
        ("smollm2-135m decode", "smollm2-135m", [*decode, "-t", str(os.cpu_count() or 1)]),
    ):
        path = cache_dir() / f"{model}.gguf"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            published.fetch(model, path)
        results = folder / name
        line = [sys.executable, "-P", "-m", "hbf_fuse", "sweep", "-m", str(path), "-o", str(results), *axes]
        line += ["--repeats", str(repeats)]
        subprocess.run(
            line, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_PROC_BIND": "true"}
        )
        runs = Results(results).all()
        found[name] = {
            "verdicts": dict(
                Counter(run.metrics.verdict if isinstance(run, Finished) else "failed" for run in runs)
            ),
            "not_agreed": [
                f"{run.cell.name}: {run.metrics.verdict}, error {run.metrics.tier_error_pct:+.2f}, "
                f"bound {run.metrics.tier_bound_pct}, tg {run.metrics.tg_error_pct} "
                f"{run.metrics.tg_bound_pct}, {' '.join(run.metrics.reasons)}"
                for run in runs
                if isinstance(run, Finished) and run.metrics.verdict != AGREES
            ],
        }
    return found


if __name__ == "__main__":
    main()
