"""The machine that a measurement runs on, and its state at that time."""

import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil

# As pydantic needs it before Python 3.12.
from typing_extensions import TypedDict

import hbf_fuse
from hbf_fuse import compiled
from hbf_fuse.host import linux
from hbf_fuse.units import format_size

T = TypeVar("T")

_CPUS = Path("/sys/devices/system/cpu")


class Facts(TypedDict):
    """What does not change while a sweep runs."""

    hbf_fuse: str
    kernel: str
    machine: str
    cpu: str
    cores: int | None
    memory_bytes: int
    numa_nodes: int
    virtual: bool
    python: str
    compiled: bool


class State(TypedDict):
    """What does change, as far as the machine tells; None for what it does not.

    time is UTC, load_1min the load average over a minute, throttle_count how often cores were slowed down for
    heat since boot, stolen_seconds CPU time that the host took.
    """

    time: str
    load_1min: float
    memory_available_bytes: int
    swap_used_bytes: int
    governors: list[str]
    cpu_mhz: int | None
    on_mains: bool | None
    throttle_count: int | None
    stolen_seconds: float


@cache
def facts() -> Facts:
    """Of this machine. Host names and paths are left out: results get published."""
    return {
        "hbf_fuse": hbf_fuse.__version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": told(_cpu_model, "unknown"),
        "cores": os.cpu_count(),
        "memory_bytes": told(lambda: psutil.virtual_memory().total, _memory("totalram")),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "virtual": told(_is_virtual, False),
        "python": sys.version.split()[0],
        "compiled": not compiled.why_not(),
    }


def now() -> State:
    """Of this machine, at this moment."""
    frequency, battery = told(psutil.cpu_freq, None), told(psutil.sensors_battery, None)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_1min": linux.sysinfo().loads[0] / 65536,
        "memory_available_bytes": available_bytes(),
        "swap_used_bytes": _memory("totalswap") - _memory("freeswap"),
        "governors": told(_governors, []),
        "cpu_mhz": round(frequency.current) if frequency else None,
        "on_mains": battery.power_plugged if battery else None,
        "throttle_count": told(_throttle_count, None),
        "stolen_seconds": told(lambda: psutil.cpu_times().steal, 0.0),
    }


def available_bytes() -> int:
    """Memory that programs can still get; without /proc, what is free."""
    return told(lambda: int(psutil.virtual_memory().available), _memory("freeram"))


def told(question: Callable[[], T], otherwise: T) -> T:
    """What the machine tells, or `otherwise`: machines lack files, have odd ones, and forbid others. Then
    psutil may raise anything.
    """
    try:
        return question()
    except Exception:
        return otherwise


def _memory(field: str) -> int:
    """A size from sysinfo(2) in bytes."""
    found = linux.sysinfo()
    return int(getattr(found, field)) * int(found.mem_unit)


def described(found: Mapping[str, Any]) -> str:
    """The facts of a machine in one line."""
    return (
        f"{found['cpu']}{' (virtual)' if found['virtual'] else ''}, {found['cores']} cores, "
        f"{format_size(found['memory_bytes'])}, Linux {found['kernel']}, Python {found['python']}"
        f"{'' if found.get('compiled', True) else ', uncompiled'}"
    )


def busy_core_seconds() -> float:
    """CPU time that all processes together and the kernel used since boot, in steps of a clock tick."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def idle_core_seconds() -> float:
    """Idle time of all cores together since boot, in seconds, in steps of a clock tick (10 ms)."""
    return psutil.cpu_times().idle


def own_threads_starved_ns() -> int:
    """Run-queue delay of this process's threads in ns: how long they were ready to run and had no CPU. A
    thread that has ended counts with its last known value.

    From /proc/self/task/TID/schedstat (Documentation/scheduler/sched-stats.rst); 0 where the kernel does not
    count it (no CONFIG_SCHED_INFO).
    """
    for task in Path("/proc/self/task").iterdir():
        # A thread may end meanwhile.
        with suppress(OSError):
            waited = int((task / "schedstat").read_text().split()[1])
            _starved_ns[task.name] = max(waited, _starved_ns.get(task.name, 0))
    return sum(_starved_ns.values())


_starved_ns: dict[str, int] = {}
"""Last known value, by thread id."""


def _governors() -> list[str]:
    return sorted({path.read_text().strip() for path in _CPUS.glob("cpu*/cpufreq/scaling_governor")})


def _throttle_count() -> int | None:
    """How often cores were slowed down for heat since boot."""
    counts = [int(path.read_text()) for path in _CPUS.glob("cpu*/thermal_throttle/core_throttle_count")]
    return sum(counts) if counts else None


def _is_virtual() -> bool:
    return any(
        line.startswith("flags") and " hypervisor" in line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
