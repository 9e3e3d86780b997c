"""Pressure stall information (PSI): how long tasks of this machine waited for a resource, in sum.

Source: Documentation/accounting/psi.rst. Counted for the whole machine, not for one process.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from hbf_fuse.errors import HbfError

FOLDER = Path("/proc/pressure")
RESOURCES = ("io", "memory", "cpu")

_TOTAL = re.compile(r"^(some|full) .*\btotal=(\d+)$", re.MULTILINE)


def totals(
    folder: Path = FOLDER, resources: Sequence[str] = RESOURCES
) -> tuple[dict[str, float] | None, HbfError | None]:
    """Seconds since boot in which at least one task waited (`some`), or every task that could have run
    (`full`). None, and why, if the kernel does not tell.

    The keys are io_some, io_full, memory_some and so on, as many as this kernel has.
    """
    found = {}
    try:
        for resource in resources:
            for kind, microseconds in _TOTAL.findall((folder / resource).read_text()):
                found[f"{resource}_{kind}"] = int(microseconds) / 1e6
    except OSError:
        remedy = "boot it with psi=1 (Linux 4.20 or newer, CONFIG_PSI)"
        return None, HbfError("this kernel counts no PSI", remedy)
    return (found, None) if found else (None, HbfError(f"{folder} has an unknown format"))


def since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Seconds added between two calls of totals."""
    return {key: value - before[key] for key, value in now.items() if key in before}
