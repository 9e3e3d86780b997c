"""An open directory: its content is reached through its descriptor, and no link in it is followed.

So it does not matter who else may write to it. Another user may replace names by links to other places at any
time. But what is opened is in this directory, and is a file or a directory.
"""

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hbf_fuse import signals
from hbf_fuse.errors import HbfError, naming
from hbf_fuse.host import linux

ENCODING_ERRORS = "backslashreplace"
"""For names that are not Unicode: a model's name may have any bytes."""

_PIECE = 1 << 20
_MOST_LINKS = 40
_CLEAN_SECONDS = 2.0
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Folder:
    """Names are single components, without slashes. path: for messages."""

    def __init__(self, fd: int, path: Path) -> None:
        """fd: of the directory. It is closed with this object."""
        self._open = linux.Descriptor(fd)
        self.path = path

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """A directory by its path, which a person named: links are followed. Made if it is missing.

        HbfError if root would follow an untrusted user's link. OSError if it cannot be made or opened.
        """
        path = path.absolute()
        try:
            found = linux.open_folder(path)
        except FileNotFoundError:
            return cls.at(path.parent).below(path.name)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise strangers_link(path) from error
        try:
            return cls(os.open(f"/proc/self/fd/{found}", _OPEN_FOLDER), path)
        finally:
            os.close(found)

    @classmethod
    def of(cls, path: Path) -> tuple["Folder", str]:
        """A file's folder and its name there. If the file is a link: those of the link's target.

        HbfError and OSError as above.
        """
        for _ in range(_MOST_LINKS):
            folder = cls.at(path.absolute().parent)
            try:
                info = os.lstat(path.name, dir_fd=folder.fd)
            except FileNotFoundError:
                return folder, path.name
            if not stat.S_ISLNK(info.st_mode):
                return folder, path.name
            if not linux.may_follow(info):
                raise strangers_link(path)
            path = folder.path / os.readlink(path.name, dir_fd=folder.fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))

    @property
    def fd(self) -> int:
        return self._open.number

    @property
    def is_shared(self) -> bool:
        """Whether another user (except root) may change its content."""
        known = os.fstat(self.fd)
        return known.st_uid != os.geteuid() or bool(known.st_mode & 0o022)

    def below(self, name: str) -> "Folder":
        """A folder in this one, made if it is missing. OSError if another kind of file has the name."""
        try:
            return self.existing(name)
        except FileNotFoundError:
            with suppress(FileExistsError), naming(self.path / name):
                os.mkdir(name, dir_fd=self.fd)
            return self.existing(name)

    def existing(self, name: str) -> "Folder":
        """A folder in this one. OSError if there is none of that name."""
        _check_single(name)
        with naming(self.path / name):
            return Folder(os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=self.fd), self.path / name)

    def names(self) -> list[str]:
        """The names in it, sorted."""
        with naming(self.path):
            return sorted(os.listdir(self.fd))  # noqa: PTH208 - of a descriptor

    def nbytes(self, names: Iterable[str]) -> int:
        """Total size of the files with these names. OSError if one is missing."""
        with naming(self.path):
            return sum(os.lstat(name, dir_fd=self.fd).st_size for name in names)

    def has(self, name: str) -> bool:
        """Whether anything has this name."""
        try:
            with naming(self.path / name):
                os.lstat(name, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def is_file(self, name: str) -> bool:
        """Whether it is a regular file, not a link. OSError if nothing has this name."""
        with naming(self.path / name):
            return stat.S_ISREG(os.lstat(name, dir_fd=self.fd).st_mode)

    def read(self, name: str, most: int) -> bytes:
        """A file's content. ValueError if it is longer than `most` bytes or not a file; OSError if it cannot
        be read.
        """
        _check_single(name)
        with naming(self.path / name):
            return read_file(os.open(name, linux.READ | os.O_NOFOLLOW, dir_fd=self.fd), most)

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file completely or not at all; it survives a crash. OSError if it cannot be written."""
        if isinstance(content, str):
            content = content.encode(errors=ENCODING_ERRORS)
        with self.appearing(name) as file:
            file.write(content)

    @contextmanager
    def appearing(self, name: str, mode: int = 0o666) -> Iterator[BinaryIO]:
        """The same for content that is written in pieces. Nothing remains if that fails."""
        _check_single(name)
        # Another user could take a predictable name.
        temporary = f".{name}.{secrets.token_hex(6)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with naming(self.path / name):
            try:
                # Made within: a signal may come right after it.
                with open(os.open(temporary, flags, mode, dir_fd=self.fd), "w+b") as file:
                    yield file
                    file.flush()
                    signals.aside(lambda: os.fsync(file.fileno()))
                self.rename(temporary, name)
            except BaseException:
                with suppress(OSError):  # what failed first is told
                    signals.aside(lambda: os.unlink(temporary, dir_fd=self.fd), _CLEAN_SECONDS)
                raise
            os.fsync(self.fd)

    def check_writable(self) -> None:
        """OSError if no file can be made here."""
        with naming(self.path):
            tempfile.TemporaryFile(dir=f"/proc/self/fd/{self.fd}").close()

    def rename(self, name: str, to: str) -> None:
        """Replaces what has the name `to`."""
        with naming(self.path / to):
            os.rename(name, to, src_dir_fd=self.fd, dst_dir_fd=self.fd)


def strangers_link(path: Path) -> HbfError:
    """What root is told, who does not follow it."""
    return HbfError(f"{path}: another user's link is in the way", "name the link's target")


def _check_single(name: str) -> None:
    """ValueError for a name that leads elsewhere: some names come from other users' files."""
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not a file name")


def read_file(fd: int, most: int) -> bytes:
    """The content of an open file, which is then closed. ValueError if it is not a regular file or longer
    than `most` bytes.
    """
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is not a file")
        content = bytearray()
        while len(content) <= most and (more := os.read(fd, min(_PIECE, most + 1 - len(content)))):
            content += more
    finally:
        os.close(fd)
    if len(content) > most:
        raise ValueError(f"it is longer than {most} bytes")
    return bytes(content)
