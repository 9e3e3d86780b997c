"""Traces: every read of a mount, one record each. The last ones are in memory; a file can hold all of them.

A trace is a line of JSON (what was served, from which tier), then records of RECORD, little-endian, in the
order of completion.
"""

import errno
import fcntl
import json
import os
import stat
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from hbf_fuse import documents
from hbf_fuse.errors import naming
from hbf_fuse.host import linux
from hbf_fuse.observe.bounds import DIRECT, KV, WRITES
from hbf_fuse.observe.ring import Ring

RECORD = struct.Struct("<QQQQIIIHH")
"""Arrival, deadline and done (CLOCK_MONOTONIC, ns), offset, bytes, reader (thread id), inode, tier (its place
in the header's `tiers`), way (the flags of observe/bounds.py). A read from several tiers
has a record for each part. Of files in kv/, which come and go, the header knows nothing.
"""

FORMAT = "hbf-trace-2"
_BEGINNING = b'{"format": "hbf-trace'
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20
"""About 5 million reads. The analysis needs half a KB of memory for each."""

_WRITE_SECONDS = 0.02
"""How long a record may wait to be written. The ring holds 20 times what a machine can serve in that time."""


_OPEN_TO_WRITE = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Read(NamedTuple):
    """One record: of a read, or of a write."""

    arrival_ns: int
    deadline_ns: int
    done_ns: int
    offset: int
    nbytes: int
    reader: int
    ino: int
    tier: int
    way: int = 0

    @property
    def direct(self) -> bool:
        """Whether it went past the page cache."""
        return bool(self.way & DIRECT)

    @property
    def writes(self) -> bool:
        """Whether it was a write."""
        return bool(self.way & WRITES)


class TraceFile:
    """Writes every read from now on to a file, which is emptied first. A separate thread takes the reads from
    the ring.

    OSError if the file cannot be made: EWOULDBLOCK if another mount writes to it, EEXIST if it is not a
    trace. A failure to write ends tracing, never serving: `stopped` says why reads are missing, or "".

    The file may be truncated meanwhile, as by logrotate's copytruncate: it then begins again with a header.
    """

    def __init__(self, path: Path, header: Mapping[str, object], ring: Ring) -> None:
        self.stopped = ""
        self._ring = ring
        self._written = ring.count
        self._lost = self._size = 0
        self._header = header_line(header)
        # The path may have changed since it was checked. So the open file is checked again, and no link is
        # followed.
        folder = linux.open_folder(path.absolute().parent)
        try:
            fd = os.open(path.name, _OPEN_TO_WRITE, 0o666, dir_fd=folder)
        finally:
            os.close(folder)
        self._file = open(fd, "ab", buffering=0)  # noqa: SIM115 - closed by its thread
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            known = os.fstat(fd)
            if not stat.S_ISREG(known.st_mode) or os.pread(fd, len(_BEGINNING), 0) not in (b"", _BEGINNING):
                raise OSError(errno.EEXIST, "it is not a trace")
            if known.st_uid != os.geteuid() or known.st_nlink != 1:
                raise OSError(errno.EPERM, "it is another user's file, or has other names")
            self._begin()
        except OSError:
            self._file.close()
            raise
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_for_ever, daemon=True, name="trace")
        self._thread.start()

    def close(self) -> None:
        """Write the remaining records."""
        self._closing.set()
        self._thread.join()

    def descriptors(self) -> tuple[int, int]:
        """Of the file and of the ring: a watcher writes the newest reads if this process is killed."""
        return self._file.fileno(), self._ring.descriptor()

    def _write_for_ever(self) -> None:
        with self._file:
            try:
                while not self._closing.wait(_WRITE_SECONDS):
                    self._write()
                self._write()
            except OSError as error:
                self.stopped = error.strerror or str(error)
                self._ring.note(self._written, 0)

    def _begin(self) -> None:
        """Empty the file and write the header."""
        self._file.truncate(0)
        self._size = 0
        self._append(self._header)

    def _write(self) -> None:
        records, lost = self._ring.since(self._written)
        self._lost += lost
        if self._lost:
            self.stopped = f"{self._lost} reads came faster than they could be written"
        # logrotate's copytruncate empties the file: what comes next needs a header of its own. If it came
        # between the look and the write, records have taken the header's place.
        if self._is_cut():
            self._begin()
        self._append(records)
        if self._is_cut():
            self._begin()
            self._append(records)
        self._written += lost + len(records) // RECORD.size
        self._ring.note(self._written, self._size)

    def _is_cut(self) -> bool:
        return os.fstat(self._file.fileno()).st_size != self._size

    def _append(self, content: bytes) -> None:
        while content:
            count = self._file.write(content)
            self._size, content = self._size + count, content[count:]


