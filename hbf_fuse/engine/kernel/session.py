"""Requests in, replies out: translates the kernel's requests into calls of a filesystem object.

One thread per request in flight: it reads the request, asks the filesystem, waits, and replies. The pool
grows so that one thread is always free to read. That is how an interrupt reaches a waiting read. The pool
shrinks again when many readers have gone.
"""

import contextlib
import errno
import logging
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from hbf_fuse.engine.kernel import abi, notify
from hbf_fuse.engine.kernel.abi import Opcode
from hbf_fuse.engine.kernel.changes import Changes
from hbf_fuse.engine.kernel.interrupts import Interrupts
from hbf_fuse.fs import Filesystem, Node
from hbf_fuse.fs.filesystem import BLOCK, NAME_MAX, OpenFile
from hbf_fuse.fs.kv_files import Written
from hbf_fuse.fs.node import LINKS
from hbf_fuse.host import linux
from hbf_fuse.pacing.serving import Read

if TYPE_CHECKING:
    from hbf_fuse.engine.kernel.loop import Loop

_log = logging.getLogger(__name__)

MAX_THREADS = 256
MAX_IDLE_THREADS = 16
"""More than one reader's readahead keeps busy. So threads start and end with crowds of readers, not with each
request.
"""
MAX_BACKGROUND = 64
_PAGE = 4096
_VALID_SECONDS = 86_400
_RETRY = (errno.ENOENT, errno.EINTR, errno.EAGAIN)
_WANTED_FLAGS = (
    abi.ASYNC_READ
    | abi.BIG_WRITES
    | abi.PARALLEL_DIROPS
    | abi.MAX_PAGES
    | abi.CACHE_SYMLINKS
    | abi.EXPLICIT_INVAL_DATA
)


