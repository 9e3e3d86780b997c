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
from typing import TYPE_CHECKING

import hbf_fuse
from hbf_fuse import compiled, engine, reaper, signals
from hbf_fuse.engine import Engine
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.filesystem import NO_LAYOUT
from hbf_fuse.fs.kv_files import KvFolder
from hbf_fuse.fs.links import TIER
from hbf_fuse.fs.placement import Layout
from hbf_fuse.host import linux
from hbf_fuse.mount import disk_limit, floor, heartbeat, kv_folder, mountpoint, preload
from hbf_fuse.mount.floor import measure_writing
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.traces import trace
from hbf_fuse.traces.trace import TraceFile

if TYPE_CHECKING:
    from hbf_fuse.engine.memory.service import Service

DEFAULT_READAHEAD_KIB = 4096
BUDGET_READAHEAD_KIB = 1024
"""Used with a resident budget: readahead of 4 MiB, which FADV_SEQUENTIAL doubles, would fill a small one."""


_MOST_BROKEN, _MOST_SAID = 10, 300
_SPARE_TOLD_PCT = 1.0
_KEPT_FOR_MAPPINGS = frozenset({linux.CAP_SYS_PTRACE})
"""With the memory engine: to see what a reader with more capabilities than this process has mapped."""

_KEPT = frozenset(
    {
        linux.CAP_SYS_ADMIN,  # to mount and unmount
        linux.CAP_DAC_READ_SEARCH,  # sources
        linux.CAP_DAC_OVERRIDE,  # a trace in another user's folder
        linux.CAP_FOWNER,  # whether another user's source is cached (mincore(2))
        linux.CAP_NET_BIND_SERVICE,  # --metrics
    }
)
"""The capabilities that a server needs."""