def may_be_written(path: Path) -> bool:
    """Whether a trace may be written there without losing data: the file is missing, empty or a trace. Other
    kinds of files are refused: a pipe or a terminal would make every read wait for its reader.
    """
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with naming(path), path.open("rb") as file:
        return file.read(len(_BEGINNING)) in (b"", _BEGINNING)


def is_being_written(path: Path) -> bool:
    """Whether a mount has this trace open. Then its newest reads are not in the file yet."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def header_line(header: Mapping[str, object]) -> bytes:
    """The first line of a trace."""
    return json.dumps({"format": FORMAT, **header}).encode() + b"\n"


def wholes(records: Iterable[Read]) -> Iterator[list[Read]]:
    """Reads with all their parts: a read from several tiers has consecutive records, one per tier."""
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
    """A read's parts joined into one read; its tier is the first part's."""
    if len(parts) == 1:
        return parts[0]
    return parts[0]._replace(
        deadline_ns=max(part.deadline_ns for part in parts), nbytes=sum(part.nbytes for part in parts)
    )


@dataclass(frozen=True)
class Trace:
    """A trace that was read back. header: `tiers` by name, and `files` by inode with path and size."""

    header: dict[str, Any]
    records: bytes

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """From a file's content. ValueError if it is not a trace or contradicts itself. A truncated last
        record is left out.
        """
        if _is_headless(content):
            raise ValueError("not a trace: its header is gone, it was truncated while a mount wrote it")
        line, newline, records = content[:MAX_HEADER_BYTES].partition(b"\n")
        if not newline:
            raise ValueError("not a trace: it does not begin with a line of JSON")
        try:
            header = documents.parse_json(line)
        except ValueError as error:
            raise ValueError("not a trace: its first line is not JSON") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"not a trace of format {FORMAT}")
        _check_header(header)
        records = content[len(line) + 1 :]
        trace = cls(header, records[: len(records) // RECORD.size * RECORD.size])
        sizes = {int(ino): file["size"] for ino, file in header["files"].items() if "size" in file}
        for place, read in enumerate(trace.every()):
            if (
                read.done_ns <= read.arrival_ns
                or read.tier >= len(header["tiers"])
                or read.offset + read.nbytes > sizes.get(read.ino, read.offset + read.nbytes)
            ):
                raise ValueError(f"its record {place} is not a read: damaged, or not of this header")
        return trace

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file. ValueError as above and for a file of more than MAX_FILE_BYTES; OSError if it cannot
        be read.
        """
        with naming(path), path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"it is longer than {MAX_FILE_BYTES >> 20} MiB; trace a shorter run")
        return cls.parse(content)

    def __len__(self) -> int:
        return len(self.records) // RECORD.size

    def __iter__(self) -> Iterator[Read]:
        """The reads of served files. What was read and written in kv/ is not among them."""
        return (read for read in self.every() if not read.way & KV)

    def every(self) -> Iterator[Read]:
        """All records."""
        return (Read(*fields) for fields in RECORD.iter_unpack(self.records))

    def of_kv(self) -> Iterator[Read]:
        """The reads and writes of files in kv/."""
        return (read for read in self.every() if read.way & KV)


def _is_headless(content: bytes) -> bool:
    """Whether a record stands where the header should: a file that an older version's mount was writing
    was truncated.
    """
    if content.startswith(b"{") or len(content) < RECORD.size:
        return False
    first = Read(*RECORD.unpack_from(content))
    return 0 < first.arrival_ns < first.done_ns < 1 << 61 and 0 <= first.way <= DIRECT | WRITES | KV


def _check_header(header: dict[str, Any]) -> None:
    """Check what Trace promises of a header: tiers and files, as tables."""
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
