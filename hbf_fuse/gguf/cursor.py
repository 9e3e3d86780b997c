"""Reads a GGUF's header value by value, forward and bounded: files come from anywhere."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

from hbf_fuse.errors import HbfError

MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = 50_000
MAX_PAIRS = 10_000
MAX_STRINGS = 1_000_000
"""In all arrays together. The largest vocabularies have 260,000 tokens and twice as many merges."""

MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 1024
MAX_KEPT_ARRAY = 4096
"""Longer arrays (vocabularies) are skipped; only their length is kept."""

MAX_KEPT_BYTES = 1 << 20
"""Size in the file of all kept values together. Of later values only the length is kept."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GgufError(HbfError):
    """Not a GGUF, or a contradictory one: says what is wrong and where."""


class Cursor:
    """Reads forward through the header, never past its end. The file is not mapped: if it were truncated
    meanwhile, an access to the mapping would end this process.
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
            raise self.unsound(f"{number} {what}, at most {most} are accepted")
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
        """Whether a value of this size may be kept. If so, it counts towards the limit."""
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
        """Skip a vocabulary. This takes most of a header's time, so there is no call per string."""
        if count > self._strings:
            raise self.unsound(f"{count} texts in an array, at most {MAX_STRINGS} are accepted")
        self._strings -= count
        at, end, read, seek = self.at, self._end, self._file.read, self._file.seek
        for _ in range(count):
            length = read(8)
            at += 8 + int.from_bytes(length, "little")
            if len(length) < 8 or at > end:
                raise self._too_short()
            seek(at)
        self.at = at
