"""What is mounted: the tree, the source of its bytes, `.hbf/`. Knows no FUSE and no engine."""

from hbf_fuse.fs.filesystem import Filesystem
from hbf_fuse.fs.node import Node

__all__ = ["Filesystem", "Node"]
