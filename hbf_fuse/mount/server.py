"""A mount from beginning to end, in this process."""

import contextlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hbf_fuse
from hbf_fuse import compiled, engine, reaper, signals
from hbf_fuse.engine import Engine
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.filesystem import NO_LAYOUT
from hbf_fuse.fs.placement import Layout
from hbf_fuse.host import linux
from hbf_fuse.mount import floor, heartbeat, iomax, mountpoint, preload
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces import trace
from hbf_fuse.traces.trace import TraceFile

DEFAULT_READAHEAD_KIB = 4096
BUDGET_READAHEAD_KIB = 1024
"""With a resident budget: readahead of 4 MiB, which FADV_SEQUENTIAL doubles, would fill a small one."""


_KEPT = frozenset(
    {
        linux.CAP_SYS_ADMIN,  # to mount and unmount
        linux.CAP_DAC_READ_SEARCH,  # sources
        linux.CAP_DAC_OVERRIDE,  # a trace, in a folder of somebody else's
        linux.CAP_FOWNER,  # whether a source of somebody else's is cached (mincore(2))
        linux.CAP_NET_BIND_SERVICE,  # --metrics
    }
)
"""Of what root may do, what a server is for."""


@dataclass(frozen=True)
class MountConfig:
    """What a person asked for. Paths are absolute; that of the mountpoint is without links.

    readahead_kib: None for the default, which is less with a resident budget. layout: where the model lies.
    async_dio: see engine.create.
    trace: a file for every read. metrics: "[ADDRESS:]PORT" for Prometheus.
    io_max_mbps: what the kernel lets the server read of the source, past the page cache; decimal MB/s.
    """

    source: Path
    mountpoint: Path
    spec: TierSpec
    engine: str = "kernel"
    readahead_kib: int | None = None
    preload: bool = True
    priority: int = 0
    allow_other: bool = False
    layout: Layout = NO_LAYOUT
    async_dio: bool = False
    trace: Path | None = None
    metrics: str | None = None
    io_max_mbps: float | None = None


def serve(
    config: MountConfig,
    when_ready: Callable[[str], None],
    tell: Callable[[str], None],
    until_stdin_closes: bool = False,
) -> None:
    """Mount, call when_ready, and return when the mount has ended: by SIGTERM, SIGINT, SIGHUP or umount.

    when_ready: takes a remark on what is served, or "".
    tell: where remarks go, a line each.
    until_stdin_closes: end with that, too: the mount of a process that may die without a word.
    A supervisor such as systemd is told when the mount answers and when it begins to end.
    Raises HbfError if the mount cannot begin.
    """
    _set_priority(config.priority, tell)
    # Before there are threads: each has its own.
    with contextlib.suppress(PermissionError):  # a container may allow nobody to ask for less
        linux.keep_capabilities(_KEPT)
    _raise_descriptors()
    linux.share_one_heap()
    limited = config.io_max_mbps is not None
    fs = Filesystem(config.source, config.spec, config.layout, uncached=limited)
    for name in fs.unplaced:
        tell(f"{name} is not a GGUF: it is served from the one tier, without --place")
    # A source that the limit is for stays as cold as it is.
    remark = "" if limited else fs.tree.doubt()
    is_read = limited or (config.preload and preload.into_page_cache(fs.tree, tell))
    if not is_read and (reason := preload.doubt(fs.tree, config.spec)):
        tell(reason)
    stop = _Stop()

    def stood_still() -> None:
        counters = fs.pacer.counters
        counters.stops, counters.blind_ns = counters.stops + 1, time.monotonic_ns()

    if until_stdin_closes:
        threading.Thread(target=_stop_when_stdin_closes, args=(stop,), daemon=True).start()
    with (
        iomax.prepared(fs, config.io_max_mbps, tell) as under_limit,
        mounted_here(fs, config, tell, floor.measure(config.engine)) as mount,
        under_limit,
    ):
        when_ready(remark)
        linux.tell_supervisor("READY=1", f"STATUS=serving {config.source} at {config.mountpoint} ({fs.spec})")
        threading.Thread(target=_stop_when_ended, args=(mount, fs.pacer, stop), daemon=True).start()
        stop.wait(stood_still)
        linux.tell_supervisor("STOPPING=1")
        if not mount.join(timeout=0):
            _stop(mount, tell)


