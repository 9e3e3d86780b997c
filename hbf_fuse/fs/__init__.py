"""What is mounted: the tree, reads through the tier, `.hbf/`. Knows no FUSE and no engine."""

from hbf_fuse.fs.filesystem import Filesystem
from hbf_fuse.fs.service import Service
from hbf_fuse.fs.tree import Node

__all__ = ["Filesystem", "Node", "Service"]
