"""Reads a GGUF's header: metadata and the tensor map. Bounded, because files come from anywhere.

Layout after llama.cpp's docs/gguf.md: magic, version, counts, key-value pairs, tensor infos, padding,
data. Tensor data is never touched.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

MAX_HEADER_BYTES = 256 << 20
MAX_TENSORS = 1_000_000
MAX_PAIRS = 100_000
MAX_DIMENSIONS = 4
MAX_KEPT_ARRAY = 4096
"""Longer arrays (vocabularies) are stepped over and kept as their length."""

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
    """A GGUF's header. Long arrays in `metadata` stand as {"length": n}."""

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


def read(path: Path) -> GgufFile:
    """Read a header. GgufError for anything that is no sound GGUF, OSError if it cannot be opened."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 24:
            raise GgufError(f"{path} is not a GGUF: only {size} bytes long")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _parse(path, view, size)


class _Cursor:
    """Reads forward through the header and never past its end."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path = path
        self.at = 0
        self._view = view
        self._end = min(len(view), MAX_HEADER_BYTES)

    def take(self, nbytes: int) -> bytes:
        if nbytes > self._end - self.at:
            raise GgufError(f"{self.path} is not a sound GGUF: its header runs past byte {self._end}")
        self.at += nbytes
        return self._view[self.at - nbytes : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, what: str, most: int) -> int:
        number: int = self.number("Q")
        if number > most:
            raise GgufError(f"{self.path} is not a sound GGUF: {number} {what}, at most {most} are believed")
        return number

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise GgufError(f"{self.path} is not a sound GGUF: unknown value type {kind} at byte {self.at}")
        return self.number(_SCALARS[kind])

    def _array(self) -> Any:
        kind, length = self.number("I"), self.number("Q")
        if kind == _STRING:
            kept = [self.text() for _ in range(min(length, MAX_KEPT_ARRAY))]
            for _ in range(length - len(kept)):
                self.take(self.number("Q"))
        elif kind in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[kind])
            packed = self.take(length * width)
            kept = (
                list(struct.unpack(f"<{length}{_SCALARS[kind]}", packed)) if length <= MAX_KEPT_ARRAY else []
            )
        else:
            raise GgufError(f"{self.path} is not a sound GGUF: unknown array type {kind} at byte {self.at}")
        return kept if length <= MAX_KEPT_ARRAY else {"length": length}


def _parse(path: Path, view: mmap.mmap, size: int) -> GgufFile:
    cursor = _Cursor(path, view)
    if cursor.take(4) != b"GGUF":
        raise GgufError(f"{path} is not a GGUF: it does not begin with the letters GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        raise GgufError(f"{path} is a GGUF of version {version}; versions 2 and 3 are known")
    tensor_count = cursor.count("tensors", MAX_TENSORS)
    pair_count = cursor.count("metadata pairs", MAX_PAIRS)
    metadata = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(pair_count)}
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise GgufError(f"{path} is not a sound GGUF: alignment {alignment!r}")
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = [_located(path, info, data_offset, size) for info in infos]
    return GgufFile(path, size, version, metadata, tensors, data_offset)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    dimensions = cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise GgufError(f"{cursor.path} is not a sound GGUF: {dimensions} dimensions at byte {cursor.at}")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _located(path: Path, info: tuple[str, tuple[int, ...], int, int], data_offset: int, size: int) -> Tensor:
    name, shape, kind, offset = info
    try:
        quantization = GGMLQuantizationType(kind)
    except ValueError as error:
        raise GgufError(f"{path}: tensor {name!r} has the unknown type {kind}") from error
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    nbytes = math.prod(shape) // block * block_bytes
    if data_offset + offset + nbytes > size:
        raise GgufError(
            f"{path} is cut short: tensor {name!r} would end at byte {data_offset + offset + nbytes}"
        )
    return Tensor(name, shape, quantization.name, data_offset + offset, nbytes)
