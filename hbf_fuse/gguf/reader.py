"""Reads a GGUF's header: metadata and the tensor map. Bounded, because files come from anywhere.

Layout from llama.cpp's docs/gguf.md: magic, version, counts, key-value pairs, tensor infos, padding, data.
Tensor data is never read.
"""

import math
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from hbf_fuse.gguf.cursor import (
    MAX_DIMENSIONS,
    MAX_PAIRS,
    MAX_STRINGS,
    MAX_TENSORS,
    Cursor,
    GgufError,
)
from hbf_fuse.gguf.downloads import unfinished
from hbf_fuse.gguf.tensor_types import TYPES
from hbf_fuse.host import linux

__all__ = ["MAX_STRINGS", "MAX_TENSORS", "GgufError", "GgufFile", "Tensor", "glance", "read"]

_LFS = b"version https://git-lfs"
_GLANCE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. shape: innermost dimension first. offset and nbytes: in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF's header. Long arrays and texts in `metadata` are replaced by {"length": n}."""

    path: Path
    size: int
    version: int
    metadata: dict[str, Any]
    tensors: list[Tensor]
    data_offset: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    def field(self, name: str, default: Any = None) -> Any:
        """A metadata value of this architecture, such as `block_count`."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def read(path: Path, fd: int | None = None) -> GgufFile:
    """Read a header. GgufError for anything but a sound GGUF, OSError if it cannot be opened.

    fd: the file if it is already open. It is closed.
    """
    fd = os.open(path, linux.READ) if fd is None else fd
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            raise GgufError(f"{path} is a directory", "name a GGUF in it")
        if not stat.S_ISREG(info.st_mode):
            raise GgufError(f"{path} is neither a file nor a directory", "name a GGUF")
        if info.st_size < 24:
            raise GgufError(f"{path} is not a GGUF: only {info.st_size} bytes long")
        with open(fd, "rb", closefd=False) as file:
            return _parse(path, file, info.st_size)
    except GgufError as error:
        if ending := unfinished(path.name):
            raise GgufError(
                f"{error.what}: it is still being downloaded, as its name says ({ending})",
                "wait until it is complete",
            ) from error
        raise
    finally:
        os.close(fd)


def glance(path: Path, fd: int) -> tuple[dict[str, Any], int]:
    """The first metadata, as much as stands in 64 KiB, and the number of tensors: costs little, whatever the
    vocabulary. GgufError as read.

    fd: the open file. It is closed.
    """
    with open(fd, "rb") as file:
        cursor = Cursor(path, file, _GLANCE_BYTES)
        _, tensor_count, pair_count = _begin(path, cursor)
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            try:
                key = cursor.name()
                metadata[key] = cursor.value(cursor.number("I"))
            except GgufError:
                if not metadata:
                    raise
                break
    return metadata, tensor_count


def _begin(path: Path, cursor: Cursor) -> tuple[int, int, int]:
    """The version, and the numbers of tensors and of metadata pairs."""
    magic = cursor.take(4)
    if magic == _LFS[:4] and magic + cursor.take(len(_LFS) - 4) == _LFS:
        raise GgufError(f"{path} is a pointer of Git LFS, not the file itself", "get it with `git lfs pull`")
    if magic != b"GGUF":
        raise GgufError(f"{path} is not a GGUF: it does not begin with the letters GGUF")
    version = cursor.number("I")
    if version in (1 << 24, 2 << 24, 3 << 24):
        raise GgufError(f"{path} is a big-endian GGUF", "convert it for little-endian machines")
    if version not in (2, 3):
        raise GgufError(f"{path} is a GGUF of version {version}", "versions 2 and 3 are known")
    return version, cursor.count("tensors", MAX_TENSORS), cursor.count("metadata pairs", MAX_PAIRS)


def _parse(path: Path, file: BinaryIO, size: int) -> GgufFile:
    cursor = Cursor(path, file, size)
    version, tensor_count, pair_count = _begin(path, cursor)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.name()
        if key in metadata:
            raise cursor.unsound(f"its metadata has {key!r} twice")
        metadata[key] = cursor.value(cursor.number("I"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise cursor.unsound("its alignment is not a number above 0")
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = _located(path, infos, data_offset, size)
    _check_apart(path, tensors)
    return GgufFile(path, size, version, metadata, tensors, data_offset)


def _tensor_info(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.name()
    dimensions = cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise cursor.unsound(f"{dimensions} dimensions at byte {cursor.at}")
    *shape, kind, offset = struct.unpack(f"<{dimensions}QIQ", cursor.take(8 * dimensions + 12))
    return name, tuple(shape), kind, offset


_Info = tuple[str, tuple[int, ...], int, int]
"""Name, shape, type and offset, as _tensor_info reads them."""


def _located(path: Path, infos: Sequence[_Info], data_offset: int, size: int) -> list[Tensor]:
    """The tensors with their sizes. One whose type is unknown reaches to the next offset."""
    order = sorted(range(len(infos)), key=lambda place: infos[place][3])
    ends = [infos[place][3] for place in order[1:]] + [size - data_offset]
    end_of = dict(zip(order, ends, strict=False))
    tensors = []
    for place, (name, shape, kind, offset) in enumerate(infos):
        if kind in TYPES:
            told, block, block_bytes = TYPES[kind]
            if shape and shape[0] % block:
                raise GgufError(f"{path}: tensor {name!r} has rows of {shape[0]}, not a multiple of {block}")
            nbytes = math.prod(shape) // block * block_bytes
        else:
            told, nbytes = f"type {kind}", max(0, end_of[place] - offset)
        if data_offset + offset + nbytes > size:
            raise GgufError(
                f"{path} is cut short: tensor {name!r} would end at byte {data_offset + offset + nbytes}"
            )
        tensors.append(Tensor(name, shape, told, data_offset + offset, nbytes))
    return tensors


def _check_apart(path: Path, tensors: list[Tensor]) -> None:
    """Tensors must not overlap or share a name, as in llama.cpp."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise GgufError(f"{path} is not a sound GGUF: two tensors have the same name")
    for before, after in pairwise(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))):
        if before.offset + before.nbytes > after.offset:
            raise GgufError(f"{path} is not a sound GGUF: tensors {before.name!r} and {after.name!r} overlap")
