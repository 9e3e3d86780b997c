"""Requests that change names, attributes or sizes: kv/ takes them, the rest of a mount answers EROFS."""

import errno
import os
import stat
import struct
import time
from collections.abc import Callable

from hbf_fuse.engine.kernel import abi
from hbf_fuse.engine.kernel.abi import Opcode
from hbf_fuse.fs import Filesystem, Node

_NS = 1_000_000_000


class Changes:
    """A handler for each such request: takes it, returns the reply's body. OSError as the filesystem.

    entry, attributes, opened: pack the replies; see session.py.
    """

    def __init__(
        self,
        fs: Filesystem,
        entry: Callable[[Node], bytes],
        attributes: Callable[[Node], bytes],
        opened: Callable[[Node, int], bytes],
    ) -> None:
        self._fs = fs
        self._entry, self._attributes, self._opened = entry, attributes, opened
        never = (
            Opcode.SYMLINK,
            Opcode.LINK,
            Opcode.SETXATTR,
            Opcode.REMOVEXATTR,
            Opcode.TMPFILE,
        )
        self.handlers: dict[int, Callable[[abi.Request], bytes]] = {
            Opcode.CREATE: self._create,
            Opcode.MKNOD: self._make_node,
            Opcode.MKDIR: self._make_folder,
            Opcode.UNLINK: self._remove,
            Opcode.RMDIR: self._remove_folder,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.SETATTR: self._set_attributes,
            Opcode.FALLOCATE: self._allocate,
            Opcode.COPY_FILE_RANGE: self._copy_range,
            Opcode.FSYNC: self._sync,
            Opcode.FSYNCDIR: self._sync,
            **dict.fromkeys(never, self._unsupported),
        }

    def _create(self, request: abi.Request) -> bytes:
        flags, mode, _, _ = abi.CREATE_IN.unpack_from(request.body)
        region, parent = self._fs.changing(request.nodeid)
        node = region.create(parent, _names(request, abi.CREATE_IN)[0], mode)
        return self._entry(node) + self._opened(node, flags)

    def _make_node(self, request: abi.Request) -> bytes:
        mode, *_ = abi.MKNOD_IN.unpack_from(request.body)
        region, parent = self._fs.changing(request.nodeid)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return self._entry(region.create(parent, _names(request, abi.MKNOD_IN)[0], mode))

    def _make_folder(self, request: abi.Request) -> bytes:
        mode, _ = abi.MKDIR_IN.unpack_from(request.body)
        region, parent = self._fs.changing(request.nodeid)
        return self._entry(region.make_folder(parent, _names(request, abi.MKDIR_IN)[0], mode))

    def _remove(self, request: abi.Request) -> bytes:
        region, parent = self._fs.changing(request.nodeid)
        region.remove(parent, _names(request)[0])
        return b""

    def _remove_folder(self, request: abi.Request) -> bytes:
        region, parent = self._fs.changing(request.nodeid)
        region.remove_folder(parent, _names(request)[0])
        return b""

    def _rename(self, request: abi.Request) -> bytes:
        layout, flags = abi.RENAME_IN, 0
        if request.opcode == Opcode.RENAME2:
            layout = abi.RENAME2_IN
            _, flags, _ = layout.unpack_from(request.body)
        target, *_ = layout.unpack_from(request.body)
        name, new = _names(request, layout)
        region, parent = self._fs.changing(request.nodeid)
        region.rename(parent, name, self._fs.changing(target)[1], new, flags)
        return b""

    def _set_attributes(self, request: abi.Request) -> bytes:
        """Of the control file, only truncation, as `>` does before it writes: it has no length."""
        if self._fs.is_control(self._fs.node(request.nodeid)):
            return self._attributes(self._fs.node(request.nodeid))
        valid, _, _, size, _, *times, mode, _, uid, gid, _ = abi.SETATTR_IN.unpack_from(request.body)
        region, node = self._fs.changing(request.nodeid)
        others = (valid & abi.FATTR_UID and uid != node.uid) or (valid & abi.FATTR_GID and gid != node.gid)
        if others:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if valid & abi.FATTR_MODE:
            region.real.set_mode(node, mode)
        if valid & abi.FATTR_SIZE:
            region.real.truncate(node, size)
        if valid & (abi.FATTR_ATIME | abi.FATTR_MTIME):
            region.real.set_times(node, *_times(valid, times))
        return self._attributes(self._fs.node(request.nodeid))

    def _allocate(self, request: abi.Request) -> bytes:
        _, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(request.body)
        region, node = self._fs.changing(request.nodeid)
        region.real.allocate(node, offset, length, mode)
        return b""

    def _copy_range(self, request: abi.Request) -> bytes:
        # The kernel then copies by reads and writes, which pass the tier.
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _sync(self, request: abi.Request) -> bytes:
        # Never ENOSYS: the kernel would not ask again, for any file.
        if self._fs.is_written(self._fs.node(request.nodeid)):
            region, node = self._fs.changing(request.nodeid)
            region.real.sync(node)
        return b""

    def _unsupported(self, request: abi.Request) -> bytes:
        self._fs.changing(request.nodeid)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _names(request: abi.Request, layout: struct.Struct | None = None) -> list[bytes]:
    """The names behind a request's struct."""
    return bytes(request.body[layout.size if layout else 0 :]).split(b"\0")[:-1]


def _times(valid: int, times: list[int]) -> tuple[int | None, int | None]:
    """Access and modification time in ns; None for one that stays."""
    atime, mtime, _, atime_ns, mtime_ns, _ = times
    now = time.time_ns()
    found: list[int | None] = []
    for wanted, is_now, seconds, ns in (
        (abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, atime, atime_ns),
        (abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, mtime, mtime_ns),
    ):
        found.append(None if not valid & wanted else now if valid & is_now else seconds * _NS + ns)
    return found[0], found[1]
