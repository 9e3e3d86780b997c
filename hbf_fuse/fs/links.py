"""Links in a served folder: which of them lead through the mount, and what the others lead to."""

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.fs.node import ROOT, Node
from hbf_fuse.host import linux

TIER, KEEP = "tier", "keep"
WAYS = (TIER, KEEP)
"""What becomes of a link that leads outside: a file from the tier, or a link that bypasses it."""

_MOST_LINKS = 40
"""Of a path, as in Linux."""

NOTHING, CLOSED, STRANGERS = "to nothing", "to what may not be read", "past another user's link"
SIZELESS = "to a file without a size"
"""Where a link leads that cannot be served."""

_LOST = {
    errno.ENOENT: NOTHING,
    errno.ENOTDIR: NOTHING,
    errno.ELOOP: "in a circle",
    errno.EACCES: CLOSED,
}


@dataclass(frozen=True, slots=True)
class Lead:
    """The file that a link leads to, by a path without links; or where else it leads."""

    path: Path | None = None
    info: os.stat_result | None = None
    lost: str = ""


def lead(name: str, folder: int, strictly: bool) -> Lead:
    """Where a link in an open folder leads. strictly: see linux.follow."""
    try:
        found = linux.Descriptor(linux.follow(name, folder, strictly))
    except linux.UntrustedLink:
        return Lead(lost=STRANGERS)
    except OSError as error:
        return Lead(lost=_LOST.get(error.errno or 0, f"to what cannot be opened ({error.strerror})"))
    info = os.fstat(found.number)
    if stat.S_ISREG(info.st_mode):
        return Lead(linux.path_of(found.number), info)
    return Lead(lost="to a directory" if stat.S_ISDIR(info.st_mode) else "to a pipe, a socket or a device")


def stays_inside(nodes: Mapping[int, Node], link: Node) -> bool:
    """Whether a link leads to something in the tree, by names that readers of the mount follow, too."""
    at, links, left = nodes[link.parent], 0, [link.target]
    while left:
        target = left.pop()
        if target.startswith(b"/") or not at.is_dir:
            return False
        part, slash, rest = target.partition(b"/")
        if slash:
            left.append(rest.lstrip(b"/") or b".")
        if part == b"..":
            if at.ino == ROOT:
                return False
            at = nodes[at.parent]
        elif part not in (b"", b"."):
            child = at.children.get(part)
            if child is None:
                return False
            if child.target:
                links += 1
                left.append(child.target)
            else:
                at = child
        if links > _MOST_LINKS:
            return False
    return True


def told(lost: Iterable[tuple[str, str]]) -> str:
    """What is left out and why: `3 links are left out: 2 lead to nothing (a, b), 1 leads ...`; "" if nothing.

    lost: the path of each link, and where it leads.
    """
    by_reason: dict[str, list[str]] = {}
    for path, where in lost:
        by_reason.setdefault(where, []).append(path)
    if not by_reason:
        return ""
    count = sum(map(len, by_reason.values()))
    parts = (f"{_leads(len(paths))} {where} ({_some(paths)})" for where, paths in by_reason.items())
    return f"{count} {'links are' if count > 1 else 'link is'} left out: {', '.join(parts)}"


def bypassing(paths: list[str]) -> str:
    """The warning about links that are kept, or ""."""
    if not paths:
        return ""
    many = len(paths) > 1
    return (
        f"{len(paths)} {'links lead' if many else 'link leads'} outside ({_some(paths)}): "
        f"what is read through {'them' if many else 'it'} does not come from the tier"
    )


def _leads(count: int) -> str:
    return f"{count} {'lead' if count > 1 else 'leads'}"


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:2]) + (", ..." if len(paths) > 2 else "")
