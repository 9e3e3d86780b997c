"""Whether a mount's verdict is right, on a quiet machine and on one that is disturbed on purpose.

Truth comes from outside: a reader past the page cache takes down on its own clock how long its reads took and how
long it paused between them; in virtual time the same reads and pauses take as long as the tier says. A run is
`right` where the two are within the mount's tolerance and SPREAD_PCT, by which the outer clock varies itself.

A round measures every disturbance at every strength once, on a fresh mount, in a new order. Prints JSON: the confusion
matrix of the quiet runs and of the disturbed ones, and every run. What matters most is `believed_and_wrong`: runs
that were called `agrees` and were not right.

    tools/bench_verdict --rounds 10 -o verdict.json
    tools/bench_verdict --only freeze,stop --rounds 2
    tools/bench_verdict --rounds 0 --models 3       real models alone: llama-bench's loads, and decode of SmolLM2
"""

import argparse
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readers import make_source

from hbf_fuse.mount import live, published, tied
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.mount.source import cache_dir
from hbf_fuse.observe import machine
from hbf_fuse.sweep.results import Results
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.expect import closed_loop
from hbf_fuse.verdict import AGREES, tolerance_pct

SPREAD_PCT = 0.3
"""By how much the reader's own clock is off on a quiet machine, at most."""

TIERS = (
    TierSpec(200),
    TierSpec(200, 1),
    TierSpec(500, 1),
    TierSpec(500, 5),
    TierSpec(1000),
    TierSpec(None, 2),
)
SIZE = 32 << 20
READ = 1 << 20
PAUSE_SECONDS = (0.0, 0.002)
"""Between reads: none, and about what llama.cpp takes to parse."""


@dataclass(frozen=True)
class Run:
    """What the reader measured and what the mount said."""

    name: str
    strength: str
    tier: str
    pause: float
    readers: int
    truth_pct: float
    tolerance_pct: float
    verdict: str
    error_pct: float | None
    bound_pct: float | None
    reasons: list[str]

    @property
    def right(self) -> bool:
        return abs(self.truth_pct) <= self.tolerance_pct + SPREAD_PCT


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
                    runs.append(_measure(Path(name), source, what, strength, spec, PAUSE_SECONDS[place % 2]))
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
        f"{run.name} {run.strength} at {run.tier}: {run.truth_pct:+.2f}% by the reader's clock; "
        f"{run.verdict}, error {run.error_pct or 0:+.2f}, bound {bound}, {' '.join(run.reasons)}"
    )


def _document(runs: list[Run]) -> dict[str, Any]:
    quiet = [run for run in runs if run.name == "quiet"]
    disturbed = [run for run in runs if run.name != "quiet"]
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
    """How many runs were right, or wrong, with which verdict."""
    return dict(Counter(f"{'right' if run.right else 'wrong'}, {run.verdict}" for run in runs))


def _measure(folder: Path, source: Path, name: str, strength: str, spec: TierSpec, pause: float) -> Run:
    readers = int(strength) if name == "readers" else 1
    (folder / "mnt").mkdir(exist_ok=True)
    with ExitStack() as stack:
        served = source
        if name == "slow-source":
            # A disk that is slower than the tier: a mount of ours.
            (folder / "disk").mkdir(exist_ok=True)
            rate = (spec.bandwidth_mbps or 1000) * float(strength)
            disk = stack.enter_context(tied.mounted(MountConfig(source, folder / "disk", TierSpec(rate))))
            served = disk / "model.gguf"
        config = MountConfig(served, folder / "mnt", spec, preload=name != "slow-source")
        mount = stack.enter_context(tied.mounted(config))
        server = int(live.read_hidden(mount, "spec.json")["pid"])
        stack.enter_context(DISTURBANCES[name][strength](server, mount))
        took, paused = _read(mount / "model.gguf", readers, pause)
        (file,) = tied.stats(mount)["files"].values()
    count = SIZE // READ
    rate = closed_loop(spec, READ, readers, count) or float("inf")
    staging = file["staging"]
    return Run(
        name,
        strength,
        str(spec),
        pause,
        readers,
        ((SIZE / rate / 1e6 + paused) / (took + paused) - 1) * 100,
        tolerance_pct(spec),
        staging["verdict"],
        staging["error_pct"],
        staging["bound_pct"],
        staging["reasons"],
    )


