"""Readers of a tier: processes of their own, each with one read in flight and its own clock."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hbf_fuse.calibrate.plan import GridPoint
from hbf_fuse.engine import MEMORY
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.served import Served
from hbf_fuse.mount import floor, probe
from hbf_fuse.mount.server import MountConfig, mounted_here
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.tier import expect


@dataclass(frozen=True)
class Access:
    """How a reader reaches what is served: its command line, and a descriptor that it inherits."""

    served: Served
    line: list[str]
    fd: int
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def reached(
    source: Path, mountpoint: Path, engine: str, point: GridPoint, known: Floor, tell: Callable[[str], None]
) -> Iterator[Access]:
    """A point's tier, served by an engine from this process. known: its floor. That of mappings depends
    on the tier, and is measured here.
    """
    if engine == MEMORY:
        with _mapped(source, point) as access:
            yield access
        return
    fs = Filesystem(source, point.spec)
    with (
        mounted_here(fs, MountConfig(source, mountpoint, point.spec, engine), tell, known),
        _opened(mountpoint / "model.gguf", os.O_DIRECT) as fd,
    ):
        yield Access(fs.served, probe.command(floor.lean_library(), fd), fd)


@contextmanager
def _mapped(source: Path, point: GridPoint) -> Iterator[Access]:
    from hbf_fuse.engine.memory import door, service
    from hbf_fuse.engine.memory import floor as of_mappings
    from hbf_fuse.engine.memory import probe as touching

    spec = replace(point.spec, chunk_bytes=point.size)
    served = Filesystem(source, spec).served
    served.mapped = mapped = service.Service(served)
    mapped.reckon_with(of_mappings.measure(expect.mapped_wait_ms(spec)))
    with mapped.door.answering() as place, _opened(source) as fd:
        yield Access(served, touching.command(fd), fd, door.environment(place))


@contextmanager
def _opened(file: Path, flags: int = 0) -> Iterator[int]:
    fd = os.open(file, os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def read(access: Access, point: GridPoint, reads: int) -> list[dict[str, Any]]:
    """Start a point's readers at once; what each of them says (see mount/probe.py)."""
    with ExitStack() as stack:
        readers = [_started(access, stack) for _ in range(point.readers)]
        for reader in readers:
            if reader.stdout is None or reader.stdout.readline() != "ready\n":
                raise HbfError("a reader could not begin to read from the mount")
        for start, reader in enumerate(readers):
            if reader.stdin is not None:
                reader.stdin.write(probe.order(point.size, reads, start, point.readers))
                reader.stdin.flush()
        return [_result(reader) for reader in readers]


def _started(access: Access, stack: ExitStack) -> "subprocess.Popen[str]":
    reader = subprocess.Popen(
        access.line,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # If this process dies, the readers fail on the missing mount; their errors are of no use.
        stderr=subprocess.DEVNULL,
        text=True,
        pass_fds=[access.fd],
        env={**os.environ, **access.environment},
        # Ctrl-C is for us: we end the readers.
        start_new_session=True,
    )
    stack.callback(_end, reader)
    return reader


def _result(reader: "subprocess.Popen[str]") -> dict[str, Any]:
    """A reader's times (see probe.py)."""
    result: dict[str, Any] = json.loads(reader.communicate()[0] or "{}")
    if not result:
        raise HbfError("a reader could not read from the mount any more: it was unmounted", "calibrate again")
    return result


def _end(reader: "subprocess.Popen[str]") -> None:
    if reader.poll() is None:
        reader.kill()
    reader.communicate()
