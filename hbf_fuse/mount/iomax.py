"""Limits the server's own reads of its source, so that the block layer is the tier."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict

from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.tree import Node, Tree
from hbf_fuse.limits import devices, group
from hbf_fuse.limits.files import Limits


@contextmanager
def prepared(
    fs: Filesystem, mbps: float | None, tell: Callable[[str], None]
) -> Iterator[AbstractContextManager[None]]:
    """A cgroup that limits reads of the source's disk to `mbps`; yields what keeps this process in it.

    Nothing at all for no limit. HbfError if the source has no disk that can be limited, or cannot be read
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
                f"{node.source} has holes, or is compressed: what no disk is read for comes faster than "
                "--io-max"
            )
    with group.made(Limits(io_mbps=mbps), disk) as made:
        found = made.in_force()
        fs.mount_facts["io_max"] = {"disk": asdict(disk), "in_force": asdict(found)}
        tell(f"in force on {disk} for this mount's server: {found}")
        yield made.joined()


def _check(tree: Tree, node: Node) -> None:
    try:
        os.close(tree.open(node, os.O_DIRECT))
    except OSError as error:
        raise HbfError(
            f"{node.source} cannot be read past the page cache (O_DIRECT: {error.strerror}), where --io-max "
            "would not hold; use a file on ext4, xfs or btrfs"
        ) from error
