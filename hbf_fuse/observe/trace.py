"""Every read of a mount, one record each: the last ones in memory, all of them in a file if wanted.

A trace is a line of JSON (what was served, from which tier), then records of RECORD, little-endian, in the
order of completion.
"""

import fcntl
import io
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from hbf_fuse import documents

RECORD = struct.Struct("<QQQQIIIHH")
"""arrival, deadline and done (CLOCK_MONOTONIC, ns), offset, bytes, reader (thread id), inode, tier (its place
in the header's `tiers`), direct (1 for a read past the page cache). A read whose bytes come from several
tiers has a record for each part."""

FORMAT = "hbf-trace-2"
_BEGINNING = b'{"format": "hbf-trace'
RING_RECORDS = 65_536
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20
"""About 5 million reads, of which each takes half a KB of memory where traces are looked into."""

_FILE_BUFFER = 1 << 16


class Read(NamedTuple):
    """One record."""

    arrival_ns: int
    deadline_ns: int
    done_ns: int
    offset: int
    nbytes: int
    reader: int
    ino: int
    tier: int
    direct: int = 0


class Recorder:
    """Takes records. Not safe for concurrent callers."""

    def __init__(self) -> None:
        self.count = 0
        self.stopped = ""
        """Why the file lacks reads, if it does."""
        self._ring = bytearray(RING_RECORDS * RECORD.size)
        self._file: BinaryIO | None = None

    def write_to(self, path: Path, header: dict[str, Any]) -> None:
        """Also write every record from now on to a file, made anew. OSError if it cannot be, EWOULDBLOCK if
        another mount writes to it.
        """
        file = path.open("ab", buffering=_FILE_BUFFER)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.tell():
                file.truncate(0)
            file.write(header_line(header))
        except OSError:
            file.close()
            raise
        self._file = file

    def add(self, *fields: int) -> None:
        """One read, its fields as in RECORD."""
        RECORD.pack_into(self._ring, self.count % RING_RECORDS * RECORD.size, *fields)
        self.count += 1
        if self._file is not None:
            self._write(RECORD.pack(*fields))

    def forget(self) -> None:
        """Begin anew in memory."""
        self.count = 0

    def since(self, count: int) -> list["Read"]:
        """The reads that were added after there were `count`, as far as they are in memory."""
        recent = self.recent()[-max(0, self.count - count) * RECORD.size :] if self.count > count else b""
        return [Read(*fields) for fields in RECORD.iter_unpack(recent)]

    def recent(self) -> bytes:
        """The records in memory, oldest first."""
        if self.count <= RING_RECORDS:
            return bytes(self._ring[: self.count * RECORD.size])
        oldest = self.count % RING_RECORDS * RECORD.size
        return bytes(self._ring[oldest:] + self._ring[:oldest])

    def close(self) -> None:
        """Write out what is buffered."""
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError as error:
            self.stopped = error.strerror or str(error)

    def _write(self, record: bytes) -> None:
        """A file that cannot be written ends tracing, never serving."""
        try:
            if self._file is not None:
                self._file.write(record)
        except OSError as error:
            self.stopped = error.strerror or str(error)
            # What is still buffered would fail again at every turn, and at the end.
            file, self._file = self._file, None
            if isinstance(file, io.BufferedWriter):
                file.raw.close()


def may_be_written(path: Path) -> bool:
    """Whether nothing is lost when a trace is written there: no file yet, an empty one, a trace. Nothing else
    that has a name: a pipe or a terminal would make every read wait for whoever reads it.
    """
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) in (b"", _BEGINNING)


def is_being_written(path: Path) -> bool:
    """Whether a mount has this trace open: its newest reads are not in the file yet."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def header_line(header: dict[str, Any]) -> bytes:
    """What a trace begins with."""
    return json.dumps({"format": FORMAT, **header}).encode() + b"\n"


def wholes(records: Iterable[Read]) -> Iterator[list[Read]]:
    """Reads with all their parts: one that several tiers brought has a record for each, in a row."""
    parts: list[Read] = []
    for record in records:
        if parts and not _goes_on(parts[-1], record):
            yield parts
            parts = []
        parts.append(record)
    if parts:
        yield parts


def _goes_on(part: Read, record: Read) -> bool:
    known = part.arrival_ns, part.done_ns, part.reader, part.ino
    same = known == (record.arrival_ns, record.done_ns, record.reader, record.ino)
    return same and record.offset == part.offset + part.nbytes


def joined(parts: Sequence[Read]) -> Read:
    """A read's parts as the one read that they were; its tier is the first part's."""
    return parts[0]._replace(
        deadline_ns=max(part.deadline_ns for part in parts), nbytes=sum(part.nbytes for part in parts)
    )


@dataclass(frozen=True)
class Trace:
    """A trace that was read back. header: `tiers` by name, and per inode `files` with path and size."""

    header: dict[str, Any]
    records: bytes

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """From a file's content. ValueError for what is no trace or one that contradicts itself; a record
        that was cut off is left out.
        """
        line, newline, records = content[:MAX_HEADER_BYTES].partition(b"\n")
        if not newline:
            raise ValueError("not a trace: it does not begin with a line of JSON")
        try:
            header = documents.parse_json(line)
        except ValueError as error:
            raise ValueError("not a trace: its first line is no JSON") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"not a trace of format {FORMAT}")
        _check_header(header)
        records = content[len(line) + 1 :]
        trace = cls(header, records[: len(records) // RECORD.size * RECORD.size])
        sizes = {int(ino): file["size"] for ino, file in header["files"].items() if "size" in file}
        for place, read in enumerate(trace):
            if (
                read.done_ns <= read.arrival_ns
                or read.tier >= len(header["tiers"])
                or read.offset + read.nbytes > sizes.get(read.ino, read.offset + read.nbytes)
            ):
                raise ValueError(f"its record {place} is no read: damaged, or not of this header")
        return trace

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file. ValueError as above and for one of more than MAX_FILE_BYTES, OSError if it cannot be
        read.
        """
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"it is longer than {MAX_FILE_BYTES >> 20} MiB; trace a shorter run")
        return cls.parse(content)

    def __len__(self) -> int:
        return len(self.records) // RECORD.size

    def __iter__(self) -> Iterator[Read]:
        return (Read(*fields) for fields in RECORD.iter_unpack(self.records))


def _check_header(header: dict[str, Any]) -> None:
    """What Trace promises of a header: tiers and files, as tables."""
    tiers, files = header.get("tiers"), header.get("files")
    if not isinstance(tiers, dict) or not all(isinstance(spec, dict) for spec in tiers.values()):
        raise ValueError("not a trace: its header has no tiers")
    if not isinstance(files, dict) or not all(map(_is_file, files.items())):
        raise ValueError("not a trace: its header has no files by inode")


def _is_file(entry: tuple[str, Any]) -> bool:
    ino, file = entry
    if not (ino.isascii() and ino.isdecimal() and isinstance(file, dict)):
        return False
    return isinstance(file.get("path"), str) and isinstance(file.get("size", 0), int)
