"""Split models: `NAME-00001-of-00003.gguf` and its siblings. llama.cpp finds them by their names alone
(src/llama.cpp, llama_split_path), so this does, too.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    from hbf_fuse.gguf import GgufFile

_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class PartName:
    """One part's name taken apart. number: from 1 to count."""

    prefix: str
    number: int
    count: int

    @property
    def names(self) -> list[str]:
        """Those of all parts, in order."""
        return [f"{self.prefix}-{number:05d}-of-{self.count:05d}.gguf" for number in range(1, self.count + 1)]


def part_name(name: str) -> PartName | None:
    """What a file's name says about it; None if it is not the name of a part."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    part = PartName(found["prefix"], int(found["number"]), int(found["count"]))
    return part if 1 <= part.number <= part.count else None


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of the model that a file belongs to, in order: itself, if it is not split.

    HbfError if parts are not beside it.
    """
    part = part_name(path.name)
    if part is None:
        return (path,)
    paths = [path.with_name(name) for name in part.names]
    if why := incomplete(part, [each.name for each in paths if each.exists()]):
        raise HbfError(f"{path} is {why}", "get all parts into one folder")
    return tuple(paths)


def read_model(path: Path) -> "GgufFile":
    """The header of the whole model that a file belongs to. Raises as parts_of and gguf.read_whole do."""
    # Imported only when needed: it imports numpy, which takes a tenth of a second.
    from hbf_fuse import gguf

    return gguf.read_whole(parts_of(path))


def incomplete(part: PartName, there: Iterable[str]) -> str:
    """What is missing of a set, or "": `part 1 of 3; parts 2 and 3 are not beside it`."""
    missing = [str(number) for number, name in enumerate(part.names, 1) if name not in set(there)]
    if not missing:
        return ""
    listed = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
    are = "parts {} are" if len(missing) > 1 else "part {} is"
    return f"part {part.number} of {part.count}, and {are.format(listed)} not beside it"


def sets(names: Sequence[str]) -> list[list[int]]:
    """Whole sets among the names of one folder: for each the places of its parts, in order."""
    found: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for place, name in enumerate(names):
        if part := part_name(name):
            found[part.prefix, part.count][part.number] = place
    return [
        [places[number] for number in sorted(places)]
        for (_, count), places in found.items()
        if len(places) == count
    ]