@contextmanager
def mounted_here(
    fs: Filesystem, config: MountConfig, tell: Callable[[str], None], floor: Floor
) -> Iterator[Engine]:
    """Serve `fs` from threads of this process; unmounted at the end, and by a watcher if there is no end.

    floor: what this machine adds to a read; see mount/floor.py.
    """
    fs.pacer.reckon_with(floor)
    mount = engine.create(config.engine, fs, config.mountpoint, config.allow_other, config.async_dio)
    with reaper.watching(str(config.mountpoint)) as is_mounted:
        try:
            # A signal between the mount and the note of it would leak the mount.
            with signals.deferred(), mountpoint.claimed(config.mountpoint) as directory:
                if config.trace:
                    fs.trace = _traced(config.trace, fs)
                mount.start(directory, is_mounted)
            _settle(fs, config, tell)
            if not floor.known:
                tell(
                    "cannot find out what a read takes beyond the tier (the machine is too busy): "
                    "figures are unsure wherever the tier is not busy all the time"
                )
            yield mount
        finally:
            with signals.deferred():
                if not mount.join(timeout=0):
                    mount.stop(lazy=True)
                if fs.trace:
                    fs.trace.close()
            if fs.trace and fs.trace.stopped:
                tell(f"the trace {config.trace} lacks reads: {fs.trace.stopped}")


def _settle(fs: Filesystem, config: MountConfig, tell: Callable[[str], None]) -> None:
    """What can only be done once the mount answers: readahead, metrics."""
    fs.mount_facts.update(
        engine=config.engine,
        uncompiled=compiled.why_not(),
        pid=os.getpid(),
        pid_namespace=linux.pid_namespace(),
        start_time=linux.start_time(os.getpid()),
        version=hbf_fuse.__version__,
        readahead_kib=_raise_readahead(config, tell),
    )
    if config.metrics is not None:
        from hbf_fuse.mount import metrics

        metrics.serve(fs, config.metrics)


def _traced(file: Path, fs: Filesystem) -> TraceFile:
    if not trace.may_be_written(file):
        raise HbfError(f"{file} is there and no trace; name another file (--trace)")
    try:
        return TraceFile(file, fs.spec_document(), fs.pacer.ring)
    except BlockingIOError as error:
        raise HbfError(f"another mount writes the trace {file}; name another file (--trace)") from error
    except OSError as error:
        raise HbfError(
            f"cannot write the trace {file}: {error.strerror}; name a file that can be made (--trace)"
        ) from error


class _Stop:
    """What the main thread waits for: SIGTERM, SIGINT or SIGHUP, or that somebody says now(). Notes SIGCONT.

    A pipe, not an Event or a queue. The kernel may hand a signal to any thread; Python then runs its handler
    only when the main thread wakes up, which in the wait for a lock may be never (5 of 100 servers did not
    end while the machine was busy). What Python writes into the pipe wakes it, whichever thread was
    interrupted.
    """

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
            signal.signal(number, lambda *_: None)

    def now(self) -> None:
        os.write(self._write_end, b"\0")

    def wait(self, continued: Callable[[], None]) -> None:
        while os.read(self._read_end, 1) == bytes([signal.SIGCONT]):
            continued()


def _stop(mount: Engine, tell: Callable[[str], None]) -> None:
    try:
        mount.stop(lazy=False)
    except HbfError:
        tell("the mount is in use: its users get errors from now on")
        mount.stop(lazy=True)


def _set_priority(nice: int, tell: Callable[[str], None]) -> None:
    if not nice:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except PermissionError:
        tell(f"priority {nice} is not permitted; the server runs at {os.getpriority(os.PRIO_PROCESS, 0)}")


def _raise_descriptors() -> None:
    """As many as are permitted: every file that anybody has open takes two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _stop_when_ended(mount: Engine, pacer: Pacer, stop: _Stop) -> None:
    if mount.beats:
        mount.join()
    else:
        heartbeat.watch(pacer, mount.join)
    stop.now()


def _stop_when_stdin_closes(stop: _Stop) -> None:
    sys.stdin.read()
    stop.now()


def _raise_readahead(config: MountConfig, tell: Callable[[str], None]) -> int:
    """Set the mount's readahead and return what the kernel has now, in KiB."""
    file = mountpoint.readahead_file(config.mountpoint)
    usual = DEFAULT_READAHEAD_KIB if config.layout.resident_bytes is None else BUDGET_READAHEAD_KIB
    wanted = config.readahead_kib or usual
    try:
        file.write_text(str(wanted))
    except OSError:
        reached = int(file.read_text())
        if reached < wanted:
            tell(f"readahead stays at {reached} KiB: raising it to {wanted} KiB needs root")
    return int(file.read_text())
