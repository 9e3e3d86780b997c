"""What a measurement is made on, and what it is made under."""

import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil

import hbf_fuse


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
        "python": sys.version.split()[0],
    }


def now() -> dict[str, Any]:
    """What does: time (UTC), load average over a minute, memory available in bytes."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_1min": os.getloadavg()[0],
        "memory_available_bytes": psutil.virtual_memory().available,
    }


def idle_core_seconds() -> float:
    """Idle time of all cores together since boot, in seconds, in steps of a clock tick (10 ms)."""
    return psutil.cpu_times().idle


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
