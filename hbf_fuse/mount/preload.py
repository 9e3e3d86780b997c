"""Reads a source into the page cache before serving it, so that its disk cannot be the bottleneck."""

import mmap
import os
import time
from collections.abc import Callable

import psutil

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.tree import Node, Tree
from hbf_fuse.host import residency
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import format_size, mbps

_CHUNK = 8 << 20
_SAMPLE_SECONDS = 0.3


def into_page_cache(tree: Tree, tell: Callable[[str], None]) -> bool:
    """Read all files once. False, with a word, if they and a reader's copy exceed the memory available.

    HbfError if a file cannot be read to its end.
    """
    total = sum(node.bytes_on_disk for node in tree.files())
    available = psutil.virtual_memory().available
    if 2 * total > available:
        tell(
            f"not preloading: {format_size(total)} of source and a reader's copy of it exceed the "
            f"{format_size(available)} of memory available; the source's disk must keep up with the tier"
        )
        return False
    buffer = bytearray(_CHUNK)
    for node in tree.files():
        if node.bytes_on_disk >= node.size:
            _read_once(tree, node, buffer)
    return True


def doubt(tree: Tree, spec: TierSpec) -> str:
    """Why a source that was not preloaded may be too slow for a tier, or nothing. Takes up to 0.3 s."""
    if spec.bandwidth_mbps is None:
        return ""
    node = next(tree.files(), None)
    rate = _disk_mbps(tree, node) if node else None
    if node is None or rate is None or rate > spec.bandwidth_mbps:
        return ""
    return (
        f"the disk under {node.source} gave {rate:.0f} MB/s, too slow for a tier of {spec.bandwidth_mbps:g} "
        "MB/s; leave out --no-preload, or copy the file to a faster place"
    )


def _disk_mbps(tree: Tree, node: Node) -> float | None:
    """What the disk gives uncached, or None if that cannot be asked (tmpfs) or does not matter (cached)."""
    buffer = mmap.mmap(-1, _CHUNK)
    try:
        fd = tree.open(node, os.O_DIRECT)
    except OSError:
        return None
    try:
        size, done, begin = os.fstat(fd).st_size, 0, time.monotonic()
        if _is_cached(fd):
            return None
        while done + _CHUNK <= size and time.monotonic() - begin < _SAMPLE_SECONDS:
            done += os.preadv(fd, [buffer], done)
        return mbps(done, time.monotonic() - begin) if done else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _is_cached(fd: int) -> bool:
    resident = residency.resident_bytes_of(fd)
    return resident is not None and resident >= os.fstat(fd).st_size


def _read_once(tree: Tree, node: Node, buffer: bytearray) -> None:
    try:
        with open(tree.open(node), "rb", buffering=0) as file:
            if _is_cached(file.fileno()):
                return
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass
    except OSError as error:
        raise HbfError(
            f"cannot read {node.source} to its end: {error.strerror}; copy it from somewhere else, "
            "or serve what can be read of it with --no-preload"
        ) from error
