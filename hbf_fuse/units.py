"""Sizes and rates as text. MB/s is decimal, KiB/MiB/GiB are binary."""

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
MAX_SIZE = 1 << 62
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes in "256M", "1.5GiB" or "4096"; suffixes are binary. ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write it like 256M or 1.5G")
    size = float(match[1]) * _FACTORS[match[2].upper()]
    if size > MAX_SIZE:
        raise ValueError(f"a size of {len(text)} digits is too large; write it like 256M or 1.5G")
    return int(size)


def format_size(nbytes: float) -> str:
    """Bytes as "1.95 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


def mbps(nbytes: float, seconds: float) -> float | None:
    """Decimal MB/s; None if no time passed."""
    return nbytes / seconds / 1e6 if seconds > 0 else None
