"""A directory that is open: what is in it is reached from there, and no link in it is followed.

So that it does not matter who else may write to it: names may be exchanged for links to somewhere else at any
moment, but what is opened lies in this directory and is a file or a directory.
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

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux

ENCODING_ERRORS = "backslashreplace"
"""For what is no Unicode: a model's name may have any bytes."""

_PIECE = 1 << 20
_MOST_LINKS = 40
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Folder:
    """Names are single ones, without slashes. path: as messages have it."""

    def __init__(self, fd: int, path: Path) -> None:
        """fd: of the directory; closed with this."""
        self._open = linux.Descriptor(fd)
        self.path = path

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """A directory by its path, links and all: that is what somebody named. Made if it is not there.

        HbfError if root would follow another user's link. OSError if it cannot be made or opened.
        """
        path = path.absolute()
        try:
            found = linux.open_folder(path)
        except FileNotFoundError:
            return cls.at(path.parent).below(path.name)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise _strangers_link(path) from error
        try:
            return cls(os.open(f"/proc/self/fd/{found}", _OPEN_FOLDER), path)
        finally:
            os.close(found)

    @classmethod
    def of(cls, path: Path) -> tuple["Folder", str]:
        """What a file is in, and its name there. If it is a link, of the file that this leads to.

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
                raise _strangers_link(path)
            path = folder.path / os.readlink(path.name, dir_fd=folder.fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))

    @property
    def fd(self) -> int:
        return self._open.number

    @property
    def is_shared(self) -> bool:
        """Whether somebody else may change what is in it (root aside)."""
        known = os.fstat(self.fd)
        return known.st_uid != os.geteuid() or bool(known.st_mode & 0o022)

    def below(self, name: str) -> "Folder":
        """A folder in this one, made if it is not there. OSError if it is something else."""
        try:
            return self.existing(name)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.fd)
            return self.existing(name)

    def existing(self, name: str) -> "Folder":
        """A folder in this one. OSError if there is none of that name."""
        _check_single(name)
        return Folder(os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=self.fd), self.path / name)

    def names(self) -> list[str]:
        """What is in it, in order."""
        return sorted(os.listdir(self.fd))  # noqa: PTH208 - of a descriptor

    def nbytes(self, names: Iterable[str]) -> int:
        """What files of these names have in all. OSError for one that is not there."""
        return sum(os.lstat(name, dir_fd=self.fd).st_size for name in names)

    def has(self, name: str) -> bool:
        """Whether anything has this name."""
        try:
            os.lstat(name, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def is_file(self, name: str) -> bool:
        """Whether that is a regular file, and no link. OSError if there is nothing."""
        return stat.S_ISREG(os.lstat(name, dir_fd=self.fd).st_mode)

    def read(self, name: str, most: int) -> bytes:
        """A file's content. ValueError if it is longer than `most` bytes, or no file; OSError if it cannot be
        read.
        """
        _check_single(name)
        return read_file(os.open(name, linux.READ | os.O_NOFOLLOW, dir_fd=self.fd), most)

    def write(self, name: str, content: str | bytes) -> None:
        """A file that appears whole or not at all, and outlives a crash. OSError if it cannot be written."""
        if isinstance(content, str):
            content = content.encode(errors=ENCODING_ERRORS)
        with self.appearing(name) as file:
            file.write(content)

    @contextmanager
    def appearing(self, name: str, mode: int = 0o666) -> Iterator[BinaryIO]:
        """The same for what is written piece by piece; nothing is left if that fails."""
        _check_single(name)
        # A name that can be foreseen might be taken.
        temporary = f".{name}.{secrets.token_hex(6)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(temporary, flags, mode, dir_fd=self.fd)
        try:
            with open(fd, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            self.rename(temporary, name)
        except BaseException:
            os.unlink(temporary, dir_fd=self.fd)
            raise
        os.fsync(self.fd)

    def check_writable(self) -> None:
        """OSError if no file can be made here."""
        tempfile.TemporaryFile(dir=f"/proc/self/fd/{self.fd}").close()

    def rename(self, name: str, to: str) -> None:
        """Takes the place of what has that name."""
        os.rename(name, to, src_dir_fd=self.fd, dst_dir_fd=self.fd)


def _strangers_link(path: Path) -> HbfError:
    return HbfError(f"{path}: another user's link is in the way; name where it leads to")


def _check_single(name: str) -> None:
    """ValueError for a name that leads elsewhere: some come from files of others."""
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name of a file")


def read_file(fd: int, most: int) -> bytes:
    """What a file that is open has; it is closed. ValueError for what is no file, or longer than `most`
    bytes.
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
