"""The default engine: a mount, its session, and the compiled loop for reads if it is available."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hbf_fuse import compiled
from hbf_fuse.engine.kernel import mounting
from hbf_fuse.engine.kernel.session import Session
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.host.linux import Descriptor

if TYPE_CHECKING:
    from hbf_fuse.engine.kernel.loop import Loop

_INIT_SECONDS = 10


def _loop_for(device: Descriptor, fs: Filesystem) -> "Loop | None":
    if compiled.why_not():
        return None
    from hbf_fuse.engine.kernel.loop import Loop

    return Loop(
        device.number, fs.served.pacer, mounting.MAX_REQUEST, device, fs.kv.real.room if fs.kv else None
    )


class KernelEngine:
    """Speaks the kernel's protocol itself. It knows each request's arrival and thread, and can drop pages."""

    def __init__(self, fs: Filesystem, mountpoint: Path, allow_other: bool, async_dio: bool) -> None:
        self._fs = fs
        self._mountpoint = mountpoint
        self._allow_other = allow_other
        self._async_dio = async_dio
        self._session: Session | None = None
        self.beats = not compiled.why_not()
        self._placed: mounting.Placed | None = None

    def start(self, directory: int, mounted: Callable[[int], None] = lambda number: None) -> None:
        fd, self._placed = mounting.mount(self._mountpoint, directory, self._allow_other, self._fs.source)
        device = Descriptor(fd)
        mounted(self._placed.number)
        try:
            loop = _loop_for(device, self._fs)
            self._session = session = Session(
                device.number, self._fs, mounting.MAX_REQUEST, self._async_dio, loop, device
            )
            session.start()
            answered = session.ready.wait(_INIT_SECONDS)
            if not answered or session.refusal:
                raise HbfError(session.refusal or f"the kernel did not begin to use {self._mountpoint}")
        except (RuntimeError, MemoryError) as error:
            self.stop(lazy=True)
            raise HbfError(
                "cannot start a thread or get memory", "raise the limits (TasksMax, ulimit -u)"
            ) from error
        except BaseException:
            self.stop(lazy=True)
            raise

    def join(self, timeout: float | None = None) -> bool:
        return self._session is None or self._session.ended.wait(timeout)

    def stop(self, lazy: bool) -> None:
        if self._placed is not None:
            self._placed.unmount(lazy)
