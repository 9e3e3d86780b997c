"""Limits the server's reads of its source, so that the block layer is the tier."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict

from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.node import Node
from hbf_fuse.fs.tree import Tree
from hbf_fuse.limits import devices, group
from hbf_fuse.limits.files import Limits


@contextmanager
def prepared(
    fs: Filesystem, mbps: float | None, tell: Callable[[str], None]
) -> Iterator[AbstractContextManager[None]]:
    """A cgroup that limits reads of the source's disk to `mbps`. Yields a context that keeps this process in
    it.

    Does nothing without a limit. HbfError if the source has no disk that can be limited, or cannot be read
    past the page cache.
    """
    if mbps is None:
        yield nullcontext()
        return
    files = [node.source for node in fs.tree.files() if node.source]
    disk = devices.of_all(files)
    for node in fs.tree.files():
        _check(fs.tree, node)
        if node.bytes_on_disk < node.size:
            tell(
                f"{node.source} has holes, or is compressed: bytes that are not on the disk come faster than "
                "--io-max"
            )
    with group.made(Limits(io_mbps=mbps), disk) as made:
        found = made.in_force()
        fs.hidden.facts["io_max"] = {"disk": asdict(disk), "in_force": asdict(found)}
        tell(f"in force on {disk} for this mount's server: {found}")
        yield made.joined()


def _check(tree: Tree, node: Node) -> None:
    try:
        os.close(tree.open(node, os.O_DIRECT))
    except OSError as error:
        raise HbfError(
            f"{node.source} cannot be read past the page cache (O_DIRECT: {error.strerror}), so --io-max "
            "cannot limit it",
            "use a file on ext4, xfs or btrfs",
        ) from error
