"""The portable engine: the same filesystem object under fusepy and libfuse 2.

The comparison in every benchmark. It sees requests of at most 128 KiB, copies in Python, and cannot evict.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem, Node
from hbf_fuse.fs.filesystem import BLOCK, NAME_MAX
from hbf_fuse.fs.kv import Region
from hbf_fuse.fs.kv_files import Written
from hbf_fuse.fs.node import LINKS
from hbf_fuse.host.mountinfo import find

try:
    import fuse
except OSError as problem:
    raise HbfError("the fusepy engine needs libfuse 2", "install it with `apt install libfuse2`") from problem

_START_SECONDS = 10
_AS_IT_IS = 0xFFFFFFFF
"""What chown(2) calls "leave it", as fusepy passes it on."""
_NAMES = "latin-1"
"""Encoding for fusepy: names are bytes, and each byte becomes one character."""


class _Operations(fuse.Operations):
    """fusepy's calls by path, passed on by inode. Its defaults refuse every change with EROFS."""

    use_ns = True

    def __init__(self, fs: Filesystem) -> None:
        self.fs = fs

    def _node(self, path: str) -> Node:
        node = self.fs.tree.root
        for name in path.strip("/").split("/"):
            if name:
                node = self.fs.lookup(node.ino, name.encode(_NAMES))
        return node

    def getattr(self, path: str, info: Any = None) -> dict[str, int]:
        return _attributes(self._node(path))

    def readdir(self, path: str, info: Any) -> Iterator[tuple[str, dict[str, int], int]]:
        for _, name, node in list(self.fs.listing(self._node(path).ino)):
            yield name.decode(_NAMES), _attributes(node), 0

    def readlink(self, path: str) -> str:
        return self._node(path).target.decode(_NAMES)

    def open(self, path: str, info: Any) -> int:
        self._opened(self._node(path), info)
        return 0

    def _opened(self, node: Node, info: Any) -> None:
        info.fh = self.fs.open(node.ino, info.flags)
        info.direct_io = self.fs.is_live(node)
        # What was written to kv/ leaves the page cache when it is opened again: then it comes from the tier.
        info.keep_cache = not self.fs.is_written(node)

    def release(self, path: str, info: Any) -> int:
        self.fs.release(info.fh)
        return 0

    def flush(self, path: str, info: Any) -> int:
        # ENOSYS: no more flushes. A killed process must not wait in close while the server is suspended.
        raise fuse.FuseOSError(errno.ENOSYS)

    def read(self, path: str, size: int, offset: int, info: Any) -> bytes:
        arrival_ns = time.monotonic_ns()
        _, _, pid = fuse.fuse_get_context()
        opened = self.fs.opened(info.fh)
        if opened.backing is None:
            return bytes((opened.live or memoryview(b""))[offset : offset + size])
        read = self.fs.read(opened, offset, size, pid, arrival_ns)
        backing, copied = opened.backing, bytearray()
        # libfuse sends the reply later: the end of this copy is the last time that can be measured here.
        read.serve(self.fs.served.pacer, lambda: copied.extend(backing.copy(read.offset, read.nbytes)))
        return bytes(copied)

    def write(self, path: str, data: bytes, offset: int, info: Any) -> int:
        arrival_ns = time.monotonic_ns()
        _, _, pid = fuse.fuse_get_context()
        opened = self.fs.opened(info.fh)
        write = self.fs.store(opened, offset, data, pid, arrival_ns)
        if write is None:
            self.fs.take(opened, data)
            return len(data)
        write.serve(self.fs.served.pacer, lambda: None)
        return write.nbytes

    # Changes: see engine/kernel/changes.py

    def _parent(self, path: str) -> tuple[Region, Written, bytes]:
        folder, _, name = path.rpartition("/")
        return *self.fs.changing(self._node(folder).ino), name.encode(_NAMES)

    def create(self, path: str, mode: int, info: Any = None) -> int:
        region, parent, name = self._parent(path)
        self._opened(region.create(parent, name, mode), info)
        return 0

    def mkdir(self, path: str, mode: int) -> None:
        region, parent, name = self._parent(path)
        region.make_folder(parent, name, mode)

    def unlink(self, path: str) -> None:
        region, parent, name = self._parent(path)
        region.remove(parent, name)

    def rmdir(self, path: str) -> None:
        region, parent, name = self._parent(path)
        region.remove_folder(parent, name)

    def rename(self, old: str, new: str) -> None:
        region, parent, name = self._parent(old)
        _, to, new_name = self._parent(new)
        region.rename(parent, name, to, new_name)

    def truncate(self, path: str, length: int, info: Any = None) -> None:
        if self.fs.is_control(self._node(path)):
            return
        region, node = self.fs.changing(self._node(path).ino)
        region.real.truncate(node, length)

    def chmod(self, path: str, mode: int) -> None:
        region, node = self.fs.changing(self._node(path).ino)
        region.real.set_mode(node, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        _, node = self.fs.changing(self._node(path).ino)
        if uid not in (-1, _AS_IT_IS, node.uid) or gid not in (-1, _AS_IT_IS, node.gid):
            raise fuse.FuseOSError(errno.EPERM)

    def utimens(self, path: str, times: Any = None) -> None:
        region, node = self.fs.changing(self._node(path).ino)
        region.real.set_times(node, *(times or (time.time_ns(),) * 2))

    def fsync(self, path: str, datasync: int, info: Any) -> None:
        # Never ENOSYS: the kernel would not ask again, for any file.
        if self.fs.is_written(self._node(path)):
            region, node = self.fs.changing(self._node(path).ino)
            region.real.sync(node)

    fsyncdir = fsync

    def listxattr(self, path: str) -> list[str]:
        raise fuse.FuseOSError(errno.ENOTSUP)

    def statfs(self, path: str) -> dict[str, int]:
        blocks, free, names, free_names = self.fs.space(self._node(path))
        return {
            "f_bsize": BLOCK,
            "f_frsize": BLOCK,
            "f_blocks": blocks,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": names,
            "f_ffree": free_names,
            "f_favail": free_names,
            "f_namemax": NAME_MAX,
        }


def _attributes(node: Node) -> dict[str, int]:
    times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), node.mtime_ns)
    return {
        "st_ino": node.ino,
        "st_mode": node.mode,
        "st_size": node.size,
        "st_blocks": -(-node.size // 512),
        "st_nlink": LINKS,
        "st_uid": node.uid,
        "st_gid": node.gid,
        **times,
    }


def _refuse_others_folder(mountpoint: Path) -> None:
    """Refuse to mount as root in another user's folder. libfuse mounts by name, and that user can change the
    name.
    """
    folder = mountpoint.parent.stat()
    others = folder.st_uid != 0 or (folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX)
    if os.geteuid() == 0 and others:
        raise HbfError(
            f"{mountpoint.parent} is another user's: root mounts there with --engine kernel only, "
            "which does not mount by name"
        )


class FusepyEngine:
    """Runs libfuse's loop in a thread."""

    beats = False

    def __init__(self, fs: Filesystem, mountpoint: Path, allow_other: bool) -> None:
        if fs.served.resident is not None:
            raise HbfError("--resident needs the kernel engine: libfuse 2 cannot drop pages")
        fs.served.replies_seen = False
        self._operations = _Operations(fs)
        self._mountpoint = mountpoint
        self._allow_other = allow_other
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._placed: mounting.Placed | None = None

    def start(self, directory: int, mounted: Callable[[int], None] = lambda number: None) -> None:
        _refuse_others_folder(self._mountpoint)
        before = find(self._mountpoint)
        threading.Thread(target=self._loop, daemon=True).start()
        give_up = time.monotonic() + _START_SECONDS
        while find(self._mountpoint) == before:
            if self._ended.wait(0.01) or time.monotonic() > give_up:
                mounting.explain_closed_device(self._mountpoint)
                raise HbfError(f"cannot mount on {self._mountpoint}: libfuse refused ({self._failure})")
        self._placed = mounting.Placed.at(self._mountpoint)
        mounted(self._placed.number)

    def join(self, timeout: float | None = None) -> bool:
        return self._ended.wait(timeout)

    def stop(self, lazy: bool) -> None:
        if self._placed is not None:
            self._placed.unmount(lazy)

    def _loop(self) -> None:
        try:
            fuse.FUSE(
                self._operations,
                os.fsencode(self._mountpoint).decode(_NAMES),
                encoding=_NAMES,
                raw_fi=True,
                foreground=True,
                fsname=os.fsencode(mounting.escaped(self._operations.fs.source)).decode(_NAMES),
                subtype="hbf",
                noexec=True,
                default_permissions=True,
                allow_other=self._allow_other,
                big_writes=True,
                use_ino=True,
                attr_timeout=86_400,
                entry_timeout=86_400,
                max_read=131_072,
            )
        except Exception as problem:
            self._failure = problem
        finally:
            self._ended.set()
