"""Whether this machine is in a state to measure on, judged before a sweep."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import hbf_fuse
from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.host.machine import Facts, State
from hbf_fuse.runs.run import Git
from hbf_fuse.units import format_size

BUSY_SECONDS = 0.5
BUSY_PCT = 10.0
"""A process that takes more than this share of a core is worth naming."""

HOT_DEGREES = 5.0
_GIT_SECONDS = 10


@dataclass(frozen=True)
class Concern:
    """A condition that disturbs measurements: its name, what is wrong, and the remedy."""

    name: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}; {self.remedy}"


def judge(model_bytes: int, copied: bool) -> list[Concern]:
    """All that is not as it should be. Takes half a second: it watches what else is running.

    copied: whether a mode holds the whole model in memory beside the mount. HbfError where that cannot be.
    """
    facts, now = machine.facts(), machine.now()
    if copied and model_bytes > facts["memory_bytes"]:
        raise HbfError(
            f"the model ({format_size(model_bytes)}) is larger than this machine's memory "
            f"({format_size(facts['memory_bytes'])}), which modes stage and stream hold it in",
            "use a smaller model, or mode mmap",
        )
    judges = (governor(now), power(now), memory(now, model_bytes), _heat(), _numa(facts), _git(), busy())
    return [concern for found in judges for concern in found]


def git_state() -> Git | None:
    """Commit of the checkout that this code runs from, and whether it was changed since; None elsewhere."""
    folder = Path(hbf_fuse.__file__).parent.parent
    # No program that the checkout's own settings name is run for this.
    line = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", str(folder)]
    try:
        if Path(_said([*line, "rev-parse", "--show-toplevel"])) != folder:
            return None  # installed inside somebody else's repository
        commit = _said([*line, "rev-parse", "HEAD"])
        changed = _said([*line, "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.SubprocessError):
        return None
    return Git(commit=commit, changed=bool(changed))


def _said(line: list[str]) -> str:
    found = subprocess.run(line, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    return found.stdout.strip()


def governor(now: State) -> Iterator[Concern]:
    """Clocks that follow the load."""
    slow = [name for name in now["governors"] if name != "performance"]
    if slow:
        yield Concern(
            "CPU governor",
            f"{', '.join(slow)} changes the clock with the load",
            "steady it with `cpupower frequency-set -g performance`",
        )


def power(now: State) -> Iterator[Concern]:
    """A laptop that runs on its battery."""
    if now["on_mains"] is False:
        yield Concern("power", "running on battery", "plug in")


def memory(now: State, model_bytes: int) -> Iterator[Concern]:
    """Less than source and reader need together."""
    available = now["memory_available_bytes"]
    if available < 2 * model_bytes:
        yield Concern(
            "memory",
            f"{format_size(available)} available, less than the model twice over "
            f"({format_size(2 * model_bytes)})",
            "close programs or use a smaller model",
        )


def _heat() -> Iterator[Concern]:
    nothing: dict[str, list[Any]] = {}
    for chip, readings in machine.told(_temperatures, nothing).items():
        for reading in readings:
            if reading.high and reading.current > reading.high - HOT_DEGREES:
                yield Concern("heat", f"{chip} is at {reading.current:.0f} degrees C", "let it cool down")
                return


def _temperatures() -> dict[str, list[Any]]:
    return dict(psutil.sensors_temperatures())


def _numa(facts: Facts) -> Iterator[Concern]:
    if facts["numa_nodes"] > 1:
        yield Concern(
            "NUMA",
            f"{facts['numa_nodes']} nodes: memory may be far from the core",
            "run under `numactl --cpunodebind=0 --membind=0`",
        )


def _git() -> Iterator[Concern]:
    state = git_state()
    if state and state.changed:
        yield Concern("code", "this checkout of hbf-fuse has uncommitted changes", "commit them")


def busy() -> Iterator[Concern]:
    """Other processes that use a CPU, and the kernel thread that takes cold page cache away."""
    nobody: list[psutil.Process] = []
    watched = machine.told(_others, nobody)
    before = {process: _cpu_seconds(process) for process in watched}
    time.sleep(BUSY_SECONDS)
    busy = {process: (_cpu_seconds(process) - was) / BUSY_SECONDS * 100 for process, was in before.items()}
    named = [f"{_name(process)} ({pct:.0f}%)" for process, pct in busy.items() if pct > BUSY_PCT]
    if named:
        yield Concern("load", f"other processes use a core: {', '.join(sorted(named))}", "end them")
    if any(_name(process).startswith("kdamond") for process in watched):
        yield Concern(
            "page cache",
            "this kernel takes cold pages away (DAMON)",
            "keep the model in memory, such as in /dev/shm",
        )


def _others() -> list[psutil.Process]:
    """All processes but this one and what started it."""
    own = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in own]


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except (psutil.Error, OSError):
        return 0.0
    return float(times.user + times.system)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except (psutil.Error, OSError):
        return "a process"
