"""Reads a source into the page cache before serving it, so that its disk cannot be the bottleneck."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from hbf_fuse.units import format_size

_CHUNK = 8 << 20


def into_page_cache(files: Iterable[Path], tell: Callable[[str], None]) -> None:
    """Read all files once. Says so and reads nothing if they and a reader's copy exceed free memory."""
    paths = list(files)
    total = sum(path.stat().st_blocks * 512 for path in paths)
    available = psutil.virtual_memory().available
    if 2 * total > available:
        tell(
            f"not preloading: {format_size(total)} of source and a reader's copy of it exceed the "
            f"{format_size(available)} of memory available; the source's disk must keep up with the tier"
        )
        return
    buffer = bytearray(_CHUNK)
    for path in paths:
        if path.stat().st_blocks * 512 >= path.stat().st_size:
            _read_once(path, buffer)


def _read_once(path: Path, buffer: bytearray) -> None:
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while file.readinto(buffer):
            pass
