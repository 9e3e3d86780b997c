"""What a measurement is made on, and what it is made under."""

import os
import platform
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil

import hbf_fuse
from hbf_fuse import compiled
from hbf_fuse.units import format_size

_CPUS = Path("/sys/devices/system/cpu")


@cache
def facts() -> dict[str, Any]:
    """What does not change while a sweep runs. Host names and paths are left out: results get published."""
    return {
        "hbf_fuse": hbf_fuse.__version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "virtual": _is_virtual(),
        "python": sys.version.split()[0],
        "compiled": not compiled.why_not(),
    }


def now() -> dict[str, Any]:
    """What does, as far as the machine tells; None for what it does not.

    Time (UTC), load average over a minute, memory available and swap used in bytes, CPU governors and MHz,
    whether on mains power, how often cores were throttled since boot, CPU seconds stolen by the host.
    """
    frequency, battery = psutil.cpu_freq(), psutil.sensors_battery()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_1min": os.getloadavg()[0],
        "memory_available_bytes": psutil.virtual_memory().available,
        "swap_used_bytes": psutil.swap_memory().used,
        "governors": _governors(),
        "cpu_mhz": round(frequency.current) if frequency else None,
        "on_mains": battery.power_plugged if battery else None,
        "throttle_count": _throttle_count(),
        "stolen_seconds": psutil.cpu_times().steal,
    }


def described(found: dict[str, Any]) -> str:
    """Facts, of this machine or another, in one line."""
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
    """How long the threads of this process were ready to run and had no CPU, in ns: those that live, and of
    those that have ended what was known when this was called last.

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
"""By thread."""


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