@dataclass(frozen=True)
class MountConfig:
    """The options of a mount. Paths are absolute; the mountpoint is without links.

    readahead_kib: None for the default, which is less with a resident budget.
    layout: which bytes are in which tier. async_dio: see engine.create.
    trace: a file for every read. metrics: "[ADDRESS:]PORT" for Prometheus.
    io_max_mbps: kernel limit on the server's reads of the source, past the page cache; decimal MB/s.
    inject: readers of the memory engine will be traced (hbf exec --inject).
    links: what becomes of links that lead outside, see fs/links.py.
    kv_bytes: size of kv/, None for none. kv_dir: the folder that keeps its files, None for memory.
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
    links: str = TIER
    inject: bool = False
    kv_bytes: int | None = None
    kv_dir: Path | None = None


def serve(
    config: MountConfig,
    when_ready: Callable[[str], None],
    tell: Callable[[str], None],
    until_stdin_closes: bool = False,
) -> None:
    """Mount, call when_ready, and return when the mount has ended: by SIGTERM, SIGINT, SIGHUP or umount.

    when_ready: takes a remark on what is served, or "".
    tell: takes remarks, one line each.
    until_stdin_closes: end then, too: for a mount whose owner may be killed.
    A supervisor such as systemd is told when the mount answers and when it begins to end.
    Raises HbfError if the mount cannot begin.
    """
    of_memory = config.engine == engine.MEMORY
    if config.spec.chunk_bytes and not of_memory:
        raise HbfError("a chunk (--chunk) is what one fault of a mapping brings", "use --engine memory")
    _set_priority(config.priority, tell)
    # Before any thread starts: capabilities are per thread.
    with contextlib.suppress(PermissionError):  # a container may forbid dropping them
        linux.keep_capabilities(_KEPT | _KEPT_FOR_MAPPINGS if of_memory else _KEPT)
    _raise_descriptors()
    linux.share_one_heap()
    with kv_folder.prepared(config.kv_bytes, config.kv_dir, tell) as kv:
        _serve(config, kv, when_ready, tell, until_stdin_closes)


def _serve(
    config: MountConfig,
    kv: KvFolder | None,
    when_ready: Callable[[str], None],
    tell: Callable[[str], None],
    until_stdin_closes: bool,
) -> None:
    limited = config.io_max_mbps is not None
    fs = Filesystem(
        config.source,
        config.spec,
        config.layout,
        uncached=limited,
        links=config.links,
        shared=config.allow_other,
        kv=kv,
    )
    if remark := _spare(fs):
        tell(remark)
    if fs.tree.remark:
        tell(fs.tree.remark)
    for name in fs.served.unplaced:
        tell(f"{name} is not a GGUF: it is served from the one tier, without --place")
    # With a limit, the source is not read beforehand: it must stay cold.
    remark = "" if limited else fs.tree.doubt()
    is_read = limited or (config.preload and preload.into_page_cache(fs.tree, tell))
    if not is_read and (reason := preload.doubt(fs.tree, config.spec)):
        tell(reason)
    _report_broken_threads(fs, tell)
    stop = _Stop()

    def stood_still() -> None:
        counters = fs.served.pacer.counters
        counters.stops, counters.blind_ns = counters.stops + 1, time.monotonic_ns()

    if until_stdin_closes:
        threading.Thread(target=_stop_when_stdin_closes, args=(stop,), daemon=True).start()
    with (
        disk_limit.prepared(fs, config.io_max_mbps, tell) as under_limit,
        mounted_here(fs, config, tell, floor.measure(config.engine)) as mount,
        under_limit,
    ):
        when_ready(remark)
        linux.tell_supervisor(
            "READY=1", f"STATUS=serving {config.source} at {config.mountpoint} ({fs.served.spec})"
        )
        threading.Thread(target=_stop_when_ended, args=(mount, fs.served.pacer, stop), daemon=True).start()
        stop.wait(stood_still)
        linux.tell_supervisor("STOPPING=1")
        if not mount.join(timeout=0):
            _stop(mount, tell)


def _spare(fs: Filesystem) -> str:
    """What is to be told of the over-provisioning of kv/, or ""."""
    planes = fs.served.pacer.tiers.tier.planes
    if planes is None or planes.translation is None:
        return ""
    asked, found = fs.served.spec.spare_pct, planes.translation.spare_pct
    if found <= asked + _SPARE_TOLD_PCT:
        return ""
    return (
        f"kv/ has {found:.3g}% over-provisioning instead of {asked:g}%: it has few blocks in each plane; "
        "more room (--kv) or smaller blocks (--block) come nearer"
    )


def _report_broken_threads(fs: Filesystem, tell: Callable[[str], None]) -> None:
    """A thread that ends with an error would leave no trace: nobody sees a server's stderr."""

    def ended(found: threading.ExceptHookArgs) -> None:
        name = found.thread.name if found.thread else "a thread"
        fs.hidden.broken.append(f"{name}: {found.exc_type.__name__}: {found.exc_value}"[:_MOST_SAID])
        del fs.hidden.broken[_MOST_BROKEN:]
        tell(f"a thread of the server has ended ({fs.hidden.broken[-1]}): please report it")

    threading.excepthook = ended


@contextmanager
def mounted_here(
    fs: Filesystem, config: MountConfig, tell: Callable[[str], None], floor: Floor
) -> Iterator[Engine]:
    """Serve `fs` from threads of this process. Unmounts at the end; if this process is killed, a watcher
    does.

    floor: what this machine adds to a read; see mount/floor.py.
    """
    writing = measure_writing(config.engine) if fs.kv else None
    fs.served.pacer.reckon_with(floor, *(writing or ()))
    fs.hidden.facts["engine"] = config.engine
    if config.engine == engine.MEMORY:
        with _mappings(fs, config.inject, tell) as service, _mounted(fs, config, tell, floor) as mount:
            service.known_as(config.mountpoint.stat().st_dev)
            yield mount
    else:
        with _mounted(fs, config, tell, floor) as mount:
            yield mount


