"""llama-bench from a cold disk, and from a cold mount of its profile."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.disks.target import Target
from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import GgufError, read
from hbf_fuse.host import residency
from hbf_fuse.models import split
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import llama
from hbf_fuse.workload.program import BENCH

OPTIONS = llama.BenchOptions(n_prompt=0, n_gen=1, repack=0)
TIMEOUT_SECONDS = 1200.0


@dataclass(frozen=True)
class Load:
    """Seconds from the first page of the model in the page cache until all were there."""

    real: float
    emulated: float

    @property
    def error_pct(self) -> float:
        return (self.emulated / self.real - 1) * 100


@contextmanager
def mounted(target: Target, spec: TierSpec) -> Iterator[int]:
    """The file on a mount of a tier, open for reads past the page cache."""
    with _mount(target, spec) as file:
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def loads(target: Target, spec: TierSpec, rounds: int) -> list[Load]:
    """llama-bench from both, cold, in turn. HbfError where that cannot be."""
    if not _is_model(target.path):
        raise HbfError(f"{target.path.name} is no model", "name a GGUF")
    if len(split.parts_of(target.path)) > 1:
        raise HbfError(f"{target.path.name} is a part of a split model", "name a model in one file")
    BENCH.find()
    return [_load(target, spec) for _ in range(rounds)]


def _load(target: Target, spec: TierSpec) -> Load:
    real = _seconds(target.path)
    with _mount(target, spec) as file:
        return Load(real, _seconds(file))


def _seconds(file: Path) -> float:
    left = residency.drop(file)
    if left is None:
        raise HbfError(
            f"what of {file.name} is in the page cache cannot be seen", "run as its owner or as root"
        )
    if left:
        raise HbfError(f"{file.name} stays in the page cache, for a process maps it", "end that process")
    with residency.watching(file) as filling:
        llama.run(BENCH.find(), file, OPTIONS, TIMEOUT_SECONDS, shown=file.name)
    if filling.seconds is None:
        raise HbfError(f"{file.name} was never in the page cache as a whole", "free some memory")
    return filling.seconds


@contextmanager
def _mount(target: Target, spec: TierSpec) -> Iterator[Path]:
    """Read ahead as far as on the disk; a large read's parts are in flight together, as they are there."""
    with tempfile.TemporaryDirectory(prefix="hbf-check-") as folder:
        config = MountConfig(
            target.path.absolute(),
            Path(folder).resolve(),
            spec,
            readahead_kib=target.readahead_kib,
            async_dio=True,
        )
        with child.mounted(config) as mountpoint:
            yield mountpoint / target.path.name


def _is_model(path: Path) -> bool:
    try:
        read(path)
    except (GgufError, OSError):
        return False
    return True
