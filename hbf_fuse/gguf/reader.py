"""Reads a GGUF's header: metadata and the tensor map. Bounded, because files come from anywhere.

Layout after llama.cpp's docs/gguf.md: magic, version, counts, key-value pairs, tensor infos, padding,
data. Tensor data is never touched.
"""

import math
import os
import stat
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from hbf_fuse.host import linux

MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = 50_000
MAX_PAIRS = 10_000
MAX_STRINGS = 1_000_000
"""In all arrays together; the largest vocabularies have 260,000 tokens and twice as many merges."""

MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 1024
MAX_KEPT_ARRAY = 4096
"""Longer arrays (vocabularies) are stepped over and kept as their length."""

MAX_KEPT_BYTES = 1 << 20
"""Of all values together, as they lie in the file: what comes after is kept as its length, too."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GgufError(ValueError):
    """Not a GGUF, or one that contradicts itself: says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: shape innermost first, offset and nbytes in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF's header. Long arrays and texts in `metadata` stand as {"length": n}."""

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
    """Read a header. GgufError for anything that is no sound GGUF, OSError if it cannot be opened.

    fd: the file, if it is open already; it is closed.
    """
    fd = os.open(path, linux.READ) if fd is None else fd
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            raise GgufError(f"{path} is a directory; name a GGUF in it")
        if not stat.S_ISREG(info.st_mode):
            raise GgufError(f"{path} is neither a file nor a directory; name a GGUF")
        if info.st_size < 24:
            raise GgufError(f"{path} is not a GGUF: only {info.st_size} bytes long")
        with open(fd, "rb", closefd=False) as file:
            return _parse(path, file, info.st_size)
    finally:
        os.close(fd)


class _Cursor:
    """Reads forward through the header and never past its end. The file is not mapped: should it be cut short
    meanwhile, that would end this process.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.at = 0
        self._file = file
        self._end = min(size, MAX_HEADER_BYTES)
        self._keepable = MAX_KEPT_BYTES
        self._strings = MAX_STRINGS

    def take(self, nbytes: int) -> bytes:
        self._advance(nbytes)
        data = self._file.read(nbytes)
        if len(data) < nbytes:
            raise self._too_short()
        return data

    def skip(self, nbytes: int) -> None:
        self._advance(nbytes)
        self._file.seek(self.at)

    def _advance(self, nbytes: int) -> None:
        if nbytes > self._end - self.at:
            raise self._too_short()
        self.at += nbytes

    def _too_short(self) -> GgufError:
        return self.unsound(f"its header runs past byte {self._end}")

    def unsound(self, why: str) -> GgufError:
        return GgufError(f"{self.path} is not a sound GGUF: {why}")

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, what: str, most: int) -> int:
        number: int = self.number("Q")
        if number > most:
            raise self.unsound(f"{number} {what}, at most {most} are believed")
        return number

    def name(self) -> str:
        text = self.take(self.count("bytes in a name", MAX_NAME_BYTES)).decode("utf-8", errors="replace")
        if not text.isprintable():
            raise self.unsound(f"control characters in the name {text[:80]!r}")
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            length = self.number("Q")
            if not self._keep(length):
                self.skip(length)
                return {"length": length}
            return self.take(length).decode("utf-8", errors="replace")
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self.unsound(f"unknown value type {kind} at byte {self.at}")
        return self.number(_SCALARS[kind])

    def _keep(self, nbytes: int) -> bool:
        """Whether a value of this size may be kept; if so, it counts."""
        if nbytes > self._keepable:
            return False
        self._keepable -= nbytes
        return True

    def _array(self) -> Any:
        kind, length = self.number("I"), self.number("Q")
        begin = self.at
        if kind == _STRING:
            self._skip_strings(length)
        elif kind in _SCALARS:
            self.skip(length * struct.calcsize("<" + _SCALARS[kind]))
        else:
            raise self.unsound(f"unknown array type {kind} at byte {self.at}")
        nbytes = self.at - begin
        if length > MAX_KEPT_ARRAY or not self._keep(nbytes):
            return {"length": length}
        self.at = self._file.seek(begin)
        if kind == _STRING:
            return [self.value(_STRING) for _ in range(length)]
        return list(struct.unpack(f"<{length}{_SCALARS[kind]}", self.take(nbytes)))

    def _skip_strings(self, count: int) -> None:
        """Step over a vocabulary: most of a header's time, so without a call for each."""
        if count > self._strings:
            raise self.unsound(f"{count} texts in an array, at most {MAX_STRINGS} are believed")
        self._strings -= count
        at, end, read, seek = self.at, self._end, self._file.read, self._file.seek
        for _ in range(count):
            length = read(8)
            at += 8 + int.from_bytes(length, "little")
            if len(length) < 8 or at > end:
                raise self._too_short()
            seek(at)
        self.at = at


def _parse(path: Path, file: BinaryIO, size: int) -> GgufFile:
    cursor = _Cursor(path, file, size)
    if cursor.take(4) != b"GGUF":
        raise GgufError(f"{path} is not a GGUF: it does not begin with the letters GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        raise GgufError(f"{path} is a GGUF of version {version}; versions 2 and 3 are known")
    tensor_count = cursor.count("tensors", MAX_TENSORS)
    pair_count = cursor.count("metadata pairs", MAX_PAIRS)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.name()
        if key in metadata:
            raise cursor.unsound(f"{key!r} stands in it twice")
        metadata[key] = cursor.value(cursor.number("I"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise cursor.unsound("its alignment is no number above 0")
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = [_located(path, info, data_offset, size) for info in infos]
    _check_apart(path, tensors)
    return GgufFile(path, size, version, metadata, tensors, data_offset)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.name()
    dimensions = cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise cursor.unsound(f"{dimensions} dimensions at byte {cursor.at}")
    *shape, kind, offset = struct.unpack(f"<{dimensions}QIQ", cursor.take(8 * dimensions + 12))
    return name, tuple(shape), kind, offset


def _located(path: Path, info: tuple[str, tuple[int, ...], int, int], data_offset: int, size: int) -> Tensor:
    name, shape, kind, offset = info
    try:
        quantization = GGMLQuantizationType(kind)
    except ValueError as error:
        raise GgufError(f"{path}: tensor {name!r} has the unknown type {kind}") from error
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if shape and shape[0] % block:
        raise GgufError(f"{path}: tensor {name!r} has rows of {shape[0]}, no multiple of {block}")
    nbytes = math.prod(shape) // block * block_bytes
    if data_offset + offset + nbytes > size:
        raise GgufError(
            f"{path} is cut short: tensor {name!r} would end at byte {data_offset + offset + nbytes}"
        )
    return Tensor(name, shape, quantization.name, data_offset + offset, nbytes)


def _check_apart(path: Path, tensors: list[Tensor]) -> None:
    """Every byte is one tensor's, and every name, as llama.cpp wants it."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise GgufError(f"{path} is not a sound GGUF: two tensors have the same name")
    for before, after in pairwise(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))):
        if before.offset + before.nbytes > after.offset:
            raise GgufError(f"{path} is not a sound GGUF: tensors {before.name!r} and {after.name!r} overlap")
