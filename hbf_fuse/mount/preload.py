"""Reads a source into the page cache before serving, so that its disk is not the bottleneck."""

import mmap
import os
import time
from collections.abc import Callable

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.node import Node
from hbf_fuse.fs.tree import Tree
from hbf_fuse.host import machine, residency
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import format_size, mbps

_CHUNK = 8 << 20
_SAMPLE_SECONDS = 0.3


def into_page_cache(tree: Tree, tell: Callable[[str], None]) -> bool:
    """Read all files once. False, after a remark, if the files and a reader's copy exceed the available
    memory.

    HbfError if a file cannot be read to its end.
    """
    total = sum(node.bytes_on_disk for node in tree.files())
    available = machine.available_bytes()
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
    """Why the disk of a source that is not preloaded may be too slow for a tier, or "". Up to 0.3 s."""
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
    """Rate of the disk without cache; None if it cannot be measured (tmpfs) or does not matter (cached)."""
    buffer = mmap.mmap(-1, _CHUNK)
    try:
        fd = tree.open(node, os.O_DIRECT)
    except OSError:
        return None
    try:
        size, done, begin = os.fstat(fd).st_size, 0, time.monotonic()
        if residency.is_resident(fd):
            return None
        while done + _CHUNK <= size and time.monotonic() - begin < _SAMPLE_SECONDS:
            done += os.preadv(fd, [buffer], done)
        return mbps(done, time.monotonic() - begin) if done else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _read_once(tree: Tree, node: Node, buffer: bytearray) -> None:
    try:
        with open(tree.open(node), "rb", buffering=0) as file:
            if residency.is_resident(file.fileno()):
                return
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass
    except OSError as error:
        raise HbfError(
            f"cannot read {node.source} to its end: {error.strerror}",
            "copy it from somewhere else, or serve what can be read of it with --no-preload",
        ) from error
