"""Chooses the engine that connects a filesystem to the kernel. Engines translate; they decide nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    # Whoever only asks a mount something needs none of it.
    from hbf_fuse.fs import Filesystem

MEMORY = "memory"
"""The kernel engine, and beside it memory/service.py for mappings."""

ENGINES = ("kernel", "fusepy", MEMORY)


class Engine(Protocol):
    """A filesystem on a mountpoint. start() and stop() raise HbfError; serving happens in threads."""

    beats: bool
    """Whether the engine itself tells the pacer that the server is running; see Pacer.next_beat."""

    def start(self, directory: int, mounted: Callable[[int], None] = lambda number: None) -> None:
        """Mount over the open directory of the mountpoint and serve. Returns when the kernel's first request
        has been answered. mounted: called with the mount's id as soon as there is one.
        """

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the mount has ended, whoever ended it. False if the timeout came first."""

    def stop(self, lazy: bool) -> None:
        """Unmount. HbfError if the mount is busy. lazy: hide a busy mount instead; it ends with its last
        user.
        """


def create(
    name: str, fs: "Filesystem", mountpoint: Path, allow_other: bool, async_dio: bool = False
) -> Engine:
    """The engine by name, or an HbfError that says what its binding needs.

    async_dio: pass on the parts of a large O_DIRECT read at the same time. The price: a reader that is killed
    in such a read ends only when the tier has answered. libfuse 2 does not support it.
    """
    if allow_other:
        mounting.require_user_allow_other()
    if name in ("kernel", MEMORY):
        from hbf_fuse.engine.kernel.engine import KernelEngine

        return KernelEngine(fs, mountpoint, allow_other, async_dio)
    if name == "fusepy":
        from hbf_fuse.engine.fusepy import FusepyEngine

        return FusepyEngine(fs, mountpoint, allow_other)
    raise HbfError(f"unknown engine {name!r}", f"there are: {', '.join(ENGINES)}")
