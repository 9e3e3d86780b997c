"""One name in a mount."""

import stat
from dataclasses import dataclass, field
from pathlib import Path

ROOT = 1
LINKS = 1
"""Link count of everything. As in btrfs, that of a directory is no count of its subdirectories: programs that
would compute from it when they have seen all (find) then look at every name.
"""


@dataclass(slots=True, eq=False)
class Node:
    """One inode. `folder`, `file`: where the real file behind a regular file is, without links, and its name
    there. `identity`: what it is recognised by. Hidden files have none of these.

    A folder may hold 100,000 files: the nodes of one folder share its path, and `children` is made for
    directories only.
    """

    ino: int
    parent: int
    mode: int
    name: bytes = b""
    size: int = 0
    bytes_on_disk: int = 0
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0
    folder: Path | None = None
    file: str = ""
    identity: tuple[int, ...] = ()
    target: bytes = b""
    listed: bool = True
    children: dict[bytes, "Node"] = field(init=False)

    def __post_init__(self) -> None:
        self.children = {} if self.is_dir else _NONE

    @property
    def source(self) -> Path | None:
        """The path of the real file."""
        return None if self.folder is None else self.folder / self.file

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


_NONE: dict[bytes, Node] = {}
"""Of nodes that are no directories. Stays empty."""