def _read(path: Path, readers: int, pause: float) -> tuple[float, float]:
    """Seconds that reads took, by the readers' own clock, and that one reader paused between its own."""
    paused = 0.0

    def part(number: int) -> None:
        nonlocal paused
        buffer, fd = buffers[number], files[number]
        try:
            for at in range(number * READ, SIZE, readers * READ):
                os.preadv(fd, [buffer], at)
                if pause and readers == 1 and at + READ < SIZE:
                    begin = time.monotonic()
                    time.sleep(pause)
                    paused += time.monotonic() - begin
        finally:
            os.close(fd)

    buffers = [mmap.mmap(-1, READ) for _ in range(readers)]
    for buffer in buffers:
        buffer.write(bytes(READ))
    files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for _ in range(readers)]
    threads = [threading.Thread(target=part, args=(number,)) for number in range(readers)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin - paused, paused


def _swept(folder: Path, repeats: int) -> dict[str, Any]:
    """Of sweeps of real models on this machine as it is: how many runs had which verdict, and those not agreed to."""
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
        line = [sys.executable, "-m", "hbf_fuse", "sweep", "-m", str(path), "-o", str(results), *axes]
        line += ["--repeats", str(repeats)]
        subprocess.run(
            line, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_PROC_BIND": "true"}
        )
        runs = Results(results).all()
        found[name] = {
            "verdicts": dict(
                Counter(run["metrics"]["verdict"] if "metrics" in run else "failed" for run in runs)
            ),
            "not_agreed": [
                f"{run['cell']['name']}: {run['metrics']['verdict']}, error {run['metrics']['tier_error_pct']:+.2f}, "
                f"bound {run['metrics']['tier_bound_pct']}, tg {run['metrics'].get('tg_error_pct')} "
                f"{run['metrics'].get('tg_bound_pct')}, {' '.join(run['metrics']['reasons'])}"
                for run in runs
                if "metrics" in run and run["metrics"]["verdict"] != AGREES
            ],
        }
    return found


Disturbance = Callable[[int, Path], Any]
"""What disturbs the server of this id, mounted there, within a `with` block."""


def _nothing() -> Disturbance:
    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        yield

    return within


def _hogs(count: int, nice: int = 0) -> Disturbance:
    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        line = [sys.executable, "-c", f"import os\nos.nice({nice})\nwhile True: pass"]
        hogs = [subprocess.Popen(line) for _ in range(count)]
        try:
            time.sleep(0.1)
            yield
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()

    return within


def _repeated(
    seconds: float, every: float, begin: Callable[[int], None], end: Callable[[int], None]
) -> Disturbance:
    """Something that lasts so long, again and again."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        over = threading.Event()

        def run() -> None:
            while not over.wait(every):
                begin(server)
                time.sleep(seconds)
                end(server)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return within


def _stopped(seconds: float, every: float) -> Disturbance:
    return _repeated(
        seconds, every, lambda pid: os.kill(pid, signal.SIGSTOP), lambda pid: os.kill(pid, signal.SIGCONT)
    )


def _frozen(seconds: float, every: float) -> Disturbance:
    """In a cgroup of its own (v1), frozen and thawed: no signal tells the server."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        root = Path("/sys/fs/cgroup/freezer")
        group = root / f"hbf-verdict-{os.getpid()}"
        group.mkdir()
        try:
            (group / "cgroup.procs").write_text(str(server))
            frozen = _repeated(
                seconds,
                every,
                lambda _: (group / "freezer.state").write_text("FROZEN") and None,
                lambda _: (group / "freezer.state").write_text("THAWED") and None,
            )
            with frozen(server, mount):
                yield
        finally:
            (group / "freezer.state").write_text("THAWED")
            (root / "cgroup.procs").write_text(str(server))
            group.rmdir()

    return within


def _delayed(microseconds: int) -> Disturbance:
    """Each reply is held up before it is sent, by strace, which slows everything else down a little, too."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        line = ["strace", "-f", "-qq", "-p", str(server), "-o", "/dev/null", "-e", "trace=writev"]
        tracer = subprocess.Popen([*line, "-e", f"inject=writev:delay_enter={microseconds}"])
        try:
            time.sleep(0.3)
            yield
        finally:
            tracer.terminate()
            tracer.wait()

    return within


def _memory(mebibytes: int) -> Disturbance:
    """Another program takes memory and gives it back."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        code = f"while True:\n    taken = bytearray({mebibytes} << 20)"
        hog = subprocess.Popen([sys.executable, "-c", code])
        try:
            time.sleep(0.1)
            yield
        finally:
            hog.kill()
            hog.wait()

    return within


def _changed(mbps: float) -> Disturbance:
    """Another tier, a moment after the reading began."""

    @contextmanager
    def within(server: int, mount: Path) -> Iterator[None]:
        def change() -> None:
            (mount / ".hbf/control").write_text(json.dumps({"mbps": mbps}))

        timer = threading.Timer(0.03, change)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    return within


DISTURBANCES: dict[str, dict[str, Disturbance]] = {
    "quiet": {str(number): _nothing() for number in range(8)},
    "hogs": {"1": _hogs(1), "2": _hogs(2), "4": _hogs(4), "8": _hogs(8)},
    "nice-hogs": {"2": _hogs(2, 19), "4": _hogs(4, 19)},
    "stop": {"5 ms": _stopped(0.005, 0.03), "20 ms": _stopped(0.02, 0.05), "100 ms": _stopped(0.1, 0.05)},
    "freeze": {"20 ms": _frozen(0.02, 0.05), "50 ms": _frozen(0.05, 0.05), "200 ms": _frozen(0.2, 0.02)},
    "delay": {f"{us} us": _delayed(us) for us in (25, 50, 100, 250, 1000)},
    "slow-source": {"0.5": _nothing(), "0.9": _nothing(), "1.5": _nothing()},
    "memory": {"500 MiB": _memory(500), "4000 MiB": _memory(4000)},
    "readers": {"2": _nothing(), "4": _nothing(), "16": _nothing(), "64": _nothing()},
    "changed": {"100": _changed(100), "190": _changed(190), "2000": _changed(2000)},
}
"""By name and strength. `readers` and `slow-source` are made where the run is."""


if __name__ == "__main__":
    main()
