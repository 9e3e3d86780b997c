"""What is mounted: the tree, where bytes come from, `.hbf/`. Knows no FUSE and no engine."""

from hbf_fuse.fs.filesystem import Filesystem
from hbf_fuse.fs.tree import Node

__all__ = ["Filesystem", "Node"]
