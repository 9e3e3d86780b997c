"""Pressure stall information: for how long tasks of this machine waited for a resource, all together.

Source: Documentation/accounting/psi.rst. Counted for the whole machine, not for one process.
"""

import re
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path("/proc/pressure")
RESOURCES = ("io", "memory", "cpu")

_TOTAL = re.compile(r"^(some|full) .*\btotal=(\d+)$", re.MULTILINE)


def totals(
    folder: Path = FOLDER, resources: Sequence[str] = RESOURCES
) -> tuple[dict[str, float] | None, str]:
    """Seconds since boot in which some task, or every task that could have run, waited; else None and why.

    The keys are io_some, io_full, memory_some and so on, as many as this kernel has.
    """
    found = {}
    try:
        for resource in resources:
            for kind, microseconds in _TOTAL.findall((folder / resource).read_text()):
                found[f"{resource}_{kind}"] = int(microseconds) / 1e6
    except OSError:
        return None, "this kernel counts no PSI; boot it with psi=1 (Linux 4.20 or newer, CONFIG_PSI)"
    return (found, "") if found else (None, f"{folder} says nothing that is known")


def since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What was added between two calls of totals, in seconds."""
    return {key: value - before[key] for key, value in now.items() if key in before}
