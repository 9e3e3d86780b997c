"""Which of the served files is the model, and what the others are."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hbf_fuse.fs.node import Node
from hbf_fuse.gguf import GgufError, kinds
from hbf_fuse.gguf.downloads import unfinished
from hbf_fuse.gguf.reader import glance
from hbf_fuse.models import split

_MAGIC = b"GGUF"
_MOST_COUNTED = 100
"""Files that are looked into once the model is found: to say how many there are."""


@dataclass
class Contents:
    """model: the largest language model, or a GGUF that cannot be read if there is none. models: how many
    were seen. others: GGUFs that are something else, and what.
    """

    model: Node | None = None
    models: int = 0
    others: list[tuple[Node, str]] = field(default_factory=list)


def look(files: Iterable[Node], opened: Callable[[Node], int]) -> Contents:
    """What is in a folder: the beginning of each GGUF, the largest first. opened: opens a file."""
    found = Contents()
    unread: list[Node] = []
    ordered = sorted(files, key=lambda node: -node.size)
    for place, node in enumerate(ordered):
        if found.model and place >= _MOST_COUNTED:
            break
        kind = _kind(node, opened)
        if kind == kinds.MODEL:
            found.model = found.model or node
            found.models += 1
        elif kind:
            found.others.append((node, kind))
        elif kind is None:
            unread.append(node)
    if found.model is None and unread:
        found.model = min(unread, key=lambda node: node.ino)
    return found


def _kind(node: Node, opened: Callable[[Node], int]) -> str | None:
    """What a GGUF is; None if its header cannot be read; "" for any other file."""
    name = os.fsdecode(node.name)
    try:
        fd = opened(node)
        is_gguf = os.pread(fd, len(_MAGIC), 0) == _MAGIC
        if is_gguf and not unfinished(name):
            return _kind_of_header(name, *glance(Path(name), fd))
        os.close(fd)
    except GgufError:
        return None
    except OSError:
        return ""
    if is_gguf:
        return f"still being downloaded ({unfinished(name)})"
    return "not a GGUF" if name.endswith(".gguf") else ""


def _kind_of_header(name: str, metadata: dict[str, Any], tensors: int) -> str:
    kind, part = kinds.of(metadata), split.part_name(name)
    number, count = (part.number, part.count) if part else (1, metadata.get("split.count"))
    if kind == kinds.MODEL and isinstance(count, int) and count > 1:
        return f"part {number} of {count} of a split model"
    if kind == kinds.MODEL and not tensors:
        return "without weights"
    return kind


def doubt_of_folder(source: Path, found: Contents, path_of: Callable[[Node], str], has_gguf: bool) -> str:
    """What is to be told about a folder, or "". has_gguf: whether any name in it ends with .gguf."""
    if found.model is not None:
        if found.models > 1:
            return f"model.gguf is {path_of(found.model)}, the largest of {found.models} models"
        return ""
    if found.others:
        listed = ", ".join(f"{path_of(node)} is {kind}" for node, kind in found.others[:3])
        more = ", ..." if len(found.others) > 3 else ""
        if all(kind.startswith("part ") for _, kind in found.others):
            return f"{source} holds no model in one file, so there is no model.gguf: {listed}{more}"
        return f"{source} holds no model that llama.cpp would load: {listed}{more}"
    return "" if has_gguf else f"{source} holds no GGUF: llama.cpp will find nothing to load"
