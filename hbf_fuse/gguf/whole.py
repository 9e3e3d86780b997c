"""A split model as if it were one file: its parts one behind the other, each beginning at a page."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hbf_fuse.gguf.reader import GgufError, GgufFile, Tensor, read

PAGE = 4096


def bases(sizes: Sequence[int]) -> list[int]:
    """Where each part begins, in bytes; the last figure is the whole size."""
    found, end = [], 0
    for size in sizes:
        found.append(-(-end // PAGE) * PAGE)
        end = found[-1] + size
    return [*found, end]


def read_whole(parts: Sequence[Path]) -> GgufFile:
    """The header of a model that may be split: metadata of its first part, tensors of all, with offsets as
    `bases` has them. GgufError as for `read`, or if the parts do not belong together.
    """
    first, *others = files = [read(part) for part in parts]
    if not others:
        return first
    _check(files)
    *starts, size = bases([file.size for file in files])
    tensors: list[Tensor] = [
        dataclasses.replace(tensor, offset=start + tensor.offset)
        for start, file in zip(starts, files, strict=True)
        for tensor in file.tensors
    ]
    return dataclasses.replace(first, size=size, tensors=tensors)


def _check(files: Sequence[GgufFile]) -> None:
    """As llama.cpp does (src/llama-model-loader.cpp): every part says which of how many it is."""
    names: set[str] = set()
    for number, file in enumerate(files):
        told = file.metadata.get("split.no"), file.metadata.get("split.count")
        if told != (number, len(files)):
            raise GgufError(f"{file.path} is not part {number + 1} of {len(files)}: it says {told}")
        if twice := names & {tensor.name for tensor in file.tensors}:
            raise GgufError(f"{file.path} is of another model: {min(twice)!r} is in an earlier part, too")
        names |= {tensor.name for tensor in file.tensors}
    count = files[0].metadata.get("split.tensors.count")
    if count != len(names):
        raise GgufError(f"{files[0].path} has {count} tensors, and its parts have {len(names)} in all")