class Session:
    """Serves one descriptor until the mount ends. `ready` is set when the kernel's INIT was answered.

    loop: serves the reads of files, if it is compiled. owner: keeps fd open.
    """

    def __init__(
        self,
        fd: int,
        fs: Filesystem,
        max_request: int,
        async_dio: bool = False,
        loop: "Loop | None" = None,
        owner: object = None,
    ) -> None:
        self._owner = owner
        self.fs = fs
        self.fd = fd
        self._loop = loop
        self.ready = threading.Event()
        self.ended = threading.Event()
        self.refusal: str | None = None
        self._max_request = max_request
        # The control file takes less than a page at once.
        self._max_write = _PAGE if fs.kv is None else max_request
        self._wanted_flags = _WANTED_FLAGS | (abi.ASYNC_DIO if async_dio else 0)
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._naming_from_ns = 0
        self._blind_ns = 0
        """Since when no thread has been free to take a request; 0 if one is."""
        self._waiting: dict[int, Read] = {}
        self._drops = threading.Condition()
        self._interrupts = Interrupts(self._reader_of, self._kill)
        self._handlers: dict[int, Callable[[abi.Request], bytes | None]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: lambda request: self.fs.target(request.nodeid),
            Opcode.OPEN: self._open,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: lambda request: abi.OPEN_OUT.pack(self.fs.open_folder(request.nodeid), 0, 0),
            Opcode.READDIR: self._readdir,
            Opcode.RELEASEDIR: self._release_folder,
            Opcode.STATFS: self._statfs,
            Opcode.INTERRUPT: self._interrupt,
            Opcode.FORGET: lambda request: None,
            Opcode.BATCH_FORGET: lambda request: None,
            Opcode.DESTROY: lambda request: b"",
            Opcode.IOCTL: lambda request: _refuse(errno.ENOTTY),
            **Changes(fs, self._entry, self._attributed, self._opened).handlers,
        }

    def start(self) -> None:
        """Begin to serve, in new threads."""
        if self._loop is None:
            # A thread that wakes with a reply due must not wait 5 ms for the interpreter.
            sys.setswitchinterval(0.0005)
            if self.fs.served.resident is not None:
                threading.Thread(target=self._drop_for_ever, daemon=True, name="drop").start()
        else:
            for work in self._loop.work():
                threading.Thread(target=work, daemon=True, name="loop").start()
        with self._lock:
            self._add_thread()

    def _grow(self) -> None:
        """Keep a thread free to take requests. At the limit, requests wait for one of these threads."""
        if self._threads < MAX_THREADS:
            with contextlib.suppress(RuntimeError):
                self._add_thread()
                return
        if self._loop is None and not self._blind_ns:
            self._blind_ns = time.monotonic_ns()

    def _add_thread(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()
        self._threads += 1
        self._idle += 1

    def _serve(self) -> None:
        linux.sharpen_timers()
        take = self._taker() if self._loop is None else self._loop.next_message
        while (taken := take()) is not None:
            with self._lock:
                self._idle -= 1
                if not self._idle:
                    self._grow()
            self._dispatch(*taken)
            with self._lock:
                if self._idle >= MAX_IDLE_THREADS:
                    self._threads -= 1
                    return
                if self._blind_ns:
                    self.fs.served.pacer.was_blind(self._blind_ns, time.monotonic_ns())
                    self._blind_ns = 0
                self._idle += 1
        self.ended.set()

    def _taker(self) -> Callable[[], tuple[memoryview, int] | None]:
        """A function for one thread. It returns the next request, valid until the next call, and its arrival;
        None when the mount has ended.
        """
        buffer = bytearray(max(abi.MIN_READ_BUFFER, self._max_write + _PAGE))
        view, into = memoryview(buffer), [buffer]

        def take() -> tuple[memoryview, int] | None:
            while True:
                try:
                    length = os.readv(self.fd, into)
                except OSError as error:
                    if error.errno in _RETRY:
                        continue
                    return None
                return view[:length], time.monotonic_ns()

        return take

    def _name_readers(self) -> None:
        """In a fifth of the time at most: thousands that begin at once must not keep others waiting."""
        began_ns = time.monotonic_ns()
        if began_ns < self._naming_from_ns:
            return
        self.fs.served.pacer.name_readers()
        ended_ns = time.monotonic_ns()
        self._naming_from_ns = ended_ns + 4 * (ended_ns - began_ns)

    def _dispatch(self, message: memoryview, arrival_ns: int) -> None:
        if len(message) < abi.IN_HEADER.size:
            # Not from the kernel: the loop reports new readers, or progress of a first pass.
            self._name_readers()
            self.fs.served.pacer.coverage.look(self._loop.threads if self._loop else None)
            return
        request = abi.Request(message)
        try:
            if request.opcode in (Opcode.READ, Opcode.WRITE):
                move = self._read if request.opcode == Opcode.READ else self._write
                move(request, arrival_ns)
                return
            handler = self._handlers.get(request.opcode, _unknown)
            body = handler(request)
        except OSError as error:
            self._reply_error(request, error.errno or errno.EIO)
        except struct.error:
            # The body is shorter than its opcode needs. No kernel sends that.
            self._reply_error(request, errno.EINVAL)
        except Exception:
            # Any error must be answered: the caller must not hang, and this thread must go on.
            _log.exception("request %d failed", request.opcode)
            self._reply_error(request, errno.EIO)
        else:
            if body is not None:
                self._reply(request.unique, body)

    def _send(self, header: bytes, body: bytes | memoryview) -> None:
        os.writev(self.fd, [header, body])

    def _reply(self, unique: int, body: bytes) -> None:
        header = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), 0, unique)
        with contextlib.suppress(OSError):
            # The caller was killed meanwhile (ENOENT), or the mount is gone (ENODEV).
            self._send(header, body)

    def _reply_error(self, request: abi.Request, code: int) -> None:
        if request.opcode in abi.UNANSWERED:
            return
        with contextlib.suppress(OSError):
            self._send(abi.OUT_HEADER.pack(abi.OUT_HEADER.size, -code, request.unique), b"")

    # Reading and writing

    def _read(self, request: abi.Request, arrival_ns: int) -> None:
        handle, offset, nbytes, flags, *_ = abi.READ_IN.unpack_from(request.body)
        opened = self.fs.opened(handle)
        nbytes = min(nbytes, self._max_request)
        if opened.backing is None:
            self._reply(request.unique, bytes((opened.live or memoryview(b""))[offset : offset + nbytes]))
            return
        # The flags of open do not tell: fcntl(F_SETFL) changes them, and mappings ignore them.
        direct = bool(flags & abi.READ_LOCKOWNER)
        read = self.fs.read(opened, offset, nbytes, request.pid, arrival_ns, direct)
        self._serve_paced(request.unique, read, lambda: self._send_data(request.unique, opened, read))

    def _write(self, request: abi.Request, arrival_ns: int) -> None:
        handle, offset, size, flags, *_ = abi.WRITE_IN.unpack_from(request.body)
        data, opened = request.body[abi.WRITE_IN.size :][:size], self.fs.opened(handle)
        direct = bool(flags & abi.WRITE_LOCKOWNER)
        write = self.fs.store(opened, offset, data, request.pid, arrival_ns, direct)
        if write is None:
            self.fs.take(opened, bytes(data))
            self._reply(request.unique, abi.WRITE_OUT.pack(size, 0))
            return
        reply = abi.WRITE_OUT.pack(write.nbytes, 0)
        self._serve_paced(request.unique, write, lambda: self._reply(request.unique, reply))

    def _serve_paced(self, unique: int, read: Read, send: Callable[[], object]) -> None:
        self._waiting[unique] = read
        try:
            read.serve(self.fs.served.pacer, send, self._tell_dropper)
        finally:
            del self._waiting[unique]

    def _send_data(self, unique: int, opened: OpenFile, read: Read) -> None:
        """OSError EIO if the source has lost the data. If that happened during sending, the kernel has
        already told the reader. A second error reply then gets ENOENT and does no harm.
        """
        try:
            if opened.backing is not None:
                data = opened.backing.slice(read.offset, read.nbytes)
                self._send(abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(data), 0, unique), data)
        except OSError as error:
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    def _reader_of(self, unique: int) -> int:
        if (read := self._waiting.get(unique)) is not None:
            return read.reader
        return self._loop.reader_of(unique) if self._loop else 0

    def _kill(self, unique: int) -> None:
        if (read := self._waiting.get(unique)) is not None:
            read.kill()
        elif self._loop is not None:
            self._loop.cancel(unique)

    def _interrupt(self, request: abi.Request) -> None:
        (unique,) = abi.INTERRUPT_IN.unpack_from(request.body)
        self._interrupts.came(unique)

    def _tell_dropper(self) -> None:
        if self.fs.served.resident is None or not self.fs.served.resident.must_drop():
            return
        if self._loop is not None:
            self._loop.tell_dropper()
            return
        with self._drops:
            self._drops.notify()

    def _drop_for_ever(self) -> None:
        """Drop pages from the page cache as the budget wants it; see pacing/resident.py."""
        resident, pacer = self.fs.served.resident, self.fs.served.pacer
        while resident is not None:
            with self._drops:
                self._drops.wait_for(resident.must_drop)
            while pacer.next_drop():
                first, nbytes = resident.drop_first * _PAGE, (resident.drop_end - resident.drop_first) * _PAGE
                # The kernel has forgotten the inode with its pages, or the mount has ended.
                with contextlib.suppress(OSError):
                    notify.evict(self.fd, pacer.inode(resident.drop_file), first, nbytes)

    # Names and attributes

    def _init(self, request: abi.Request) -> bytes | None:
        major, minor, max_readahead, flags = abi.INIT_IN.unpack_from(request.body)
        if (major, minor) < (abi.MAJOR, abi.OLDEST_MINOR):
            self.refusal = (
                f"this kernel speaks FUSE {major}.{minor}; at least "
                f"{abi.MAJOR}.{abi.OLDEST_MINOR} (Linux 5.4) is needed"
            )
            self.ready.set()
            _refuse(errno.EPROTO)
        spoken = min(minor, abi.MINOR)
        self.fs.hidden.facts.update(
            {"fuse_protocol": f"{abi.MAJOR}.{spoken}", "fuse_protocol_kernel": f"{major}.{minor}"}
        )
        reply = abi.INIT_OUT.pack(
            abi.MAJOR,
            spoken,
            max_readahead,
            flags & self._wanted_flags,
            MAX_BACKGROUND,
            MAX_BACKGROUND * 3 // 4,
            self._max_write,
            1,
            self._max_request // _PAGE,
            0,
            0,
            b"",
        )
        self._reply(request.unique, reply)
        self.ready.set()
        return None

    def _lookup(self, request: abi.Request) -> bytes:
        return self._entry(self.fs.lookup(request.nodeid, bytes(request.body).rstrip(b"\0")))

    def _entry(self, node: Node) -> bytes:
        valid = self._validity(node)
        return abi.ENTRY_OUT.pack(node.ino, 0, _VALID_SECONDS, valid, 0, 0) + _attributes(node)

    def _getattr(self, request: abi.Request) -> bytes:
        return self._attributed(self.fs.node(request.nodeid))

    def _attributed(self, node: Node) -> bytes:
        return abi.ATTR_OUT.pack(self._validity(node), 0, 0) + _attributes(node)

    def _validity(self, node: Node) -> int:
        return 0 if self.fs.is_live(node) else _VALID_SECONDS

    def _open(self, request: abi.Request) -> bytes:
        flags, _ = abi.OPEN_IN.unpack_from(request.body)
        return self._opened(self.fs.node(request.nodeid), flags)

    def _opened(self, node: Node, flags: int) -> bytes:
        handle = self.fs.open(node.ino, flags)
        if self._loop is not None:
            self._tell_loop(handle)
        # What was written to kv/ leaves the page cache when it is opened again: then it comes from the tier.
        kept = 0 if self.fs.is_written(node) else abi.FOPEN_KEEP_CACHE
        cache = abi.FOPEN_DIRECT_IO if self.fs.is_live(node) else kept
        # NOFLUSH: a killed process must not wait in close for a suspended server.
        return abi.OPEN_OUT.pack(handle, cache | abi.FOPEN_NOFLUSH, 0)

    def _tell_loop(self, handle: int) -> None:
        opened = self.fs.opened(handle)
        if self._loop is not None and (backing := opened.backing) is not None:
            node, place = opened.node, self.fs.served.place(opened.node)
            if self.fs.kv is not None and isinstance(node, Written):
                self._loop.opened(handle, backing, None, backing.fd, place, -1, node.base)
            else:
                self._loop.opened(handle, backing, backing.memory, backing.fd, place, node.size)

    def _release(self, request: abi.Request) -> bytes:
        handle, *_ = abi.RELEASE_IN.unpack_from(request.body)
        if self._loop is not None:
            self._loop.released(handle)
        self.fs.release(handle)
        return b""

    def _release_folder(self, request: abi.Request) -> bytes:
        handle, *_ = abi.RELEASE_IN.unpack_from(request.body)
        self.fs.release_folder(handle)
        return b""

    def _readdir(self, request: abi.Request) -> bytes:
        handle, offset, size, *_ = abi.READ_IN.unpack_from(request.body)
        packed = bytearray()
        for position, name, node in self.fs.listing(request.nodeid, offset, handle):
            entry = abi.DIRENT.pack(node.ino, position, len(name), stat.S_IFMT(node.mode) >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(packed) + len(entry) > size:
                break
            packed += entry
        return bytes(packed)

    def _statfs(self, request: abi.Request) -> bytes:
        blocks, free, names, free_names = self.fs.space(self.fs.node(request.nodeid))
        return abi.KSTATFS.pack(blocks, free, free, names, free_names, BLOCK, NAME_MAX, BLOCK, 0, b"")


def _refuse(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))


def _unknown(request: abi.Request) -> bytes:
    _refuse(errno.ENOSYS)


def _attributes(node: Node) -> bytes:
    seconds, ns = divmod(node.mtime_ns, 1_000_000_000)
    times = (seconds, seconds, seconds, ns, ns, ns)
    blocks = -(-node.size // 512)
    return abi.ATTR.pack(
        node.ino, node.size, blocks, *times, node.mode, LINKS, node.uid, node.gid, 0, _PAGE, 0
    )