@contextmanager
def _mappings(fs: Filesystem, inject: bool, tell: Callable[[str], None]) -> Iterator["Service"]:
    """The memory engine's side of a mount."""
    from hbf_fuse.engine.memory import floor
    from hbf_fuse.engine.memory.service import Service

    def of_tier(spec: TierSpec) -> Floor:
        return floor.measure(expect.mapped_wait_ms(spec), inject)

    known = of_tier(fs.served.spec)
    if not known.known:
        tell("cannot measure what a fault takes (the machine is too busy): figures are unsure")
    fs.served.mapped = service = Service(fs.served)
    service.reckon_with(known, of_tier)
    with service.door.answering() as place, reaper.watching(socket=str(place)):
        fs.hidden.facts["memory_socket"] = str(place)
        yield service


@contextmanager
def _mounted(
    fs: Filesystem, config: MountConfig, tell: Callable[[str], None], floor: Floor
) -> Iterator[Engine]:
    mount = engine.create(config.engine, fs, config.mountpoint, config.allow_other, config.async_dio)
    with contextlib.ExitStack() as ending, reaper.watching(str(config.mountpoint)) as is_mounted:
        try:
            # A signal between the mount and the note of it would leak the mount.
            with signals.deferred(), mountpoint.claimed(config.mountpoint) as directory:
                if config.trace:
                    fs.hidden.trace = _traced(config.trace, fs)
                    if -1 not in (kept := fs.hidden.trace.descriptors()):
                        ending.enter_context(reaper.watching(reads=kept))
                mount.start(directory, is_mounted)
            _settle(fs, config, tell)
            if not (floor.known and (fs.kv is None or fs.served.pacer.writing.known)):
                tell(
                    "cannot measure what this machine adds to a read or a write (it is too busy): "
                    "figures are unsure unless the tier is busy all the time"
                )
            yield mount
        finally:
            with signals.deferred():
                if not mount.join(timeout=0):
                    mount.stop(lazy=True)
                if fs.hidden.trace:
                    fs.hidden.trace.close()
            if fs.hidden.trace and fs.hidden.trace.stopped:
                tell(f"the trace {config.trace} lacks reads: {fs.hidden.trace.stopped}")


def _settle(fs: Filesystem, config: MountConfig, tell: Callable[[str], None]) -> None:
    """Steps that need an answering mount: readahead, metrics."""
    fs.hidden.facts.update(
        {
            "uncompiled": str(compiled.why_not() or ""),
            "pid": os.getpid(),
            "pid_namespace": linux.pid_namespace(),
            "start_time": linux.start_time(os.getpid()),
            "version": hbf_fuse.__version__,
            "readahead_kib": _raise_readahead(config, tell),
        }
    )
    if config.metrics is not None:
        from hbf_fuse.mount import metrics

        metrics.serve(fs, config.metrics)


def _traced(file: Path, fs: Filesystem) -> TraceFile:
    if not trace.may_be_written(file):
        raise HbfError(f"{file} exists and is not a trace", "name another file (--trace)")
    try:
        return TraceFile(file, fs.hidden.spec_document(), fs.served.ring)
    except BlockingIOError as error:
        raise HbfError(f"another mount is writing the trace {file}", "name another file (--trace)") from error
    except OSError as error:
        raise HbfError(
            f"cannot write the trace {file}: {error.strerror}", "name a file that can be made (--trace)"
        ) from error


class _Stop:
    """What the main thread waits for: SIGTERM, SIGINT, SIGHUP, or a call of now(). Reports SIGCONT.

    A pipe, not an Event or a queue. The kernel may deliver a signal to any thread, but Python runs its
    handler only in the main thread, when that wakes up. In a wait for a lock that may be never (5 of 100
    servers did not end while the machine was busy). Python's write into the pipe wakes the main thread,
    whichever thread was interrupted.
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
    """Raise the descriptor limit to the maximum: every open file takes two."""
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
    """Set the mount's readahead. Returns the kernel's value afterwards, in KiB."""
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
