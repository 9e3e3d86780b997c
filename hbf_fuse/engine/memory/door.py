"""The socket by which readers come: it hands out the shared memory and the files', and knows who is there."""

import contextlib
import os
import selectors
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hbf_fuse.engine.memory import library
from hbf_fuse.host import linux

_MESSAGE = struct.Struct("=II")
_GIVE, _LOOK, _TRACED = range(3)
"""`enum order` of reader.h."""

_CREDENTIALS = struct.Struct("=iII")
_BUSY_SECONDS, _CALM_SECONDS = 0.005, 0.05
"""How often records are read, while some come and while none do."""


class Books(Protocol):
    """What readers come for: engine/memory/service.py. Safe for several threads."""

    def memory_of(self, file: int) -> int | None:
        """A descriptor of a file's memory; None if there is no such file."""

    def mapped_by(self, process: int, file: int) -> None:
        """A process is about to map the file."""

    def read(self) -> bool:
        """Read what readers wrote. Whether anything was new."""

    def look(self) -> None:
        """The same, and look at the page tables."""

    def left(self, process: int, is_last: bool) -> None:
        """A process has gone. is_last: nobody is there now."""


class Door:
    """control: a descriptor of the memory that readers share.

    connected: how many ever came. given: how often a file's memory was given.
    """

    def __init__(self, books: Books, control: int) -> None:
        self.connected = self.given = 0
        self._books = books
        self._control = control
        self._processes: dict[int, int] = {}

    @property
    def processes(self) -> list[int]:
        """The processes that read, one for each connection."""
        return list(self._processes.values())

    @contextmanager
    def answering(self) -> Iterator[Path]:
        """Serve readers in a thread; yields the socket. It lies in a folder of this user alone."""
        folder = Path(tempfile.mkdtemp(prefix="hbf-memory-"))
        wake_read, wake_write = os.pipe()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(str(folder / "socket"))
                listener.listen(64)
                thread = threading.Thread(
                    target=self._serve, args=(listener, wake_read), daemon=True, name="memory"
                )
                thread.start()
                try:
                    yield folder / "socket"
                finally:
                    os.write(wake_write, b"\0")
                    thread.join()
        finally:
            os.close(wake_read)
            os.close(wake_write)
            shutil.rmtree(folder, ignore_errors=True)

    def _serve(self, listener: socket.socket, wake: int) -> None:
        connections: dict[int, socket.socket] = {}
        busy_until = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                calm = _CALM_SECONDS if connections else None
                events = selector.select(_BUSY_SECONDS if now < busy_until else calm)
                if self._books.read():
                    busy_until = time.monotonic() + 1
                for key, _ in events:
                    if key.fileobj is listener:
                        if (taken := self._accepted(listener)) is not None:
                            connections[taken.fileno()] = taken
                            selector.register(taken, selectors.EVENT_READ)
                            busy_until = time.monotonic() + 1
                    elif key.fd == wake:
                        for connection in connections.values():
                            connection.close()
                        return
                    elif not self._answered(connections[key.fd]):
                        selector.unregister(key.fd)
                        self._ended(connections.pop(key.fd))

    def _accepted(self, listener: socket.socket) -> socket.socket | None:
        """A reader, if it is this user's or root's."""
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            process, user = _peer(connection)
            if user not in (0, os.geteuid()):
                connection.close()
                return None
            connection.settimeout(1)
            socket.send_fds(connection, [b"\0"], [self._control])
            self._processes[connection.fileno()] = process
            self.connected += 1
            return connection
        return None

    def _answered(self, connection: socket.socket) -> bool:
        """Answer one message. False if the reader has ended, or said something else."""
        try:
            said = connection.recv(_MESSAGE.size + 1)
            if len(said) != _MESSAGE.size:
                return False
            order, file = _MESSAGE.unpack(said)
            if order == _GIVE and (memory := self._books.memory_of(file)) is not None:
                self._books.mapped_by(self._processes[connection.fileno()], file)
                self.given += 1
                # Opened again for reading only.
                with _reopened(memory) as given:
                    socket.send_fds(connection, [b"\0"], [given])
                return True
            if order == _TRACED and linux.tracer(file) == _peer(connection)[0]:
                self._processes[connection.fileno()] = file
                connection.send(b"\0")
                return True
            if order == _LOOK:
                self._books.look()
                connection.send(b"\0")
                return True
        except OSError:
            pass
        return False

    def _ended(self, connection: socket.socket) -> None:
        process = self._processes.pop(connection.fileno())
        if process not in self._processes.values():
            self._books.left(process, not self._processes)
        connection.close()


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The process at the other end, and its user."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(said)
    return process, user


@contextmanager
def _reopened(fd: int) -> Iterator[int]:
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield again
    finally:
        os.close(again)


def environment(
    socket_path: Path | str, inject: bool = False, before: Callable[[str], str | None] = os.environ.get
) -> dict[str, str]:
    """What a program needs in its environment to be a reader. inject: it is started by library.injector()."""
    reached = {"HBF_MEMORY": str(socket_path)}
    if inject:
        return reached
    preloaded = before("LD_PRELOAD")
    shim = str(library.shim())
    return {**reached, "LD_PRELOAD": f"{shim}:{preloaded}" if preloaded else shim}
